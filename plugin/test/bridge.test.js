import assert from 'node:assert/strict';
import { createServer } from 'node:http';
import { test } from 'node:test';

import { agentIn, Bridge, toolEvent } from '../bridge.js';

/**
 * A bridge to a scripted OpenClaw; `said` collects what the sidecar is told.
 * @param {(run: import('../types.js').AgentRun) => Promise<import('../types.js').AgentResult>} runEmbeddedAgent
 * @param {import('../types.js').OpenClawConfig} [config]
 */
function bridge(runEmbeddedAgent, config = {}) {
  /** @type {any[]} */
  const said = [];
  /** @type {any[]} */
  const calls = [];
  const note = (/** @type {string} */ name, /** @type {any} */ result) => (/** @type {any[]} */ ...args) => {
    calls.push([name, ...args]);
    return result;
  };
  /** @type {any} */
  const api = {
    runtime: {
      agent: { runEmbeddedAgent, resolveAgentWorkspaceDir: () => '/ws' },
      modelConfig: { resolveDefaultModelForAgent: () => ({ provider: 'p', model: 'm' }) },
      system: { enqueueSystemEvent: note('event', true), requestHeartbeat: note('heartbeat', undefined) },
    },
    session: { workflow: { enqueueNextTurnInjection: note('injection', Promise.resolve({ enqueued: true })) } },
  };
  /** @type {any} */
  const logger = { debug() {}, info() {}, warn() {}, error() {} };
  const made = new Bridge({ api, config: () => config, logger, say: (message) => void said.push(message) });
  return { bridge: made, said, calls };
}

/** @type {any} */
const RUN = { type: 'run_agent', id: 7, agent: 'main', sessionKey: 'agent:main:clawmatrix:home:s', sessionId: 'x', prompt: 'do', timeoutMs: 1000 };
const settled = () => new Promise((resolve) => setImmediate(resolve));

test('a run tells its text, its tools and its end', async () => {
  /** @type {any} */
  let seen;
  const { bridge: b, said } = bridge(async (run) => {
    seen = run;
    run.onExecutionStarted?.();
    run.onPartialReply?.({ text: 'he', delta: 'he' });
    run.onAgentEvent?.({ stream: 'tool', data: { name: 'read', phase: 'start' } });
    run.onAgentEvent?.({ stream: 'tool', data: { name: 'read', phase: 'result', isError: true } });
    run.onAgentEvent?.({ stream: 'assistant', data: {} });
    run.onPartialReply?.({ text: 'hello' });
    return { payloads: [{ text: 'thought', isReasoning: true }, { text: 'hello' }] };
  });
  assert.equal(b.heard({ ...RUN, tools: ['read'] }), true);
  await settled();
  assert.deepEqual([seen.agentId, seen.provider, seen.model, seen.toolsAllow, seen.senderIsOwner], ['main', 'p', 'm', ['read'], false]);
  assert.deepEqual(said, [
    { type: 'run_started', id: 7 },
    { type: 'run_delta', id: 7, text: 'he' },
    { type: 'run_tool', id: 7, name: 'read', phase: 'start' },
    { type: 'run_tool', id: 7, name: 'read', phase: 'end', failed: true },
    { type: 'run_delta', id: 7, text: 'llo' },
    { type: 'run_end', id: 7, outcome: 'completed', text: 'hello' },
  ]);
  assert.equal(b.open.size, 0);
});

test('a notice goes through a channel of the gateway, and what fails is said in the log', async () => {
  const { bridge: b, said } = bridge(async () => ({}), { channels: {} });
  /** @type {any[]} */
  const sent = [];
  /** @type {string[]} */
  const warned = [];
  b.logger = { ...b.logger, warn: (/** @type {string} */ text) => void warned.push(text) };
  b.api.runtime.channel = { outbound: { loadAdapter: async (name) => (name === 'chat' ? { sendText: async (message) => void sent.push(message) } : undefined) } };
  b.heard({ type: 'notice', channel: 'chat', to: 'me', account: 'work', text: 'a person is asked' });
  b.heard({ type: 'notice', channel: 'pigeon', to: 'me', text: 'a person is asked' });
  await settled();
  assert.deepEqual(sent, [{ cfg: { channels: {} }, to: 'me', text: 'a person is asked', accountId: 'work' }]);
  assert.match(warned.join(), /approvals\.notify.*no channel "pigeon"/);
  b.api.runtime.channel = undefined;
  b.heard({ type: 'notice', channel: 'chat', to: 'me', text: 'a person is asked' });
  await settled();
  assert.equal(warned.length, 2);
  assert.deepEqual(said, []);
});

test('what never began is told apart from what failed', async () => {
  for (const begins of [false, true]) {
    const { bridge: b, said } = bridge(async (run) => {
      if (begins) run.onExecutionStarted?.();
      throw new Error('no model');
    });
    b.heard(RUN);
    await settled();
    const end = said.at(-1);
    assert.deepEqual([end.outcome, end.error], [begins ? 'failed' : 'refused', 'no model']);
  }
  const { bridge: b, said } = bridge(async () => assert.fail('ran'), { agents: { list: [{ id: 'other' }] } });
  b.heard(RUN);
  await settled();
  assert.match(said[0].error, /no agent "main"/);
});

