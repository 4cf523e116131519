// Resolves the providers whose models this node lends: address, api kind, headers, key, models. OpenClaw
// knows them (configuration, auth profiles, environment, its built-in catalogs); the sidecar calls them.

import { classify, routed } from './entries.js';

/** @typedef {import('./types.js').OpenClawConfig} OpenClawConfig */
/** @typedef {import('./types.js').UpstreamProvider} UpstreamProvider */
/** @typedef {import('./types.js').ModelOffer} ModelOffer */

/** Longest wait for OpenClaw to name a key or an endpoint, ms. */
const PATIENCE = 10_000;
/** Window and answer length where OpenClaw does not know better, in tokens. */
const DEFAULTS = { contextWindow: 128_000, maxTokens: 4096 };

/**
 * Built-in providers, for when OpenClaw does not say: address as its client of that api kind wants it.
 * @type {Record<string, { baseUrl: string, api: string }>}
 */
const BUILT_IN = {
  openai: { baseUrl: 'https://api.openai.com/v1', api: 'openai-responses' },
  anthropic: { baseUrl: 'https://api.anthropic.com', api: 'anthropic-messages' },
  openrouter: { baseUrl: 'https://openrouter.ai/api/v1', api: 'openai-completions' },
  groq: { baseUrl: 'https://api.groq.com/openai/v1', api: 'openai-completions' },
  mistral: { baseUrl: 'https://api.mistral.ai/v1', api: 'openai-completions' },
  deepseek: { baseUrl: 'https://api.deepseek.com/v1', api: 'openai-completions' },
  xai: { baseUrl: 'https://api.x.ai/v1', api: 'openai-responses' },
  together: { baseUrl: 'https://api.together.xyz/v1', api: 'openai-completions' },
  moonshot: { baseUrl: 'https://api.moonshot.ai/v1', api: 'openai-completions' },
  nvidia: { baseUrl: 'https://integrate.api.nvidia.com/v1', api: 'openai-completions' },
  ollama: { baseUrl: 'http://127.0.0.1:11434/v1', api: 'openai-completions' },
  lmstudio: { baseUrl: 'http://127.0.0.1:1234/v1', api: 'openai-completions' },
  vllm: { baseUrl: 'http://127.0.0.1:8000/v1', api: 'openai-completions' },
  sglang: { baseUrl: 'http://127.0.0.1:30000/v1', api: 'openai-completions' },
};

/**
 * @typedef {object} Endpoint what OpenClaw says of a built-in provider's model
 * @property {string} baseUrl
 * @property {string} api
 * @property {Record<string, string>} [headers]
 * @property {import('./types.js').ModelEntry} [model]
 */

/**
 * @typedef {object} Asked
 * @property {import('./types.js').Runtime['modelAuth']} modelAuth
 * @property {(provider: string, modelId: string, cfg: OpenClawConfig) => Promise<Endpoint | undefined>} endpoint
 * @property {string | undefined} token key of our own local API
 */

/**
 * @param {OpenClawConfig} cfg resolved
 * @param {unknown} models `plugins.entries.clawmatrix.config.models`
 * @param {Asked} asked
 * @returns {Promise<{ providers: Record<string, UpstreamProvider>, warnings: string[] }>}
 */
export async function resolveProviders(cfg, models, asked) {
  /** @type {Record<string, UpstreamProvider>} */
  const providers = {};
  /** @type {string[]} */
  const warnings = [];
  const wanted = wantedProviders(cfg, models, asked.token);
  await Promise.all(
    [...wanted].map(async ([name, modelIds]) => {
      try {
        providers[name] = await resolveOne(cfg, name, modelIds, asked);
      } catch (error) {
        warnings.push(`models of provider "${name}" are not lent: ${error instanceof Error ? error.message : error}`);
      }
    }),
  );
  warnings.sort();
  return { providers, warnings };
}

/**
 * Provider names in `models`, each with the model ids lent of it; for `"auto"` every configured one.
 * @param {OpenClawConfig} cfg
 * @param {unknown} models
 * @param {string | undefined} token
 */
