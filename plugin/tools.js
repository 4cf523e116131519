// The agent tools: name, description, parameters, route. No decision is taken here; policy and
// routing live in the sidecar.

import { get } from './client.js';

/** @typedef {import('./types.js').Tool} Tool */

/**
 * @typedef {object} Row
 * @property {string} name
 * @property {string} label
 * @property {string} description
 * @property {import('./types.js').Json} parameters
 * @property {(folder: string, params: Record<string, unknown>, signal?: AbortSignal) => Promise<unknown>} run
 */

/** @type {Row[]} */
export const TOOLS = [
  {
    name: 'cluster_peers',
    label: 'Cluster peers',
    description:
      'Lists the other nodes of the ClawMatrix mesh with their agents, models, tags, connection state and latency. ' +
      'Call it first to learn which nodes exist before addressing one.',
    parameters: { type: 'object', properties: {}, additionalProperties: false },
    run: (folder, _params, signal) => get(folder, '/api/v1/peers', { signal }),
  },
];

/**
 * Registers every tool as optional: OpenClaw shows them to agents once they are allowed.
 * @param {import('./types.js').PluginApi} api
 * @param {() => string} folder the sidecar's state folder, found when a tool runs
 */
export function registerTools(api, folder) {
  for (const { run, ...tool } of TOOLS) {
    api.registerTool(
      {
        ...tool,
        async execute(_id, params, signal) {
          const result = await run(folder(), params ?? {}, signal);
          return { content: [{ type: 'text', text: JSON.stringify(result, null, 1) }], details: result };
        },
      },
      { optional: true },
    );
  }
}

/**
 * Whether any agent may see our tools under OpenClaw's settings; if not, what to set. Optional
 * tools need the profile `full`, or our name, id or group in `allow` or `alsoAllow`.
 * @param {import('./types.js').OpenClawConfig} cfg
 * @returns {string | undefined} the warning
 */
export function visibilityWarning(cfg) {
  const agents = Array.isArray(cfg.agents?.list) ? cfg.agents.list : [];
  const policies = [cfg.tools, ...agents.map((agent) => agent?.tools)];
  const base = cfg.tools;
  const visible = policies.some((policy) => {
    if (!policy) return false;
    const denied = [...list(policy.deny), ...list(base?.deny)];
    const names = TOOLS.map((tool) => tool.name).filter((name) => !denied.some((word) => grants(word, name)));
    if (names.length === 0) return false;
    const words = [...list(policy.allow), ...list(policy.alsoAllow)];
    return policy.profile === 'full' || names.some((name) => words.some((word) => grants(word, name)));
  });
  if (visible) return undefined;
  const merged = list(base?.allow).length > 0;
  return merged
    ? 'no agent can see the cluster tools: add "clawmatrix" to tools.allow in OpenClaw\'s configuration'
    : 'no agent can see the cluster tools: run openclaw config set tools.alsoAllow \'["clawmatrix"]\' --strict-json --merge';
}

/** @param {unknown} value @returns {string[]} */
function list(value) {
  return Array.isArray(value) ? value.filter((word) => typeof word === 'string') : [];
}

/**
 * @param {string} word as written in a tool policy
 * @param {string} name of a tool
 */
function grants(word, name) {
  const text = word.toLowerCase();
  if (text === 'clawmatrix' || text === 'group:plugins' || text === '*') return true;
  if (!text.includes('*')) return text === name;
  const pattern = text.replace(/[.+?^${}()|[\]\\]/g, '\\$&').replaceAll('*', '.*');
  return new RegExp(`^${pattern}$`).test(name);
}
