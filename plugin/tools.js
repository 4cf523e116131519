// The agent tools: name, description, parameters, route. No decision is taken here; policy and
// routing live in the sidecar.

import { call, get, stream } from './client.js';

/** @typedef {import('./types.js').Tool} Tool */
/** @typedef {Record<string, any>} Params */

/**
 * @typedef {object} Where
 * @property {string} folder the sidecar's state folder
 * @property {string} [session] OpenClaw session the tool is called in
 * @property {AbortSignal} [signal]
 * @property {(text: string) => void} progress shows what has come so far
 */

/**
 * @typedef {object} Row
 * @property {string} name
 * @property {string} label
 * @property {string} description
 * @property {import('./types.js').Json} parameters
 * @property {(where: Where, params: Params) => Promise<{ text: string, details: unknown }>} run
 */

/** Longest progress shown at once, in characters: its end. */
const PROGRESS = 4000;

const TARGET =
  'Who: "node/agent", an agent id, a node id (its first agent), "tags:<tag>", or "any". cluster_peers lists what there is.';

const NODE = 'Which node: its name, "tags:<tag>", or "any". cluster_peers lists what there is.';
const PATH = 'Path there: absolute, or within the folder that node lends.';

/**
 * @param {Record<string, unknown>} properties
 * @param {string[]} required
 */
const object = (properties, required) =>
  /** @type {import('./types.js').Json} */ ({ type: 'object', properties, required, additionalProperties: false });
const text = (/** @type {string} */ description) => ({ type: 'string', description });

/** @type {Row[]} */
export const TOOLS = [
  {
    name: 'cluster_peers',
    label: 'Cluster peers',
    description:
      'Lists the other nodes of the ClawMatrix mesh with their agents, models, tags, connection state and latency. ' +
      'Call it first to learn which nodes exist before addressing one.',
    parameters: object({}, []),
    async run({ folder, signal }) {
      const peers = await get(folder, '/api/v1/peers', { signal });
      return { text: JSON.stringify(peers, null, 1), details: peers };
    },
  },
  {
    name: 'cluster_handoff',
    label: 'Hand a task to another agent',
    description:
      'Gives a task to an agent of another node and waits for its answer. The agent works with its own tools and knows nothing of ' +
      'this conversation: say everything it needs in task and context. If it asks back, call again with the same session.',
    parameters: object(
      {
        target: text(TARGET),
        task: text('What the agent is to do, complete in itself.'),
        context: text('What it should know besides the task.'),
        session: text('The session named in an earlier answer, to continue it.'),
      },
      ['target', 'task'],
    ),
    run: handoff,
  },
  {
    name: 'cluster_send',
    label: 'Message another agent',
    description:
      'Leaves a message for an agent of another node, without waiting for an answer. It is kept for a day when that node is away.',
    parameters: object({ target: text(TARGET), message: text('The message.') }, ['target', 'message']),
    async run(where, { target, message }) {
      const sent = await call(where.folder, 'POST', '/api/v1/send', { target, message }, options(where));
      const said = sent.delivered
        ? `delivered to ${sent.nodeId}`
        : 'queued: the node is away; the message is delivered when it is back, within a day';
      return { text: said, details: sent };
    },
  },
  {
    name: 'cluster_exec',
    label: 'Run a command on another node',
    description:
      'Runs a shell command on another node and waits for its end. It starts in that node\'s own folder with no input and ends with ' +
      'everything it started. That node\'s rules decide what is allowed.',
    parameters: object(
      {
        node: text(NODE),
        command: text('The command, for /bin/sh there.'),
        workdir: text('Folder there to run it in.'),
        timeout: { type: 'number', description: 'Longest run in seconds (1800).' },
      },
      ['node', 'command'],
    ),
    run: exec,
  },
  {
    name: 'cluster_read',
    label: 'Read a file of another node',
    description: 'Reads a text file of another node. What is no text comes as base64.',
    parameters: object({ node: text(NODE), path: text(PATH) }, ['node', 'path']),
    async run(where, { node, path }) {
      const file = await tool(where, 'read', { node, path });
      const note = [
        file.encoding === 'base64' ? 'the file is no text: this is base64' : '',
        file.truncated ? `only the first part of ${file.size} bytes` : '',
      ].filter(Boolean);
      return { text: note.length ? `${file.content}\n\n[${note.join('; ')}]` : file.content, details: file };
    },
  },
  {
    name: 'cluster_write',
    label: 'Write a file of another node',
    description: 'Writes a text file of another node, all of it or nothing; missing folders are made. What was in it is gone.',
    parameters: object({ node: text(NODE), path: text(PATH), content: text('The whole content.') }, ['node', 'path', 'content']),
    async run(where, { node, path, content }) {
      const receipt = await tool(where, 'write', { node, path, content });
      return { text: `${receipt.created ? 'created' : 'replaced'} ${path} on ${receipt.nodeId}, ${receipt.bytes} bytes`, details: receipt };
    },
  },
  {
    name: 'cluster_tool',
    label: 'Use a tool of another node',
    description:
      'Calls a tool of another node by its name: one of its OpenClaw gateway, or exec, read, write, edit ' +
      '{path, oldText, newText} and list {path}. That node\'s rules decide what is allowed.',
    parameters: object(
      { node: text(NODE), tool: text('Name of the tool there.'), args: { type: 'object', description: 'Its arguments.', additionalProperties: true } },
      ['node', 'tool'],
    ),
    async run(where, { node, tool: name, args = {} }) {
      const answer = await tool(where, 'invoke', { node, tool: name, args });
      const { nodeId, outcome, ...rest } = answer;
      return { text: name === 'exec' ? outputOf(answer) : textOf(answer.result) ?? JSON.stringify(answer.result ?? rest, null, 1), details: answer };
    },
  },
];