export function wantedProviders(cfg, models, token) {
  /** @type {Map<string, Set<string>>} */
  const wanted = new Map();
  const entries = Array.isArray(models) ? models : [models];
  for (const entry of entries) {
    if (entry === 'auto') {
      for (const [name, provider] of Object.entries(cfg.models?.providers ?? {})) {
        if (classify(name, provider, token) === 'foreign') add(wanted, name);
      }
    } else if (typeof entry?.provider === 'string' && entry.provider !== '') {
      const id = entry.upstreamModel ?? (typeof entry.id === 'string' ? entry.id.split('/').pop() : undefined);
      add(wanted, entry.provider, id);
    }
  }
  return wanted;
}

/**
 * @param {Map<string, Set<string>>} wanted
 * @param {string} name
 * @param {unknown} [modelId]
 */
function add(wanted, name, modelId) {
  const ids = wanted.get(name) ?? new Set();
  if (typeof modelId === 'string') ids.add(modelId);
  wanted.set(name, ids);
}

/**
 * @param {OpenClawConfig} cfg
 * @param {string} name
 * @param {Set<string>} modelIds
 * @param {Asked} asked
 * @returns {Promise<UpstreamProvider>}
 */
async function resolveOne(cfg, name, modelIds, asked) {
  const configured = Object.entries(cfg.models?.providers ?? {}).find(
    ([id]) => id.toLowerCase() === name.toLowerCase(),
  );
  const [id, entry] = configured ?? [name, undefined];
  if (entry && classify(id, entry, asked.token) !== 'foreign') {
    throw new Error('it is made by ClawMatrix itself, lending it on would send requests in a circle');
  }
  /** @type {Endpoint[]} */
  const told = [];
  if (!entry?.baseUrl || !entry.api) {
    for (const modelId of modelIds) {
      const endpoint = await patient(asked.endpoint(id, modelId, cfg)).catch(() => undefined);
      if (endpoint) told.push(endpoint);
    }
  }
  const table = BUILT_IN[id.toLowerCase()];
  const baseUrl = entry?.baseUrl ?? told[0]?.baseUrl ?? table?.baseUrl;
  if (!baseUrl) {
    throw new Error('OpenClaw knows no address for it; add models.providers with a baseUrl, or put baseUrl and apiKey into the model');
  }
  const api = entry?.api ?? told[0]?.api ?? (entry?.baseUrl ? 'openai-completions' : table?.api) ?? 'openai-completions';
  /** @type {ModelOffer[]} */
  const models = [];
  for (const model of [...(entry?.models ?? []), ...told.flatMap((endpoint) => endpoint.model ?? [])]) {
    if (models.every((known) => known.id !== model.id)) models.push(offerOf(model, api));
  }
  if (!routed(api) && !models.some((model) => routed(model.api))) {
    throw new Error(`it speaks ${api}, which the mesh has no route for`);
  }
  const apiKey = await keyOf(cfg, id, api, baseUrl, [...modelIds][0] ?? models[0]?.id ?? '', asked.modelAuth);
  if (!apiKey && !isLocal(baseUrl) && !hasAuthHeader(entry?.headers)) {
    throw new Error(`OpenClaw has no key for it; run: openclaw models auth paste-api-key --provider ${id}`);
  }
  /** @type {UpstreamProvider} */
  const provider = { baseUrl, api, headers: { ...told[0]?.headers, ...textHeaders(entry?.headers) }, models };
  if (apiKey) provider.apiKey = apiKey;
  return provider;
}

/**
 * @param {OpenClawConfig} cfg
 * @param {string} provider
 * @param {string} api
 * @param {string} baseUrl
 * @param {string} modelId
 * @param {Asked['modelAuth']} modelAuth
 * @returns {Promise<string | undefined>}
 */
async function keyOf(cfg, provider, api, baseUrl, modelId, modelAuth) {
  /** @type {import('./types.js').ResolvedAuth} */
  let auth;
  try {
    auth = await patient(modelAuth.resolveApiKeyForProvider({ provider, cfg }));
  } catch {
    return undefined; // "No API key found": a keyless server, or the caller says so
  }
  // Logins by OAuth carry a token that has to be exchanged or refreshed before a request.
  if (auth.mode && auth.mode !== 'api-key' && modelAuth.getRuntimeAuthForModel) {
    const model = { provider, id: modelId, api, baseUrl };
    const ready = await patient(modelAuth.getRuntimeAuthForModel({ model, cfg })).catch(() => undefined);
    if (ready?.apiKey) return ready.apiKey;
  }
  return auth.apiKey;
}