test('an abort reaches the run and ends it once', async () => {
  const { bridge: b, said } = bridge(
    (run) => new Promise((_, reject) => run.abortSignal?.addEventListener('abort', () => reject(run.abortSignal?.reason))),
  );
  b.heard(RUN);
  b.heard({ type: 'abort_run', id: 7 });
  await settled();
  b.heard({ type: 'abort_run', id: 7 });
  assert.deepEqual(said, [{ type: 'run_end', id: 7, outcome: 'cancelled', text: '' }]);
  b.heard({ ...RUN, id: 8 });
  b.abortAll();
  await settled();
  assert.equal(said.length, 1, 'nobody is told after the sidecar is gone');
});

test('a long answer is cut and an error alone is a failure', async () => {
  const { bridge: b, said } = bridge(async () => ({ payloads: [{ text: 'x'.repeat(2 << 20) }] }));
  b.heard(RUN);
  await settled();
  const end = said.at(-1);
  assert.ok(end.text.length < (1 << 20) + 100);
  assert.match(end.text, /\[cut:/);
  const failing = bridge(async () => ({ payloads: [{ text: 'rate limit', isError: true }] }));
  failing.bridge.heard(RUN);
  await settled();
  assert.deepEqual([failing.said.at(-1).outcome, failing.said.at(-1).error], ['failed', 'rate limit']);
});

test('a message wakes its agent or waits for the next turn', async () => {
  const { bridge: b, said, calls } = bridge(async () => ({}));
  b.heard({ type: 'message', id: 1, agent: 'MAIN', text: 'hi', wake: true, key: 'k' });
  b.heard({ type: 'message', id: 2, agent: 'main', text: 'later', wake: false, key: 'l' });
  b.heard({ type: 'message', id: 3, agent: 'nobody', text: 'x', wake: true, key: 'm' });
  await settled();
  assert.deepEqual(calls.map((call) => call[0]).sort(), ['event', 'heartbeat', 'injection']);
  const { source, intent, agentId, sessionKey } = calls.find((call) => call[0] === 'heartbeat')[1];
  assert.deepEqual([source, intent, agentId, sessionKey], ['hook', 'immediate', 'main', 'agent:main:main'], 'a kind of wake that OpenClaw repeats while it is busy');
  assert.deepEqual(calls.find((call) => call[0] === 'event')?.slice(1), ['hi', { sessionKey: 'agent:main:main', agentId: 'main', contextKey: 'clawmatrix:k' }]);
  assert.equal(calls.find((call) => call[0] === 'injection')?.[1].idempotencyKey, 'clawmatrix:l');
  const byId = Object.fromEntries(said.map((message) => [message.id, message.error]));
  assert.equal(byId[1], undefined);
  assert.equal(byId[2], undefined);
  assert.match(byId[3], /no agent "nobody"/);
});

test('a tool is called through the door of the gateway with its token', async () => {
  /** @type {any[]} */
  const asked = [];
  const server = createServer((request, answer) => {
    let body = '';
    request.on('data', (part) => (body += part));
    request.on('end', () => {
      asked.push({ url: request.url, key: request.headers.authorization, body: JSON.parse(body) });
      if (JSON.parse(body).tool === 'slow') return;
      answer.writeHead(404).end('{"ok":false}');
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  const { bridge: b, said } = bridge(async () => ({}), { gateway: { port, auth: { mode: 'token', token: 'tok' } } });
  const answered = async (/** @type {number} */ n) => {
    while (said.length < n) await settled();
  };
  b.heard({ type: 'invoke_tool', id: 1, tool: 'web_fetch', args: { url: 'u' }, timeoutMs: 5000 });
  await answered(1);
  assert.deepEqual(asked[0], { url: '/tools/invoke', key: 'Bearer tok', body: { tool: 'web_fetch', args: { url: 'u' }, sessionKey: 'main' } });
  assert.deepEqual(said[0], { type: 'tool_result', id: 1, status: 404, body: { ok: false } });
  b.heard({ type: 'invoke_tool', id: 2, tool: 'slow', args: {}, sessionKey: 's', timeoutMs: 5000 });
  while (asked.length < 2) await settled();
  b.heard({ type: 'abort_tool', id: 2 });
  await answered(2);
  assert.equal(said[1].status, 0);
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  b.heard({ type: 'invoke_tool', id: 3, tool: 'x', args: {}, timeoutMs: 5000 });
  await answered(3);
  assert.match(JSON.stringify(said[2].body), /could not be asked/);
});

test('agents and tool events are read as OpenClaw writes them', () => {
  assert.equal(agentIn({}, 'Main'), 'main');
  assert.equal(agentIn({ agents: { list: [{ id: 'Coder' }] } }, 'coder'), 'Coder');
  assert.equal(agentIn({ agents: { list: [{ id: 'Coder' }] } }, 'main'), undefined);
  assert.equal(agentIn({ agents: { entries: { Coder: {} } } }, 'coder'), 'Coder');
  assert.equal(agentIn({ agents: { entries: { Coder: {} } } }, 'main'), undefined);
  assert.equal(toolEvent({ stream: 'tool', data: { name: 'x', phase: 'update' } }), undefined);
  assert.equal(toolEvent({ stream: 'tool' }), undefined);
  assert.deepEqual(toolEvent({ stream: 'tool', data: { name: 'x', phase: 'end' } }), { name: 'x', phase: 'end', failed: false });
});
