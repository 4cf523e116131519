import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';

import { registerTools } from '../tools.js';

/** @type {string} */
let dir;
/** @type {import('node:http').Server} */
let server;
/** @type {{ url?: string, session?: string | string[], body: any }[]} */
const asked = [];
/** @type {(answer: import('node:http').ServerResponse, body: any) => void} */
let script = () => {};
/** @type {Record<string, (context: any) => import('../types.js').Tool>} */
const made = {};

before(async () => {
  dir = mkdtempSync(join(tmpdir(), 'cm-tools-'));
  server = createServer((request, answer) => {
    let text = '';
    request.on('data', (part) => (text += part));
    request.on('end', () => {
      const body = JSON.parse(text || '{}');
      asked.push({ url: request.url, session: request.headers['x-clawmatrix-session'], body });
      script(answer, body);
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  mkdirSync(join(dir, 'run'));
  writeFileSync(join(dir, 'run/endpoint'), JSON.stringify({ proxyPort: port }));
  writeFileSync(join(dir, 'run/token'), 't\n');
  /** @type {any} */
  const api = { registerTool: (/** @type {any} */ make, /** @type {any} */ { name }) => (made[name] = make) };
  registerTools(api, () => dir);
});
after(() => {
  server.closeAllConnections();
  server.close();
  rmSync(dir, { recursive: true });
});

const events = (/** @type {import('node:http').ServerResponse} */ answer, /** @type {[string, unknown][]} */ list) => {
  answer.writeHead(200, { 'content-type': 'text/event-stream; charset=utf-8' });
  for (const [name, data] of list) answer.write(`event: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
};
const run = (/** @type {string} */ name, /** @type {any} */ params, /** @type {AbortSignal} */ signal = new AbortController().signal, /** @type {any} */ onUpdate = undefined) =>
  made[name]({ sessionKey: 'agent:main:main' }).execute('1', params, signal, onUpdate);

test('a handoff shows progress and gives the answer with its session', async () => {
  script = (answer) => {
    events(answer, [
      ['accepted', { handoffId: 'h', nodeId: 'office', agent: 'main', session: 's1' }],
      ['delta', { text: 'half ' }],
      ['tool', { name: 'read', phase: 'start' }],
      ['end', { outcome: 'completed', success: true, nodeId: 'office', agent: 'main', session: 's1', result: 'half and whole' }],
    ]);
    answer.end();
  };
  /** @type {any[]} */
  const updates = [];
  const result = await run('cluster_handoff', { target: 'office', task: 'do', context: 'c' }, undefined, (/** @type {any} */ update) => updates.push(update));
  assert.match(result.content[0].text, /^half and whole\n\n\[from office\/main; session "s1"/);
  assert.equal(updates[0].content[0].text, 'half ');
  const { url, session, body } = /** @type {any} */ (asked.at(-1));
  assert.deepEqual([url, session, body], ['/api/v1/handoff', 'agent:main:main', { target: 'office', task: 'do', context: 'c' }]);
});

test('an agent that asks back is answered in its session', async () => {
  script = (answer) => {
    events(answer, [['end', { outcome: 'input_required', success: true, nodeId: 'office', agent: 'main', session: 's2', result: 'which?' }]]);
    answer.end();
  };
  const result = await run('cluster_handoff', { target: 'office', task: 'do' });
  assert.match(result.content[0].text, /which\?\n\n\[office\/main needs an answer.*session "s2"/);
});

test('failures are thrown in words a model can act on', async () => {
  const end = (/** @type {any} */ more) => (/** @type {import('node:http').ServerResponse} */ answer) => {
    events(answer, [['end', { success: false, nodeId: 'office', ...more }]]);
    answer.end();
  };
  script = end({ outcome: 'outcome_unknown', error: { message: 'node `office` was restarted' }, result: 'so far' });
  await assert.rejects(run('cluster_handoff', { target: 'office', task: 'do' }), /restarted.*check before you do it again.*so far/s);
  script = end({ outcome: 'failed', error: { message: 'the agent said nothing for 600 s' } });
  await assert.rejects(run('cluster_handoff', { target: 'office', task: 'do' }), /said nothing for 600 s/);
  script = (answer) => answer.writeHead(503, { 'content-type': 'application/json' }).end(JSON.stringify({ outcome: 'not_dispatched', error: { code: 'no_route', message: 'no path' } }));
  await assert.rejects(run('cluster_handoff', { target: 'office', task: 'do' }), /no path \(it never began, so it is safe/);
  script = (answer) => {
    events(answer, [['delta', { text: 'x' }]]);
    answer.end();
  };
  await assert.rejects(run('cluster_handoff', { target: 'office', task: 'do' }), /broke off in the middle/);
});

test('an abort closes the request, which cancels the work', async () => {
  const abort = new AbortController();
  const closed = new Promise((resolve) => {
    script = (answer) => {
      events(answer, [['delta', { text: 'x' }]]);
      answer.on('close', resolve);
    };
  });
  const running = run('cluster_handoff', { target: 'office', task: 'do' }, abort.signal, () => abort.abort());
  await assert.rejects(running, /cluster_handoff was cancelled/);
  await closed;
});

test('a message is delivered or queued', async () => {
  script = (answer) => answer.writeHead(200).end('{"delivered":true,"nodeId":"office"}');
  assert.equal((await run('cluster_send', { target: 'office', message: 'm' })).content[0].text, 'delivered to office');
  script = (answer) => answer.writeHead(200).end('{"queued":true,"expiresAt":1}');
  assert.match((await run('cluster_send', { target: 'office', message: 'm' })).content[0].text, /^queued/);
});

test('a command shows its output and how it ended', async () => {
  script = (answer) => {
    events(answer, [
      ['stdout', { text: 'one\n', stream: 'stdout' }],
      ['stderr', { text: 'oops\n', stream: 'stderr' }],
      ['stdout', { base64: '/w==', stream: 'stdout' }],
      ['end', { outcome: 'completed', nodeId: 'office', exitCode: 3, signal: null, timedOut: false, truncated: true }],
    ]);
    answer.end();
  };
  /** @type {any[]} */
  const updates = [];
  const result = await run('cluster_exec', { node: 'office', command: 'ls', timeout: 5 }, undefined, (/** @type {any} */ update) => updates.push(update));
  assert.match(result.content[0].text, /^one\n\[base64 \/w==\]\nstderr:\noops\n\n\[output cut.*\]\n\[exit code 3\]$/);
  assert.equal(updates[0].content[0].text, 'one\n');
  const { url, body } = /** @type {any} */ (asked.at(-1));
  assert.deepEqual([url, body], ['/api/v1/tools/exec', { node: 'office', command: 'ls', timeout: 5 }]);
});

test('a command that was refused, timed out or lost is an error to act on', async () => {
  script = (answer) =>
    answer.writeHead(403, { 'content-type': 'application/json' }).end(JSON.stringify({ outcome: 'not_dispatched', error: { code: 'policy_denied', message: 'tool `exec` is denied on node `office` by `default`' } }));
  await assert.rejects(run('cluster_exec', { node: 'office', command: 'ls' }), /denied on node `office` by `default`.*do not try again/);
  const end = (/** @type {any} */ more) => (/** @type {import('node:http').ServerResponse} */ answer) => {
    events(answer, [['stdout', { text: 'so far', stream: 'stdout' }], ['end', { nodeId: 'office', ...more }]]);
    answer.end();
  };
  script = end({ outcome: 'failed', timedOut: true, exitCode: null, signal: 'SIGTERM', error: { code: 'timeout', message: 'the command ran out of time' } });
  await assert.rejects(run('cluster_exec', { node: 'office', command: 'ls' }), /ran out of time.*Until then it printed:\nso far/s);
  script = end({ outcome: 'outcome_unknown', error: { code: 'outcome_unknown', message: 'the link was lost' } });
  await assert.rejects(run('cluster_exec', { node: 'office', command: 'ls' }), /check before you do it again/);
});

test('a wait for a person is shown, and what the person said', async () => {
  const waits = (/** @type {any} */ end) => (/** @type {import('node:http').ServerResponse} */ answer) => {
    events(answer, [['approval', { nodeId: 'office', approval: 'pending', message: 'waiting for approval on office' }], ['end', { nodeId: 'office', ...end }]]);
    answer.end();
  };
  const well = { outcome: 'completed', path: 'a', bytes: 2, created: true, exitCode: 0 };
  for (const [name, params] of /** @type {[string, any][]} */ ([['cluster_exec', { command: 'ls' }], ['cluster_write', { path: 'a', content: 'hi' }]])) {
    /** @type {any[]} */
    const updates = [];
    script = waits(well);
    await run(name, { node: 'office', ...params }, undefined, (/** @type {any} */ update) => updates.push(update));
    assert.equal(updates[0].content[0].text, 'waiting for approval on office', name);
    script = waits({ outcome: 'not_dispatched', error: { code: 'approval_denied', message: 'the person asked on node `office` said no' } });
    await assert.rejects(run(name, { node: 'office', ...params }), /said no\. Do not try again/, name);
    script = waits({ outcome: 'not_dispatched', error: { code: 'approval_expired', message: 'the person asked on node `office` did not answer in time' } });
    await assert.rejects(run(name, { node: 'office', ...params }), /ask a person before you try again/, name);
  }
});

test('files and other tools answer in text', async () => {
  const answers = (/** @type {any} */ body) => (/** @type {import('node:http').ServerResponse} */ answer) => answer.writeHead(200).end(JSON.stringify(body));
  const said = async (/** @type {string} */ name, /** @type {any} */ params) => (await run(name, params)).content[0].text;
  script = answers({ outcome: 'completed', nodeId: 'office', path: 'a', content: 'hello', encoding: 'utf-8', size: 5, truncated: false });
  assert.equal(await said('cluster_read', { node: 'office', path: 'a' }), 'hello');
  script = answers({ outcome: 'completed', nodeId: 'office', path: 'a', content: '/w==', encoding: 'base64', size: 9, truncated: true });
  assert.match(await said('cluster_read', { node: 'office', path: 'a' }), /^\/w==\n\n\[the file is no text.*only the first part of 9 bytes\]$/);
  script = answers({ outcome: 'completed', nodeId: 'office', path: 'a', bytes: 2, created: true });
  assert.equal(await said('cluster_write', { node: 'office', path: 'a', content: 'hi' }), 'created a on office, 2 bytes');
  script = answers({ outcome: 'completed', nodeId: 'office', tool: 'web_fetch', result: { content: [{ type: 'text', text: 'page' }] } });
  assert.equal(await said('cluster_tool', { node: 'office', tool: 'web_fetch', args: { url: 'x' } }), 'page');
  assert.deepEqual(/** @type {any} */ (asked.at(-1)).body, { node: 'office', tool: 'web_fetch', args: { url: 'x' } });
  script = answers({ outcome: 'completed', nodeId: 'office', path: 'b', entries: [{ name: 'x' }], truncated: false });
  assert.match(await said('cluster_tool', { node: 'office', tool: 'list', args: { path: 'b' } }), /"name": "x"/);
  script = answers({ outcome: 'completed', nodeId: 'office', exitCode: 0, signal: null, stdout: 'out', stderr: '', truncated: false });
  assert.equal(await said('cluster_tool', { node: 'office', tool: 'exec', args: { command: 'x' } }), 'out\n[exit code 0]');
});
