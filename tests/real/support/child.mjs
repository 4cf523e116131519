// A child process with its output kept, and an end that waits.
import { spawn } from 'node:child_process';
import { once } from 'node:events';

const live = new Set();
process.on('exit', () => {
  for (const c of live) c.killNow();
});
for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(signal === 'SIGINT' ? 130 : 143));

export class Child {
  stdout = '';
  stderr = '';
  code = null;
  signal = null;

  /** Starts `command` as the head of an own process group, so that nothing of it can be left behind. */
  constructor(command, args, { env = process.env, cwd, input } = {}) {
    this.process = spawn(command, args, { env, cwd, stdio: ['pipe', 'pipe', 'pipe'], detached: true });
    this.pid = this.process.pid;
    this.process.stdin.on('error', () => {});
    if (input !== undefined) this.process.stdin.end(input);
    this.process.stdout.setEncoding('utf8').on('data', (text) => { this.stdout += text; });
    this.process.stderr.setEncoding('utf8').on('data', (text) => { this.stderr += text; });
    live.add(this);
    this.ended = new Promise((done) => {
      this.process.on('error', (error) => {
        this.stderr += `${error}\n`;
        live.delete(this);
        done(this);
      });
      this.process.on('close', (code, signal) => {
        Object.assign(this, { code, signal });
        live.delete(this);
        done(this);
      });
    });
  }

  get output() {
    return this.stdout + this.stderr;
  }

  get running() {
    return live.has(this);
  }

  killNow() {
    try {
      process.kill(-this.pid, 'SIGKILL');
    } catch {
      // already gone
    }
  }

  /** Asks it to end, and kills the group when it does not within `ms`. */
  async stop(ms = 10_000) {
    if (!this.running) return this;
    this.process.kill('SIGTERM');
    const timer = setTimeout(() => this.killNow(), ms);
    await this.ended;
    clearTimeout(timer);
    return this;
  }
}

/** Runs `command` to its end. */
export async function run(command, args, { timeoutMs = 120_000, ...options } = {}) {
  const child = new Child(command, args, { input: '', ...options });
  const timer = setTimeout(() => {
    child.stderr += `\n(killed after ${timeoutMs} ms)`;
    child.killNow();
  }, timeoutMs);
  await child.ended;
  clearTimeout(timer);
  return child;
}

export { once };
