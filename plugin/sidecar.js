// Owns the sidecar process: starts it, speaks lines of JSON with it, restarts it, ends it.
//
// Its standard input stays open for as long as the gateway lives: when the gateway dies, even by
// kill -9, the sidecar reads the end of it and exits. Secrets go through that pipe, never through
// argv or the environment.

import { spawn } from 'node:child_process';

/** Exits that a restart cannot mend: port in use, state folder held by another, configuration. */
const FINAL_EXITS = [69, 73, 78];
/** First and longest pause before a restart, ms. */
const BACKOFF = { first: 500, longest: 30_000 };
/** A sidecar that was ready for this long starts again without the pauses of earlier crashes, ms. */
const SETTLED = 60_000;
/** When the steps of a stop begin, ms after it: OpenClaw waits for us, so all of it fits 5 s. */
const STOP = { endInput: 3_500, terminate: 4_500, kill: 4_800 };
/** Longest line we take from the sidecar, in characters; its catalog is the longest. */
const MAX_LINE = 16 * 1024 * 1024;

/**
 * Variables the sidecar gets from the gateway's environment. A list of what passes, since the
 * gateway's environment holds provider keys that the sidecar and what it runs must not inherit.
 */
const PASSED_ENV = [
  'HOME', 'USER', 'LOGNAME', 'SHELL', 'PATH', 'TMPDIR', 'TZ', 'LANG', 'LC_ALL', 'LC_CTYPE',
  'XDG_CONFIG_HOME', 'XDG_STATE_HOME', 'XDG_CACHE_HOME', 'XDG_RUNTIME_DIR',
  'SSL_CERT_FILE', 'SSL_CERT_DIR', 'CLAWMATRIX_LOG', 'RUST_BACKTRACE',
];

/**
 * Environment for the sidecar's binary.
 * @param {NodeJS.ProcessEnv} env
 * @param {string[]} [more] names passed on as well
 * @returns {Record<string, string>}
 */
export function sidecarEnv(env, more = []) {
  /** @type {Record<string, string>} */
  const passed = {};
  for (const name of [...PASSED_ENV, ...more]) {
    const value = env[name];
    if (value !== undefined) passed[name] = value;
  }
  return passed;
}

/**
 * Pause before the next restart, ms.
 * @param {number} crashes in a row, 1 for the first
 */
export function backoff(crashes) {
  return Math.min(BACKOFF.first * 2 ** (crashes - 1), BACKOFF.longest);
}

/**
 * Cuts a stream of text into lines.
 * @param {NodeJS.ReadableStream} stream
 * @param {(line: string) => void} onLine
 * @param {() => void} [onTooLong]
 */
export function readLines(stream, onLine, onTooLong) {
  // Parts are joined once a line is whole: adding to one string and searching it again at every
  // part would be quadratic for a long line.
  /** @type {string[]} */
  let parts = [];
  let held = 0;
  stream.setEncoding('utf8');
  stream.on('data', (/** @type {string} */ chunk) => {
    let from = 0;
    for (let end = chunk.indexOf('\n'); end >= 0; end = chunk.indexOf('\n', from)) {
      const line = parts.join('') + chunk.slice(from, end);
      parts = [];
      held = 0;
      from = end + 1;
      if (line.trim()) onLine(line);
    }
    const rest = chunk.slice(from);
    if (!rest) return;
    parts.push(rest);
    held += rest.length;
    if (held > MAX_LINE) {
      parts = [];
      held = 0;
      onTooLong?.();
    }
  });
  stream.on('error', () => {}); // the exit that follows tells more
}

/**
 * One log line of the sidecar in the gateway's words.
 * @param {string} line
 * @returns {{ level: 'debug' | 'info' | 'warn' | 'error', text: string }}
 */
export function logLine(line) {
  let record;
  try {
    record = JSON.parse(line);
  } catch {
    return { level: 'warn', text: line }; // a panic, or the loader speaking
  }
  if (typeof record !== 'object' || record === null || typeof record.message !== 'string') {
    return { level: 'warn', text: line };
  }
  const { level, message, target: _target, timestamp: _timestamp, ...fields } = record;
  const extra = Object.entries(fields)
    .map(([name, value]) => ` ${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`)
    .join('');
  return { level: levelOf(level), text: message + extra };
}

/** @param {unknown} level @returns {'debug' | 'info' | 'warn' | 'error'} */
function levelOf(level) {
  switch (String(level).toUpperCase()) {
    case 'ERROR':
      return 'error';
    case 'WARN':
      return 'warn';
    case 'INFO':
      return 'info';
    default:
      return 'debug';
  }
}

/**
 * @typedef {object} SidecarOptions
 * @property {() => string} binary finds the executable; throws with a text for the operator
 * @property {string} stateFolder
 * @property {import('./types.js').Logger} logger
 * @property {(problem: string | undefined) => void} health a problem, or undefined when it is gone
 * @property {() => Promise<import('./types.js').ToSidecar>} greeting the first line of each start
 * @property {(message: import('./types.js').FromSidecar) => void} onMessage
 * @property {() => void} [onGone] the sidecar has ended, however it did
 */

/** Supervises one sidecar. `start` and `stop` may be called any number of times, in any order. */
export class Sidecar {
  /** @param {SidecarOptions} options */
  constructor(options) {
    this.options = options;
    /** @type {import('node:child_process').ChildProcessWithoutNullStreams | undefined} */
    this.child = undefined;
    /** @type {NodeJS.Timeout | undefined} */
    this.restart = undefined;
    this.wanted = false;
    this.greeted = false;
    this.crashes = 0;
    /** Counts the calls of start and stop, so that a start that waited knows it is still the last word. */
    this.order = 0;
    /** @type {Promise<void> | undefined} */
    this.stopping = undefined;
  }

