// Tools of another node without OpenClaw: commands and files over a real link, by command line and API.
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { existsSync, linkSync, mkdirSync, mkdtempSync, readFileSync, realpathSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Child } from './support/child.mjs';
import { pair, readEvents } from './support/mesh.mjs';
import { binary, folder, freePort, missing, until } from './support/places.mjs';
import { SECRET, environment } from './support/sidecar.mjs';

const alive = (pid) => {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};

describe('tools of another node', { skip: missing.binary(), timeout: 120_000 }, () => {
  let mesh;
  let lent;
  const fromEnvironment = 'sk-marker-from-the-environment-5d2e';
  before(async () => {
    lent = realpathSync(mkdtempSync(join(folder('lent'), 'root-')));
    mesh = await pair({
      office: { listenPort: await freePort(), drainTimeout: 1, toolProxy: { enabled: true, roots: [lent], deny: ['browser'] } },
      models: [{ id: 'mock-env', baseUrl: 'http://127.0.0.1:9/v1', apiKeyEnv: 'OFFICE_PROVIDER_KEY' }],
      officeEnv: { OFFICE_PROVIDER_KEY: fromEnvironment },
    });
  });
  after(() => mesh?.stop());
  const tool = (verb, body, { events = false, signal } = {}) =>
    mesh.home.fetch(`/api/v1/tools/${verb}`, { method: 'POST', signal, headers: events ? { accept: 'text/event-stream' } : {}, body: JSON.stringify({ node: 'office-01', ...body }) });
  const json = async (verb, body) => {
    const answer = await tool(verb, body);
    return { status: answer.status, ...(await answer.json()) };
  };

  test('the_command_gives_output_and_exit_code', async () => {
    const done = await mesh.home.cli('exec', 'office-01', '-c', 'echo out; echo err >&2; exit 7');
    assert.deepEqual([done.code, done.stdout, done.stderr], [7, 'out\n', 'err\n']);
    const plain = await mesh.home.cli('exec', 'office-01', '--', 'printf', '%s|', 'a b', '$HOME', '--json');
    assert.deepEqual([plain.code, plain.stdout], [0, 'a b|$HOME|--json|']);
    const told = await mesh.home.cli('--json', 'exec', 'office-01', 'true');
    assert.deepEqual([told.code, JSON.parse(told.stdout).outcome], [0, 'completed']);
    const signal = await mesh.home.cli('exec', 'office-01', '-c', 'kill -9 $$');
    assert.deepEqual([signal.code, signal.stderr], [255, 'ended by SIGKILL\n']);
    const late = await mesh.home.cli('exec', 'office-01', '--timeout', '0.2', 'sleep', '9');
    assert.equal(late.code, 255);
    assert.match(late.stderr, /ran out of time/);
    assert.equal((await mesh.home.cli('exec', 'nowhere', 'true')).code, 255);
    assert.equal((await mesh.home.cli('exec', 'office-01')).code, 2);
  });

  // T115: the node holds a secret, a provider's key and one from its own environment; a command of
  // another node sees none of them, neither in its environment nor in the arguments of who started it.
  test('a_command_sees_no_secret_of_its_node', async () => {
    const hidden = [SECRET, mesh.provider.key, fromEnvironment, 'OFFICE_PROVIDER_KEY', mesh.office.token];
    const pid = mesh.office.endpoint.pid;
    assert.ok(readFileSync(`/proc/${pid}/environ`, 'utf8').includes(fromEnvironment), 'the node itself has it');
    const seen = await json('exec', { command: "env; tr '\\0' '\\n' < /proc/self/environ; tr '\\0' '\\n' < /proc/$$/environ; tr '\\0' ' ' < /proc/$PPID/cmdline" });
    assert.deepEqual([seen.exitCode, seen.outcome], [0, 'completed'], JSON.stringify(seen));
    assert.match(seen.stdout, /PATH=/);
    assert.match(seen.stdout, / run --config /);
    for (const marker of hidden) assert.ok(!seen.stdout.includes(marker), `a command sees ${marker}:\n${seen.stdout}`);
  });

  test('files_go_there_and_back', async () => {
    const bytes = Buffer.from([0, 1, 255, 10, 200]);
    const from = join(folder('from'), 'b');
    writeFileSync(from, bytes);
    const wrote = await mesh.home.cli('write', 'office-01', 'sub/b', '--from', from);
    assert.deepEqual([wrote.code, wrote.stdout], [0, '5 bytes written on office-01\n']);
    assert.deepEqual(readFileSync(join(lent, 'sub/b')), bytes);
    const read = spawnSync(binary, ['--state-dir', mesh.home.stateDir, 'read', 'office-01', 'sub/b'], { env: environment() });
    assert.deepEqual(read.stdout, bytes);
    writeFileSync(join(lent, 'text'), 'one two\n');
    const edited = await mesh.home.cli('edit', 'office-01', 'text', '--old', 'two', '--new', '2');
    assert.equal(edited.code, 0, edited.output);
    assert.equal(readFileSync(join(lent, 'text'), 'utf8'), 'one 2\n');
    const again = await mesh.home.cli('edit', 'office-01', 'text', '--old', 'two', '--new', '2');
    assert.equal(again.code, 1);
    assert.match(again.stderr, /not in the file/);
    const listed = await mesh.home.cli('list', 'office-01', '.');
    assert.match(listed.stdout, /sub\/\n.*text\n/);
    const none = await mesh.home.cli('tool', 'office-01', 'web_fetch', '{"url":"x"}');
    assert.match(none.stderr, /no OpenClaw gateway runs there/);
  });

  test('ctrl_c_ends_the_command_there_with_its_children', async () => {
    const pids = join(lent, 'pids');
    const child = new Child(binary, ['--state-dir', mesh.home.stateDir, 'exec', 'office-01', '-c', `echo $$ > ${pids}; (sh -c 'echo $$ >> ${pids}; sleep 300'); :`], { env: environment() });
    child.process.stdin.end();
    const started = await until('two processes', 10_000, () => existsSync(pids) && readFileSync(pids, 'utf8').trim().split('\n').length === 2 && readFileSync(pids, 'utf8').trim().split('\n'));
    const at = Date.now();
    child.process.kill('SIGINT');
    await child.ended;
    assert.equal(child.code, 130, child.output);
    await until('both to be gone', 6000, () => !started.some(alive));
    console.log(`# from Ctrl-C at home to both processes gone at office: ${Date.now() - at} ms`);
  });

  test('events_come_while_it_runs', async () => {
    const answer = await tool('exec', { command: 'echo one; sleep 0.3; echo two' }, { events: true });
    const { events, text } = await readEvents(answer);
    assert.deepEqual(events.slice(0, 2).map((e) => e.text), ['one\n', 'two\n'], text);
    assert.equal(events.at(-1).outcome, 'completed');
  });

  // The table of attempts to get past the rules, with their verdicts.
  test('what_is_not_lent_is_not_reached', async () => {
    const secret = join(mesh.office.stateDir, 'identity.key');
    mkdirSync(join(lent, 'd'));
    writeFileSync(join(lent, 'own'), 'mine');
    symlinkSync(secret, join(lent, 'link'));
    symlinkSync(mesh.office.stateDir, join(lent, 'dir'));
    symlinkSync('/', join(lent, 'slash'));
    linkSync(join(lent, 'own'), join(lent, 'second'));
    let hard = true;
    try {
      linkSync(secret, join(lent, 'hard'));
    } catch {
      hard = false; // another filesystem
    }
    execFileSync('mkfifo', [join(lent, 'fifo')]);
    const rows = [
      ['../x', 400], ['d/../own', 400], ['%2e%2e/x', 400], ['d//own', 400], ['a\0b', 400], ['C:\\x', 400], ['own::$DATA', 400], ['', 400],
      [secret, 403], ['/etc/passwd', 403], ['/proc/self/environ', 403], ['/proc/1/root/etc/passwd', 403], ['/dev/zero', 403], ['link', 403], ['dir/identity.key', 403], ['slash/etc/passwd', 403],
      [`/proc/self/cwd${lent}/own`, 403], ['~/.ssh/id_ed25519', 403], ['fifo', 400], ['d', 400], ...(hard ? [['hard', 403]] : []),
    ];
    const table = [];
    for (const [path, status] of rows) {
      const began = Date.now();
      for (const [verb, more] of [['read', {}], ['write', { content: 'x' }], ['edit', { oldText: 'a', newText: 'b' }]]) {
        const answer = await json(verb, { path, ...more });
        assert.ok(answer.status >= 400 && answer.outcome !== 'completed', `${verb} ${path}: ${JSON.stringify(answer)}`);
        if (verb === 'read') {
          assert.equal(answer.status, status, `${path}: ${JSON.stringify(answer)}`);
          assert.ok(!JSON.stringify(answer).includes(mesh.office.dir) || path.includes(mesh.office.dir), `a path of the node was told: ${JSON.stringify(answer)}`);
          table.push(`${JSON.stringify(path.replace(mesh.office.dir, '<office>').replace(lent, '<root>'))}: ${answer.status} ${/by `([^`]+)`/.exec(answer.error.message)?.[1] ?? answer.error.code}`);
        }
      }
      assert.ok(Date.now() - began < 3000, `${path} took long`);
    }
    console.log(`# ${table.join('\n# ')}`);
    assert.equal(readFileSync(join(lent, 'own'), 'utf8'), 'mine');
    assert.ok(existsSync(secret));
    assert.equal((await json('read', { path: 'second' })).content, 'mine');
  });

  test('the_record_has_every_action_with_its_rule', async () => {
    await json('invoke', { tool: 'browser', args: {} });
    await json('exec', { argv: ['true'] });
    const shown = await until('the record', 10_000, async () => {
      const { stdout } = await mesh.office.cli('--json', 'audit', 'tail', '-n', '200');
      return stdout.includes('toolProxy.deny[0]') && stdout;
    });
    for (const word of ['tool:exec', 'tool:read', 'tool:browser', 'toolProxy.allow', 'toolProxy.roots']) assert.ok(shown.includes(word), word);
    assert.equal((await mesh.office.cli('audit', 'verify')).code, 0);
    assert.ok(!shown.includes('echo one') && !shown.includes(lent), 'arguments are not recorded');
  });

  test('an_open_policy_is_warned_about', async () => {
    const { warnings } = await mesh.office.json('/api/v1/status');
    assert.ok(warnings.some((w) => w.includes('`toolProxy.allow` is open')), JSON.stringify(warnings));
    const doctor = await mesh.office.cli('doctor');
    assert.match(doctor.output, /`toolProxy.allow` is open/);
  });

  // T106
  test('rules_are_read_again_on_sighup_and_a_wrong_file_changes_nothing', async () => {
    const { office } = mesh;
    const good = readFileSync(office.configFile, 'utf8');
    const hangup = () => process.kill(office.endpoint.pid, 'SIGHUP');
    const exec = async () => (await json('exec', { argv: ['true'] })).outcome;
    writeFileSync(office.configFile, good.slice(0, -5));
    hangup();
    const told = await until('the warning', 10_000, async () => (await office.json('/api/v1/status')).warnings.find((w) => w.includes('could not be read again')));
    assert.match(told, /it may be half-written/);
    assert.equal(await exec(), 'completed', 'the old rules are in force');
    const rules = JSON.parse(good);
    rules.toolProxy.deny.push('exec');
    writeFileSync(office.configFile, JSON.stringify(rules));
    hangup();
    await until('the new rules', 10_000, async () => (await exec()) === 'not_dispatched');
    assert.ok(!(await office.json('/api/v1/status')).warnings.some((w) => w.includes('could not be read again')));
    writeFileSync(office.configFile, good);
    hangup();
    await until('the first rules', 10_000, async () => (await exec()) === 'completed');
  });

  test('a_node_that_stops_ends_its_commands_and_says_so', async () => {
    const pid = join(lent, 'stopping');
    const running = tool('exec', { command: `echo $$ > ${pid}; sleep 300` });
    const number = await until('the command to run', 10_000, () => existsSync(pid) && readFileSync(pid, 'utf8').trim());
    const at = Date.now();
    await mesh.office.stop();
    const body = await (await running).json();
    console.log(`# from the stop of office to the answer at home, grace of 1 s included: ${Date.now() - at} ms`);
    assert.deepEqual([body.outcome, body.error.code], ['cancelled', 'cancelled'], JSON.stringify(body));
    assert.ok(!alive(number));
    await mesh.office.up();
    await until('office to be back', 30_000, async () => (await json('read', { path: 'own' })).content === 'mine');
  });

  test('a_killed_node_leaves_the_outcome_unknown_and_does_not_run_it_again', async () => {
    const count = join(lent, 'count');
    const running = tool('exec', { command: `echo ran >> ${count}; sleep 20` });
    await until('the command to run', 10_000, () => existsSync(count));
    mesh.office.child.killNow();
    const at = Date.now();
    const body = await (await running).json();
    console.log(`# from kill -9 of office to the answer at home: ${Date.now() - at} ms`);
    assert.equal(body.outcome, 'outcome_unknown', JSON.stringify(body));
    await mesh.office.up();
    await until('office to be back', 30_000, async () => (await json('read', { path: 'own' })).content === 'mine');
    assert.equal(readFileSync(count, 'utf8'), 'ran\n');
  });
});

describe('questions about the rules', { skip: missing.binary(), timeout: 60_000 }, () => {
  let mesh;
  before(async () => {
    mesh = await pair({
      home: { tags: ['family'] },
      office: {
        trust: { nodes: { 'family-01': { labels: ['family'] } } },
        toolProxy: { enabled: true, roots: ['/usr/share'], rules: [
          { id: 'docs', effect: 'allow', from: ['*'], action: ['tool:read', 'tool:list'], paths: ['/usr/share/**'], limits: { bytesPerDay: 1_000_000, perMinute: 100 } },
          { id: 'private', effect: 'deny', from: ['*'], action: ['tool:*'], paths: ['/usr/share/doc/**'] },
          { id: 'ls', effect: 'allow', from: ['label:family'], minTrust: 'pinned', action: ['tool:exec'], program: ['/usr/bin/*', '/bin/*'], args: 'any' },
        ] },
      },
    });
  });
  after(() => mesh?.stop());

  test('can_tells_the_verdict_and_the_rule_as_a_request_would_get_it', async () => {
    const can = async (...args) => {
      const { code, stdout, stderr } = await mesh.office.cli('can', ...args);
      return `${code} ${stdout}${stderr}`.trim();
    };
    assert.equal(await can('home-01', 'read', 'office-01', '--', '/usr/share'), '0 allow by `docs`, level 0');
    assert.equal(await can('home-01', 'list', 'office-01', '--', '/usr/share/doc'), '1 deny by `private`');
    assert.match(await can('home-01', 'read', 'office-01', '--', '/etc/passwd'), /^1 deny by `default`/);
    assert.match(await can('home-01', 'exec', 'office-01', '--', 'ls', '-l'), /^1 deny by `default`: the caller is not in `from`/);
    assert.equal(await can('family-01', 'exec', 'office-01', '--', 'ls', '-l'), '0 allow by `ls`, level 1');
    assert.match(await can('family-01', 'exec', 'office-01', '--', 'sh', '-c', 'id'), /^1 deny by `default`: such a program needs `dangerous: true`/);
    assert.match(await can('family-01', 'exec', 'office-01', '-c', 'ls | wc'), /^1 deny by `default`/);
    assert.match(await can('home-01', 'cluster_exec', 'office-01'), /^1 deny by `builtin.tools`/);
    assert.match(await can('home-01', 'exec', 'office-01'), /^2 .*say what `exec` would touch/s);
    assert.match(await can('home-01', 'read', 'home-01', '--', '/a'), /ask on the node that would be touched/);
    const asked = await mesh.home.fetch('/api/v1/tools/read', { method: 'POST', body: JSON.stringify({ node: 'office-01', path: '/usr/share/doc' }) });
    assert.match((await asked.json()).error.message, /denied on node `office-01` by `private`/);
  });

  test('what_a_peer_used_of_its_budget_is_shown', async () => {
    const asked = await mesh.home.fetch('/api/v1/tools/list', { method: 'POST', body: JSON.stringify({ node: 'office-01', path: '/usr/share' }) });
    assert.equal(asked.status, 200);
    const used = await mesh.office.cli('usage');
    assert.equal(used.code, 0, used.output);
    assert.match(used.stdout, /^home-01\n {2}rule `docs`: requests in a minute [1-9]\d* of 100, bytes today [1-9]\d{2,} of 1000000\nthe day ends in \d+ h \d+ min\n$/);
    const told = JSON.parse((await mesh.office.cli('--json', 'usage')).stdout);
    assert.deepEqual(told.limits, { perPeer: {}, rules: { docs: { requestsPerMinute: 100, bytesPerDay: 1_000_000 } } });
    assert.equal(told.peers[0].keyId, (await mesh.home.json('/api/v1/status')).keyId);
    const none = await mesh.home.cli('usage');
    assert.deepEqual([none.code, none.stdout], [0, '']);
    assert.match(none.stderr, /nothing is limited/);
  });

  // T95: what a node says of itself is seen and grants nothing; what the operator here says of it does.
  test('a_tag_of_its_own_grants_a_node_nothing', async () => {
    const { office, home } = mesh;
    const ls = async () => (await home.fetch('/api/v1/tools/exec', { method: 'POST', body: JSON.stringify({ node: 'office-01', argv: ['ls', '/'] }) })).json();
    await until('the tag at office', 10_000, async () => (await office.json('/api/v1/peers')).some((peer) => peer.tags?.includes('family')));
    const denied = await ls();
    assert.deepEqual([denied.error?.code, denied.outcome], ['policy_denied', 'not_dispatched'], JSON.stringify(denied));
    const config = JSON.parse(readFileSync(office.configFile, 'utf8'));
    for (const from of ['tag:family', 'tags:family']) {
      config.toolProxy.rules[2].from = [from];
      const file = join(folder('tags'), 'node.json');
      writeFileSync(file, JSON.stringify(config), { mode: 0o600 });
      const refused = await office.cli('doctor', '--config', file);
      assert.match(refused.output, /self-asserted/, refused.output);
    }
    const key = (await home.cli('identity')).stdout.match(/ed25519:\S+|[A-Za-z0-9_-]{43}/)?.[0];
    const added = await office.cli('trust', 'add', 'home-01', key, '--label', 'family');
    assert.equal(added.code, 0, added.output);
    await until('the label to count', 10_000, async () => (await ls()).outcome === 'completed');
  });

  test('policy_test_judges_a_file_of_cases', async () => {
    const file = join(folder('cases'), 'cases.json');
    const write = (cases, more = {}) => writeFileSync(file, JSON.stringify({ ...more, cases }));
    const home = { from: 'home-01', action: 'exec' };
    write([
      { from: 'home-01', action: 'read', path: '/usr/share', expect: 'allow', rule: 'docs' },
      { ...home, argv: ['ls'], expect: 'deny', rule: 'default' },
      { from: 'family-01', action: 'tool:exec', argv: ['ls'], expect: 'allow', rule: 'ls' },
    ]);
    const good = await mesh.office.cli('policy', 'test', file, '--config', mesh.office.configFile);
    assert.deepEqual([good.code, good.stdout.trim().split('\n').at(-1)], [0, '3 cases, 0 wrong'], good.output);
    write([{ ...home, command: 'id | wc', expect: 'allow' }, { ...home, argv: ['id'], expect: 'deny' }], { toolProxy: { enabled: true, ask: ['exec'] } });
    const bad = await mesh.office.cli('policy', 'test', file);
    assert.equal(bad.code, 1);
    assert.match(bad.stdout, /WRONG cases\[0\] home-01 exec: ask by `toolProxy.ask\[0\]`, level 2 \(expected allow\)/);
    write([{ ...home, argv: ['ls'], expect: 'perhaps' }]);
    assert.match((await mesh.office.cli('policy', 'test', file, '--config', mesh.office.configFile)).stderr, /`cases\[0\]` `expect` is/);
    write([], { toolProxy: { enabled: true, rules: [{ id: 'x' }] } });
    assert.equal((await mesh.office.cli('policy', 'test', file)).code, 78);
  });
});
