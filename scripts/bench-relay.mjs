// What relays cost, for scripts/bench: nodes with 0, 1 and 2 relays between them, a relay killed under streams,
// and the bytes of a mesh in which nothing happens.
import { Agent, request } from 'node:http';
import { metrics, peerOf, relayed, resetPeak, resident, startRelay } from '../tests/real/support/relays.mjs';
import { Provider } from '../tests/real/support/provider.mjs';
import { Sidecar } from '../tests/real/support/sidecar.mjs';
import { until } from '../tests/real/support/places.mjs';

const TEN_MB = 10 * 1024 * 1024;
const STREAMS = 200;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
const sorted = (values) => values.toSorted((a, b) => a - b);
const median = (values) => sorted(values)[Math.floor(values.length / 2)];
const words = (n) => Array.from({ length: n }, (_, i) => `w${i}`).join(' ');

/** All of it; `short` measures for less long. */
export async function relayNumbers(short) {
  const asks = short ? 50 : 300;
  const quietMs = short ? 20_000 : 120_000;
  const result = { firstByte: [] };
  for (const relays of [0, 1, 2]) {
    const mesh = relays ? await relayed({ relays, chain: true }) : await linked();
    result.firstByte.push({ relays, ...(await firstByte(mesh, asks)) });
    if (relays === 2) result.body = await body(mesh, short ? 3 : 10);
    await mesh.stop();
  }
  result.killed = await killed();
  result.idle = [];
  for (const nodes of short ? [3] : [3, 30]) result.idle.push(await idle(nodes, quietMs));
  return result;
}

/** Home and office with a link between them. */
async function linked() {
  const provider = await Provider.start({ key: 'sk-office-only' });
  const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, relay: false, models: [{ id: 'mock-1', baseUrl: provider.baseUrl, apiKey: provider.key }] });
  const home = await Sidecar.start({ nodeId: 'home-01', modelIdentity: false, peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] });
  await home.model('office-01/mock-1');
  return { provider, home, stop: () => Promise.all([home.stop(), office.stop(), provider.stop()]) };
}

/** One streamed question over `agent`: what came, when, and whether it ended as it should. */
function ask(mesh, agent, prompt, onFirst) {
  return new Promise((ok) => {
    const began = performance.now();
    const seen = { firstMs: null, gapMs: 0, text: '', status: 0 };
    let last = began;
    const req = request(`${mesh.home.url}/v1/chat/completions`, { method: 'POST', agent, headers: { 'content-type': 'application/json', authorization: `Bearer ${mesh.home.token}` } }, (res) => {
      seen.status = res.statusCode;
      res.on('data', (bytes) => {
        const at = performance.now();
        if (seen.firstMs === null) {
          seen.firstMs = at - began;
          onFirst?.();
        } else seen.gapMs = Math.max(seen.gapMs, at - last);
        last = at;
        seen.text += bytes;
      });
      res.on('end', () => ok(seen)).on('error', () => ok(seen));
    });
    req.on('error', () => ok(seen));
    req.end(JSON.stringify({ model: 'office-01/mock-1', stream: true, messages: [{ role: 'user', content: prompt }] }));
  });
}

async function firstByte(mesh, asks) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  for (let i = 0; i < 20; i += 1) await ask(mesh, agent, 'warm up');
  const times = [];
  for (let i = 0; i < asks; i += 1) times.push((await ask(mesh, agent, 'hello')).firstMs);
  agent.destroy();
  return { asks, p50Ms: median(times), p99Ms: sorted(times)[Math.floor(asks * 0.99)] };
}

