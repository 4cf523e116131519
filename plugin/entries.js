// Decides which provider entries OpenClaw's configuration should have. Pure: no file, no clock.

/** @typedef {import('./types.js').ProviderConfig} ProviderConfig */
/** @typedef {import('./types.js').CatalogEntry} CatalogEntry */
/** @typedef {import('./types.js').ModelEntry} ModelEntry */
/** @typedef {import('./types.js').ModelOffer} ModelOffer */

/** Provider with the bare model ids: any node that has the model. */
export const BARE = 'clawmatrix';
/** Keys that users of the earlier plugin wrote by hand. */
const EARLIER_KEYS = ['cluster-internal', 'sk-clawmatrix-proxy'];
/** Api kinds the mesh has a route for, and whether OpenClaw's client adds `/v1` to the address itself. */
const ROUTED_APIS = new Map([
  ['openai-completions', { addsV1: false }],
  ['openai-responses', { addsV1: false }],
  ['anthropic-messages', { addsV1: true }],
]);
const INPUT_KINDS = ['text', 'image', 'video', 'audio'];
/** Fields of a model that we write; whatever else stands there is the user's. */
const OUR_FIELDS = ['id', 'name', 'api', 'baseUrl', 'contextWindow', 'maxTokens', 'input', 'reasoning', 'cost'];

/**
 * Providers that OpenClaw or its official plugins serve without an entry in `models.providers`. An
 * entry of that name would take them over.
 */
const BUILT_IN = new Set(
  (
    'alibaba anthropic apple-fm arcee azure-openai baseten amazon-bedrock bedrock-mantle cerebras chutes ' +
    'clawrouter cloudflare-ai-gateway cohere copilot-proxy deepinfra deepseek fal featherless fireworks ' +
    'github-copilot gmi google google-gemini-cli google-vertex groq huggingface kilocode kimi kimi-coding litellm ' +
    'llama-cpp lmstudio longcat meta microsoft-foundry minimax minimax-portal mistral moonshot novita nvidia ' +
    'ollama ollama-cloud openai openai-codex opencode opencode-go openrouter perplexity qianfan qwen radius ' +
    'sglang stepfun synthetic tencent together venice vercel-ai-gateway vllm volcengine xai xiaomi zai'
  ).split(' '),
);

/** @param {string} api @returns {boolean} whether OpenClaw can send requests of this kind into the mesh */
function routed(api) {
  return ROUTED_APIS.has(api);
}

/**
 * What an entry is to us: made for a node, for the bare ids, or somebody else's.
 * @param {string} name
 * @param {ProviderConfig | undefined} entry
 * @param {string | undefined} token
 * @returns {'node' | 'bare' | 'foreign'}
 */
export function classify(name, entry, token) {
  const url = parseUrl(entry?.baseUrl);
  if (!url || !['127.0.0.1', 'localhost', '[::1]'].includes(url.hostname)) return 'foreign';
  const path = url.pathname.replace(/\/+$/, '').replace(/\/v1$/, '').toLowerCase();
  if (path === `/nodes/${name.toLowerCase()}`) return 'node';
  if (path !== '') return 'foreign';
  const key = entry?.apiKey;
  const ours = key === token || (typeof key === 'string' && EARLIER_KEYS.includes(key));
  return ours || name.toLowerCase() === BARE ? 'bare' : 'foreign';
}

/**
 * @typedef {object} Plan
 * @property {Record<string, ProviderConfig>} set entries to write, whole
 * @property {string[]} remove entries to delete
 * @property {string[]} warnings for the operator
 * @property {Record<string, string[]>} written ids of the models we own, by entry; to be kept for the next plan
 */

/**
 * @param {object} now
 * @param {Record<string, ProviderConfig>} now.providers as configured
 * @param {CatalogEntry[]} now.catalog entries that should be there, whole
 * @param {string} now.token key for our local API
 * @param {number} now.proxyPort its port
 * @param {Record<string, string[]>} now.written of the plan before
 * @returns {Plan}
 */
