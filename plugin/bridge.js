// Does for the sidecar what only the gateway's process can do: runs an agent, puts a message into a
// session, calls a tool through the gateway's own door. The gateway's token never leaves this process.
// No decision is taken here: who may ask for what is settled in the sidecar.

import { randomUUID } from 'node:crypto';
import { request } from 'node:http';

import { agentsOf } from './tools.js';

/** @typedef {import('./types.js').FromSidecar} FromSidecar */
/** @typedef {import('./types.js').ToSidecar} ToSidecar */
/** @typedef {import('./types.js').OpenClawConfig} OpenClawConfig */

/** Longest text of one answer told to the sidecar, in characters; its line must stay far below 8 MiB. */
const MAX_TEXT = 1024 * 1024;
/** Longest answer of `/tools/invoke` we take, in bytes. */
const MAX_ANSWER = 4 * 1024 * 1024;
const DEFAULT_PORT = 18_789;

/**
 * @typedef {object} BridgeOptions
 * @property {import('./types.js').PluginApi} api
 * @property {() => OpenClawConfig} config OpenClaw's configuration as it is now
 * @property {import('./types.js').Logger} logger
 * @property {(message: ToSidecar) => void} say
 */

export class Bridge {
  /** @param {BridgeOptions} options */
  constructor({ api, config, logger, say }) {
    this.api = api;
    this.config = config;
    this.logger = logger;
    this.say = say;
    /** What can be aborted, by the sidecar's id. @type {Map<number, AbortController>} */
    this.open = new Map();
  }

  /**
   * Takes a message of the sidecar; false when it is none of ours.
   * @param {FromSidecar} message
   */
  heard(message) {
    switch (message.type) {
      case 'run_agent':
        void this.#run(message);
        return true;
      case 'message':
        void this.#message(message);
        return true;
      case 'notice':
        void this.#notice(message);
        return true;
      case 'invoke_tool':
        void this.#invoke(message);
        return true;
      case 'abort_run':
      case 'abort_tool':
        this.open.get(message.id)?.abort(new Error('cancelled by the asking node'));
        return true;
      default:
        return false;
    }
  }

  /** Ends everything: nobody is left to take the results. */
  abortAll() {
    for (const abort of this.open.values()) abort.abort(new Error('the sidecar is gone'));
    this.open.clear();
  }

