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
