// Handoffs between nodes without OpenClaw: office's agent is an OpenAI-style server of its configuration.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { Child, run } from './support/child.mjs';
import { pair, readEvents } from './support/mesh.mjs';
import { binary, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { environment } from './support/sidecar.mjs';

const flat = (m) => (typeof m.content === 'string' ? m.content : (m.content ?? []).map((c) => c.text ?? '').join(''));

describe('agents behind a server', { skip: missing.binary(), timeout: 120_000 }, () => {
  let mesh;
  let server;
  before(async () => {
    server = await Provider.start({ key: 'sk-agent-server' });
    mesh = await pair({
      office: { agents: [{ id: 'helper', description: 'helps', baseUrl: server.baseUrl, apiKey: server.key, model: 'agent-1' }, { id: 'nobody' }] },
    });
    await until('the agents of office', 10_000, async () => (await mesh.home.json('/api/v1/peers'))[0]?.agents.length === 2);
  });
  after(async () => {
    await mesh?.stop();
    await server?.stop();
  });
  const handoff = (body, { events = false, signal } = {}) =>
    mesh.home.fetch('/api/v1/handoff', { method: 'POST', signal, headers: events ? { accept: 'text/event-stream' } : {}, body: JSON.stringify(body) });
  const asked = (text) => server.request((r) => r.body?.messages?.some((m) => flat(m).includes(text)));

  test('task_and_session_go_to_the_server_and_its_text_streams_back', async () => {
    const answer = await handoff({ target: 'office-01/helper', task: 'water the plants [[say done with water]] [[slow 20]]' }, { events: true });
    const { events, text } = await readEvents(answer);
    const end = events.at(-1);
    assert.deepEqual([end.outcome, end.result], ['completed', 'done with water'], text);
    assert.ok(events.filter((e) => typeof e.text === 'string').length > 1, text);
    const request = await asked('water the plants');
    assert.equal(request.headers.authorization, 'Bearer sk-agent-server');
    assert.deepEqual([request.body.model, request.body.stream], ['agent-1', true]);
    assert.match(request.headers['x-openclaw-session-key'], /^agent:helper:clawmatrix:home-01-[0-9a-f]{16}:/);
    const again = await (await handoff({ target: 'helper', task: 'and the cat', session: end.session })).json();
    assert.equal(again.outcome, 'completed', JSON.stringify(again));
    assert.equal((await asked('and the cat')).headers['x-openclaw-session-key'], request.headers['x-openclaw-session-key']);
  });

  test('what_goes_wrong_at_the_server_is_told_with_its_stage', async () => {
    const outcome = async (task, more = {}) => {
      const answer = await handoff({ target: 'helper', task, ...more });
      const body = await answer.json();
      return [answer.status, body.outcome, body.error?.code];
    };
    assert.deepEqual(await outcome('a [[status 400]]'), [502, 'not_dispatched', 'upstream_error']);
    assert.deepEqual(await outcome('b [[status 500]]'), [502, 'failed', 'upstream_error']);
    assert.deepEqual(await outcome('c [[cut]]'), [502, 'failed', 'upstream_error']);
    assert.deepEqual(await outcome('d [[hang-mid]]', { timeout: 1 }), [504, 'failed', 'timeout']);
    const nobody = await handoff({ target: 'office-01/nobody', task: 'x' });
    assert.equal(nobody.status, 404);
    assert.match((await nobody.json()).error.message, /no OpenClaw gateway, and the agent has no `baseUrl`/);
    const status = await mesh.office.json('/api/v1/status');
    assert.ok(status.warnings.some((w) => w.includes('`agents[1]` has no `baseUrl`')), JSON.stringify(status.warnings));
    assert.ok(!JSON.stringify(status).includes('sk-agent-server') && !mesh.office.child.output.includes('sk-agent-server'));
  });

  test('the_command_streams_and_ctrl_c_cancels', async () => {
    const done = await mesh.home.cli('handoff', 'helper', 'say it [[say hello from afar]]');
    assert.deepEqual([done.code, done.stdout], [0, 'hello from afar\n'], done.output);
    const question = await mesh.home.cli('handoff', '--json', 'helper', 'ask [[say INPUT_REQUIRED: what?]]');
    const end = JSON.parse(question.stdout);
    assert.deepEqual([question.code, end.outcome, end.result], [0, 'input_required', 'what?'], question.output);
    assert.match(question.stderr, new RegExp(`--session ${end.session}`));
    const failed = await mesh.home.cli('handoff', 'nowhere', 'x');
    assert.equal(failed.code, 1);
    assert.match(failed.stderr, /nobody is `nowhere`.*`office-01` \(agents helper, nobody\)/s);
    assert.equal((await mesh.home.cli('handoff')).code, 2);

    const child = new Child(binary, ['--state-dir', mesh.home.stateDir, 'handoff', 'helper', 'wait for me [[hang-mid]] [[say one two three]]'], { env: environment() });
    child.process.stdin.end();
    await until('the first words', 10_000, () => child.stdout.includes('one'));
    const record = await asked('wait for me');
    const at = Date.now();
    child.process.kill('SIGINT');
    const gone = await server.gone(record);
    await child.ended;
    assert.equal(child.code, 130, child.output);
    assert.ok(gone - at < 1000, `${gone - at} ms`);
  });

  test('a_detached_handoff_is_looked_at_and_cancelled_later', async () => {
    const started = await mesh.home.cli('handoff', '--detach', 'helper', 'long work [[hang-mid]] [[say so far so good]]');
    assert.equal(started.code, 0, started.output);
    const id = started.stdout.trim();
    await until('its text so far', 10_000, async () => JSON.parse((await mesh.home.cli('handoff', '--show', id)).stdout).text === 'so far ');
    const cancelled = JSON.parse((await mesh.home.cli('handoff', '--cancel', id)).stdout);
    assert.deepEqual([cancelled.state, cancelled.outcome, cancelled.result], ['done', 'cancelled', 'so far '], JSON.stringify(cancelled));
    await server.gone(await asked('long work'));
  });

  test('agents_are_listed_and_take_no_messages_without_openclaw', async () => {
    const listed = await mesh.home.cli('agents');
    assert.match(listed.stdout, /^office-01\/helper {2}direct {2}helps$/m, listed.output);
    const agents = JSON.parse((await mesh.home.cli('agents', '--json')).stdout);
    assert.deepEqual(agents.map((a) => `${a.nodeId}/${a.id}`), ['office-01/helper', 'office-01/nobody']);
    const sent = await mesh.home.cli('send', 'helper', 'hello');
    assert.equal(sent.code, 1);
    assert.match(sent.stderr, /takes no messages: no OpenClaw gateway runs there/);
    await mesh.office.stop();
    await until('office to be away', 20_000, async () => !(await mesh.home.json('/api/v1/peers'))[0].connected);
    const queued = await run(binary, ['--state-dir', mesh.home.stateDir, 'send', '--json', 'office-01/helper'], { env: environment(), input: 'from standard input' });
    assert.equal(JSON.parse(queued.stdout).queued, true, queued.output);
    const away = await handoff({ target: 'office-01/helper', task: 'x' });
    assert.equal(away.status, 503);
    assert.equal((await away.json()).outcome, 'not_dispatched');
  });
});