/** 10 MB up through two relays: MB/s, and by how much the relays grew at most. */
async function body(mesh, rounds) {
  const content = JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: `${'x'.repeat(TEN_MB)} [[say ok]]` }] });
  const pids = mesh.clouds.map((cloud) => cloud.endpoint.pid);
  const before = pids.map((pid) => (resetPeak(pid), resident(pid).now));
  const times = [];
  for (let i = 0; i < rounds; i += 1) {
    const began = performance.now();
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body: content });
    if (answer.status !== 200) throw new Error(`10 MB through two relays: ${answer.status} ${await answer.text()}`);
    await answer.text();
    times.push(performance.now() - began);
  }
  return { rounds, mbPerSecond: 10 / (median(times) / 1000), relayGrowthKiB: pids.map((pid, i) => resident(pid).peak - before[i]) };
}

/** 200 streams over one of two relays, which is killed with -9. */
async function killed() {
  const mesh = await relayed({ relays: 2 });
  const agent = new Agent({ keepAlive: false, maxSockets: Infinity });
  const prompt = `${words(60)} [[slow 100]]`;
  const expected = await (await mesh.direct(prompt.replace('[[slow 100]]', ''), { stream: true })).text();
  let open = 0;
  const streams = Array.from({ length: STREAMS }, () => ask(mesh, agent, prompt, () => { open += 1; }));
  await until('all streams to be open', 30_000, () => open === STREAMS);
  await sleep(500);
  (await mesh.used()).child.killNow();
  const ended = await Promise.all(streams);
  await mesh.stop();
  const whole = ended.filter((s) => s.text === expected);
  return { streams: STREAMS, whole: whole.length, errors: STREAMS - whole.length, worstGapMs: Math.max(...ended.map((s) => s.gapMs)) };
}

/** One relay and `nodes` - 1 nodes that dial it: bytes per second on links while nobody asks for anything. */
async function idle(nodes, quietMs) {
  const relay = await startRelay('cloud-01');
  const all = [relay];
  for (let i = 1; i < nodes; i += 1) all.push(await Sidecar.start({ nodeId: `node-${i}`, peers: [peerOf(relay)] }));
  await until('all to know all', 60_000, async () => (await Promise.all(all.map((n) => n.json('/api/v1/peers')))).every((peers) => peers.filter((p) => p.connected).length === nodes - 1));
  await sleep(quietMs / 4); // what joining set in motion comes to rest
  const bytes = async (node) => {
    const m = await metrics(node);
    return m['clawmatrix_link_bytes_total{direction="sent"}'] + m['clawmatrix_link_bytes_total{direction="received"}'];
  };
  const before = await Promise.all(all.map(bytes));
  const began = performance.now();
  await sleep(quietMs);
  const seconds = (performance.now() - began) / 1000;
  const rates = (await Promise.all(all.map(bytes))).map((now, i) => (now - before[i]) / seconds);
  await Promise.all(all.map((n) => n.stop()));
  return { nodes, seconds, relayBytesPerSecond: rates[0], nodeBytesPerSecond: median(rates.slice(1)) };
}

/** Prints what {@link relayNumbers} found. */
export function showRelays(r) {
  console.log('\nrelays');
  for (const f of r.firstByte) console.log(`  first byte of a stream through ${f.relays} relays: p50 ${f.p50Ms.toFixed(2)} ms, p99 ${f.p99Ms.toFixed(2)} ms (${f.asks} asked)`);
  console.log(`  10 MB up through 2 relays: ${r.body.mbPerSecond.toFixed(0)} MB/s; the relays grew by ${r.body.relayGrowthKiB.join(' and ')} KiB at most (${r.body.rounds} bodies)`);
  console.log(`  a relay killed under ${r.killed.streams} streams: ${r.killed.whole} went on to their end unchanged, ${r.killed.errors} did not; the worst gap was ${r.killed.worstGapMs.toFixed(0)} ms`);
  for (const i of r.idle) console.log(`  idle mesh of ${i.nodes}: ${i.relayBytesPerSecond.toFixed(0)} bytes/s on all links of the relay, ${i.nodeBytesPerSecond.toFixed(0)} on those of another node (over ${i.seconds.toFixed(0)} s)`);
}