export function plan({ providers, catalog, token, proxyPort, written }) {
  /** @type {Plan} */
  const result = { set: {}, remove: [], warnings: [], written: {} };
  const existing = new Map(Object.entries(providers).map(([name, entry]) => [name.toLowerCase(), { name, entry }]));
  const bareUrl = `http://127.0.0.1:${proxyPort}/v1`;
  const taken = new Set();

  for (const offered of catalog) {
    const id = offered.provider.toLowerCase();
    const there = existing.get(id);
    const kind = there && classify(there.name, there.entry, token);
    if (taken.has(id)) {
      result.warnings.push(`two nodes are called ${offered.provider} apart from upper and lower case; only one is shown`);
      continue;
    }
    if (kind === 'foreign' || (!there && BUILT_IN.has(id))) {
      result.warnings.push(
        `OpenClaw already has a provider "${there?.name ?? offered.provider}"; the models of node ${offered.provider} ` +
          `are offered under ${BARE}/ only`,
      );
      continue;
    }
    taken.add(id);
    const name = there?.name ?? offered.provider;
    const mine = new Set(written[name] ?? (kind === 'node' ? ids(there?.entry) : []));
    const { entry, owned, dropped } = build(offered, there?.entry, mine, token);
    for (const model of dropped) {
      result.warnings.push(`${offered.provider}/${model.id} speaks ${model.api || offered.api}, which OpenClaw cannot send through the mesh`);
    }
    if (owned.length > 0) result.written[name] = owned;
    if ((entry.models ?? []).length === 0) {
      if (there) result.remove.push(name);
    } else if (!there || differs(there.entry, entry)) {
      result.set[name] = entry;
    }
  }

  for (const [id, { name, entry }] of existing) {
    if (taken.has(id)) continue;
    const kind = classify(name, entry, token);
    if (kind === 'foreign') continue;
    // A node that left, or an entry written by hand for the earlier plugin. What we wrote goes, what a
    // person wrote stays and keeps working.
    const mine = new Set(written[name] ?? (kind === 'node' ? ids(entry) : []));
    const models = (entry.models ?? []).filter((model) => !mine.has(model.id));
    if (models.length === 0 && mine.size > 0) {
      result.remove.push(name);
      continue;
    }
    const baseUrl = kind === 'node' ? `http://127.0.0.1:${proxyPort}/nodes/${encodeURIComponent(name)}/v1` : bareUrl;
    const kept = { ...entry, baseUrl: fit(baseUrl, entry.api ?? ''), apiKey: token, models };
    if (differs(entry, kept)) result.set[name] = kept;
  }
  return result;
}

/**
 * Applies a plan to the provider table of a configuration.
 * @param {Record<string, ProviderConfig>} providers changed in place
 * @param {Plan} change
 */
export function apply(providers, change) {
  Object.assign(providers, change.set);
  for (const name of change.remove) delete providers[name];
}

/** @param {Plan} change */
export function changesNothing(change) {
  return Object.keys(change.set).length === 0 && change.remove.length === 0;
}

/**
 * A provider entry made of the catalog alone.
 * @param {CatalogEntry} offered
 * @param {string} token
 */
export function makeEntry(offered, token) {
  return build(offered, undefined, new Set(), token).entry;
}

/**
 * @param {CatalogEntry} offered
 * @param {ProviderConfig | undefined} there the entry as it stands
 * @param {Set<string>} mine models in it that we wrote
 * @param {string} token
 * @returns {{ entry: ProviderConfig, owned: string[], dropped: ModelOffer[] }}
 */
