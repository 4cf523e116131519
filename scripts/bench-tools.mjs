// Round trip of `true`, measured in turns in one run (medians):
//   spawn  a local child with pipes, awaited
//   exec   POST /api/v1/tools/exec at home-01, run by office-01
//   exec, limited    the same at depot-01, which limits them from their first instruction (`maxProcesses`)
//   exec, confined   the same at vault-01, which confines commands (Landlock)
//   ssh    `ssh` over a shared connection (ControlMaster), when sshd is installed
//   agent  a streamed answer of an OpenAI-style server, asked here: until its first piece of text
//   handoff          the same server as an agent of office-01, asked by POST /api/v1/handoff at home-01
// Then, some times: from a client at home-01 that goes away to its command at office-01 gone.
// Usage: CLAWMATRIX_BIN=… node scripts/bench-tools.mjs [turns]; BENCH_AUDIT=0 leaves the audit record out,
// BENCH_SSHD names another sshd.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { Child } from '../tests/real/support/child.mjs';
import { folder, freePort, until } from '../tests/real/support/places.mjs';
import { Provider } from '../tests/real/support/provider.mjs';
import { Sidecar } from '../tests/real/support/sidecar.mjs';

const turns = Number(process.argv[2] ?? 200);
const SSHD = process.env.BENCH_SSHD ?? '/usr/sbin/sshd';
const agent = new Agent({ keepAlive: true, maxSockets: 1 });

