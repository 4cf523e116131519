import assert from 'node:assert/strict';
import { test } from 'node:test';

import { resolveProviders, withKeysFromEnv } from '../upstream.js';

/** OpenClaw as far as the resolver asks it. */
function asked(/** @type {Record<string, any>} */ keys = {}, /** @type {Record<string, any>} */ endpoints = {}) {
  return {
    token: 'token-of-openclaw',
    endpoint: async (/** @type {string} */ provider, /** @type {string} */ model) => endpoints[`${provider}/${model}`],
    modelAuth: {
      async resolveApiKeyForProvider(/** @type {{ provider: string }} */ { provider }) {
        if (!keys[provider]) throw new Error(`No API key found for provider "${provider}"`);
        return keys[provider];
      },
      getRuntimeAuthForModel: async () => ({ apiKey: 'exchanged' }),
    },
  };
}

const MOCK = {
  baseUrl: 'https://mock.test/v1',
  api: 'openai-completions',
  headers: { 'x-tenant': 't', 'x-ref': { source: 'env' } },
  models: [{ id: 'm', name: 'M', contextWindow: 64000, maxTokens: 100, input: ['text', 'image'], cost: { input: 1 } }],
};

test('a configured provider is handed over with its key, headers and models', async () => {
  const cfg = { models: { providers: { Mock: MOCK } } };
  const { providers, warnings } = await resolveProviders(cfg, [{ id: 'm', provider: 'mock' }], asked({ Mock: { apiKey: 'k', mode: 'api-key' } }));
  assert.deepEqual(warnings, []);
  assert.deepEqual(providers.mock, {
    baseUrl: 'https://mock.test/v1',
    api: 'openai-completions',
    headers: { 'x-tenant': 't' },
    apiKey: 'k',
    models: [
      { id: 'm', name: 'M', api: 'openai-completions', contextWindow: 64000, maxTokens: 100, input: ['text', 'image'], reasoning: false, cost: { input: 1 } },
    ],
  });
});

test('a built-in provider is asked from OpenClaw, else found in the table', async () => {
  const told = { baseUrl: 'https://asked.test', api: 'anthropic-messages', model: { id: 'c', contextWindow: 1000000, reasoning: true } };
  const keys = { anthropic: { apiKey: 'k' }, openai: { apiKey: 'k2' } };
  const { providers } = await resolveProviders({}, [{ id: 'x/c', provider: 'anthropic' }, { id: 'g', provider: 'openai' }], asked(keys, { 'anthropic/c': told }));
  assert.equal(providers.anthropic?.baseUrl, 'https://asked.test');
  assert.equal(providers.anthropic?.models?.[0].contextWindow, 1000000);
  assert.equal(providers.openai?.baseUrl, 'https://api.openai.com/v1');
  assert.equal(providers.openai?.api, 'openai-responses');
});

test('what cannot be resolved is a warning that names the way out', async () => {
  const cfg = { models: { providers: { mock: MOCK, own: { baseUrl: 'http://127.0.0.1:19001/nodes/own/v1' } } } };
  const models = ['mock', 'own', 'nowhere'].map((provider) => ({ id: 'm', provider }));
  const { providers, warnings } = await resolveProviders(cfg, models, asked());
  assert.deepEqual(providers, {});
  const text = warnings.join('\n');
  assert.match(text, /"mock".*no key.*paste-api-key --provider mock/);
  assert.match(text, /"own".*made by ClawMatrix itself/);
  assert.match(text, /"nowhere".*no address.*baseUrl/);
});

test('a server on this machine needs no key', async () => {
  const cfg = { models: { providers: { llama: { baseUrl: 'http://127.0.0.1:8080/v1' } } } };
  const { providers, warnings } = await resolveProviders(cfg, [{ id: 'm', provider: 'llama' }], asked());
  assert.deepEqual(warnings, []);
  assert.deepEqual(providers.llama, { baseUrl: 'http://127.0.0.1:8080/v1', api: 'openai-completions', headers: {}, models: [] });
});

test('a login is exchanged for what a request needs', async () => {
  const { providers } = await resolveProviders({ models: { providers: { mock: MOCK } } }, [{ id: 'm', provider: 'mock' }], asked({ mock: { apiKey: 'login', mode: 'oauth' } }));
  assert.equal(providers.mock?.apiKey, 'exchanged');
});

test('auto lends every configured or used provider but our own, and is silent about the rest', async () => {
  const agents = { defaults: { model: { primary: 'openai/g', fallbacks: ['office-01/m', 'groq/x'] }, models: { 'anthropic/*': {} } } };
  const cfg = { agents, models: { providers: { mock: MOCK, 'office-01': { baseUrl: 'http://127.0.0.1:19001/nodes/office-01/v1' } } } };
  const { providers, warnings } = await resolveProviders(cfg, 'auto', asked({ mock: { apiKey: 'k' }, openai: { apiKey: 'o' } }));
  assert.deepEqual(Object.keys(providers).sort(), ['mock', 'openai']);
  assert.deepEqual(warnings, []);
});

test('apiKeyEnv is read here, and a missing variable is a warning', () => {
  const { config, warnings } = withKeysFromEnv({ models: [{ id: 'a', apiKeyEnv: 'A_KEY' }, { id: 'b', apiKeyEnv: 'B_KEY' }] }, { A_KEY: 'k' });
  assert.deepEqual(config.models, [{ id: 'a', apiKey: 'k' }, { id: 'b' }]);
  assert.match(warnings.join(), /B_KEY/);
});
