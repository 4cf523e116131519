// Runs for other nodes that a gateway left behind when it was killed. The next one would take them up
// again by itself: as turns of the owner's agent, without the bounds the agent's entry sets for other nodes,
// and although their origin was told that nobody knows how they ended and that nobody repeats them.

import { agentsOf } from './tools.js';

/** @typedef {import('./types.js').OpenClawConfig} OpenClawConfig */

/**
 * Marks such runs as failed. To be awaited before the service has started: OpenClaw looks for runs to take
 * up after that.
 * @param {object} options
 * @param {import('./types.js').PluginApi} options.api
 * @param {OpenClawConfig} options.cfg
 * @param {import('./types.js').Logger} options.logger
 */
export async function settleInterrupted({ api, cfg, logger }) {
  const session = api.runtime.agent?.session;
  if (!session?.listSessionEntries || !session.patchSessionEntry) return;
  const ids = agentsOf(cfg).map((entry) => entry.id);
  for (const agentId of ids.length > 0 ? ids : ['main']) {
    for (const { sessionKey, entry } of ours(session.listSessionEntries({ agentId }), agentId)) {
      if (!isOpen(entry)) continue;
      await session.patchSessionEntry({
        agentId,
        sessionKey,
        preserveActivity: true,
        update: (now) =>
          isOpen(now)
            ? { status: 'failed', endedAt: Date.now(), abortedLastRun: false, mainRestartRecovery: undefined, restartRecoveryRuns: undefined }
            : null,
      });
      logger.warn(`ClawMatrix: a run for another node was cut off when the gateway ended; it is not taken up again (${sessionKey})`);
    }
  }
}

/** @param {import('./types.js').SessionEntry} entry */
function isOpen(entry) {
  return entry.status === 'running' || entry.abortedLastRun === true || entry.mainRestartRecovery !== undefined;
}

/**
 * @param {{ sessionKey: string, entry: import('./types.js').SessionEntry }[]} entries
 * @param {string} agentId
 */
function ours(entries, agentId) {
  const prefix = `agent:${agentId}:clawmatrix:`.toLowerCase();
  return entries.filter(({ sessionKey }) => sessionKey.toLowerCase().startsWith(prefix));
}
