import assert from 'node:assert/strict';
import { test } from 'node:test';

import { builtInProviders } from '../builtins.js';
import { resolveProviders, withKeysFromEnv } from '../upstream.js';

/** OpenClaw as far as the resolver asks it. */
function asked(/** @type {Record<string, any>} */ keys = {}, /** @type {Record<string, any>} */ builtIns = {}) {
  return {
    token: 'token-of-openclaw',
    builtIn: async (/** @type {string} */ provider) => builtIns[provider],
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

test('a built-in provider is asked from OpenClaw', async () => {
  const anthropic = { baseUrl: 'https://a.test', api: 'anthropic-messages', models: [{ id: 'c', contextWindow: 1000000, maxTokens: 9 }, { id: 'd' }] };
  const models = [{ id: 'x/c', provider: 'anthropic' }];
  const { providers } = await resolveProviders({}, models, asked({ anthropic: { apiKey: 'k' } }, { anthropic }));
  assert.equal(providers.anthropic?.baseUrl, 'https://a.test');
  assert.equal(providers.anthropic?.api, 'anthropic-messages');
  assert.deepEqual(providers.anthropic?.models?.map((m) => [m.id, m.contextWindow, m.maxTokens]), [['c', 1000000, 9]]);
});

test('catalog, manifests and table are put together', async () => {
  let asked = 0;
  const builtIn = builtInProviders({
    async catalog() {
      asked += 1;
      return [
        { provider: 'openai', id: 'g', api: 'openai-responses', baseUrl: 'https://login.test', contextWindow: 5 },
        { provider: 'live', id: 'l', api: 'openai-completions', baseUrl: 'https://live.test' },
        { provider: 'odd', id: 'o' },
      ];
    },
    manifests: async () => [null, { modelCatalog: { providers: { openai: { baseUrl: 'https://o.test', api: 'openai-responses', models: [{ id: 'g', maxTokens: 7 }] } } } }],
  });
  /** @type {import('../types.js').OpenClawConfig} */
  const cfg = {};
  assert.deepEqual(await builtIn('OpenAI', cfg), {
    baseUrl: 'https://o.test',
    api: 'openai-responses',
    models: [{ id: 'g', api: 'openai-responses', baseUrl: 'https://login.test', contextWindow: 5, maxTokens: 7 }],
  });
  assert.equal((await builtIn('live', cfg))?.baseUrl, 'https://live.test');
  assert.equal((await builtIn('groq', cfg))?.baseUrl, 'https://api.groq.com/openai/v1');
  assert.equal(await builtIn('odd', cfg), undefined);
  assert.equal(asked, 1);
  await builtIn('live', {});
  assert.equal(asked, 2);
});

test('without any answer from OpenClaw the table remains', async () => {
  const fail = async () => {
    throw new Error('retired');
  };
  const builtIn = builtInProviders({ catalog: fail, manifests: fail });
  assert.equal((await builtIn('ollama', {}))?.baseUrl, 'http://127.0.0.1:11434/v1');
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
  const { providers, warnings } = await resolveProviders(cfg, 'auto', asked({ mock: { apiKey: 'k' }, openai: { apiKey: 'o' } }, { openai: { baseUrl: 'https://o.test', api: 'openai-responses', models: [] } }));
  assert.deepEqual(Object.keys(providers).sort(), ['mock', 'openai']);
  assert.deepEqual(warnings, []);
});

test('apiKeyEnv is read here, and a missing variable is a warning', () => {
  const { config, warnings } = withKeysFromEnv({ models: [{ id: 'a', apiKeyEnv: 'A_KEY' }, { id: 'b', apiKeyEnv: 'B_KEY' }] }, { A_KEY: 'k' });
  assert.deepEqual(config.models, [{ id: 'a', apiKey: 'k' }, { id: 'b' }]);
  assert.match(warnings.join(), /B_KEY/);
});
