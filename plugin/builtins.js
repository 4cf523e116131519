// What OpenClaw knows of providers that its configuration does not describe: its model catalog, the
// catalogs in the manifests it ships, and a small table for the rest.
//
// OpenClaw would also prepare a model for us (`prepareSimpleCompletionModelForAgent`), but it then holds
// on to what it prepared, and a reload of this plugin waits for that without end.

import { readFile, readdir } from 'node:fs/promises';

/** @typedef {import('./types.js').ModelEntry} ModelEntry */

/**
 * @typedef {object} BuiltIn
 * @property {string} baseUrl
 * @property {string} api
 * @property {ModelEntry[]} models
 */

/**
 * Providers that are not in OpenClaw's own package, and local servers: address as OpenClaw's client of that
 * api kind wants it.
 * @type {Record<string, { baseUrl: string, api: string }>}
 */
const TABLE = {
  openrouter: { baseUrl: 'https://openrouter.ai/api/v1', api: 'openai-completions' },
  groq: { baseUrl: 'https://api.groq.com/openai/v1', api: 'openai-completions' },
  mistral: { baseUrl: 'https://api.mistral.ai/v1', api: 'openai-completions' },
  deepseek: { baseUrl: 'https://api.deepseek.com/v1', api: 'openai-completions' },
  moonshot: { baseUrl: 'https://api.moonshot.ai/v1', api: 'openai-completions' },
  ollama: { baseUrl: 'http://127.0.0.1:11434/v1', api: 'openai-completions' },
  lmstudio: { baseUrl: 'http://127.0.0.1:1234/v1', api: 'openai-completions' },
  vllm: { baseUrl: 'http://127.0.0.1:8000/v1', api: 'openai-completions' },
  sglang: { baseUrl: 'http://127.0.0.1:30000/v1', api: 'openai-completions' },
};

/**
 * @typedef {object} Sources
 * @property {(cfg: import('./types.js').OpenClawConfig) => Promise<(ModelEntry & { provider: string })[]>} catalog
 * @property {() => Promise<any[]>} manifests
 */

/**
 * Asks OpenClaw by provider. Answers are kept for as long as its configuration is the same object.
 * @param {Sources} [sources]
 */
export function builtInProviders(sources = OPENCLAW) {
  /** @type {{ cfg: unknown, known: Promise<Map<string, BuiltIn>> } | undefined} */
  let last;
  return async (/** @type {string} */ provider, /** @type {import('./types.js').OpenClawConfig} */ cfg) => {
    if (last?.cfg !== cfg) last = { cfg, known: collect(sources, cfg) };
    return (await last.known).get(provider.toLowerCase());
  };
}

/**
 * @param {Sources} sources
 * @param {import('./types.js').OpenClawConfig} cfg
 */
async function collect(sources, cfg) {
  /** @type {Map<string, BuiltIn>} */
  const known = new Map(Object.entries(TABLE).map(([id, entry]) => [id, { ...entry, models: [] }]));
  for (const manifest of await sources.manifests().catch(() => [])) {
    for (const [id, provider] of Object.entries(manifest?.modelCatalog?.providers ?? {})) {
      const { baseUrl, api, models } = /** @type {any} */ (provider);
      if (typeof baseUrl === 'string' && typeof api === 'string') {
        known.set(id.toLowerCase(), { baseUrl, api, models: Array.isArray(models) ? models : [] });
      }
    }
  }
  // The catalog knows more models, and addresses that logins change; the manifests know prices and lengths.
  for (const { provider, ...model } of await sources.catalog(cfg).catch(() => [])) {
    if (!model.baseUrl || !model.api) continue;
    const id = provider.toLowerCase();
    const entry = known.get(id) ?? { baseUrl: model.baseUrl, api: model.api, models: [] };
    const at = entry.models.findIndex((before) => before.id === model.id);
    if (at < 0) entry.models.push(model);
    else entry.models[at] = { ...entry.models[at], ...model };
    known.set(id, entry);
  }
  return known;
}

/** The OpenClaw that runs us; its loader resolves the name, it is no dependency of ours. */
const SDK = 'openclaw/plugin-sdk/agent-runtime';

/** @type {Sources} */
const OPENCLAW = {
  async catalog(cfg) {
    const { loadModelCatalog } = await import(SDK);
    return loadModelCatalog({ config: cfg });
  },
  async manifests() {
    const folder = new URL('../extensions/', import.meta.resolve(SDK));
    const names = await readdir(folder);
    const texts = await Promise.all(
      names.map((name) => readFile(new URL(`${name}/openclaw.plugin.json`, folder), 'utf8').catch(() => 'null')),
    );
    return texts.map((text) => JSON.parse(text));
  },
};