/**
 * @param {Where} where
 * @param {Params} params
 */
async function exec(where, { node, command, workdir, timeout }) {
  const asked = { node, command, ...(workdir === undefined ? {} : { workdir }), ...(timeout === undefined ? {} : { timeout }) };
  const said = { stdout: '', stderr: '' };
  const end = await stream(where.folder, '/api/v1/tools/exec', asked, options(where), (name, data) => {
    if (name === 'approval') return where.progress(data.message);
    if (name !== 'stdout' && name !== 'stderr') return;
    said[name] += data.text ?? `[base64 ${data.base64}]`;
    where.progress(said.stdout + said.stderr);
  });
  const whole = { ...end, ...said };
  if (end.outcome !== 'completed') {
    const printed = said.stdout || said.stderr ? `\nUntil then it printed:\n${outputOf(whole)}` : '';
    throw new Error(failureOf(`the command on ${end.nodeId ?? node}`, end) + printed);
  }
  return { text: outputOf(whole), details: whole };
}

/**
 * Any other tool; a person who is asked there first may take minutes, and the agent sees so.
 * @param {Where} where
 * @param {string} verb
 * @param {Params} body
 */
async function tool(where, verb, body) {
  const end = await stream(where.folder, `/api/v1/tools/${verb}`, body, options(where), (name, data) => {
    if (name === 'approval') where.progress(data.message);
  });
  if (end.error) throw new Error(failureOf(`the request to ${end.nodeId ?? body.node}`, end));
  return end;
}

/**
 * What a command did, for a model.
 * @param {Params} end
 */
function outputOf({ stdout, stderr, exitCode, signal, truncated }) {
  const how = signal ? `ended by ${signal}` : `exit code ${exitCode}`;
  return [stdout, stderr && `stderr:\n${stderr}`, truncated && '[output cut at the limit of that node]', `[${how}]`].filter(Boolean).join('\n');
}

/**
 * The text of a tool's result, when it has OpenClaw's form.
 * @param {any} result
 */
function textOf(result) {
  const parts = Array.isArray(result?.content) ? result.content : [];
  const texts = parts.filter((/** @type {any} */ part) => part?.type === 'text' && typeof part.text === 'string');
  return texts.length > 0 && texts.length === parts.length ? texts.map((/** @type {any} */ part) => part.text).join('\n') : undefined;
}

/** @param {Where} where */
function options({ signal, session }) {
  return { signal, session, timeoutMs: 0 };
}

/**
 * @param {Where} where
 * @param {Params} params
 */