const server = await Provider.start();
const audit = process.env.BENCH_AUDIT !== '0';
const lends = (nodeId, toolProxy, more = {}) => Sidecar.start({ nodeId, listen: true, listenHost: '127.0.0.1', listenPort: 0, toolProxy: { enabled: true, ...toolProxy }, audit, ...more });
const office = await lends('office-01', {}, { agents: [{ id: 'helper', baseUrl: server.baseUrl, model: 'agent-1' }] });
const depot = await lends('depot-01', { maxProcesses: 4096 });
const vault = await lends('vault-01', { roots: [folder('root')], confine: true });
const nodes = { 'office-01': office, 'depot-01': depot, 'vault-01': vault };
const home = await Sidecar.start({ nodeId: 'home-01', peers: Object.entries(nodes).map(([nodeId, node]) => ({ nodeId, url: `ws://127.0.0.1:${node.endpoint.listenPort}` })) });
await Promise.all(Object.keys(nodes).map((name) => home.peer(name)));
await until('the agent of office-01', 10_000, async () => (await home.json('/api/v1/peers')).some((peer) => peer.agents.length > 0));
const ways = {
  spawn: local,
  exec: () => remote({ argv: ['true'] }),
  'exec, shell': () => remote({ command: 'true' }),
  'exec, limited': () => remote({ node: 'depot-01', argv: ['true'] }),
  'exec, confined': () => remote({ node: 'vault-01', argv: ['true'] }),
  read,
  agent: () => first(server.port, '/v1/chat/completions', { model: 'agent-1', stream: true, messages: [{ role: 'user', content: 'one two three' }] }, /"content":"\w/),
  handoff: () => first(home.endpoint.proxyPort, '/api/v1/handoff', { target: 'office-01/helper', task: 'one two three' }, /"text":"/),
};
const ssh = existsSync(SSHD) ? await sshOver() : null;
if (ssh) ways.ssh = ssh.run;
else console.log(`no ${SSHD}: ssh is not measured`);

const taken = Object.fromEntries(Object.keys(ways).map((name) => [name, []]));
for (let turn = -10; turn < turns; turn += 1) {
  for (const [name, run] of Object.entries(ways)) {
    const began = process.hrtime.bigint();
    await run();
    if (turn >= 0) taken[name].push(Number(process.hrtime.bigint() - began) / 1e6);
  }
}
const at = (list, part) => list.toSorted((a, b) => a - b)[Math.floor(list.length * part)];
console.log(`${turns} turns`);
for (const [name, list] of Object.entries(taken)) {
  const median = at(list, 0.5);
  console.log(`${name.padEnd(14)} median ${median.toFixed(2)} ms  p90 ${at(list, 0.9).toFixed(2)} ms  ${(median / at(taken.spawn, 0.5)).toFixed(2)} x spawn${ssh ? `  ${(median / at(taken.ssh, 0.5)).toFixed(2)} x ssh` : ''}`);
}
const gone = [];
for (let turn = 0; turn < Math.min(turns, 50); turn += 1) gone.push(await abandoned());
console.log(`from a client gone at home-01 to its command gone at office-01: median ${at(gone, 0.5).toFixed(2)} ms  p90 ${at(gone, 0.9).toFixed(2)} ms`);
ssh?.stop();
agent.destroy();
await Promise.all([home, ...Object.values(nodes), server].map((part) => part.stop()));
process.exit(0);

function local() {
  return new Promise((done, failed) => {
    const child = spawn('/bin/true', [], { stdio: ['ignore', 'pipe', 'pipe'] });
    child.on('error', failed);
    child.on('close', (code) => (code === 0 ? done() : failed(new Error(`true ended with ${code}`))));
  });
}

function post(path, body, check) {
  const text = JSON.stringify({ node: 'office-01', ...body });
  return new Promise((done, failed) => {
    const headers = { authorization: `Bearer ${home.token}`, 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
    const sent = request({ host: '127.0.0.1', port: home.endpoint.proxyPort, path, method: 'POST', agent, headers }, (answer) => {
      const parts = [];
      answer.on('data', (part) => parts.push(part));
      answer.on('end', () => (check(JSON.parse(Buffer.concat(parts))) ? done() : failed(new Error(Buffer.concat(parts).toString()))));
    });
    sent.on('error', failed);
    sent.end(text);
  });
}

/** Asks for a stream and waits for what `wanted` matches in it. */
function first(port, path, body, wanted) {
  const text = JSON.stringify(body);
  return new Promise((done, failed) => {
    const headers = { authorization: `Bearer ${home.token}`, accept: 'text/event-stream', 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) };
    let came = '';
    const sent = request({ host: '127.0.0.1', port, path, method: 'POST', agent: false, headers }, (answer) => {
      answer.on('data', (part) => {
        came += part;
        if (wanted.test(came)) done();
      });
      answer.on('end', () => failed(new Error(came)));
    });
    sent.on('error', failed);
    sent.end(text);
  });
}

/** Runs a command, leaves, and says how long it took until the command was gone. */
async function abandoned() {
  const client = new AbortController();
  const answer = await home.fetch('/api/v1/tools/exec', { method: 'POST', signal: client.signal, headers: { accept: 'text/event-stream' }, body: JSON.stringify({ node: 'office-01', command: 'echo $$; exec sleep 60' }) });
  const { value } = await answer.body.getReader().read();
  const pid = Number(/"text":"(\d+)/.exec(Buffer.from(value).toString())[1]);
  const began = process.hrtime.bigint();
  client.abort();
  for (;;) {
    await new Promise((turn) => setImmediate(turn));
    try {
      if (/ Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))) break;
    } catch {
      break;
    }
  }
  return Number(process.hrtime.bigint() - began) / 1e6;
}

function remote(body) {
  return post('/api/v1/tools/exec', body, (answer) => answer.exitCode === 0);
}

function read() {
  return post('/api/v1/tools/read', { path: '/etc/hostname' }, (answer) => answer.outcome === 'completed');
}

async function sshOver() {
  const dir = folder('ssh');
  const port = await freePort();
  for (const name of ['host', 'user']) execFileSync('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-f', join(dir, name)]);
  execFileSync('cp', [join(dir, 'user.pub'), join(dir, 'authorized')]);
  // A home without start-up files: bash reads ~/.bashrc for every command over ssh, which measures that file.
  const config = [`Port ${port}`, 'ListenAddress 127.0.0.1', `HostKey ${join(dir, 'host')}`, `AuthorizedKeysFile ${join(dir, 'authorized')}`, 'StrictModes no', 'UsePAM no', 'PermitRootLogin yes', `SetEnv HOME=${dir}`, `PidFile ${join(dir, 'pid')}`];
  writeFileSync(join(dir, 'sshd_config'), `${config.join('\n')}\n`);
  if (userInfo().uid === 0) execFileSync('mkdir', ['-p', '/run/sshd']);
  const server = new Child(SSHD, ['-D', '-e', '-f', join(dir, 'sshd_config')], {});
  const base = ['-o', `ControlPath=${join(dir, 'c')}`, '-o', 'StrictHostKeyChecking=no', '-o', 'UserKnownHostsFile=/dev/null', '-o', 'LogLevel=ERROR', '-i', join(dir, 'user'), '-p', String(port), '127.0.0.1'];
  const master = await until('ssh to connect', 10_000, () => {
    const child = new Child('ssh', ['-M', '-N', ...base], {});
    return new Promise((done) => setTimeout(() => done(child.running && existsSync(join(dir, 'c')) && child), 500));
  });
  return {
    run: () =>
      new Promise((done, failed) => {
        const child = spawn('ssh', [...base, 'true'], { stdio: ['ignore', 'pipe', 'pipe'] });
        child.on('close', (code) => (code === 0 ? done() : failed(new Error(`ssh ended with ${code}`))));
      }),
    stop: () => {
      master.process.kill();
      server.process.kill();
    },
  };
}
