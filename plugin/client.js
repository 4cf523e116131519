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
 * Asks the control API.
 * @param {string} folder the sidecar's state folder
 * @param {string} path `/api/v1/…`
 * @param {{ timeoutMs?: number, signal?: AbortSignal }} [options]
 * @returns {Promise<any>} the JSON answer
 * @throws {SidecarError}
 */
export function get(folder, path, options = {}) {
  const endpoint = readText(join(folder, 'run', 'endpoint'));
  const token = readText(join(folder, 'run', 'token'));
  const port = endpoint && parsePort(endpoint);
  if (!port || !token) {
    return Promise.reject(new SidecarError('not_running', 'the ClawMatrix sidecar is not running; see openclaw health'));
  }
  return new Promise((resolve, reject) => {
    const fail = (/** @type {string} */ code, /** @type {string} */ message) => reject(new SidecarError(code, message));
    // node:http, since fetch may be told by the gateway to go through a proxy.
    const call = request(
      {
        host: '127.0.0.1',
        port,
        path,
        signal: options.signal,
        agent: false, // a kept connection of a sidecar that is gone fails the first question to the next one
        timeout: options.timeoutMs ?? 5000,
        headers: { authorization: `Bearer ${token}`, accept: 'application/json' },
      },
      (answer) => {
        let text = '';
        answer.setEncoding('utf8');
        answer.on('data', (part) => {
          text += part;
          if (text.length > MAX_ANSWER) call.destroy(new Error('answer too long'));
        });
        answer.on('error', (error) => fail('unavailable', `the ClawMatrix sidecar broke off: ${error.message}`));
        answer.on('end', () => {
          const body = parseJson(text);
          if (answer.statusCode === 200 && body !== undefined) return resolve(body);
          const error = body?.error;
          fail(error?.code ?? 'unavailable', error?.message ?? `the ClawMatrix sidecar answered ${answer.statusCode}`);
        });
      },
    );
    call.on('timeout', () => call.destroy(new Error('no answer in time')));
    call.on('error', (error) => {
      const gone = /** @type {NodeJS.ErrnoException} */ (error).code === 'ECONNREFUSED';
      if (gone) fail('not_running', 'the ClawMatrix sidecar is not running; see openclaw health');
      else fail('unavailable', `the ClawMatrix sidecar could not be asked: ${error.message}`);
    });
    call.end();
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