/**
 * @param {import('./types.js').ModelEntry} model
 * @param {string} providerApi
 * @returns {ModelOffer}
 */
function offerOf(model, providerApi) {
  /** @type {ModelOffer} */
  const offer = {
    id: model.id,
    name: model.name ?? model.id,
    api: model.api ?? providerApi,
    contextWindow: model.contextWindow ?? DEFAULTS.contextWindow,
    maxTokens: model.maxTokens ?? DEFAULTS.maxTokens,
    input: model.input ?? ['text'],
    reasoning: model.reasoning === true,
  };
  // OpenClaw fills in prices of zero where it knows none; told to another node they would mean "free".
  if (model.cost && Object.values(model.cost).some((price) => price !== 0)) offer.cost = model.cost;
  return offer;
}

/**
 * Replaces `apiKeyEnv` by the variable's content: the sidecar does not inherit the gateway's environment.
 * @param {import('./types.js').PluginConfig} config
 * @param {NodeJS.ProcessEnv} env
 * @returns {{ config: import('./types.js').PluginConfig, warnings: string[] }}
 */
export function withKeysFromEnv(config, env) {
  /** @type {string[]} */
  const warnings = [];
  if (!Array.isArray(config.models)) return { config, warnings };
  const models = config.models.map((model) => {
    if (typeof model?.apiKeyEnv !== 'string' || model.apiKey !== undefined) return model;
    const { apiKeyEnv, ...rest } = model;
    const apiKey = env[apiKeyEnv];
    if (apiKey) return { ...rest, apiKey };
    warnings.push(`model "${model.id}": the gateway's environment has no variable ${apiKeyEnv}`);
    return rest;
  });
  return { config: { ...config, models }, warnings };
}

/**
 * Asks OpenClaw how it would call a model of a provider that its configuration does not describe.
 * Answers are kept: every question makes OpenClaw hold on to the prepared model.
 * @returns {Asked['endpoint']}
 */
export function endpointAsker() {
  /** @type {Map<string, Endpoint>} */
  const known = new Map();
  return async (provider, modelId, cfg) => {
    const ref = `${provider}/${modelId}`;
    const before = known.get(ref);
    if (before) return before;
    // Resolved by OpenClaw's own loader, without being a dependency of ours.
    const name = 'openclaw/plugin-sdk/simple-completion-runtime';
    const { prepareSimpleCompletionModelForAgent } = await import(name);
    const prepared = await prepareSimpleCompletionModelForAgent({ cfg, agentId: 'main', modelRef: ref });
    const model = prepared?.model;
    if (!model?.baseUrl || !model.api) return undefined;
    const endpoint = { baseUrl: model.baseUrl, api: model.api, headers: textHeaders(model.headers), model: { ...model, id: modelId } };
    known.set(ref, endpoint);
    return endpoint;
  };
}

/** @param {Record<string, unknown> | undefined} headers @returns {Record<string, string>} */
function textHeaders(headers) {
  const texts = Object.entries(headers ?? {}).filter(([, value]) => typeof value === 'string');
  return /** @type {Record<string, string>} */ (Object.fromEntries(texts));
}

/** @param {Record<string, unknown> | undefined} headers */
function hasAuthHeader(headers) {
  return Object.keys(headers ?? {}).some((name) => ['authorization', 'x-api-key', 'api-key'].includes(name.toLowerCase()));
}

/** @param {string} baseUrl @returns {boolean} whether a server there may well need no key */
function isLocal(baseUrl) {
  try {
    const host = new URL(baseUrl).hostname;
    return /^(localhost|127\.|10\.|192\.168\.|172\.(1[6-9]|2\d|3[01])\.|\[)/.test(host) || !host.includes('.') || /\.(local|lan|internal)$/.test(host);
  } catch {
    return false;
  }
}

/**
 * @template T
 * @param {Promise<T>} question
 * @returns {Promise<T>}
 */
function patient(question) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new Error('OpenClaw did not answer in time')), PATIENCE);
    question.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