  /** Starts the sidecar if it does not run. */
  async start() {
    const order = ++this.order;
    await this.stopping;
    if (this.wanted || order !== this.order) return;
    this.wanted = true;
    this.crashes = 0;
    this.#launch();
  }

  /**
   * Says something to the sidecar; dropped when it does not run or was not greeted yet, since the
   * greeting carries the newest state.
   * @param {import('./types.js').ToSidecar} message
   */
  send(message) {
    if (this.child && this.greeted) write(this.child, message);
  }

  /** Drains the sidecar and ends it; returns when it is gone, within 5 s. */
  stop() {
    this.order += 1;
    this.wanted = false;
    clearTimeout(this.restart);
    this.restart = undefined;
    const child = this.child;
    if (!child) return this.stopping ?? Promise.resolve();
    this.stopping ??= end(child).finally(() => {
      this.stopping = undefined;
    });
    return this.stopping;
  }

  #launch() {
    const { options } = this;
    let child;
    try {
      child = spawn(options.binary(), ['run', '--parent', 'stdio', '--state-dir', options.stateFolder], {
        stdio: ['pipe', 'pipe', 'pipe'],
        env: sidecarEnv(process.env),
      });
    } catch (error) {
      // No binary: waiting does not make one.
      this.wanted = false;
      options.logger.error(textOf(error));
      return options.health(textOf(error));
    }
    this.child = child;
    this.greeted = false;
    /** @type {string | undefined} */
    let failed;
    let readyAt = 0;
    child.stdin.on('error', () => {}); // it exited while we wrote; `close` follows
    readLines(child.stderr, (line) => {
      const { level, text } = logLine(line);
      options.logger[level]?.(text);
    });
    readLines(
      child.stdout,
      (line) => {
        const message = parse(line);
        if (!message) return options.logger.warn(`the sidecar said something unreadable (${line.length} characters)`);
        if (message.type === 'failed') failed = message.message;
        if (message.type === 'ready') {
          readyAt = Date.now();
          options.health(undefined);
        }
        options.onMessage(message);
      },
      () => {
        options.logger.error('the sidecar sent a line without end; restarting it');
        child.kill('SIGKILL');
      },
    );
    // `error` without `close` is a failed spawn; with it, the second call finds the child replaced.
    child.on('error', (error) => this.#gone(child, `the sidecar could not be started: ${error.message}`, undefined, false));
    child.on('close', (code, signal) => {
      const how = signal ? `was ended by ${signal}` : `exited with code ${code}`;
      const settled = readyAt > 0 && Date.now() - readyAt > SETTLED;
      this.#gone(child, failed ?? `the sidecar ${how}`, code ?? undefined, settled);
    });
    this.#greet(child);
  }

  /** @param {import('node:child_process').ChildProcessWithoutNullStreams} child */
  async #greet(child) {
    const greeting = await this.options.greeting();
    if (this.child !== child || !this.wanted) return;
    write(child, greeting);
    this.greeted = true;
  }

  /**
   * @param {import('node:child_process').ChildProcessWithoutNullStreams} child
   * @param {string} problem
   * @param {number | undefined} code
   * @param {boolean} settled
   */
  #gone(child, problem, code, settled) {
    if (this.child !== child) return;
    this.child = undefined;
    this.options.onGone?.();
    if (!this.wanted) return;
    this.crashes = settled ? 1 : this.crashes + 1;
    this.options.health(problem);
    if (code !== undefined && FINAL_EXITS.includes(code)) {
      this.wanted = false;
      return this.options.logger.error(`${problem} (exit code ${code}; not restarted)`);
    }
    const pause = backoff(this.crashes);
    this.options.logger.warn(`${problem}; restarting in ${pause / 1000} s`);
    this.restart = setTimeout(() => this.#launch(), pause);
    this.restart.unref();
  }
}

/**
 * @param {import('node:child_process').ChildProcessWithoutNullStreams} child
 * @param {import('./types.js').ToSidecar} message
 */
function write(child, message) {
  if (child.stdin.writable) child.stdin.write(`${JSON.stringify(message)}\n`);
}

/**
 * Asks kindly first and harder as time runs out.
 * @param {import('node:child_process').ChildProcessWithoutNullStreams} child
 * @returns {Promise<void>}
 */
function end(child) {
  return new Promise((resolve) => {
    const steps = [
      setTimeout(() => child.stdin.end(), STOP.endInput),
      setTimeout(() => child.kill('SIGTERM'), STOP.terminate),
      setTimeout(() => child.kill('SIGKILL'), STOP.kill),
    ];
    // `exit`, not `close`: a grandchild that holds the pipes must not hold the gateway.
    child.once('exit', () => {
      steps.forEach(clearTimeout);
      resolve();
    });
    if (child.exitCode !== null || child.signalCode !== null || child.pid === undefined) {
      steps.forEach(clearTimeout);
      return resolve();
    }
    write(child, { type: 'drain' });
  });
}

/**
 * @param {string} line
 * @returns {import('./types.js').FromSidecar | undefined}
 */
function parse(line) {
  try {
    const message = JSON.parse(line);
    return typeof message?.type === 'string' ? message : undefined;
  } catch {
    return undefined;
  }
}

/** @param {unknown} error */
function textOf(error) {
  return error instanceof Error ? error.message : String(error);
}
