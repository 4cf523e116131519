// The only file that knows where the running sidecar listens and with which token it is asked. Both
// come from files: tools, gateway methods and commands run in other module instances than the
// service, or in other processes, and share no memory with it.

import { readFileSync } from 'node:fs';
import { request } from 'node:http';
import { homedir } from 'node:os';
import { join } from 'node:path';

/** Longest answer of the control API we hold in memory. */
const MAX_ANSWER = 16 * 1024 * 1024;

/**
 * The sidecar's state folder.
 * @param {string} stateDir OpenClaw's own
 */
export function stateFolder(stateDir) {
  return join(stateDir, 'clawmatrix');
}

/** OpenClaw's state folder where `api.runtime` must not be touched (`--profile` sets the variable). */
export function stateDirFromEnv() {
  return process.env.OPENCLAW_STATE_DIR || join(homedir(), '.openclaw');
}

/**
 * Key with which OpenClaw itself asks for models: scope `models`, kept from start to start.
 * @param {string} folder the sidecar's state folder
 * @returns {string | undefined}
 */
export function openclawToken(folder) {
  return readText(join(folder, 'openclaw.token'));
}

/** The sidecar could not be asked, or refused. */
export class SidecarError extends Error {
  /**
   * @param {string} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/**
 * @typedef {object} AskOptions
 * @property {number} [timeoutMs] longest silence of the sidecar; 0 = no bound, for work that takes its time
 * @property {AbortSignal} [signal] ends the request, and with it what it asked for
 * @property {string} [session] OpenClaw session the asking tool runs in
 */

/**
 * Asks the control API with `GET`.
 * @param {string} folder the sidecar's state folder
 * @param {string} path `/api/v1/…`
 * @param {AskOptions} [options]
 * @returns {Promise<any>} the JSON answer
 * @throws {SidecarError}
 */
export function get(folder, path, options = {}) {
  return call(folder, 'GET', path, undefined, options);
}

/**
 * Asks the control API.
 * @param {string} folder the sidecar's state folder
 * @param {string} method
 * @param {string} path `/api/v1/…`
 * @param {unknown} body
 * @param {AskOptions} [options]
 * @returns {Promise<any>} the JSON answer
 * @throws {SidecarError}
 */
export async function call(folder, method, path, body, options = {}) {
  const answer = await ask(folder, method, path, body, 'application/json', options);
  return whole(answer);
}

/**
 * Asks the control API for something that takes its time, and reads its events.
 * @param {string} folder the sidecar's state folder
 * @param {string} path `/api/v1/…`
 * @param {unknown} body
 * @param {AskOptions} options
 * @param {(name: string, data: any) => void} onEvent every event but the last
 * @returns {Promise<any>} data of the event `end`
 * @throws {SidecarError}
 */
export async function stream(folder, path, body, options, onEvent) {
  const answer = await ask(folder, 'POST', path, body, 'text/event-stream', options);
  if (!String(answer.headers['content-type']).startsWith('text/event-stream')) return whole(answer);
  return new Promise((resolve, reject) => {
    let text = '';
    answer.setEncoding('utf8');
    answer.on('data', (/** @type {string} */ part) => {
      text += part;
      for (let at = text.indexOf('\n\n'); at >= 0; at = text.indexOf('\n\n')) {
        const { name, data } = eventOf(text.slice(0, at));
        text = text.slice(at + 2);
        if (name === 'end') resolve(data);
        else if (data !== undefined) onEvent(name, data);
      }
      if (text.length > MAX_ANSWER) answer.destroy(new Error('an event is too long'));
    });
    answer.on('error', (error) => reject(brokeOff(error)));
    // After an `end` these change nothing any more.
    answer.on('close', () => reject(new SidecarError('unavailable', 'the ClawMatrix sidecar broke off in the middle of its answer')));
  });
}

/** @param {string} block */
function eventOf(block) {
  let name = 'message';
  const data = [];
  for (const line of block.split('\n')) {
    if (line.startsWith('event: ')) name = line.slice(7);
    else if (line.startsWith('data: ')) data.push(line.slice(6));
  }
  return { name, data: data.length ? parseJson(data.join('\n')) : undefined };
}

/**
 * @param {import('node:http').IncomingMessage} answer
 * @returns {Promise<any>}
 */
function whole(answer) {
  return new Promise((resolve, reject) => {
    let text = '';
    answer.setEncoding('utf8');
    answer.on('data', (part) => {
      text += part;
      if (text.length > MAX_ANSWER) answer.destroy(new Error('answer too long'));
    });
    answer.on('error', (error) => reject(brokeOff(error)));
    answer.on('end', () => {
      const body = parseJson(text);
      const status = answer.statusCode ?? 0;
      if (status >= 200 && status < 300 && body !== undefined) return resolve(body);
      const error = body?.error;
      const said = error?.message ?? `the ClawMatrix sidecar answered ${status}`;
      reject(new SidecarError(error?.code ?? 'unavailable', withOutcome(said, body)));
    });
  });
}

/**
 * An error's words with what they mean for who wants to try again.
 * @param {string} said
 * @param {any} body
 */
function withOutcome(said, body) {
  // What a rule or a person said counts more than that nothing began.
  const code = body?.error?.code;
  const decided = ['policy_denied', 'approval_denied', 'approval_expired'].includes(code);
  switch (decided ? code : (body?.outcome ?? code)) {
    case 'not_dispatched':
      return `${said} (it never began, so it is safe to try again or elsewhere)`;
    case 'outcome_unknown':
      return `${said} (it may have been done, in part or whole: check before you do it again)`;
    case 'policy_denied':
      return `${said} (that node's rules do not allow it: do not try again)`;
    case 'approval_denied':
      return `${said} (a person on that node said no: do not try again)`;
    case 'timeout':
    case 'deadline_exceeded':
      return `${said} (it ran out of time; what it did until then stands)`;
    default:
      return said;
  }
}

/** @param {Error} error */
function brokeOff(error) {
  return new SidecarError('unavailable', `the ClawMatrix sidecar broke off: ${error.message}`);
}

/**
 * Sends a request; resolves at the head of the answer.
 * @param {string} folder
 * @param {string} method
 * @param {string} path
 * @param {unknown} body
 * @param {string} accept
 * @param {AskOptions} options
 * @returns {Promise<import('node:http').IncomingMessage>}
 */
function ask(folder, method, path, body, accept, { timeoutMs = 5000, signal, session }) {
  const endpoint = readText(join(folder, 'run', 'endpoint'));
  const token = readText(join(folder, 'run', 'token'));
  const port = endpoint && parsePort(endpoint);
  if (!port || !token) {
    return Promise.reject(new SidecarError('not_running', 'the ClawMatrix sidecar is not running; see openclaw health'));
  }
  const text = body === undefined ? undefined : JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const fail = (/** @type {string} */ code, /** @type {string} */ message) => reject(new SidecarError(code, message));
    // node:http, since fetch may be told by the gateway to go through a proxy.
    const sent = request(
      {
        host: '127.0.0.1',
        port,
        path,
        method,
        signal,
        agent: false, // a kept connection of a sidecar that is gone fails the first question to the next one
        timeout: timeoutMs,
        headers: {
          authorization: `Bearer ${token}`,
          accept,
          ...(session && /^[\x21-\x7e]+$/.test(session) ? { 'x-clawmatrix-session': session } : {}),
          ...(text === undefined ? {} : { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text) }),
        },
      },
      resolve,
    );
    sent.on('timeout', () => sent.destroy(new Error('no answer in time')));
    sent.on('error', (error) => {
      const gone = /** @type {NodeJS.ErrnoException} */ (error).code === 'ECONNREFUSED';
      if (gone) fail('not_running', 'the ClawMatrix sidecar is not running; see openclaw health');
      else fail('unavailable', `the ClawMatrix sidecar could not be asked: ${error.message}`);
    });
    sent.end(text);
  });
}

/** @param {string} text */
function parsePort(text) {
  const port = parseJson(text)?.proxyPort;
  return Number.isInteger(port) && port > 0 && port < 65536 ? port : undefined;
}

/** @param {string} text */
function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** @param {string} path */
function readText(path) {
  try {
    return readFileSync(path, 'utf8').trim() || undefined;
  } catch {
    return undefined; // not there yet, or not any more
  }
}
