// Tools across two real gateways: an agent at home whose scripted model calls the cluster tools, what
// office's gateway lends of its own, and what it does not.
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Child, run } from './support/child.mjs';
import { Gateway, openclawProvider } from './support/gateway.mjs';
import { folder, freePort, missing, openclawPrefix, processesUnder, root, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { SECRET } from './support/sidecar.mjs';

const skip = missing.openclaw() || missing.tarball();
const noPython = (await run('sh', ['-c', 'command -v python3'])).code === 0 ? false : 'python3 is missing';

describe('tools of two gateways', { skip, timeout: 720_000 }, () => {
  let provider;
  let office;
  let home;
  let lent;
  let postbox;
  before(async () => {
    provider = await Provider.start({ key: 'sk-tools' });
    lent = realpathSync(mkdtempSync(join(folder('lent'), 'root-')));
    const meshPort = await freePort();
    const gateway = (name) =>
      Gateway.create(name, {
        models: { providers: { acme: openclawProvider(provider, [{ id: 'mock-1', name: 'Mock' }]) } },
        agents: { defaults: { model: { primary: 'acme/mock-1' } } },
        tools: { toolSearch: false },
      });
    office = await gateway('office-tools');
    home = await gateway('home-tools');
    const tools = { tools: { alsoAllow: ['clawmatrix'] } };
    await Promise.all([
      office.installPlugin({
        nodeId: 'office-01', secret: SECRET, listen: true, listenHost: '127.0.0.1', listenPort: meshPort, proxyPort: 0,
        toolProxy: { enabled: true, roots: [lent], deny: ['web_search'] },
      }, tools),
      home.installPlugin({ nodeId: 'home-01', secret: SECRET, proxyPort: 0, peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${meshPort}` }] }, tools),
    ]);
    // A channel as others write them, for the notice of what waits.
    const posted = await office.openclaw('plugins', 'install', join(root, 'tests/real/support/postbox'), '--force', '--accept-capabilities');
    assert.equal(posted.code, 0, posted.output);
    postbox = join(office.dir, 'postbox.jsonl');
    await office.patch({ channels: { postbox: { file: postbox } } });
    await Promise.all([office.start(), home.start()]);
    await until('office to be seen', 30_000, async () => (await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01')?.connected);
  });
  after(async () => {
    const dirs = [office?.dir, home?.dir].filter(Boolean);
    await Promise.all([office?.stop(), home?.stop(), provider?.stop()]);
    for (const dir of dirs) assert.deepEqual(processesUnder(dir), [], 'a stopped gateway left a process behind');
  });
  const asks = (name, args) => home.turn(`please [[tool:${name} ${JSON.stringify(args)}]]`);
  const invoke = async (tool, args = {}) => {
    const answer = await home.api('/api/v1/tools/invoke', { method: 'POST', body: JSON.stringify({ node: 'office-01', tool, args }) });
    return { status: answer.status, ...(await answer.json()) };
  };

  test('an_agent_runs_a_command_reads_and_writes', async () => {
    const ran = await asks('cluster_exec', { node: 'office-01', command: 'echo from $(pwd); exit 4' });
    assert.match(ran.text, new RegExp(`tool said: from ${lent}\\n.*\\[exit code 4\\]`, 's'), ran.raw);
    const wrote = await asks('cluster_write', { node: 'office-01', path: 'note.txt', content: 'water the plants' });
    assert.match(wrote.text, /created note.txt on office-01, 16 bytes/, wrote.raw);
    assert.equal(readFileSync(join(lent, 'note.txt'), 'utf8'), 'water the plants');
    const read = await asks('cluster_read', { node: 'office-01', path: 'note.txt' });
    assert.match(read.text, /tool said: water the plants/, read.raw);
    const listed = await asks('cluster_tool', { node: 'office-01', tool: 'list', args: { path: '.' } });
    assert.match(listed.text, /note\.txt/, listed.raw);
  });

  test('refusals_are_told_in_words_a_model_can_act_on', async () => {
    const outside = await asks('cluster_read', { node: 'office-01', path: '/etc/passwd' });
    assert.match(outside.text, /denied by `toolProxy.roots`.*do not try again/s, outside.raw);
    const key = await asks('cluster_read', { node: 'office-01', path: join(office.stateDir, 'clawmatrix/identity.key') });
    assert.match(key.text, /toolProxy.roots|builtin.paths/, key.raw);
    const back = await home.turn('[[tool:cluster_exec {"node":"home-01","command":"touch never"}]]');
    assert.match(back.text, /denied on node `home-01` by `toolProxy.enabled`/, back.raw);
    const nowhere = await asks('cluster_exec', { node: 'attic', command: 'id' });
    assert.match(nowhere.text, /no node fits `attic`.*`office-01`/s, nowhere.raw);
    const late = await asks('cluster_exec', { node: 'office-01', command: 'echo begun; sleep 30', timeout: 1 });
    assert.match(late.text, /ran out of time.*begun/s, late.raw);
  });

  test('an_aborted_turn_ends_the_command_at_office', async () => {
    const pid = join(lent, 'pid');
    const abort = new AbortController();
    const content = `[[tool:cluster_exec ${JSON.stringify({ node: 'office-01', command: `echo $$ > ${pid}; sleep 300` })}]]`;
    const running = home
      .post('/v1/chat/completions', { model: 'openclaw', stream: true, messages: [{ role: 'user', content }] }, { signal: abort.signal })
      .then((a) => a.text())
      .catch(() => {});
    const number = await until('the command to run', 60_000, () => existsSync(pid) && readFileSync(pid, 'utf8').trim());
    const at = Date.now();
    abort.abort();
    await until('it to be gone', 10_000, () => !existsSync(`/proc/${number}`));
    console.log(`# from abort of the turn at home to the process gone at office: ${Date.now() - at} ms`);
    await running;
  });

  test('other_tools_are_run_by_the_gateway_under_its_own_rules', async () => {
    const status = await invoke('session_status');
    assert.equal(status.status, 200, JSON.stringify(status));
    assert.ok(status.result, JSON.stringify(status));
    const listed = await asks('cluster_tool', { node: 'office-01', tool: 'agents_list', args: {} });
    assert.match(listed.text, /main/, listed.raw);
    const missing = await invoke('gateway', { action: 'config.get' });
    assert.deepEqual([missing.status, missing.outcome], [404, 'not_dispatched'], JSON.stringify(missing));
    assert.match(missing.error.message, /`gateway.tools.allow`/);
    const denied = await invoke('web_search', { query: 'x' });
    assert.deepEqual([denied.status, denied.error.code], [403, 'policy_denied'], JSON.stringify(denied));
    assert.match(denied.error.message, /`toolProxy.deny\[0\]`/);
  });

  test('no_tool_leads_past_the_rules', async () => {
    const made = join(lent, 'past-the-rules');
    const command = `touch ${made}`;
    for (const [tool, args] of [
      ['cluster_exec', { node: 'office-01', command }],
      ['openclaw:clawmatrix:cluster_exec', { node: 'office-01', command }],
      ['tool_call', { id: 'exec', args: { command } }],
      ['tool_call', { id: 'cluster_exec', args: { node: 'office-01', command } }],
      ['tool_search_code', { code: 'x' }],
    ]) {
      const answer = await invoke(tool, args);
      assert.deepEqual([answer.status, answer.error.code], [403, 'policy_denied'], JSON.stringify(answer));
    }
    // Names OpenClaw's own tools have: never over HTTP.
    for (const tool of ['process', 'apply_patch', 'bash', 'Exec']) {
      const answer = await invoke(tool, { command });
      assert.ok(answer.status >= 400, JSON.stringify(answer));
    }
    assert.ok(!existsSync(made));
  });

  // The person is at office's terminal, with the same command as there is beside the gateway.
  test('a_command_waits_for_a_person_and_the_agent_is_told_so', { skip: noPython }, async () => {
    const keyFile = join(office.dir, 'home/operator.key');
    const passphrase = 'three grey herons wait';
    const approvals = (line, ...asked) =>
      run('python3', [join(root, 'tests/real/support/typed.py'), 'sh', '-c', `openclaw clawmatrix approvals ${line} --key ${keyFile}`], { env: office.env, input: JSON.stringify(asked) });
    const enrolled = await approvals('enroll', ['Passphrase:', passphrase], ['again:', passphrase]);
    assert.equal(enrolled.code, 0, enrolled.output);
    const entry = JSON.parse(/^\{[\s\S]*?^\}/m.exec(enrolled.stdout.replaceAll('\r', ''))[0]);
    const settings = (config) => office.patch({ plugins: { entries: { clawmatrix: { config } } } });
    await settings({ approvals: { ...entry.approvals, notify: { channel: 'postbox', to: 'me' } }, toolProxy: { ask: ['exec'] } });
    await until('office to know its operator', 60_000, async () => /nothing waits/.test((await approvals('list')).stdout));
    await until('office to be back', 60_000, async () => (await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01')?.connected);

    const node = join(openclawPrefix, 'node_modules/.bin/node');
    const asked = { node: 'office-01', command: 'echo water the $((40 + 2)) plants' };
    const turn = new Child(node, [join(root, 'tests/real/support/tool-events.mjs'), join(openclawPrefix, 'node_modules/openclaw'), `ws://127.0.0.1:${home.port}`],
      { env: home.env, input: `please [[tool:cluster_exec ${JSON.stringify(asked)}]]` });
    const told = () => turn.stdout.split('\n').filter(Boolean).map((line) => JSON.parse(line));
    await until('the agent to be told of the wait', 60_000, () => {
      assert.ok(turn.running, turn.output);
      return told().some((e) => e.phase === 'update' && e.name === 'cluster_exec' && JSON.stringify(e.partialResult).includes('waiting for approval on office-01'));
    });
    const id = /([0-9a-f]{8}) {2}home-01 wants tool:exec on office-01/.exec((await approvals('list')).stdout)?.[1];
    assert.ok(!told().some((e) => e.phase === 'result'), turn.stdout);
    // A person who sits at no terminal is told by a channel of the gateway, without what is asked.
    const notices = await until('the notice', 30_000, () => existsSync(postbox) && readFileSync(postbox, 'utf8').trim().split('\n').map((line) => JSON.parse(line)));
    assert.equal(notices[0].to, 'me');
    assert.match(notices[0].text, new RegExp(`${id}: node home-01 wants tool:exec on node office-01 \\(level 2, \\d+ s left\\)`));
    assert.ok(!notices[0].text.includes('plants'), notices[0].text);
    const approved = await approvals(`approve ${id}`, ['Passphrase', passphrase]);
    assert.equal(approved.code, 0, approved.output);
    await turn.ended;
    const end = told().at(-1);
    assert.equal(end.phase, 'final', turn.output);
    assert.match(end.message.content[0].text, /tool said: water the 42 plants[\s\S]*exit code 0/, turn.output);

    const refused = home.turn(`[[tool:cluster_exec ${JSON.stringify(asked)}]]`);
    const other = await until('the next request', 60_000, async () => /([0-9a-f]{8}) {2}home-01 wants/.exec((await approvals('list')).stdout)?.[1]);
    assert.equal((await approvals(`deny ${other}`)).code, 0);
    assert.match((await refused).text, /said no.*Do not try again/s);
    await settings({ approvals: null, toolProxy: { ask: null } });
    await until('office to ask nobody any more', 60_000, async () => (await invoke('exec', { command: 'true' })).status === 200);
  });

  test('through_tool_search_the_tools_are_called_too', async () => {
    await home.patch({ tools: { toolSearch: null } });
    await until('tool search to be on', 30_000, async () => {
      await home.turn('which tools do you have');
      return provider.requests.at(-1).body.tools.some((t) => t.function.name === 'tool_call');
    });
    const byName = (id, args) => home.turn(`[[tool:tool_call ${JSON.stringify({ id, args })}]]`);
    writeFileSync(join(lent, 'found'), 'by search');
    assert.match((await byName('cluster_exec', { node: 'office-01', command: 'cat found' })).text, /by search.*exit code 0/s);
    assert.match((await byName('cluster_read', { node: 'office-01', path: 'found' })).text, /by search/);
    assert.match((await byName('cluster_write', { node: 'office-01', path: 'found', content: 'anew' })).text, /replaced found/);
    assert.match((await byName('cluster_tool', { node: 'office-01', tool: 'read', args: { path: 'found' } })).text, /anew/);
  });

  test('a_gateway_that_ends_during_a_tool_ends_its_command', async () => {
    const pid = join(lent, 'pid2');
    const body = JSON.stringify({ node: 'office-01', command: `echo $$ > ${pid}; sleep 300` });
    const running = home.api('/api/v1/tools/exec', { method: 'POST', body }).then((a) => a.json());
    const number = await until('the command to run', 30_000, () => existsSync(pid) && readFileSync(pid, 'utf8').trim());
    await office.stop();
    const answer = await running;
    assert.ok(['outcome_unknown', 'failed', 'cancelled'].includes(answer.outcome), JSON.stringify(answer));
    await until('it to be gone', 10_000, () => !existsSync(`/proc/${number}`));
  });
});
