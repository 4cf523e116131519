import assert from 'node:assert/strict';
import { test } from 'node:test';

import { settleInterrupted } from '../interrupted.js';

/**
 * OpenClaw's sessions of one agent each.
 * @param {Record<string, Record<string, any>>} stores
 */
function openclaw(stores) {
  /** @type {string[]} */
  const warned = [];
  /** @type {any} */
  const api = {
    runtime: {
      agent: {
        session: {
          listSessionEntries: (/** @type {any} */ { agentId }) => Object.entries(stores[agentId] ?? {}).map(([sessionKey, entry]) => ({ sessionKey, entry })),
          patchSessionEntry: async (/** @type {any} */ { agentId, sessionKey, update }) => Object.assign(stores[agentId][sessionKey], update(stores[agentId][sessionKey])),
        },
      },
    },
  };
  /** @type {any} */
  const logger = { debug() {}, info() {}, warn: (/** @type {string} */ text) => warned.push(text), error() {} };
  return { api, logger, warned };
}

test('runs for other nodes that were cut off are not taken up again', async () => {
  /** @type {Record<string, Record<string, any>>} */
  const stores = {
    main: {
      'agent:main:main': { status: 'running', abortedLastRun: true },
      'agent:main:clawmatrix:home-01-ab:1': { status: 'running', abortedLastRun: true, mainRestartRecovery: {}, restartRecoveryRuns: [] },
      'agent:main:clawmatrix:home-01-ab:2': { status: 'running' },
      'agent:main:clawmatrix:home-01-ab:3': { status: 'done' },
    },
    narrow: { 'agent:narrow:clawmatrix:home-01-ab:4': { status: 'running', abortedLastRun: true } },
  };
  const { api, logger, warned } = openclaw(stores);
  await settleInterrupted({ api, cfg: { agents: { entries: { main: {}, narrow: {} } } }, logger });
  const { main, narrow } = stores;
  assert.deepEqual(main['agent:main:main'], { status: 'running', abortedLastRun: true }, 'the owner keeps his own');
  for (const entry of [main['agent:main:clawmatrix:home-01-ab:1'], main['agent:main:clawmatrix:home-01-ab:2'], narrow['agent:narrow:clawmatrix:home-01-ab:4']]) {
    assert.deepEqual([entry.status, entry.abortedLastRun], ['failed', false]);
  }
  assert.equal(main['agent:main:clawmatrix:home-01-ab:1'].mainRestartRecovery, undefined);
  assert.equal(main['agent:main:clawmatrix:home-01-ab:3'].status, 'done');
  assert.equal(warned.length, 3);
});

test('an OpenClaw without such helpers is left alone', async () => {
  /** @type {any} */
  const api = { runtime: { agent: {} } };
  await settleInterrupted({ api, cfg: {}, logger: openclaw({}).logger });
});
