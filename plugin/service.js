// The service in the gateway: ties the sidecar, the provider entries and the lent providers together.
// Made anew at each start; holds everything that one start needs and nothing beyond its stop.

import { mkdirSync } from 'node:fs';

import { findBinary } from './binary.js';
import { Bridge } from './bridge.js';
import { builtInProviders } from './builtins.js';
import { openclawToken, stateFolder } from './client.js';
import { settleInterrupted } from './interrupted.js';
import { EntryWriter } from './provider.js';
import { Sidecar } from './sidecar.js';
import { visibilityWarning } from './tools.js';
import { resolveProviders, withKeysFromEnv } from './upstream.js';

/** @typedef {import('./types.js').PluginApi} PluginApi */
/** @typedef {import('./types.js').ServiceContext} ServiceContext */

export const NOT_CONFIGURED = 'not configured: run openclaw clawmatrix setup';
/** How often we look whether OpenClaw holds a new configuration, ms. It tells plugins only of their own. */
const WATCH = 2_000;
/** How often keys are resolved afresh without a change: logins expire. */
const REFRESH = 60_000;
/** Longest the sidecar waits for the providers before it starts without them, ms. */
const GREETING_WAIT = 1_500;

/**
 * Whether there is anything to start; whether it is right is the sidecar's to say.
 * @param {import('./types.js').PluginConfig | undefined} config
 */
export function isConfigured(config) {
  return Boolean(config?.nodeId && (config.secret || config.secretFile));
}

/**
 * What `api.registerService` takes.
 * @param {PluginApi} api
 */
export function sidecarService(api) {
  /** @type {Running | undefined} */
  let running;
  return {
    id: 'clawmatrix-sidecar',
    async start(/** @type {ServiceContext} */ ctx) {
      await running?.stop();
      const config = ctx.config.plugins?.entries?.clawmatrix?.config ?? api.pluginConfig ?? {};
      if (!isConfigured(config)) {
        ctx.logger.warn(`ClawMatrix is ${NOT_CONFIGURED}`);
        ctx.serviceHealth?.reportFailure(new Error(NOT_CONFIGURED));
        return;
      }
      running = new Running(api, ctx, config);
      await running.start();
    },
    async stop() {
      const ending = running;
      running = undefined;
      await ending?.stop();
    },
  };
}

class Running {
  /**
   * @param {PluginApi} api
   * @param {ServiceContext} ctx
   * @param {import('./types.js').PluginConfig} config
   */
  constructor(api, ctx, config) {
    const folder = stateFolder(ctx.stateDir);
    this.api = api;
    this.folder = folder;
    this.logger = ctx.logger;
    const fromEnv = withKeysFromEnv(config, process.env);
    this.config = fromEnv.config;
    this.builtIn = builtInProviders();
    /** Warnings by where they come from; a part replaces its own. */
    this.warnings = { env: fromEnv.warnings, providers: /** @type {string[]} */ ([]), entries: /** @type {string[]} */ ([]) };
    /** @type {Record<string, import('./types.js').UpstreamProvider>} */
    this.providers = {};
    this.told = '';
    // While a reload is under way `current()` is still the configuration before it.
    this.cfg = ctx.config;
    this.current = api.runtime.config.current();
    this.resolvedAt = 0;
    this.resolves = 0;
    /** @type {NodeJS.Timeout | undefined} */
    this.watch = undefined;
    this.writer = new EntryWriter({
      config: api.runtime.config,
      stateFolder: folder,
      logger: ctx.logger,
      dynamic: config.modelRegistration === 'dynamic',
      onWarnings: (warnings) => {
        this.warnings.entries = warnings;
        this.#tell();
      },
    });
    this.bridge = new Bridge({
      api,
      config: () => this.cfg,
      logger: ctx.logger,
      say: (message) => this.sidecar.send(message),
    });
    this.sidecar = new Sidecar({
      binary: () => findBinary({ rootDir: api.rootDir ?? import.meta.dirname, sidecarPath: config.sidecarPath }),
      stateFolder: folder,
      logger: ctx.logger,
      health: (problem) =>
        problem === undefined ? ctx.serviceHealth?.clearFailure() : ctx.serviceHealth?.reportFailure(new Error(problem)),
      greeting: () => this.#greeting(),
      onMessage: (message) => void this.#guard(this.#heard(message)),
      onGone: () => this.bridge.abortAll(),
    });
  }