async function handoff(where, { target, task, context, session }) {
  let said = '';
  const end = await stream(where.folder, '/api/v1/handoff', { target, task, context, session }, options(where), (name, data) => {
    if (name === 'delta') said += data.text;
    else if (name === 'tool' && data.phase === 'start') said += `\n[${data.name}]\n`;
    else return;
    where.progress(said);
  });
  if (!end.success) throw new Error(failureOf(`the handoff to ${end.nodeId ?? target}`, end));
  const asks = end.outcome === 'input_required';
  const note = asks
    ? `\n\n[${end.nodeId}/${end.agent} needs an answer before it goes on: call cluster_handoff again with session "${end.session}" and the answer as task]`
    : `\n\n[from ${end.nodeId}/${end.agent}; session "${end.session}" continues this]`;
  return { text: `${end.result}${note}`, details: end };
}

/** What the model can do about each outcome that is no success. */
const ADVICE = /** @type {Record<string, string>} */ ({
  not_dispatched: 'It never began, so it is safe to try again or elsewhere.',
  outcome_unknown: 'It may have been done, in part or whole: check before you do it again.',
  cancelled: 'It was cancelled; what was done until then stands.',
  failed: 'What was done until then stands.',
});

/** The same where a person or a rule decided. */
const DECIDED = /** @type {Record<string, string>} */ ({
  approval_denied: 'Do not try again.',
  approval_expired: 'Nobody was there to approve it; ask a person before you try again.',
});

/**
 * @param {string} what
 * @param {Params} end
 */
function failureOf(what, end) {
  const why = end.error?.message ?? 'no reason was given';
  const partial = end.result ? `\nUntil then it said:\n${end.result}` : '';
  return `${what} did not succeed (${end.outcome ?? end.error?.code}): ${why}. ${DECIDED[end.error?.code] ?? ADVICE[end.outcome] ?? ''}${partial}`.trim();
}

/**
 * Registers every tool as optional: OpenClaw shows them to agents once they are allowed.
 * @param {import('./types.js').PluginApi} api
 * @param {() => string} folder the sidecar's state folder, found when a tool runs
 */
export function registerTools(api, folder) {
  for (const { run, ...tool } of TOOLS) {
    // A factory, since only it learns in which session the tool is called.
    const make = (/** @type {import('./types.js').ToolContext} */ context) => ({
      ...tool,
      /** @type {Tool['execute']} */
      async execute(_id, params, signal, onUpdate) {
        const progress = throttled((text) => onUpdate?.({ content: [{ type: 'text', text: text.slice(-PROGRESS) }], details: {} }));
        try {
          const where = { folder: folder(), session: context?.sessionKey, signal, progress };
          const { text, details } = await run(where, params ?? {});
          return { content: [{ type: 'text', text }], details };
        } catch (error) {
          // Thrown, so that OpenClaw grades the call as failed; the model reads the words.
          throw signal?.aborted ? new Error(`${tool.name} was cancelled`) : error;
        }
      },
    });
    api.registerTool(make, { name: tool.name, optional: true });
  }
}

/** How often progress is shown at most, ms. */
const PROGRESS_EVERY = 200;

/**
 * Shows the first text at once and later ones not too often.
 * @param {(text: string) => void} show
 */
function throttled(show) {
  let last = 0;
  return (/** @type {string} */ text) => {
    const now = Date.now();
    if (now - last < PROGRESS_EVERY) return;
    last = now;
    show(text);
  };
}
/**
 * Whether any agent may see our tools under OpenClaw's settings; if not, what to set. Optional
 * tools need the profile `full`, or our name, id or group in `allow` or `alsoAllow`.
 * @param {import('./types.js').OpenClawConfig} cfg
 * @returns {string | undefined} the warning
 */
export function visibilityWarning(cfg) {
  const policies = [cfg.tools, ...agentsOf(cfg).map((agent) => agent.tools)];
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

/**
 * The agents of OpenClaw's configuration: `agents.entries`, or `agents.list` as older ones have it.
 * @param {import('./types.js').OpenClawConfig} cfg
 * @returns {{ id: string, tools?: import('./types.js').ToolsConfig }[]}
 */
export function agentsOf(cfg) {
  const { entries, list: older } = cfg.agents ?? {};
  const keyed = entries && typeof entries === 'object' ? Object.entries(entries).map(([id, entry]) => ({ ...entry, id })) : [];
  const listed = (Array.isArray(older) ? older : []).map((entry) => ({ ...entry, id: entry?.id ?? '' }));
  return [...keyed, ...listed];
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
