import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { Sidecar, backoff, logLine, readLines, sidecarEnv } from '../sidecar.js';

const STUB = fileURLToPath(new URL('fixtures/stub-sidecar.mjs', import.meta.url));

/** @param {Record<string, unknown>} [script] for the stub */
function supervised(script) {
  const stateFolder = mkdtempSync(join(tmpdir(), 'cm-shim-'));
  if (script) writeFileSync(join(stateFolder, 'stub.json'), JSON.stringify(script));
  /** @type {(string | undefined)[]} */
  const health = [];
  /** @type {string[]} */
  const logged = [];
  /** @type {any[]} */
  const messages = [];
  const log = (/** @type {string} */ level) => (/** @type {string} */ text) => void logged.push(`${level} ${text}`);
  const sidecar = new Sidecar({
    binary: () => STUB,
    stateFolder,
    logger: { debug: log('debug'), info: log('info'), warn: log('warn'), error: log('error') },
    health: (problem) => void health.push(problem),
    greeting: async () => ({ type: 'config', config: { nodeId: 'a', secret: 'very-secret-text' }, providers: {}, warnings: [] }),
    onMessage: (message) => void messages.push(message),
  });
  const seen = () => JSON.parse(readFileSync(join(stateFolder, 'seen.json'), 'utf8'));
  const done = async () => {
    await sidecar.stop();
    rmSync(stateFolder, { recursive: true, force: true });
  };
  return { sidecar, health, logged, messages, seen, done };
}

/** @param {string} what @param {() => unknown} look */
async function until(what, look) {
  const deadline = Date.now() + 10_000;
  for (;;) {
    try {
      if (look()) return;
    } catch {
      // not yet
    }
    if (Date.now() > deadline) throw new Error(`waited in vain for ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

const alive = (/** @type {number} */ pid) => {
  try {
    return process.kill(pid, 0);
  } catch {
    return false;
  }
};

test('the sidecar is greeted, reports ready, and its log keeps its levels', async () => {
  const s = supervised();
  await s.sidecar.start();
  await until('ready', () => s.messages.some((m) => m.type === 'ready'));
  await until('log', () => s.logged.includes('info stub ready') && s.logged.includes('warn stub warns'));
  assert.deepEqual(s.health, [undefined]);
  await s.done();
});

test('secrets reach the sidecar by its input alone', async () => {
  process.env.SOME_API_KEY = 'sk-inherited';
  const s = supervised();
  await s.sidecar.start();
  await until('greeting', () => s.seen().messages.length > 0);
  const { argv, env, messages } = s.seen();
  assert.equal(messages[0].config.secret, 'very-secret-text');
  assert.ok(!JSON.stringify([argv, env]).includes('very-secret-text'));
  assert.equal(env.SOME_API_KEY, undefined);
  assert.ok(env.PATH);
  delete process.env.SOME_API_KEY;
  await s.done();
});

test('start twice is one sidecar, stop twice is fine, start again works', async () => {
  const s = supervised();
  await Promise.all([s.sidecar.start(), s.sidecar.start()]);
  await until('first', () => s.messages.length > 0);
  const { pid } = s.seen();
  await Promise.all([s.sidecar.stop(), s.sidecar.stop()]);
  assert.ok(!alive(pid));
  await s.sidecar.stop();
  await s.sidecar.start();
  await until('second', () => s.seen().pid !== pid && s.messages.length > 1);
  const second = s.seen().pid;
  await s.done();
  assert.ok(!alive(second));
});

test('a stop during a start wins', async () => {
  const s = supervised();
  await s.sidecar.start();
  const stopping = s.sidecar.stop();
  const again = s.sidecar.start();
  await s.sidecar.stop();
  await Promise.all([stopping, again]);
  assert.equal(s.sidecar.child?.exitCode === null, false);
  await s.done();
});

test('a stopping sidecar that listens to nothing is killed within 5 s', async () => {
  const s = supervised({ deaf: true });
  await s.sidecar.start();
  await until('ready', () => s.messages.length > 0);
  const { pid } = s.seen();
  const began = Date.now();
  await s.sidecar.stop();
  assert.ok(!alive(pid));
  assert.ok(Date.now() - began < 6_000, 'the documented end of a stop');
  await s.done();
});

test('a crash is reported and mended by a restart', async () => {
  const s = supervised({ crash: 20 });
  await s.sidecar.start();
  await until('crash', () => s.health.some((problem) => problem?.includes('exited with code 101')));
  await until('restart', () => s.messages.filter((m) => m.type === 'ready').length >= 2);
  await s.done();
});

test('a configuration that the sidecar refuses is shown in its words and not retried', async () => {
  const s = supervised({ failed: { code: 78, message: 'peers[0].url: not a URL' } });
  await s.sidecar.start();
  await until('failure', () => s.health.length > 0);
  assert.deepEqual(s.health, ['peers[0].url: not a URL']);
  assert.equal(s.sidecar.wanted, false);
  await s.done();
});

test('pauses between restarts grow to a cap', () => {
  assert.deepEqual([1, 2, 3, 7, 50].map(backoff), [500, 1000, 2000, 30_000, 30_000]);
});

test('only listed variables are passed on', () => {
  assert.deepEqual(sidecarEnv({ HOME: '/h', OPENAI_API_KEY: 'sk', NODE_OPTIONS: '--x' }), { HOME: '/h' });
});

test('lines are put together from pieces and empty ones skipped', async () => {
  const stream = new PassThrough();
  /** @type {string[]} */
  const lines = [];
  readLines(stream, (line) => void lines.push(line));
  for (const piece of ['{"a"', ':1}\n\n{"b":', '2}', '\n', 'rest']) stream.write(piece);
  await until('lines', () => lines.length === 2);
  assert.deepEqual(lines, ['{"a":1}', '{"b":2}']);
});

test('log lines keep their fields, and what is no record is a warning', () => {
  assert.deepEqual(logLine('{"level":"ERROR","message":"link lost","target":"x","peer":"home-01","n":2}'), {
    level: 'error',
    text: 'link lost peer=home-01 n=2',
  });
  assert.deepEqual(logLine('thread main panicked'), { level: 'warn', text: 'thread main panicked' });
});