  /** @param {Extract<FromSidecar, { type: 'run_agent' }>} ask */
  async #run({ id, agent, sessionKey, sessionId, prompt, tools, timeoutMs }) {
    const abort = new AbortController();
    this.open.set(id, abort);
    let begun = false;
    const begin = () => {
      if (begun) return;
      begun = true;
      this.say({ type: 'run_started', id });
    };
    const end = (/** @type {'completed' | 'failed' | 'refused' | 'cancelled'} */ outcome, text = '', /** @type {string | undefined} */ error = undefined) => {
      if (!this.open.delete(id)) return;
      this.say({ type: 'run_end', id, outcome, text: clip(text), ...(error === undefined ? {} : { error: clip(error) }) });
    };
    try {
      const cfg = this.config();
      const known = agentIn(cfg, agent);
      if (!known) return end('refused', '', `OpenClaw has no agent "${agent}"`);
      const { agent: agents, modelConfig } = this.api.runtime;
      const model = modelConfig?.resolveDefaultModelForAgent?.({ cfg, agentId: known });
      const partial = new Partial();
      const result = await agents.runEmbeddedAgent({
        agentId: known,
        sessionKey,
        sessionId,
        runId: randomUUID(),
        config: cfg,
        workspaceDir: agents.resolveAgentWorkspaceDir(cfg, known),
        prompt,
        timeoutMs,
        ...(model ? { provider: model.provider, model: model.model } : {}),
        ...(tools ? { toolsAllow: tools } : {}),
        // What another node asks is never the owner's word.
        senderIsOwner: false,
        terminalReplyExpectation: 'required',
        abortSignal: abort.signal,
        onExecutionStarted: begin,
        onPartialReply: (payload) => {
          begin();
          const text = partial.take(payload);
          if (text) this.say({ type: 'run_delta', id, text });
        },
        onAssistantMessageStart: () => partial.restart(),
        onAgentEvent: (event) => {
          const tool = toolEvent(event);
          if (!tool) return;
          begin();
          this.say({ type: 'run_tool', id, ...tool });
        },
      });
      begin();
      const text = textOf(result, false);
      if (abort.signal.aborted || result.meta?.aborted) return end(abort.signal.aborted ? 'cancelled' : 'failed', text, 'the run was aborted');
      const wrong = result.meta?.error?.message ?? (textOf(result, true) || undefined);
      if (wrong && !text) return end('failed', '', wrong);
      return end('completed', text);
    } catch (error) {
      if (abort.signal.aborted) return end('cancelled');
      return end(begun ? 'failed' : 'refused', '', wordsOf(error));
    }
  }

  /**
   * Sends a text through a channel of the gateway, as OpenClaw's own device pairing does.
   * @param {Extract<FromSidecar, { type: 'notice' }>} ask
   */
  async #notice({ channel, to, account, text }) {
    try {
      const adapter = await this.api.runtime.channel?.outbound?.loadAdapter?.(channel);
      if (!adapter?.sendText) throw new Error(`OpenClaw has no channel "${channel}" that sends text`);
      await adapter.sendText({ cfg: this.config(), to, text, ...(account ? { accountId: account } : {}) });
    } catch (error) {
      this.logger.warn(`the notice of a request that waits for a person could not be sent (approvals.notify): ${wordsOf(error)}`);
    }
  }

  /** @param {Extract<FromSidecar, { type: 'message' }>} ask */
  async #message({ id, agent, text, wake, key }) {
    const done = (/** @type {string | undefined} */ error = undefined) =>
      this.say({ type: 'message_done', id, ...(error === undefined ? {} : { error: clip(error) }) });
    try {
      const cfg = this.config();
      const known = agentIn(cfg, agent);
      if (!known) return done(`OpenClaw has no agent "${agent}"`);
      const sessionKey = mainSession(cfg, known);
      const { system } = this.api.runtime;
      const contextKey = `clawmatrix:${key}`;
      if (!wake) {
        const queued = await this.#queue(cfg, { sessionKey, agentId: known, text, idempotencyKey: contextKey, placement: 'prepend_context' });
        // Where OpenClaw cannot keep it for the next turn, the next heartbeat shows it.
        if (!queued) system.enqueueSystemEvent(text, { sessionKey, agentId: known, contextKey });
        return done();
      }
      system.enqueueSystemEvent(text, { sessionKey, agentId: known, contextKey });
      done();
      await this.#wake(known, sessionKey);
    } catch (error) {
      done(wordsOf(error));
    }
  }

  /**
   * Lets the agent look at what waits in its session; what it does then is no answer to the sender.
   * OpenClaw repeats a request of this kind while the agent has other work, and lets it reach agents
   * without a heartbeat of their own. A heartbeat run at once is dropped in both cases.
   * @param {string} agentId
   * @param {string} sessionKey
   */
  async #wake(agentId, sessionKey) {
    const { system } = this.api.runtime;
    if (system.requestHeartbeat) {
      system.requestHeartbeat({ source: 'hook', intent: 'immediate', reason: 'hook:clawmatrix', agentId, sessionKey });
      return;
    }
    const ran = await system.runHeartbeatOnce({ reason: 'hook:clawmatrix', agentId, sessionKey });
    if (ran?.status !== 'ran') this.logger.warn(`ClawMatrix: agent "${agentId}" sees a message in a later turn only (${ran?.reason ?? ran?.status})`);
  }

  /**
   * Keeps a text for the next turn of a session, which must exist for that.
   * @param {OpenClawConfig} cfg
   * @param {import('./types.js').Injection} injection
   */
  async #queue(cfg, injection) {
    const { workflow } = this.api.session;
    const kept = async () => {
      const { enqueued, id } = await workflow.enqueueNextTurnInjection(injection);
      return enqueued || Boolean(id); // without the first the same text waits already, or too many do
    };
    if (await kept()) return true;
    const { sessionKey, agentId } = injection;
    await this.api.runtime.agent.session?.createSessionEntry?.({ cfg, key: sessionKey, agentId });
    return kept();
  }

  /** @param {Extract<FromSidecar, { type: 'invoke_tool' }>} ask */
  async #invoke({ id, tool, args, sessionKey, timeoutMs }) {
    const abort = new AbortController();
    this.open.set(id, abort);
    const timer = setTimeout(() => abort.abort(new Error('the tool took too long')), timeoutMs);
    let answer;
    try {
      answer = await invokeTool(this.config(), { tool, args, sessionKey: sessionKey ?? 'main' }, abort.signal);
    } catch (error) {
      const why = abort.signal.aborted ? abort.signal.reason : error;
      answer = { status: 0, body: { error: { message: `the gateway could not be asked: ${wordsOf(why)}` } } };
    } finally {
      clearTimeout(timer);
      this.open.delete(id);
    }
    this.say({ type: 'tool_result', id, ...answer });
  }
}

