import assert from 'node:assert/strict';
import { test } from 'node:test';

import { apply, changesNothing, classify, plan } from '../entries.js';

const TOKEN = 'token-of-openclaw';
const offer = (/** @type {string} */ id, more = {}) => ({
  id,
  api: 'openai-completions',
  contextWindow: 128000,
  maxTokens: 4096,
  input: ['text'],
  reasoning: false,
  ...more,
});
const node = (/** @type {string} */ provider, /** @type {any[]} */ models) => ({
  provider,
  baseUrl: `http://127.0.0.1:19001/nodes/${provider}/v1`,
  api: models[0]?.api ?? 'openai-completions',
  models,
});
const bare = (/** @type {any[]} */ models) => ({ ...node('clawmatrix', models), baseUrl: 'http://127.0.0.1:19001/v1' });
/** @param {Record<string, any>} providers @param {any[]} catalog @param {Record<string, string[]>} [written] */
const planned = (providers, catalog, written = {}) => plan({ providers, catalog, token: TOKEN, proxyPort: 19001, written });

/** Plans, applies, and answers the table together with what the next plan needs. */
function settle(/** @type {Record<string, any>} */ providers, /** @type {any[]} */ catalog, written = {}) {
  const change = planned(providers, catalog, written);
  const table = structuredClone(providers);
  apply(table, change);
  return { table, change };
}

test('a node gets an entry that a second plan leaves alone', () => {
  const catalog = [node('office-01', [offer('qwen/q3', { name: 'Qwen 3' })]), bare([offer('qwen/q3')])];
  const { table, change } = settle({}, catalog);
  assert.deepEqual(table['office-01'], {
    baseUrl: 'http://127.0.0.1:19001/nodes/office-01/v1',
    apiKey: TOKEN,
    api: 'openai-completions',
    models: [{ id: 'qwen/q3', name: 'Qwen 3', input: ['text'], contextWindow: 128000, maxTokens: 4096 }],
  });
  assert.equal(table.clawmatrix?.baseUrl, 'http://127.0.0.1:19001/v1');
  assert.ok(changesNothing(planned(table, catalog, change.written)));
});

test('prices and reasoning alone cause no write, window and name do', () => {
  const { table, change } = settle({}, [node('a', [offer('m')])]);
  assert.ok(changesNothing(planned(table, [node('a', [offer('m', { cost: { input: 1 }, reasoning: true })])], change.written)));
  assert.ok(!changesNothing(planned(table, [node('a', [offer('m', { contextWindow: 64000 })])], change.written)));
  assert.ok(!changesNothing(planned(table, [node('a', [offer('m', { name: 'M' })])], change.written)));
});

test('a foreign provider of that name is never touched, whatever its case', () => {
  const foreign = { baseUrl: 'https://example.test/v1', apiKey: 'k', models: [{ id: 'x', name: 'x' }] };
  const change = planned({ 'Office-01': foreign }, [node('office-01', [offer('m')])]);
  assert.ok(changesNothing(change));
  assert.match(change.warnings.join(), /already has a provider "Office-01".*clawmatrix\/ only/);
});

test('a node with the name of a built-in provider is offered under clawmatrix only', () => {
  const change = planned({}, [node('openai', [offer('m')])]);
  assert.ok(changesNothing(change));
  assert.equal(change.warnings.length, 1);
});

test('a node that leaves loses its entry, a foreign one stays', () => {
  const { table, change } = settle({ mock: { baseUrl: 'http://127.0.0.1:1/v1', apiKey: 'k' } }, [node('a', [offer('m')])]);
  const after = settle(table, [], change.written).table;
  assert.deepEqual(Object.keys(after), ['mock']);
});

test('entries written before the record was lost are still known by their address', () => {
  const { table } = settle({}, [node('a', [offer('m'), offer('n')])]);
  const after = settle(table, [node('a', [offer('m')])], {}).table;
  assert.deepEqual(after.a?.models?.map((/** @type {any} */ m) => m.id), ['m']);
});

test('an entry written for the earlier plugin keeps everything but key and address', () => {
  for (const key of ['cluster-internal', 'sk-clawmatrix-proxy']) {
    for (const suffix of ['', '/v1']) {
      const old = {
        baseUrl: `http://127.0.0.1:19001${suffix}`,
        apiKey: key,
        api: 'openai-completions',
        timeoutSeconds: 99,
        models: [{ id: 'claude', name: 'My Claude', contextWindow: 200000, params: { a: 1 } }],
      };
      const { table, change } = settle({ clawmatrix: old }, [bare([offer('claude', { name: 'x' }), offer('new')])]);
      const entry = table.clawmatrix;
      assert.equal(entry?.apiKey, TOKEN);
      assert.equal(entry?.baseUrl, 'http://127.0.0.1:19001/v1');
      assert.equal(entry?.timeoutSeconds, 99);
      assert.equal(entry?.models?.[0].name, 'My Claude');
      assert.equal(entry?.models?.[0].contextWindow, 200000);
      assert.deepEqual(entry?.models?.[0].params, { a: 1 });
      assert.deepEqual(change.written.clawmatrix, ['new']);
      // When the mesh has nothing any more, the person's own model stays.
      const after = settle(table, [], change.written).table;
      assert.deepEqual(after.clawmatrix?.models?.map((/** @type {any} */ m) => m.id), ['claude']);
    }
  }
});

test('a hand-written entry of any name is taken over even when no node has that name', () => {
  const old = { baseUrl: 'http://localhost:19001/v1', apiKey: 'cluster-internal', models: [{ id: 'm', name: 'm' }] };
  const { table } = settle({ mesh: old }, []);
  assert.deepEqual(table.mesh, { ...old, baseUrl: 'http://127.0.0.1:19001/v1', apiKey: TOKEN });
  assert.ok(changesNothing(planned(table, [])));
});

test('anthropic models get the address and the header their client needs', () => {
  const { table } = settle({}, [node('a', [offer('claude', { api: 'anthropic-messages' }), offer('gpt')])]);
  assert.equal(table.a?.baseUrl, 'http://127.0.0.1:19001/nodes/a');
  assert.equal(table.a?.authHeader, true);
  assert.equal(table.a?.models?.[1].api, 'openai-completions');
  assert.equal(table.a?.models?.[1].baseUrl, 'http://127.0.0.1:19001/nodes/a/v1');
});

test('what OpenClaw would refuse never reaches its configuration', () => {
  const hostile = offer('m', { input: ['text', 'smell'], cost: { input: 'free', output: -1, evil: {} }, contextWindow: 0, maxTokens: 0 });
  const { table } = settle({}, [node('a', [hostile, offer('g', { api: 'google-generative-ai' })])]);
  assert.deepEqual(table.a?.models, [{ id: 'm', name: 'm', input: ['text'] }]);
});

test('addresses elsewhere and unknown keys are foreign', () => {
  assert.equal(classify('a', { baseUrl: 'http://10.0.0.1:19001/nodes/a/v1' }, TOKEN), 'foreign');
  assert.equal(classify('a', { baseUrl: 'http://127.0.0.1:11434/v1', apiKey: 'ollama' }, TOKEN), 'foreign');
  assert.equal(classify('a', { baseUrl: 'http://127.0.0.1:1/nodes/b/v1' }, TOKEN), 'foreign');
  assert.equal(classify('a', { baseUrl: 'not a url' }, TOKEN), 'foreign');
  assert.equal(classify('a', { baseUrl: 'http://127.0.0.1:1/nodes/a' }, TOKEN), 'node');
});
