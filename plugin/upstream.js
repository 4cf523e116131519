// Resolves the providers whose models this node lends: address, api kind, headers, key, models. OpenClaw
// knows them (configuration, auth profiles, environment, its built-in catalogs); the sidecar calls them.

import { classify } from './entries.js';

/** @typedef {import('./types.js').OpenClawConfig} OpenClawConfig */
/** @typedef {import('./types.js').UpstreamProvider} UpstreamProvider */
/** @typedef {import('./types.js').ModelOffer} ModelOffer */

/** Longest wait for OpenClaw to name a key or an endpoint, ms. */
const PATIENCE = 10_000;
/** Window and answer length where OpenClaw does not know better, in tokens. */
const DEFAULTS = { contextWindow: 128_000, maxTokens: 4096 };

/**
 * @typedef {object} Asked
 * @property {import('./types.js').Runtime['modelAuth']} modelAuth
 * @property {(provider: string, cfg: OpenClawConfig) => Promise<import('./builtins.js').BuiltIn | undefined>} builtIn
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
    [...wanted].map(async ([name, { modelIds, named }]) => {
      try {
        providers[name] = await resolveOne(cfg, name, modelIds, asked);
      } catch (error) {
        if (!named) return; // "auto" lends what there is
        warnings.push(`models of provider "${name}" are not lent: ${error instanceof Error ? error.message : error}`);
      }
    }),
  );
  warnings.sort();
  return { providers, warnings };
}

/**
 * Providers named in `models`, each with the model ids lent of it. For `"auto"` every configured one, and
 * those of the models that agents are set to use: that is how built-in providers show that they are used.
 * @param {OpenClawConfig} cfg
 * @param {unknown} models
 * @param {string | undefined} token
 */
export function wantedProviders(cfg, models, token) {
  /** @type {Map<string, { modelIds: Set<string>, named: boolean }>} */
  const wanted = new Map();
  const add = (/** @type {string} */ name, /** @type {unknown} */ modelId, /** @type {boolean} */ named) => {
    const entry = wanted.get(name) ?? { modelIds: new Set(), named: false };
    if (typeof modelId === 'string' && modelId !== '') entry.modelIds.add(modelId);
    entry.named ||= named;
    wanted.set(name, entry);
  };
  for (const entry of Array.isArray(models) ? models : [models]) {
    if (entry === 'auto') {
      for (const name of Object.keys(cfg.models?.providers ?? {})) if (!isOurs(cfg, name, token)) add(name, undefined, false);
      for (const ref of agentModels(cfg)) {
        const slash = ref.indexOf('/');
        const name = ref.slice(0, slash);
        const modelId = ref.slice(slash + 1);
        if (slash > 0 && modelId !== '*' && !isOurs(cfg, name, token)) add(name, modelId, false);
      }
    } else if (typeof entry?.provider === 'string' && entry.provider !== '') {
      const id = entry.upstreamModel ?? (typeof entry.id === 'string' ? entry.id.split('/').pop() : undefined);
      add(entry.provider, id, true);
    }
  }
  return wanted;
}

/**
 * Model references that agents are set to use.
 * @param {OpenClawConfig} cfg
 * @returns {string[]}
 */
function agentModels(cfg) {
  const agents = [cfg.agents?.defaults, ...(Array.isArray(cfg.agents?.list) ? cfg.agents.list : [])];
  const refs = agents.flatMap((/** @type {any} */ agent) => {
    const model = agent?.model;
    const chosen = typeof model === 'string' ? [model] : [model?.primary, ...(model?.fallbacks ?? [])];
    return [...chosen, ...Object.keys(agent?.models ?? {})];
  });
  return refs.filter((ref) => typeof ref === 'string');
}

/**
 * @param {OpenClawConfig} cfg
 * @param {string} name
 * @returns {[string, import('./types.js').ProviderConfig] | undefined} OpenClaw's own spelling and entry
 */
function configured(cfg, name) {
  return Object.entries(cfg.models?.providers ?? {}).find(([id]) => id.toLowerCase() === name.toLowerCase());
}

/** @param {OpenClawConfig} cfg @param {string} name @param {string | undefined} token */
function isOurs(cfg, name, token) {
  const found = configured(cfg, name);
  return found !== undefined && classify(found[0], found[1], token) !== 'foreign';
}

/**
 * @param {OpenClawConfig} cfg
 * @param {string} name
 * @param {Set<string>} modelIds
 * @param {Asked} asked
 * @returns {Promise<UpstreamProvider>}
 */
async function resolveOne(cfg, name, modelIds, asked) {
  const [id, entry] = configured(cfg, name) ?? [name, undefined];
  if (isOurs(cfg, name, asked.token)) {
    throw new Error('it is made by ClawMatrix itself, lending it on would send requests in a circle');
  }
  const builtIn = entry?.baseUrl ? undefined : await patient(asked.builtIn(id, cfg));
  const known = builtIn?.models.filter((model) => modelIds.has(model.id)) ?? [];
  const baseUrl = entry?.baseUrl ?? known[0]?.baseUrl ?? builtIn?.baseUrl;
  if (!baseUrl) {
    throw new Error('OpenClaw knows no address for it; add models.providers with a baseUrl, or put baseUrl and apiKey into the model');
  }
  const api = entry?.api ?? known[0]?.api ?? builtIn?.api ?? 'openai-completions';
  /** @type {ModelOffer[]} */
  const models = [];
  for (const model of [...(entry?.models ?? []), ...known]) {
    if (models.every((before) => before.id !== model.id)) models.push(offerOf(model, api));
  }
  const apiKey = await keyOf(cfg, id, api, baseUrl, [...modelIds][0] ?? models[0]?.id ?? '', asked.modelAuth);
  if (!apiKey && !isLocal(baseUrl) && !hasAuthHeader(entry?.headers)) {
    throw new Error(`OpenClaw has no key for it; run: openclaw models auth paste-api-key --provider ${id}`);
  }
  /** @type {UpstreamProvider} */
  const provider = { baseUrl, api, headers: textHeaders(entry?.headers), models };
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
