// A person approves what another node wants here: by the command line, at a terminal, as the docs say.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, realpathSync, statSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { tagged } from './support/blocks.mjs';
import { Child, run } from './support/child.mjs';
import { binary, folder, freePort, missing, root, until } from './support/places.mjs';
import { Sidecar, environment } from './support/sidecar.mjs';

const OPERATIONS = 'docs/operations.md';
const PASSPHRASE = 'three grey herons wait';
const noPython = (await run('sh', ['-c', 'command -v python3'])).code === 0 ? false : 'python3 is missing';

describe('a person approves', { skip: missing.binary() || noPython, timeout: 240_000 }, () => {
  let office;
  let home;
  let lent;
  let env;
  let keyFile;
  let watch;
  before(async () => {
    lent = realpathSync(mkdtempSync(join(folder('lent'), 'root-')));
    office = new Sidecar({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: await freePort(), llmGuard: true,
      toolProxy: { enabled: true, roots: [lent], ask: ['exec', 'read'], maxOutputBytes: 16 << 20 } });
    env = environment({ HOME: office.dir, PATH: `${dirname(binary)}:${process.env.PATH}`, CLAWMATRIX_STATE_DIR: office.stateDir });
    for (const name of ['XDG_CONFIG_HOME', 'XDG_STATE_HOME']) delete env[name];
    keyFile = join(office.dir, '.config/clawmatrix/operator.key');
  });
  after(async () => {
    await Promise.all([home?.stop(), office?.stop()]);
  });

  /** Runs a command of the docs at a terminal; `asked` is what it asks and what is typed. */
  const typed = (command, ...asked) => typedBy(env, command, ...asked);
  async function typedBy(env, command, ...asked) {
    const args = [join(root, 'tests/real/support/typed.py'), 'sh', '-c', command];
    const child = new Child('python3', args, { env, input: JSON.stringify(asked) });
    const timer = setTimeout(() => child.killNow(), 60_000);
    await child.ended;
    clearTimeout(timer);
    return child;
  }
  const commands = () => tagged(OPERATIONS, 'bash', 'approvals')[0].trim().split('\n');
  const start = (...args) => new Child(binary, ['--state-dir', home.stateDir, ...args], { env: environment(), input: '' });
  const waiting = () => until('a request that waits', 15_000, async () => {
    const { stdout } = await typed(`${commands()[0]}`);
    return /^([0-9a-f]{8}) {2}home-01 wants/m.exec(stdout.replaceAll('\r', ''))?.[1];
  });

  test('enroll_makes_a_key_that_only_the_passphrase_opens', async () => {
    const enroll = tagged(OPERATIONS, 'bash', 'approvals-enroll')[0].trim();
    const done = await typed(`${enroll} --config ${office.configFile}`, ['Passphrase:', 'short'], ['Passphrase:', PASSPHRASE], ['again:', `${PASSPHRASE}s`], ['Passphrase:', PASSPHRASE], ['again:', PASSPHRASE]);
    assert.equal(done.code, 0, done.output);
    assert.match(done.stdout, /fewer than 12 characters/);
    assert.match(done.stdout, /They differ/);
    assert.ok(!done.stdout.includes(PASSPHRASE), 'what is typed is not shown');
    assert.equal(statSync(keyFile).mode & 0o777, 0o600);
    const settings = JSON.parse(readFileSync(office.configFile, 'utf8'));
    assert.equal(settings.approvals.operators.length, 1);
    assert.equal(settings.nodeId, 'office-01', 'the rest is kept');
    assert.match(done.stdout, /counts from the next start of the node on, or once SIGHUP/);
    assert.equal((await typed(enroll)).code, 1, 'a key that is there is not replaced');
    const inside = await typed(`${enroll} --key ${join(office.stateDir, 'operator.key')}`);
    assert.equal(inside.code, 2, inside.output);
    const piped = await run('setsid', ['-w', binary, 'approvals', 'enroll', '--print', '--key', join(office.dir, 'other.key')], { env, input: `${PASSPHRASE}\n${PASSPHRASE}\n` });
    assert.equal(piped.code, 1, piped.output);
    assert.match(piped.stderr, /cannot ask at the terminal/);
    assert.ok(!existsSync(join(office.dir, 'other.key')));
    await office.up();
    home = await Sidecar.start({ nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] });
    await home.peer('office-01');
  });

  test('a_command_waits_is_shown_approved_and_runs', async () => {
    watch = new Child('sh', ['-c', `exec ${tagged(OPERATIONS, 'bash', 'events')[0].trim()}`], { env, input: '' });
    await until('somebody who watches', 15_000, async () => {
      assert.equal((await home.cli('list', 'office-01', '.')).code, 0);
      return watch.stdout.includes('request_ended');
    });
    const asking = start('exec', 'office-01', '--timeout', '1', '--', 'sh', '-c', 'echo \u001b[2J; exit 7');
    await until('the word of the wait', 15_000, () => asking.stderr.includes('waiting for approval on office-01'));
    const id = await waiting();
    const [, show, approve] = commands().map((line) => line.replace('1f2e3d4c', id));
    const shown = await typed(show);
    assert.match(shown.stdout, /Touches: +"\/\S+sh" "-c" "echo \\u\{1b\}\[2J; exit 7"/, shown.output);
    assert.ok(!shown.stdout.includes('\u001b'), 'nothing of it reaches the terminal');
    const wrong = await typed(approve, ['Passphrase', `${PASSPHRASE}s`]);
    assert.equal(wrong.code, 1, wrong.output);
    assert.match(wrong.stdout, /does not open the key/);
    const given = await typed(approve, ['Passphrase', '\u0003']);
    assert.equal(given.code, 130, given.output);
    assert.ok(asking.running);
    const done = await typed(approve, ['Passphrase', PASSPHRASE]);
    assert.equal(done.code, 0, done.output);
    await asking.ended;
    assert.deepEqual([asking.code, asking.stdout], [7, '\u001b[2J\n'], asking.output);
    assert.match(asking.stderr, /approved on office-01/);
    const again = await typed(approve, ['Passphrase', PASSPHRASE]);
    assert.match(again.stdout, /decided before/, again.output);
    await until('the record', 10_000, async () => (await office.cli('--json', 'audit', 'tail', '-n', '50')).stdout.includes('approved by'));
  });

  test('a_long_file_comes_whole_after_the_wait', async () => {
    // More than a stream of events holds otherwise.
    const text = 'abcdefghijklmno\n'.repeat(600_000);
    writeFileSync(join(lent, 'long'), text);
    const asking = start('read', 'office-01', 'long');
    await until('the word of the wait', 15_000, () => asking.stderr.includes('waiting for approval on office-01'));
    const done = await typed(commands()[2].replace('1f2e3d4c', await waiting()), ['Passphrase', PASSPHRASE]);
    assert.equal(done.code, 0, done.output);
    await asking.ended;
    assert.equal(asking.code, 0, asking.stderr);
    assert.ok(asking.stdout === text, `${asking.stdout.length} of ${text.length} bytes`);
  });

  test('a_denial_and_a_caller_that_leaves_run_nothing', async () => {
    const denied = start('exec', 'office-01', '--', 'touch', join(lent, 'denied'));
    const id = await waiting();
    assert.equal((await typed(`clawmatrix approvals deny ${id}`)).code, 0);
    await denied.ended;
    assert.equal(denied.code, 255);
    assert.match(denied.stderr, /said no/);
    const left = start('exec', 'office-01', '--', 'touch', join(lent, 'left'));
    const other = await waiting();
    left.process.kill('SIGINT');
    await left.ended;
    assert.equal(left.code, 130);
    await until('nothing to wait', 10_000, async () => (await typed('clawmatrix approvals list')).stdout.includes('nothing waits'));
    const late = await typed(`clawmatrix approvals approve ${other}`, ['Passphrase', PASSPHRASE]);
    assert.equal(late.code, 1, late.output);
    assert.ok(!existsSync(join(lent, 'denied')) && !existsSync(join(lent, 'left')));
    for (const [what, seen] of [['approved', 1], ['denied', 1], ['withdrawn', 1]]) {
      await until(`${what} among the events`, 5000, async () => watch.stdout.split(`home-01 -> office-01 tool:exec ${what}\n`).length === seen + 1);
    }
    assert.match(watch.stdout, /approval_asked +[0-9a-f]{8} home-01 -> office-01 tool:exec, level 2\n/);
    assert.ok(!/touch|sh" "-c|lent/.test(watch.stdout), `contents are not told: ${watch.stdout}`);
  });

  // llmGuard: a session names an agent.
  test('what_a_model_asks_for_alone_waits_and_is_dropped_by_a_restart', async () => {
    const body = JSON.stringify({ node: 'office-01', path: 'made', content: 'x' });
    const asked = await home.fetch('/api/v1/tools/write', { method: 'POST', headers: { 'x-clawmatrix-session': 'agent:main:main' }, body });
    const told = await asked.json();
    assert.deepEqual([asked.status, told.state, told.nodeId], [202, 'approval_pending', 'office-01']);
    const id = await waiting();
    assert.ok(!existsSync(join(lent, 'made')));
    // No token of the gateway or the node gets there.
    for (const token of [office.token, readFileSync(join(office.stateDir, 'openclaw.token'), 'utf8').trim()]) {
      for (const method of ['GET', 'POST']) {
        const said = method === 'POST' ? JSON.stringify({ decision: 'deny' }) : undefined;
        assert.equal((await office.fetch(`/api/v1/approvals/${id}`, { method, headers: { authorization: `Bearer ${token}` }, body: said })).status, 403);
      }
    }
    await office.stop();
    await watch.ended;
    assert.deepEqual([watch.code, watch.stderr.split('\n')[0]], [1, 'error: the node has stopped']);
    const lost = await until('the end of the request', 45_000, async () => {
      const shown = await home.json(`/api/v1/tools/${told.id}`);
      return shown.state === 'done' && shown;
    });
    assert.equal(lost.error.code, 'shutting_down', JSON.stringify(lost));
    // Whoever can write into the state folder gets no scope by it.
    const tokens = join(office.stateDir, 'tokens.json');
    writeFileSync(tokens, JSON.stringify({ tokens: [{ name: 'agent', scopes: ['approve'], created: 1, sha256: '2a97516c354b68848cdbd8f54a226a0a55b21ed138e207ad6c5cbb9c00aa5aea' }] }), { mode: 0o600 });
    await office.up();
    assert.equal((await office.fetch('/api/v1/approvals', { headers: { authorization: 'Bearer demo' } })).status, 403);
    assert.match((await typed('clawmatrix approvals list')).stdout, /nothing waits/);
    assert.ok(!existsSync(join(lent, 'made')));
  });

  test('an_operator_that_is_removed_decides_nothing_more_at_once', async () => {
    await home.peer('office-01', 30_000);
    const asking = start('exec', 'office-01', '--', 'touch', join(lent, 'taken-back'));
    const id = await waiting();
    const settings = JSON.parse(readFileSync(office.configFile, 'utf8'));
    const { operators } = settings.approvals;
    const reload = async (list, seen) => {
      writeFileSync(office.configFile, JSON.stringify({ ...settings, approvals: { operators: list } }), { mode: 0o600 });
      process.kill(office.endpoint.pid, 'SIGHUP');
      await until('the new operators', 10_000, async () => seen.test((await typed('clawmatrix approvals list')).stdout));
    };
    await reload([], /the node does not know this operator key/);
    for (const command of [`show ${id}`, `approve ${id}`, `deny ${id}`]) {
      const refused = await typed(`clawmatrix approvals ${command}`);
      assert.equal(refused.code, 1, refused.output);
      assert.match(refused.stdout, /the node does not know this operator key[\s\S]*SIGHUP/);
    }
    assert.ok(asking.running);
    await reload(operators, /home-01 wants/);
    assert.equal((await typed(`clawmatrix approvals approve ${id}`, ['Passphrase', PASSPHRASE])).code, 0);
    await asking.ended;
    assert.equal(asking.code, 0, asking.output);
    assert.match(office.child.output, /other operator keys may approve/);
  });

  test('a_person_at_another_machine_approves', async () => {
    const there = environment({ HOME: home.dir, PATH: `${dirname(binary)}:${process.env.PATH}`, CLAWMATRIX_STATE_DIR: home.stateDir });
    for (const name of ['XDG_CONFIG_HOME', 'XDG_STATE_HOME']) delete there[name];
    const enroll = tagged(OPERATIONS, 'bash', 'approvals-enroll')[0].trim();
    const enrolled = await typedBy(there, `${enroll} --config ${home.configFile}`, ['Passphrase:', PASSPHRASE], ['again:', PASSPHRASE]);
    assert.equal(enrolled.code, 0, enrolled.output);
    assert.match(enrolled.stdout, new RegExp(`kill -HUP ${home.endpoint.pid}\\b`));
    const printed = await run('sh', ['-c', tagged(OPERATIONS, 'bash', 'approvals-key')[0].trim()], { env: there });
    const { key } = JSON.parse(printed.stdout).approvals.operators[0];
    // As the two blocks of the docs have it.
    const [atOffice, atHome] = tagged(OPERATIONS, 'json', 'config approvers').map((text) => JSON.parse(text).approvals);
    const change = (node, wanted) => {
      const settings = JSON.parse(readFileSync(node.configFile, 'utf8'));
      writeFileSync(node.configFile, JSON.stringify({ ...settings, approvals: { ...settings.approvals, ...wanted } }), { mode: 0o600 });
      process.kill(node.endpoint.pid, 'SIGHUP');
    };
    change(home, { approvesFor: atHome.approvesFor });
    change(office, { approvers: atOffice.approvers, operators: [{ ...atOffice.operators[0], key }] });
    await until('office to have read it', 10_000, async () => /does not know/.test((await typed('clawmatrix approvals list')).stdout));
    const asking = start('exec', 'office-01', '--', 'sh', '-c', 'echo from afar');
    const id = await until('the request at home', 15_000, async () => {
      const { stdout } = await typedBy(there, commands()[0]);
      return /^([0-9a-f]{8}) {2}home-01 wants tool:exec on office-01: /m.exec(stdout.replaceAll('\r', ''))?.[1];
    });
    const [, show, approve] = commands().map((line) => line.replace('1f2e3d4c', id));
    assert.match((await typedBy(there, show)).stdout, /Action: +tool:exec on office-01, another node/);
    assert.match((await home.cli('status')).stdout, /a request of other nodes waits for a person/);
    const wrong = await typedBy(there, approve, ['Passphrase', `${PASSPHRASE}s`]);
    assert.match(wrong.stdout, /does not open the key/);
    const done = await typedBy(there, approve, ['Passphrase', PASSPHRASE]);
    assert.equal(done.code, 0, done.output);
    await asking.ended;
    assert.deepEqual([asking.code, asking.stdout], [0, 'from afar\n'], asking.output);
    const denied = start('exec', 'office-01', '--', 'touch', join(lent, 'denied-from-afar'));
    const other = await until('the next at home', 15_000, async () => /^([0-9a-f]{8}) /m.exec((await typedBy(there, commands()[0])).stdout)?.[1]);
    assert.equal((await typedBy(there, `clawmatrix approvals deny ${other}`)).code, 0);
    await denied.ended;
    assert.equal(denied.code, 255, denied.output);
    assert.ok(!existsSync(join(lent, 'denied-from-afar')));
  });
});
