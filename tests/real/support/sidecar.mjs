// A node without OpenClaw: `clawmatrix run` with an own configuration and state folder.
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Child, run } from './child.mjs';
import { binary, folder, Hopeless, until } from './places.mjs';

/** A cluster secret for tests: long, and no example of the docs. */
export const SECRET = 'kU9-real-parts-7Qe2vX0s-tests-only';

export class Sidecar {
  /** `env` is added to the environment of its process. */
  constructor(config, dir = folder(config.nodeId ?? 'node'), env = {}) {
    this.config = { secret: SECRET, proxyPort: 0, ...config };
    this.dir = dir;
    this.env = env;
    this.stateDir = join(dir, 'state');
    this.configFile = join(dir, 'node.json');
    mkdirSync(this.stateDir, { recursive: true, mode: 0o700 });
    writeFileSync(this.configFile, JSON.stringify(this.config), { mode: 0o600 });
  }

  /** Starts it and waits until its local API answers. */
  static async start(config, dir, env) {
    const s = new Sidecar(config, dir, env);
    await s.up();
    return s;
  }

  spawn() {
    this.child = new Child(binary, ['run', '--config', this.configFile, '--state-dir', this.stateDir], { env: environment(this.env) });
    return this.child;
  }

  async up() {
    const started = Date.now();
    this.spawn();
    await until(`node ${this.config.nodeId}; it says:\n${this.child.output}`, 15_000, async () => {
      if (!this.child.running) throw new Hopeless(`it ended with ${this.child.code}:\n${this.child.output}`);
      if (!existsSync(join(this.stateDir, 'run/endpoint'))) return false;
      return (await fetch(`http://127.0.0.1:${this.endpoint.proxyPort}/readyz`)).status === 200;
    });
    this.readyMs = Date.now() - started;
  }

  /** `{proxyPort, listenPort, pid}` as the node wrote it. */
  get endpoint() {
    return JSON.parse(readFileSync(join(this.stateDir, 'run/endpoint'), 'utf8'));
  }

  get url() {
    return `http://127.0.0.1:${this.endpoint.proxyPort}`;
  }

  /** The launch token. */
  get token() {
    return readFileSync(join(this.stateDir, 'run/token'), 'utf8').trim();
  }

  /** Calls the local API. */
  fetch(path, { headers, ...init } = {}) {
    return fetch(`${this.url}${path}`, { ...init, headers: { authorization: `Bearer ${this.token}`, 'content-type': 'application/json', ...headers } });
  }

  async json(path) {
    const answer = await this.fetch(path);
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${path}: ${answer.status} ${text}`);
    return JSON.parse(text);
  }

  /** Waits until this node can use `model`. */
  model(model, ms = 15_000) {
    return until(`model ${model} at ${this.config.nodeId}`, ms, async () => (await this.json('/v1/models')).data.some((m) => m.id === model));
  }

  /** Waits until `nodeId` is connected. */
  peer(nodeId, ms = 15_000) {
    return until(`peer ${nodeId} at ${this.config.nodeId}`, ms, async () => (await this.json('/api/v1/peers')).find((p) => p.nodeId === nodeId && p.connected));
  }

  /** Runs a verb against this node. */
  cli(...args) {
    return run(binary, ['--state-dir', this.stateDir, ...args], { env: environment() });
  }

  stop(ms) {
    return this.child?.stop(ms);
  }
}

/** The environment of a node under test: nothing of the user's own nodes. */
export function environment(extra = {}) {
  const env = { ...process.env, ...extra };
  for (const name of Object.keys(env)) if (/^(OPENCLAW_|CLAWMATRIX_STATE)/.test(name) && !(name in extra)) delete env[name];
  return env;
}
