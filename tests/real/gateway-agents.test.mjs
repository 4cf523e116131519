// Agents across two real gateways: handoffs and messages, asked by an agent of home whose scripted model
// calls the cluster tools, and over the local API.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { after, before, describe, test } from 'node:test';
import { Gateway, openclawProvider } from './support/gateway.mjs';
import { readEvents } from './support/mesh.mjs';
import { freePort, missing, processesUnder, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { SECRET } from './support/sidecar.mjs';

const skip = missing.openclaw() || missing.tarball();
const parent = (pid) => Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
const flat = (m) => (typeof m.content === 'string' ? m.content : (m.content ?? []).map((c) => c.text ?? '').join(''));
/** Everything the model at hand was told. */
const told = (record) => record.body.messages.map(flat).join('\n');

describe('agents of two gateways', { skip, timeout: 420_000 }, () => {
  let atOffice;
  let atHome;
  let office;
  let home;
  before(async () => {
    atOffice = await Provider.start({ key: 'sk-office' });
    atHome = await Provider.start({ key: 'sk-home' });
    const meshPort = await freePort();
    const gateway = (name, provider, more = {}) =>
      Gateway.create(name, {
        models: { providers: { acme: openclawProvider(provider, [{ id: 'mock-1', name: 'Mock' }]) } },
        agents: { defaults: { model: { primary: 'acme/mock-1' } }, ...more.agents },
        tools: { toolSearch: false },
      });
    office = await gateway('office-agents', atOffice, { agents: { entries: { main: { default: true }, narrow: {} } } });
    home = await gateway('home-agents', atHome);
    const tools = { tools: { alsoAllow: ['clawmatrix'] } };
    await Promise.all([
      office.installPlugin({
        nodeId: 'office-01', secret: SECRET, listen: true, listenHost: '127.0.0.1', listenPort: meshPort, proxyPort: 0,
        agents: [{ id: 'main', description: 'office work' }, { id: 'narrow', tools: ['session_status'] }],
      }, tools),
      home.installPlugin({
        nodeId: 'home-01', secret: SECRET, proxyPort: 0, peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${meshPort}` }], agents: [{ id: 'main' }],
      }, tools),
    ]);
    await Promise.all([office.start(), home.start()]);
    await until('office to be seen', 30_000, async () => (await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01')?.agents.length === 2);
    await until('home to be seen', 30_000, async () => (await office.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'home-01')?.agents.length === 1);
  });
  after(async () => {
    const dirs = [office?.dir, home?.dir].filter(Boolean);
    await Promise.all([office?.stop(), home?.stop(), atOffice?.stop(), atHome?.stop()]);
    for (const dir of dirs) assert.deepEqual(processesUnder(dir), [], 'a stopped gateway left a process behind');
  });

  const handoff = (body, { events = false, signal } = {}) =>
    home.api('/api/v1/handoff', { method: 'POST', signal, headers: events ? { accept: 'text/event-stream' } : {}, body: JSON.stringify(body) });
  /** The newest request at office whose model was told `text`. */
  const askedAtOffice = (text) => atOffice.request((r) => r.body?.messages && told(r).includes(text), 60_000);

  test('text_of_the_remote_agent_streams', async () => {
    await (await handoff({ target: 'office-01/main', task: 'warm up' })).json();
    const began = Date.now();
    const answer = await handoff({ target: 'office-01/main', task: 'good morning [[say one two three four]] [[slow 40]]', context: 'it is monday' }, { events: true });
    const { events, text } = await readEvents(answer);
    assert.equal(answer.status, 200, text);
    const deltas = events.filter((e) => typeof e.text === 'string');
    assert.ok(deltas.length > 1, `not streamed: ${text}`);
    const end = events.at(-1);
    assert.deepEqual([end.outcome, end.result, end.nodeId, end.agent], ['completed', 'one two three four', 'office-01', 'main'], text);
    const seen = told(await askedAtOffice('good morning'));
    assert.match(seen, /Node `home-01` of the ClawMatrix mesh/);
    assert.match(seen, /<<<TASK from node home-01 [0-9a-f]+\ngood morning/);
    assert.match(seen, /<<<CONTEXT from node home-01 [0-9a-f]+\nit is monday\n/);
    console.log(`# a handoff took ${Date.now() - began} ms, five pieces 40 ms apart included`);
  });

  test('a_session_goes_on_where_it_was_and_asks_back', async () => {
    const first = await (await handoff({ target: 'office-01/main', task: 'remember the word heron [[say INPUT_REQUIRED: which colour?]]' })).json();
    assert.deepEqual([first.outcome, first.result], ['input_required', 'which colour?'], JSON.stringify(first));
    const second = await (await handoff({ target: 'office-01/main', task: 'grey [[say noted]]', session: first.session })).json();
    assert.deepEqual([second.outcome, second.result, second.session], ['completed', 'noted', first.session], JSON.stringify(second));
    const request = await askedAtOffice('grey [[say noted]]');
    assert.ok(told(request).includes('remember the word heron'), 'the earlier turn is part of the history');
    const fresh = await (await handoff({ target: 'office-01/main', task: 'do you know the word [[say no]]' })).json();
    assert.notEqual(fresh.session, first.session);
    assert.ok(!told(await askedAtOffice('do you know the word')).includes('heron'));
  });

  test('a_client_that_goes_away_stops_the_model_at_office', async () => {
    for (const events of [true, false]) {
      const abort = new AbortController();
      const mark = `never ends ${events}`;
      const running = handoff({ target: 'office-01/main', task: `${mark} [[hang]]` }, { events, signal: abort.signal }).then((a) => a.text()).catch(() => {});
      const record = await askedAtOffice(mark);
      const at = Date.now();
      abort.abort();
      const gone = await atOffice.gone(record);
      await running;
      console.log(`# from abort at home to the provider's connection closed at office: ${gone - at} ms`);
      assert.ok(gone - at < 1000, `${gone - at} ms`);
    }
  });

  test('a_silent_agent_runs_into_the_timeout', async () => {
    const answer = await handoff({ target: 'office-01/main', task: 'quiet [[hang]]', timeout: 2 });
    const body = await answer.json();
    assert.deepEqual([answer.status, body.outcome, body.error.code], [504, 'failed', 'timeout'], JSON.stringify(body));
    await atOffice.gone(await askedAtOffice('quiet [[hang]]'));
  });

  test('tools_of_a_run_are_bound_by_the_agents_entry', async () => {
    const names = (record) => (record.body.tools ?? []).map((t) => t.function.name);
    await (await handoff({ target: 'office-01/main', task: 'all of yours' })).json();
    assert.ok(names(await askedAtOffice('all of yours')).includes('exec'));
    const narrow = await (await handoff({ target: 'office-01/narrow', task: 'only what is listed' })).json();
    assert.equal(narrow.outcome, 'completed', JSON.stringify(narrow));
    assert.deepEqual(names(await askedAtOffice('only what is listed')), ['session_status']);
  });

  test('an_agent_at_home_hands_off_by_its_tool', async () => {
    const turn = await home.turn('ask them: [[tool:cluster_handoff {"target":"office-01/main","task":"count the chairs [[say twelve chairs]]"}]]');
    assert.match(turn.text, /tool said: twelve chairs.*from office-01\/main; session/s, turn.raw);
  });

  test('an_agent_turn_that_is_aborted_stops_the_remote_one', async () => {
    const abort = new AbortController();
    // A mark in the prompt would hold up home's own model, too.
    atOffice.pace = 20_000;
    const running = home
      .post('/v1/chat/completions', { model: 'openclaw', stream: true, messages: [{ role: 'user', content: '[[tool:cluster_handoff {"target":"office-01/main","task":"endless chairs"}]]' }] }, { signal: abort.signal })
      .then((a) => a.text())
      .catch(() => {});
    const record = await askedAtOffice('endless chairs');
    const at = Date.now();
    abort.abort();
    const gone = await atOffice.gone(record);
    atOffice.pace = 0;
    await running;
    console.log(`# from abort of the turn at home to the provider's connection closed at office: ${gone - at} ms`);
    assert.ok(gone - at < 1000, `${gone - at} ms`);
  });

  test('an_agent_that_hands_its_task_back_is_refused', async () => {
    const body = await (await handoff({ target: 'office-01/main', task: 'back [[tool:cluster_handoff {"target":"home-01/main","task":"again"}]]' })).json();
    assert.match(body.result, /passed this node before/, JSON.stringify(body));
    assert.ok(!atHome.requests.some((r) => r.body?.messages && told(r).includes('TASK from node office-01')), 'no turn at home');
  });

  test('a_message_wakes_the_agent_or_waits_for_its_turn', async () => {
    const { status, body } = await home.tool('cluster_send', { target: 'office-01/main', message: 'the parcel is here' });
    assert.equal(status, 200, JSON.stringify(body));
    assert.match(JSON.stringify(body), /delivered to office-01/);
    const woken = await askedAtOffice('the parcel is here');
    assert.match(told(woken), /message for you from node `home-01`/);
    const narrow = await home.api('/api/v1/send', { method: 'POST', body: JSON.stringify({ target: 'office-01/narrow', message: 'a word for the narrow one' }) });
    assert.equal((await narrow.json()).delivered, true);
    assert.match(told(await askedAtOffice('a word for the narrow one')), /agent=narrow/);
    const later = await home.api('/api/v1/send', { method: 'POST', body: JSON.stringify({ target: 'office-01/main', message: 'no hurry at all', wake: false }) });
    assert.equal((await later.json()).delivered, true);
    const seen = atOffice.requests.length;
    await home.turn('time passes at home');
    assert.ok(!atOffice.requests.slice(seen).some((r) => r.body?.messages && told(r).includes('no hurry at all')), 'it woke the agent');
    const next = await office.post('/v1/chat/completions', { model: 'openclaw/main', messages: [{ role: 'user', content: 'anything new' }] }, { headers: { 'x-openclaw-session-key': 'agent:main:main' } });
    assert.equal(next.status, 200, await next.text());
    assert.match(told(await askedAtOffice('anything new')), /no hurry at all/);
  });

  test('through_tool_search_the_tools_are_called_too', async () => {
    await home.patch({ tools: { toolSearch: null } });
    await until('tool search to be on', 30_000, async () => {
      await home.turn('which tools do you have');
      return atHome.requests.at(-1).body.tools.some((t) => t.function.name === 'tool_call');
    });
    const handed = await home.turn('[[tool:tool_call {"id":"cluster_handoff","args":{"target":"office-01","task":"search [[say found by search]]"}}]]');
    assert.match(handed.text, /found by search/, handed.raw);
    const sent = await home.turn('[[tool:tool_call {"id":"cluster_send","args":{"target":"office-01","message":"sent by search"}}]]');
    assert.match(sent.text, /delivered to office-01/, sent.raw);
    const peers = await home.turn('[[tool:tool_call {"id":"cluster_peers","args":{}}]]');
    assert.match(peers.text, /office-01/, peers.raw);
    const refused = await home.turn('[[tool:tool_call {"id":"cluster_handoff","args":{"target":"nobody","task":"x"}}]]');
    assert.match(refused.text, /nobody is `nobody`.*office-01.*agents main, narrow/s, refused.raw);
  });

  test('a_gateway_killed_in_the_middle_leaves_the_outcome_unknown', async () => {
    const running = handoff({ target: 'office-01/main', task: 'killed while [[hang]]' });
    await askedAtOffice('killed while');
    const at = Date.now();
    // The gateway alone: its sidecar has to notice by itself.
    process.kill(parent(office.endpoint.pid), 'SIGKILL');
    const answer = await running;
    const body = await answer.json();
    console.log(`# from kill -9 of office's gateway to the answer at home: ${Date.now() - at} ms`);
    assert.deepEqual([answer.status, body.outcome], [502, 'outcome_unknown'], JSON.stringify(body));
    office.child.killNow();
    const queued = await home.api('/api/v1/send', { method: 'POST', body: JSON.stringify({ target: 'office-01/main', message: 'for when you are back' }) });
    assert.equal((await queued.json()).queued, true);
    await office.start();
    await askedAtOffice('for when you are back');
    // OpenClaw takes up interrupted turns of its own: ours is not among them.
    assert.match(office.child.output, /a run for another node was cut off/);
    assert.doesNotMatch(office.child.output, /started interrupted main session/);
    const again = atOffice.requests.filter((r) => r.body?.messages && told(r).includes('killed while'));
    assert.equal(again.length, 1, 'nobody repeats what may have been done');
  });
});