/** Finds out what is new in a growing text. */
class Partial {
  #sent = '';

  /** A new message of the agent begins. */
  restart() {
    this.#sent = '';
  }

  /** @param {{ text?: string, delta?: string }} payload */
  take({ text, delta }) {
    if (typeof text !== 'string' || !text.startsWith(this.#sent)) {
      this.#sent += delta ?? '';
      return delta ?? '';
    }
    const more = text.slice(this.#sent.length);
    this.#sent = text;
    return more;
  }
}

/**
 * The id of an agent as OpenClaw has it; undefined when it has none of that name.
 * @param {OpenClawConfig} cfg
 * @param {string} wanted
 */
export function agentIn(cfg, wanted) {
  const ids = agentsOf(cfg).map((entry) => entry.id);
  const name = wanted.toLowerCase();
  return (ids.length > 0 ? ids : ['main']).find((id) => id.toLowerCase() === name);
}

/**
 * @param {OpenClawConfig} cfg
 * @param {string} agent
 */
function mainSession(cfg, agent) {
  const main = cfg.session?.mainKey;
  return `agent:${agent}:${typeof main === 'string' && main ? main : 'main'}`;
}

/**
 * A tool that begins or has ended, among the events of a run.
 * @param {import('./types.js').AgentEvent} event
 * @returns {{ name: string, phase: 'start' | 'end', failed?: boolean } | undefined}
 */
export function toolEvent({ stream, data }) {
  if (stream !== 'tool' || typeof data?.name !== 'string') return undefined;
  if (data.phase === 'start') return { name: data.name, phase: 'start' };
  if (data.phase === 'result' || data.phase === 'end') return { name: data.name, phase: 'end', failed: data.isError === true };
  return undefined;
}

/**
 * What the agent answered, or the errors among it.
 * @param {import('./types.js').AgentResult} result
 * @param {boolean} errors
 */
function textOf(result, errors) {
  return (result.payloads ?? [])
    .filter((p) => Boolean(p.isError) === errors && !p.isReasoning && !p.isCommentary && p.text)
    .map((p) => p.text)
    .join('\n\n');
}

/**
 * @param {OpenClawConfig} cfg
 * @param {unknown} body
 * @param {AbortSignal} signal
 * @returns {Promise<{ status: number, body: import('./types.js').Json }>}
 */
function invokeTool(cfg, body, signal) {
  const gateway = cfg.gateway ?? {};
  const port = Number(gateway.port ?? process.env.OPENCLAW_GATEWAY_PORT ?? DEFAULT_PORT);
  const { token = process.env.OPENCLAW_GATEWAY_TOKEN, password = process.env.OPENCLAW_GATEWAY_PASSWORD, mode } = gateway.auth ?? {};
  const key = mode === 'password' || !token ? password : token;
  const text = JSON.stringify(body);
  return new Promise((resolve, reject) => {
    const call = request(
      {
        host: '127.0.0.1', port, path: '/tools/invoke', method: 'POST', agent: false, signal,
        headers: {
          'content-type': 'application/json', 'content-length': Buffer.byteLength(text),
          ...(key ? { authorization: `Bearer ${key}` } : {}),
        },
      },
      (answer) => {
        let got = '';
        answer.setEncoding('utf8');
        answer.on('data', (part) => {
          got += part;
          if (got.length > MAX_ANSWER) call.destroy(new Error('its answer is longer than 4 MiB'));
        });
        answer.on('error', reject);
        answer.on('end', () => {
          let parsed;
          try {
            parsed = JSON.parse(got);
          } catch {
            parsed = { error: { message: got.slice(0, 500) || 'an empty answer' } };
          }
          resolve({ status: answer.statusCode ?? 0, body: parsed });
        });
      },
    );
    call.on('error', reject);
    call.end(text);
  });
}

/** @param {string} text */
function clip(text) {
  return text.length > MAX_TEXT ? `${text.slice(0, MAX_TEXT)}\n[cut: the answer was longer than 1 MiB]` : text;
}

/** @param {unknown} error */
function wordsOf(error) {
  return error instanceof Error ? error.message : String(error);
}
