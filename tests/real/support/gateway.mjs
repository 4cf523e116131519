// A real OpenClaw gateway with own folders, own port and, if asked for, the packed plugin.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Child, run } from './child.mjs';
import { folder, freePort, Hopeless, openclawPrefix, tarball, until } from './places.mjs';
import { environment } from './sidecar.mjs';

const TOKEN = 'gateway-token-of-the-tests';

/** Joins `more` into `base`, objects key by key; `null` deletes. */
function merge(base, more) {
  for (const [key, value] of Object.entries(more)) {
    if (value === null) delete base[key];
    else if (value && typeof value === 'object' && !Array.isArray(value)) base[key] = merge(base[key] ?? {}, value);
    else base[key] = value;
  }
  return base;
}

export class Gateway {
  /** A gateway that is not started; `config` is joined into a minimal one. */
  static async create(name, config = {}) {
    const g = new Gateway();
    g.name = name;
    g.dir = folder(name);
    g.stateDir = join(g.dir, 'state');
    g.configFile = join(g.dir, 'openclaw.json');
    g.port = await freePort();
    for (const sub of ['state', 'ws', 'home']) mkdirSync(join(g.dir, sub), { mode: 0o700 });
    g.#write(merge({
      gateway: { mode: 'local', port: g.port, bind: 'loopback', auth: { mode: 'token', token: TOKEN }, http: { endpoints: { chatCompletions: { enabled: true } } } },
      agents: { defaults: { workspace: join(g.dir, 'ws'), skipBootstrap: true } },
    }, config));
    return g;
  }

  /** Installs the packed plugin, then configures it: the order users are told. */
  async installPlugin(pluginConfig, more = {}) {
    const installed = await this.openclaw('plugins', 'install', tarball, '--force', '--accept-capabilities');
    if (installed.code !== 0) throw new Error(`plugins install ended with ${installed.code}:\n${installed.output}`);
    this.installOutput = installed.output;
    await this.patch({ plugins: { entries: { clawmatrix: { config: pluginConfig } } }, ...more });
  }

  /** Joins `change` into the configuration by OpenClaw's own writer. */
  async patch(change) {
    const done = await run(this.#openclaw, ['config', 'patch', '--stdin'], { env: this.env, input: JSON.stringify(change) });
    if (done.code !== 0) throw new Error(`config patch ended with ${done.code}:\n${done.output}`);
  }

  get #openclaw() {
    return join(openclawPrefix, 'node_modules/.bin/openclaw');
  }

  get env() {
    return environment({
      PATH: `${join(openclawPrefix, 'node_modules/.bin')}:${process.env.PATH}`,
      HOME: join(this.dir, 'home'), OPENCLAW_STATE_DIR: this.stateDir, OPENCLAW_CONFIG_PATH: this.configFile,
      OPENCLAW_GATEWAY_TOKEN: TOKEN, NO_COLOR: '1', NODE_COMPILE_CACHE: join(openclawPrefix, 'compile-cache'),
    });
  }

  /** The configuration as it lies on disk. */
  get config() {
    return JSON.parse(readFileSync(this.configFile, 'utf8'));
  }

  #write(config) {
    writeFileSync(this.configFile, JSON.stringify(config, null, 2), { mode: 0o600 });
  }

  /** Runs `openclaw …` in this gateway's environment. */
  openclaw(...args) {
    return run(this.#openclaw, args, { env: this.env });
  }

  async start(ms = 90_000) {
    this.child = new Child(this.#openclaw, ['gateway', 'run'], { env: this.env, cwd: this.dir });
    this.child.process.stdin.end();
    await until(`gateway ${this.name}`, ms, () => {
      if (!this.child.running) throw new Hopeless(`it ended with ${this.child.code}:\n${this.child.output}`);
      return /\[gateway\] ready\b/.test(this.child.output);
    }).catch((error) => {
      throw new Error(`${error.message}; it says:\n${this.child.output}`, { cause: error.cause });
    });
    return this;
  }

  get url() {
    return `http://127.0.0.1:${this.port}`;
  }

  /** Posts JSON with the gateway's token. */
  post(path, body, { headers, signal } = {}) {
    return fetch(`${this.url}${path}`, { method: 'POST', signal, headers: { authorization: `Bearer ${TOKEN}`, 'content-type': 'application/json', ...headers }, body: JSON.stringify(body) });
  }

  /**
   * One agent turn. `model` is `provider/model`; without it the agent's own.
   * Answers `{status, text, usage, pieces, firstMs, totalMs, raw}`.
   */
  async turn(prompt, { model, session, onText, timeoutMs = 120_000 } = {}) {
    const started = Date.now();
    const answer = await this.post('/v1/chat/completions',
      { model: 'openclaw', stream: true, stream_options: { include_usage: true }, messages: [{ role: 'user', content: prompt }] },
      { headers: { ...(model ? { 'x-openclaw-model': model } : {}), ...(session ? { 'x-openclaw-session-key': session } : {}) }, signal: AbortSignal.timeout(timeoutMs) });
    const result = { status: answer.status, text: '', pieces: 0, usage: null, firstMs: null, raw: '' };
    const decoder = new TextDecoder();
    let rest = '';
    for await (const bytes of answer.body) {
      const text = decoder.decode(bytes, { stream: true });
      result.raw += text;
      rest += text;
      const lines = rest.split('\n');
      rest = lines.pop();
      for (const line of lines) {
        if (!line.startsWith('data: ') || line === 'data: [DONE]') continue;
        let event;
        try {
          event = JSON.parse(line.slice(6));
        } catch {
          continue;
        }
        const delta = event.choices?.[0]?.delta?.content;
        if (delta) {
          result.firstMs ??= Date.now() - started;
          result.pieces += 1;
          result.text += delta;
          onText?.(delta);
        }
        if (event.usage) result.usage = event.usage;
        if (event.error) result.error = event.error;
      }
    }
    result.totalMs = Date.now() - started;
    return result;
  }

  /** Calls a gateway method and answers its result. */
  async call(method, params = {}) {
    const done = await this.openclaw('gateway', 'call', method, '--json', '--params', JSON.stringify(params));
    if (done.code !== 0) throw new Error(`${method} ended with ${done.code}:\n${done.output}`);
    return JSON.parse(done.stdout);
  }

  /** Runs a tool of the plugin without a model. */
  async tool(name, args = {}) {
    const answer = await this.post('/tools/invoke', { tool: name, args, sessionKey: 'main' });
    return { status: answer.status, body: await answer.json() };
  }

  /** Folder of the plugin's own state. */
  get pluginState() {
    return join(this.stateDir, 'clawmatrix');
  }

  get endpoint() {
    return JSON.parse(readFileSync(join(this.pluginState, 'run/endpoint'), 'utf8'));
  }

  get launchToken() {
    return readFileSync(join(this.pluginState, 'run/token'), 'utf8').trim();
  }

  /** Calls the local API of this gateway's node. */
  api(path, { headers, ...init } = {}) {
    return fetch(`http://127.0.0.1:${this.endpoint.proxyPort}${path}`, { ...init, headers: { authorization: `Bearer ${this.launchToken}`, 'content-type': 'application/json', ...headers } });
  }

  async apiJson(path) {
    const answer = await this.api(path);
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${await answer.text()}`);
    return answer.json();
  }

  stop(ms = 15_000) {
    return this.child?.stop(ms);
  }
}

/** The provider entry of OpenClaw's configuration for a scripted provider. */
export function openclawProvider(provider, models = [{ id: 'mock-1', name: 'Mock' }]) {
  return {
    baseUrl: provider.baseUrl, apiKey: provider.key ?? 'sk-none', api: 'openai-completions',
    models: models.map((m) => ({ contextWindow: 128_000, maxTokens: 4096, ...m })),
  };
}
