// Round trip of `true`, measured in turns in one run (medians):
//   spawn  a local child with pipes, awaited
//   exec   POST /api/v1/tools/exec at home-01, run by office-01
//   exec, confined   the same at vault-01, which confines commands (Landlock)
//   ssh    `ssh` over a shared connection (ControlMaster), when sshd is installed
// Usage: CLAWMATRIX_BIN=… node scripts/bench-tools.mjs [turns]; BENCH_AUDIT=0 leaves the audit record out.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, writeFileSync } from 'node:fs';
import { Agent, request } from 'node:http';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { Child } from '../tests/real/support/child.mjs';
import { folder, freePort, until } from '../tests/real/support/places.mjs';
import { Sidecar } from '../tests/real/support/sidecar.mjs';

const turns = Number(process.argv[2] ?? 200);
const SSHD = '/usr/sbin/sshd';
const agent = new Agent({ keepAlive: true, maxSockets: 1 });

const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, toolProxy: { enabled: true }, audit: process.env.BENCH_AUDIT !== '0' });
const vault = await Sidecar.start({ nodeId: 'vault-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, toolProxy: { enabled: true, roots: [folder('root')], confine: true }, audit: process.env.BENCH_AUDIT !== '0' });
const dialed = (name, node) => ({ nodeId: name, url: `ws://127.0.0.1:${node.endpoint.listenPort}` });
const home = await Sidecar.start({ nodeId: 'home-01', peers: [dialed('office-01', office), dialed('vault-01', vault)] });
await Promise.all([home.peer('office-01'), home.peer('vault-01')]);
const ways = { spawn: local, exec: () => remote({ argv: ['true'] }), 'exec, shell': () => remote({ command: 'true' }), 'exec, confined': () => remote({ node: 'vault-01', argv: ['true'] }), read: () => read() };
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
ssh?.stop();
agent.destroy();
await Promise.all([home.stop(), office.stop(), vault.stop()]);
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
