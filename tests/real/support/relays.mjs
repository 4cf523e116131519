// Nodes without OpenClaw around relays: `home-01` and `office-01` dial relays and never each other;
// `office-01` lends the scripted model, an agent behind a server, and commands.
import { closeSync, existsSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { freePort, until } from './places.mjs';
import { Provider } from './provider.mjs';
import { Sidecar } from './sidecar.mjs';

/** The peer entry for a relay. */
export const peerOf = (relay) => ({ nodeId: relay.config.nodeId, url: `ws://127.0.0.1:${relay.config.listenPort}` });

/** A relay on a port that stays its own over restarts; each dials those before it. */
export async function startRelay(nodeId, { peers = [], env } = {}) {
  return Sidecar.start({ nodeId, listen: true, listenHost: '127.0.0.1', listenPort: await freePort(), peers: peers.map(peerOf) }, undefined, env);
}

/**
 * `relays` relays that are linked with one another. With `chain` home dials the first one alone and office the last
 * one alone; else both dial all of them.
 */
export async function relayed({ relays = 1, chain = false, office = {}, home = {}, env } = {}) {
  const provider = await Provider.start({ key: 'sk-office-only' });
  const clouds = [];
  for (let i = 1; i <= relays; i += 1) clouds.push(await startRelay(`cloud-0${i}`, { peers: clouds, env }));
  const [homes, offices] = chain ? [clouds.slice(0, 1), clouds.slice(-1)] : [clouds, clouds];
  const officeNode = await Sidecar.start({
    nodeId: 'office-01', peers: offices.map(peerOf),
    models: [{ id: 'mock-1', baseUrl: provider.baseUrl, apiKey: provider.key, description: 'scripted' }],
    agents: [{ id: 'helper', description: 'helps', baseUrl: provider.baseUrl, apiKey: provider.key, model: 'agent-1' }],
    toolProxy: { enabled: true, allow: ['exec'] }, ...office,
  });
  const homeNode = await Sidecar.start({ nodeId: 'home-01', peers: homes.map(peerOf), modelIdentity: false, ...home });
  await homeNode.model('office-01/mock-1');
  const all = [homeNode, officeNode, ...clouds];
  return {
    provider, clouds, cloud: clouds[0], office: officeNode, home: homeNode,
    /** What home knows of office. */
    seen: async () => (await homeNode.json('/api/v1/peers')).find((p) => p.nodeId === 'office-01'),
    /** The relay through which home reaches office now. */
    async used() {
      const via = (await this.seen()).reachableVia;
      return clouds.find((c) => c.config.nodeId === via);
    },
    reached: (ms = 15_000) => until('office to be reached through a relay', ms, async () => (await homeNode.json('/api/v1/peers')).some((p) => p.nodeId === 'office-01' && p.state === 'relay')),
    /** Asks home for a model of office. */
    ask: (content, more = {}, init = {}) => homeNode.fetch('/v1/chat/completions', { method: 'POST', ...init, body: JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content }], ...more }) }),
    /** Asks the provider itself, as office would. */
    direct: (content, more = {}) => fetch(`${provider.baseUrl}/chat/completions`, { method: 'POST', headers: { authorization: `Bearer ${provider.key}`, 'content-type': 'application/json' }, body: JSON.stringify({ model: 'mock-1', messages: [{ role: 'user', content }], ...more }) }),
    async stop() {
      await officeNode.stop(); // while home still acks
      await officeNode.stop(); // while home can still acknowledge: a drain waits for that
      await Promise.all([...all.map((node) => node.stop()), provider.stop()]);
    },
  };
}

/** Reads a body as it comes: `{text, gapMs}`, `gapMs` the longest wait between two pieces. */
export async function paced(answer) {
  const decoder = new TextDecoder();
  let text = '';
  let gapMs = 0;
  let last = Date.now();
  for await (const bytes of answer.body) {
    gapMs = Math.max(gapMs, Date.now() - last);
    last = Date.now();
    text += decoder.decode(bytes, { stream: true });
  }
  return { text, gapMs };
}

/** Resident memory in KiB: now, and the peak since {@link resetPeak}. */
export function resident(pid) {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  const field = (name) => Number(status.match(new RegExp(`^${name}:\\s+(\\d+)`, 'm'))[1]);
  return { now: field('VmRSS'), peak: field('VmHWM') };
}

/** Begins the peak of {@link resident} anew. */
export function resetPeak(pid) {
  writeFileSync(`/proc/${pid}/clear_refs`, '5');
}

/** Whether {@link inMemory} can look into other processes: nodes are closed to all but root. */
export function memoryIsReadable(pid) {
  if (!existsSync(`/proc/${pid}/mem`)) return false;
  try {
    closeSync(openSync(`/proc/${pid}/mem`, 'r'));
    return true;
  } catch {
    return false;
  }
}

/** How often `marker` lies in the writable memory of a process: `{found, bytes}`, `bytes` the memory looked at. */
export function inMemory(pid, marker) {
  const needle = Buffer.from(marker);
  const mem = openSync(`/proc/${pid}/mem`, 'r');
  const result = { found: 0, bytes: 0 };
  try {
    for (const line of readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n')) {
      const region = line.match(/^([0-9a-f]+)-([0-9a-f]+) rw/);
      if (!region) continue;
      const [from, to] = [parseInt(region[1], 16), parseInt(region[2], 16)];
      const buffer = Buffer.alloc(to - from);
      let have = 0;
      try {
        while (have < buffer.length) {
          const got = readSync(mem, buffer, have, buffer.length - have, from + have);
          if (got === 0) break;
          have += got;
        }
      } catch {
        // A region that is gone or cannot be read, such as a device's.
      }
      result.bytes += have;
      for (let at = buffer.indexOf(needle); at !== -1 && at < have; at = buffer.indexOf(needle, at + 1)) result.found += 1;
    }
  } finally {
    closeSync(mem);
  }
  return result;
}

/** The counters and gauges of `/metrics`: `{'name{labels}': value}`. */
export async function metrics(node) {
  const text = await (await node.fetch('/metrics')).text();
  return Object.fromEntries(text.split('\n').filter((line) => line && !line.startsWith('#')).map((line) => {
    const cut = line.lastIndexOf(' ');
    return [line.slice(0, cut), Number(line.slice(cut + 1))];
  }));
}