  async start() {
    mkdirSync(this.folder, { recursive: true, mode: 0o700 });
    this.watch = setInterval(() => void this.#guard(this.#look()), WATCH);
    this.watch.unref();
    await this.#guard(settleInterrupted({ api: this.api, cfg: this.cfg, logger: this.logger }));
    await this.sidecar.start();
  }

  async stop() {
    clearInterval(this.watch);
    this.writer.close();
    await this.sidecar.stop();
    this.bridge.abortAll();
  }

  /** @returns {Promise<import('./types.js').ToSidecar>} */
  async #greeting() {
    /** @type {NodeJS.Timeout | undefined} */
    let timer;
    const enough = new Promise((resolve) => {
      timer = setTimeout(resolve, GREETING_WAIT);
    });
    // What comes later than that is told then.
    const resolved = this.#guard(this.#resolve().then(() => this.#tell()));
    await Promise.race([resolved, enough]);
    clearTimeout(timer);
    this.told = JSON.stringify([this.providers, this.#allWarnings()]);
    const { sidecarPath: _ours, ...config } = this.config;
    return {
      type: 'config',
      config: /** @type {import('./types.js').Json} */ (config),
      providers: this.providers,
      warnings: this.#allWarnings(),
    };
  }

  /** @param {import('./types.js').FromSidecar} message */
  async #heard(message) {
    if (this.bridge.heard(message)) return;
    switch (message.type) {
      case 'ready':
        this.writer.listensOn(message.proxyPort);
        return;
      case 'catalog':
        this.writer.update(message.entries);
        return;
      case 'refresh_key':
        await this.#resolve();
        this.#tell(message.id);
        return;
      default:
        return; // `failed` is kept by the supervisor; what a newer sidecar says besides is not for us
    }
  }

  /**
   * Work nobody waits for: a rejection would end the gateway. OpenClaw's helpers throw once it has
   * retired this instance.
   * @param {Promise<void>} work
   */
  async #guard(work) {
    try {
      await work;
    } catch (error) {
      this.logger.warn(`ClawMatrix plugin: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Notices a new configuration or the time for fresh keys. */
  async #look() {
    const stale = Date.now() - this.resolvedAt > REFRESH;
    if (this.current === this.api.runtime.config.current() && !stale) return;
    await this.#resolve();
    this.#tell();
  }

  async #resolve() {
    const current = this.api.runtime.config.current();
    if (current !== this.current) this.cfg = this.current = current;
    this.resolvedAt = Date.now();
    const order = ++this.resolves;
    const resolved = await resolveProviders(this.cfg, this.config.models, {
      modelAuth: this.api.runtime.modelAuth,
      builtIn: this.builtIn,
      token: openclawToken(this.folder),
    });
    if (order !== this.resolves) return; // a later question was answered already, or will be
    this.providers = resolved.providers;
    this.warnings.providers = resolved.warnings;
  }

  #allWarnings() {
    const tools = visibilityWarning(this.cfg);
    const { env, providers, entries } = this.warnings;
    return [...env, ...providers, ...entries, ...(tools ? [tools] : [])];
  }

  /**
   * Tells the sidecar what changed since the last time; an answer to a question is always sent.
   * @param {number} [id] of the question
   */
  #tell(id) {
    const warnings = this.#allWarnings();
    const now = JSON.stringify([this.providers, warnings]);
    if (now === this.told && id === undefined) return;
    this.told = now;
    for (const warning of this.warnings.providers) this.logger.debug?.(warning);
    const message = { type: /** @type {const} */ ('providers'), providers: this.providers, warnings };
    this.sidecar.send(id === undefined ? message : { ...message, id });
  }
}
