// Gets the models of the mesh into OpenClaw: as provider entries in its configuration, which it
// applies without a restart, or (`modelRegistration: "dynamic"`) through a provider that is asked at
// run time and leaves the configuration alone.

import { mkdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { openclawToken } from './client.js';
import { BARE, apply, changesNothing, makeEntry, plan } from './entries.js';

/** @typedef {import('./types.js').CatalogEntry} CatalogEntry */

/** Several nodes that come up together make one write, ms. */
const DEBOUNCE = 250;
/** First and longest pause before a failed write is tried again, ms. Somebody else may be writing just now. */
const RETRY = { first: 1_000, longest: 60_000 };
/** Which models of which entry we wrote, in the sidecar's state folder. */
const WRITTEN = 'provider-entries.json';
/** The catalog for the module instances that answer `resolveDynamicModel`. */
const CATALOG = join('run', 'catalog.json');

/** Calls off a write that would change nothing. */
const UNCHANGED = new Error('nothing to write');

/**
 * @typedef {object} WriterOptions
 * @property {import('./types.js').Runtime['config']} config
 * @property {string} stateFolder
 * @property {import('./types.js').Logger} logger
 * @property {boolean} dynamic
 * @property {(warnings: string[]) => void} onWarnings
 */

/** Writes what the sidecar's catalog asks for: debounced, one write at a time, only on change. */
export class EntryWriter {
  /** @param {WriterOptions} options */
  constructor(options) {
    this.options = options;
    /** @type {CatalogEntry[] | undefined} */
    this.catalog = undefined;
    this.proxyPort = 0;
    /** @type {NodeJS.Timeout | undefined} */
    this.timer = undefined;
    this.writing = false;
    this.failures = 0;
    this.closed = false;
  }

  /** @param {number} port of the sidecar's local API */
  listensOn(port) {
    this.proxyPort = port;
    if (this.catalog) this.#schedule(DEBOUNCE);
  }

  /** @param {CatalogEntry[]} catalog whole */
  update(catalog) {
    this.catalog = catalog;
    this.#schedule(DEBOUNCE);
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
  }

  /** @param {number} pause */
  #schedule(pause) {
    if (this.closed) return;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.#run(), pause);
    this.timer.unref();
  }

  async #run() {
    if (this.writing) return this.#schedule(DEBOUNCE);
    this.writing = true;
    try {
      await this.#write();
      this.failures = 0;
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      this.options.logger.warn(`model entries could not be written to OpenClaw's configuration: ${reason}`);
      this.#schedule(Math.min(RETRY.first * 2 ** this.failures, RETRY.longest));
      this.failures += 1;
    } finally {
      this.writing = false;
    }
  }

  async #write() {
    const { config, stateFolder, logger, dynamic, onWarnings } = this.options;
    const catalog = this.catalog;
    if (!catalog || this.proxyPort === 0) return;
    const token = openclawToken(stateFolder);
    if (!token) throw new Error(`${join(stateFolder, 'openclaw.token')} is missing`);
    if (dynamic) writeJson(join(stateFolder, CATALOG), catalog);
    const file = join(stateFolder, WRITTEN);
    const known = { catalog: dynamic ? [] : catalog, token, proxyPort: this.proxyPort, written: readJson(file) ?? {} };

    // OpenClaw's own picture lags behind the file and has defaults filled in: it may ask for a write too
    // many, which the look at the file then calls off.
    let change = plan({ providers: config.current().models?.providers ?? {}, ...known });
    if (!changesNothing(change)) {
      try {
        await config.mutateConfigFile({
          afterWrite: { mode: 'auto' },
          // OpenClaw refuses writes that halve the file, as most are accidents. Ours removes what we wrote.
          writeOptions: { allowConfigSizeDrop: true },
          mutate(draft) {
            change = plan({ providers: draft.models?.providers ?? {}, ...known });
            if (changesNothing(change)) throw UNCHANGED;
            draft.models ??= {};
            apply((draft.models.providers ??= {}), change);
          },
        });
        const names = [...Object.keys(change.set), ...change.remove.map((name) => `-${name}`)];
        logger.info(`provider entries written: ${names.join(', ')}`);
      } catch (error) {
        if (error !== UNCHANGED && !changesNothing(change)) throw error;
      }
    }
    if (JSON.stringify(change.written) !== JSON.stringify(known.written)) writeJson(file, change.written);
    onWarnings(change.warnings);
  }
}

/**
 * The provider `clawmatrix` for `modelRegistration: "dynamic"`, with model ids `<nodeId>/<modelId>` and
 * bare ones. Registered in every mode, since OpenClaw asks other module instances than the service's.
 * @param {import('./types.js').PluginApi} api
 * @param {() => string} folder the sidecar's state folder
 */
export function registerDynamicProvider(api, folder) {
  api.registerProvider({
    id: BARE,
    label: 'ClawMatrix',
    auth: [],
    resolveDynamicModel: ({ modelId }) => dynamicModel(readJson(join(folder(), CATALOG)) ?? [], modelId, openclawToken(folder()) ?? ''),
    resolveSyntheticAuth() {
      const apiKey = openclawToken(folder());
      return apiKey ? { apiKey, source: BARE, mode: 'api-key' } : undefined;
    },
  });
}

/**
 * @param {CatalogEntry[]} catalog
 * @param {string} modelId `<nodeId>/<modelId>` or a bare id
 * @param {string} token
 * @returns {import('./types.js').ModelEntry | undefined}
 */
export function dynamicModel(catalog, modelId, token) {
  for (const entry of catalog) {
    const prefix = entry.provider === BARE ? '' : `${entry.provider}/`;
    const offer = entry.models.find((model) => prefix + model.id === modelId);
    if (!offer) continue;
    // OpenClaw sends the id as we return it here, so the address is the one that reads node ids.
    const baseUrl = entry.baseUrl.replace(/\/nodes\/[^/]+/, '');
    const built = makeEntry({ ...entry, baseUrl, models: [offer] }, '-');
    const model = built.models?.[0];
    if (!model) continue;
    return {
      reasoning: false,
      cost: { input: 0, output: 0, cacheRead: 0, cacheWrite: 0 },
      contextWindow: 128_000,
      maxTokens: 4096,
      ...model,
      id: modelId,
      provider: BARE,
      api: model.api ?? built.api,
      baseUrl: model.baseUrl ?? built.baseUrl,
      ...(built.authHeader ? { headers: { authorization: `Bearer ${token}` } } : {}),
    };
  }
  return undefined;
}

/** @param {string} path @returns {any} */
function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, 'utf8'));
  } catch {
    return undefined; // not there yet
  }
}

/** @param {string} path @param {unknown} value */
function writeJson(path, value) {
  mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, JSON.stringify(value), { mode: 0o600 });
  renameSync(temporary, path);
}