function build(offered, there, mine, token) {
  const usable = offered.models.filter((model) => routed(model.api || offered.api));
  const dropped = offered.models.filter((model) => !usable.includes(model));
  const api = [there?.api, offered.api, usable[0]?.api].find((kind) => kind && routed(kind)) ?? 'openai-completions';
  const old = new Map((there?.models ?? []).map((model) => [model.id, model]));
  /** @type {string[]} */
  const owned = [];
  const models = usable.map((offer) => {
    const made = modelEntry(offer, offered, api);
    const before = old.get(offer.id);
    old.delete(offer.id);
    if (before && !mine.has(offer.id)) return { ...made, ...before }; // a person's words win
    owned.push(offer.id);
    const users = Object.entries(before ?? {}).filter(([field]) => !OUR_FIELDS.includes(field));
    return { ...Object.fromEntries(users), ...made };
  });
  for (const model of old.values()) if (!mine.has(model.id)) models.push(model);
  /** @type {ProviderConfig} */
  const entry = { ...there, baseUrl: fit(offered.baseUrl, api), apiKey: token, api, models };
  // OpenClaw's Anthropic client sends `x-api-key` unless told otherwise; our local API takes bearer tokens.
  if (models.some((model) => (model.api ?? api) === 'anthropic-messages')) entry.authHeader = true;
  return { entry, owned, dropped };
}

/**
 * @param {ModelOffer} offer
 * @param {CatalogEntry} offered
 * @param {string} providerApi
 * @returns {ModelEntry}
 */
function modelEntry(offer, offered, providerApi) {
  const api = offer.api || offered.api;
  const input = (offer.input ?? []).filter((kind) => INPUT_KINDS.includes(kind));
  /** @type {ModelEntry} */
  const model = { id: offer.id, name: offer.name || offer.id, input: input.length > 0 ? input : ['text'] };
  if (offer.contextWindow > 0) model.contextWindow = offer.contextWindow;
  if (offer.maxTokens > 0) model.maxTokens = offer.maxTokens;
  if (offer.reasoning) model.reasoning = true;
  const cost = prices(offer.cost);
  if (cost) model.cost = cost;
  if (api !== providerApi) {
    model.api = api;
    model.baseUrl = fit(offered.baseUrl, api);
  }
  return model;
}

/**
 * Prices as OpenClaw's schema takes them. They come from another node: anything else in there would
 * make OpenClaw refuse the whole write.
 * @param {unknown} cost
 */
function prices(cost) {
  if (typeof cost !== 'object' || cost === null) return undefined;
  const source = /** @type {Record<string, unknown>} */ (cost);
  /** @type {Record<string, number>} */
  const clean = {};
  for (const field of ['input', 'output', 'cacheRead', 'cacheWrite']) {
    const price = source[field];
    if (typeof price === 'number' && Number.isFinite(price) && price >= 0) clean[field] = price;
  }
  return Object.keys(clean).length > 0 ? clean : undefined;
}

/**
 * Our address as the client of an api kind wants it.
 * @param {string} baseUrl ends in `/v1`
 * @param {string} api
 */
function fit(baseUrl, api) {
  return ROUTED_APIS.get(api)?.addsV1 ? baseUrl.replace(/\/v1\/?$/, '') : baseUrl;
}

/**
 * Whether a write is worth it: address, key, and of each model id, name, api kind, window and input.
 * @param {ProviderConfig} before
 * @param {ProviderConfig} after
 */
function differs(before, after) {
  return JSON.stringify(essence(before)) !== JSON.stringify(essence(after));
}

/** @param {ProviderConfig} entry */
function essence(entry) {
  const models = [...(entry.models ?? [])].sort((a, b) => (a.id < b.id ? -1 : 1));
  return [
    entry.baseUrl,
    entry.apiKey,
    entry.api,
    entry.authHeader === true,
    models.map((model) => [model.id, model.name, model.api, model.baseUrl, model.contextWindow, model.input]),
  ];
}

/** @param {ProviderConfig | undefined} entry */
function ids(entry) {
  return (entry?.models ?? []).map((model) => model.id);
}

/** @param {unknown} text */
function parseUrl(text) {
  try {
    return new URL(String(text));
  } catch {
    return undefined;
  }
}
