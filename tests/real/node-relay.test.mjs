// Home and office through relays, real processes: what goes through, what the relay learns, what happens when
// nodes die. Numbers T.. are those of protocol 10.
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { readEvents } from './support/mesh.mjs';
import { freePort, missing, until } from './support/places.mjs';
import { inMemory, memoryIsReadable, metrics, paced, peerOf, relayed, resetPeak, resident, startRelay } from './support/relays.mjs';
import { Sidecar } from './support/sidecar.mjs';

const skip = missing.binary();
const TEN_MB = 10 * 1024 * 1024;
/** Long texts are equal; shows the place where they part, not all of them. */
function same(actual, expected, what = 'the text') {
  let at = 0;
  while (at < actual.length && actual[at] === expected[at]) at += 1;
  assert.ok(actual === expected, `${what} differs at ${at} of ${expected.length}: ${JSON.stringify(actual.slice(at, at + 300))}`);
}
const words = (n) => Array.from({ length: n }, (_, i) => `w${i}`).join(' ');

describe('two relays in a row', { skip, timeout: 180_000 }, () => {
  let mesh;
  before(async () => {
    mesh = await relayed({ relays: 2, chain: true, env: { CLAWMATRIX_LOG: 'trace' } });
  });
  after(() => mesh?.stop());

  test('nodes_that_never_met_are_reached_through_the_relay', async () => {
    const office = await mesh.seen();
    assert.deepEqual([office.connected, office.state, office.reachableVia, office.link], [true, 'relay', 'cloud-01', null]);
    assert.ok(office.latencyMs > 0);
    const lender = await until('the load of office', 30_000, async () => {
      const seen = await mesh.seen();
      return typeof seen.load === 'number' && seen;
    });
    assert.equal(lender.load, 0);
    const entry = (await mesh.home.json('/v1/models')).data.find((m) => m.id === 'office-01/mock-1');
    assert.equal(entry.path, 'relay', JSON.stringify(entry));
    const shown = await mesh.home.cli('status');
    assert.match(shown.stdout, /office-01 \(connected via cloud-01, \d+ms\)/);
    assert.ok(!(await mesh.home.json('/api/v1/peers')).some((p) => p.nodeId === 'office-01' && p.state === 'direct'));
  });

  test('stream_with_reasoning_tools_and_usage_is_byte_identical', async () => {
    const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object' } } }];
    for (const prompt of ['[[reason let me think]] [[slow 2]] all of it, ünïcödé 🐚', '[[tool:weather {"city":"Turin"}]]', '[[big 200000]] and some']) {
      const more = { stream: true, stream_options: { include_usage: true }, tools };
      const [direct, far] = [await mesh.direct(prompt, more), await mesh.ask(prompt, more)];
      assert.equal(far.headers.get('x-clawmatrix-route')?.includes('office-01'), true);
      assert.equal(far.headers.get('content-type'), direct.headers.get('content-type'));
      same(await far.text(), await direct.text(), prompt);
    }
    const [direct, far] = [await mesh.direct('whole'), await mesh.ask('whole')];
    same(await far.text(), await direct.text());
  });

  test('provider_errors_and_a_client_that_leaves_cross_the_relays', async () => {
    const refused = await mesh.ask('[[status 429]]');
    assert.equal(refused.status, 429);
    assert.match(refused.headers.get('x-clawmatrix-route'), /error=provider/);
    const abort = new AbortController();
    const answer = await mesh.ask(`leaves ${words(50)} [[slow 100]]`, { stream: true }, { signal: abort.signal });
    const reader = answer.body.getReader();
    await reader.read();
    await reader.read();
    const record = await mesh.provider.request((r) => JSON.stringify(r.body).includes('leaves w0'));
    const at = Date.now();
    abort.abort();
    await reader.read().catch(() => {});
    const gone = await mesh.provider.gone(record);
    console.log(`# the provider was stopped ${gone - at} ms after the client had left`);
    assert.ok(gone - at < 1000, `${gone - at} ms`);
  });

  test('handoff_and_command_stream_through_the_relays', async () => {
    const answer = await mesh.home.fetch('/api/v1/handoff', { method: 'POST', headers: { accept: 'text/event-stream' }, body: JSON.stringify({ target: 'office-01/helper', task: 'water the plants [[say done with water]] [[slow 20]]' }) });
    const { events, text } = await readEvents(answer);
    assert.deepEqual([events.at(-1).outcome, events.at(-1).result], ['completed', 'done with water'], text);
    assert.ok(events.filter((e) => typeof e.text === 'string').length > 1, text);
    const done = await mesh.home.fetch('/api/v1/tools/exec', { method: 'POST', body: JSON.stringify({ node: 'office-01', argv: ['sh', '-c', 'echo from office; echo aside >&2; exit 3'] }) });
    const result = await done.json();
    assert.deepEqual([result.exitCode, result.stdout, result.stderr], [3, 'from office\n', 'aside\n'], JSON.stringify(result));
  });

  // T36, T55.
  test('ten_megabytes_arrive_unchanged_and_the_relays_neither_grow_nor_read', async (t) => {
    const marker = 'PLAINTEXT-MARKER-7f3a91';
    const pids = mesh.clouds.map((cloud) => cloud.endpoint.pid);
    await (await mesh.ask('the relays have seen a request')).text();
    const before = await Promise.all(mesh.clouds.map(metrics));
    const memory = pids.map((pid) => (resetPeak(pid), resident(pid).now));
    const content = `${marker} `.repeat(Math.ceil(TEN_MB / (marker.length + 1)));
    const body = (model) => JSON.stringify({ model, messages: [{ role: 'user', content: `${content}[[say ${marker} heard]]` }] });
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body: body('office-01/mock-1') });
    const text = await answer.text();
    assert.equal(answer.status, 200, text.slice(0, 300));
    assert.ok(text.includes(`${marker} heard`));
    const growth = pids.map((pid, i) => resident(pid).peak - memory[i]);
    const record = await mesh.provider.request((r) => r.rawBytes > TEN_MB);
    assert.equal(record.rawSha256, createHash('sha256').update(body('mock-1')).digest('hex'), 'bit-identical but for the model\'s name');
    console.log(`# resident memory of the relays grew by ${growth.join(' and ')} KiB at most`);
    for (const [i, grown] of growth.entries()) assert.ok(grown < 2048, `cloud-0${i + 1} grew by ${grown} KiB`);
    for (const [i, cloud] of mesh.clouds.entries()) {
      const passed = (await metrics(cloud)).clawmatrix_relayed_bytes_total - before[i].clawmatrix_relayed_bytes_total;
      assert.ok(passed >= TEN_MB, `${cloud.config.nodeId} passed on ${passed} bytes`);
      for (const secret of [marker, 'let me think', 'water the plants', 'from office', 'sk-office-only']) assert.ok(!cloud.child.output.includes(secret), `\`${secret}\` is in the log of ${cloud.config.nodeId}`);
      assert.match(cloud.child.output, /passing on a frame/, 'the log is at trace');
    }
    if (!memoryIsReadable(pids[0])) return t.diagnostic('memory was not scanned: that takes root');
    const office = inMemory(mesh.office.endpoint.pid, marker);
    assert.ok(office.found > 0, 'the scan finds the marker where it must be');
    for (const pid of pids) {
      const { found, bytes } = inMemory(pid, marker);
      console.log(`# marker found ${found} times in ${(bytes / 1024 / 1024).toFixed(0)} MiB of a relay, ${office.found} times at office`);
      assert.equal(found, 0);
    }
    return undefined;
  });
});

describe('two relays side by side', { skip, timeout: 180_000 }, () => {
  let mesh;
  before(async () => {
    mesh = await relayed({ relays: 2 });
  });
  after(() => mesh?.stop());

  /** Kills the relay in use with -9 and starts it again once `work` is done. */
  async function withoutTheRelayInUse(work) {
    const relay = await mesh.used();
    relay.child.killNow();
    await relay.child.ended;
    try {
      await work(relay);
    } finally {
      await relay.up();
      // Over links of their own: through the other relay it would be reached as well.
      for (const node of [mesh.home, mesh.office]) {
        const name = relay.config.nodeId;
        await until(`a link of ${node.config.nodeId} to ${name}`, 70_000, async () => (await node.json('/api/v1/peers')).find((p) => p.nodeId === name && p.state === 'direct'));
      }
    }
  }

  // T60.
  test('stream_goes_on_over_the_other_relay_when_its_own_is_killed', async () => {
    const prompt = `${words(60)} [[slow 50]]`;
    const more = { stream: true, stream_options: { include_usage: true } };
    const expected = await (await mesh.direct(prompt.replace('[[slow 50]]', ''), more)).text();
    const reading = mesh.ask(prompt, more).then(paced);
    await mesh.provider.request((r) => r.body?.stream && r.body.messages[0].content.includes('[[slow 50]]'));
    await new Promise((done) => setTimeout(done, 500));
    await withoutTheRelayInUse(async (killed) => {
      const { text, gapMs } = await reading;
      console.log(`# the longest gap was ${gapMs} ms`);
      same(text, expected);
      assert.ok(gapMs < 5000, `${gapMs} ms`);
      const { reachableVia } = await mesh.seen();
      assert.notEqual(reachableVia, killed.config.nodeId);
    });
  });

  test('thirty_streams_survive_a_killed_relay', async () => {
    const prompts = Array.from({ length: 30 }, (_, i) => `stream ${i} ${words(60)} [[slow 50]]`);
    const expected = await Promise.all(prompts.map(async (prompt) => (await mesh.direct(prompt.replace('[[slow 50]]', ''), { stream: true })).text()));
    const reading = prompts.map((prompt) => mesh.ask(prompt, { stream: true }).then(paced));
    await mesh.provider.request((r) => r.body?.messages?.[0].content === prompts[29]);
    await withoutTheRelayInUse(async () => {
      const got = await Promise.all(reading);
      console.log(`# the longest gap of 30 streams was ${Math.max(...got.map((g) => g.gapMs))} ms`);
      for (const [i, { text, gapMs }] of got.entries()) {
        same(text, expected[i]);
        assert.ok(gapMs < 5000, `${gapMs} ms`);
      }
    });
  });

  test('upload_is_whole_when_the_relay_is_killed', async () => {
    const content = `${'x'.repeat(TEN_MB)} [[say got it]]`;
    const before = (await metrics(mesh.home))['clawmatrix_link_bytes_total{direction="sent"}'];
    const uploading = mesh.ask(content).then(async (answer) => [answer.status, await answer.json()]);
    await until('the upload to be under way', 10_000, async () => (await metrics(mesh.home))['clawmatrix_link_bytes_total{direction="sent"}'] > before + TEN_MB / 10);
    await withoutTheRelayInUse(async () => {
      const [status, body] = await uploading;
      assert.deepEqual([status, body.choices?.[0].message.content], [200, 'got it'], JSON.stringify(body).slice(0, 500));
      for (const seen of mesh.provider.requests.filter((r) => r.rawBytes > 1000 && r.body?.messages?.[0].content.startsWith('xxx'))) same(seen.body.messages[0].content, content);
    });
  });

  test('handoff_goes_on_when_the_relay_is_killed', async () => {
    const reading = mesh.home.fetch('/api/v1/handoff', { method: 'POST', headers: { accept: 'text/event-stream' }, body: JSON.stringify({ target: 'office-01/helper', task: `dig [[say ${words(40)}]] [[slow 50]]` }) }).then(readEvents);
    await mesh.provider.request((r) => JSON.stringify(r.body).includes('dig [[say'));
    await withoutTheRelayInUse(async () => {
      const { events, text } = await reading;
      assert.deepEqual([events.at(-1).outcome, events.at(-1).result], ['completed', words(40)], text);
      assert.equal(mesh.provider.requests.filter((r) => JSON.stringify(r.body).includes('dig [[say')).length, 1, 'it ran once');
    });
  });
});

describe('a single relay', { skip, timeout: 300_000 }, () => {
  // A mesh for each test: nodes that have failed to dial for long wait up to a minute before they try again.
  let mesh;
  const start = async () => {
    mesh = await relayed();
  };
  afterEach(() => mesh?.stop());
  const record = (prompt) => mesh.provider.request((r) => r.body?.messages?.[0].content === prompt);
  /** An answer of 5 minutes. */
  const endless = (name) => `${name} [[slow 50]] [[say ${words(6000)}]]`;
  /** Asks until there is an answer. */
  const answered = (prompt, ms = 70_000) => until('an answer', ms, async () => {
    const got = await mesh.ask(prompt);
    return got.status === 200 && (await got.json()).choices[0].message.content;
  });

  // T60 without another way.
  test('stream_without_another_way_ends_as_lost_after_thirty_seconds', async () => {
    await start();
    const prompt = endless('lost');
    const answer = await mesh.ask(prompt, { stream: true });
    const began = Date.now();
    mesh.cloud.child.killNow();
    const { events, done, text, broken } = await readEvents(answer);
    const took = Date.now() - began;
    assert.equal(broken, null);
    assert.equal(done, false, 'a broken stream has no [DONE]');
    assert.equal(events.at(-1).error?.code, 'stream_lost', text.slice(-400));
    assert.ok(took > 25_000 && took < 40_000, `${took} ms`);
    const gone = await mesh.provider.gone(await record(prompt));
    console.log(`# it ended after ${(took / 1000).toFixed(1)} s, the call to the provider after ${((gone - began) / 1000).toFixed(1)} s`);
    const refused = await mesh.ask('now');
    const body = await refused.json();
    assert.equal(refused.status, 503, JSON.stringify(body));
    assert.ok(['no_route', 'peer_unreachable'].includes(body.error.code), JSON.stringify(body));
    assert.ok(refused.headers.get('retry-after'));
    // OpenClaw would repeat a 503 for over a minute; a 404 makes it take its fallback model.
    const token = readFileSync(join(mesh.home.stateDir, 'openclaw.token'), 'utf8').trim();
    const toOpenclaw = await mesh.ask('now', {}, { headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json' } });
    assert.deepEqual([toOpenclaw.status, (await toOpenclaw.json()).error.code], [404, body.error.code]);
  });

  test('stream_waits_for_a_relay_that_is_started_again', async () => {
    await start();
    const prompt = `waits ${words(90)} [[slow 50]]`;
    const expected = await (await mesh.direct(prompt.replace('[[slow 50]]', ''), { stream: true })).text();
    const answer = await mesh.ask(prompt, { stream: true });
    mesh.cloud.child.killNow();
    await mesh.cloud.child.ended;
    await mesh.cloud.up();
    const { text, gapMs } = await paced(answer);
    console.log(`# the longest gap was ${gapMs} ms`);
    same(text, expected);
  });

  for (const name of ['home', 'cloud', 'office']) {
    test(`${name}_may_be_killed_and_stopped_and_started`, async () => {
      await start();
      for (const end of ['killed', 'stopped']) {
        if (end === 'killed') mesh[name].child.killNow();
        else await mesh[name].stop();
        await mesh[name].child.ended;
        const began = Date.now();
        await mesh[name].up();
        assert.equal(await answered('are you there'), 'echo: are you there (end of echo)');
        console.log(`# ${name} ${end} and started: an answer after ${Date.now() - began} ms`);
      }
    });
  }

  test('target_that_is_gone_is_said_at_once', async () => {
    await start();
    const answer = await mesh.ask(endless('gone'), { stream: true });
    mesh.office.child.killNow();
    await until('office to be unreachable at home', 20_000, async () => (await mesh.seen()).state === 'unreachable');
    const began = Date.now();
    const refused = await mesh.ask('anybody');
    const { error } = await refused.json();
    assert.equal(refused.status, 503);
    assert.ok(['no_route', 'peer_unreachable'].includes(error.code), JSON.stringify(error));
    assert.match(error.message, /office-01/);
    assert.ok(Date.now() - began < 2000, `${Date.now() - began} ms`);
    for (const [path, asked] of [['/api/v1/handoff', { target: 'office-01/helper', task: 'x' }], ['/api/v1/tools/exec', { node: 'office-01', argv: ['true'] }]]) {
      const told = await (await mesh.home.fetch(path, { method: 'POST', body: JSON.stringify(asked), signal: AbortSignal.timeout(2000) })).json();
      assert.equal(told.outcome, 'not_dispatched', JSON.stringify(told));
    }
    await mesh.office.up();
    assert.equal(await answered('back'), 'echo: back (end of echo)');
    const { done, events } = await readEvents(answer);
    assert.equal(done, false);
    assert.equal(events.at(-1).error?.code, 'stream_lost', JSON.stringify(events.at(-1)));
  });
});

describe('relays that are not used', { skip, timeout: 60_000 }, () => {
  test('member_that_is_not_believed_passes_nothing_on', async () => {
    const believed = await startRelay('cloud-01');
    const other = await startRelay('cloud-02');
    const mesh = { nodes: [believed, other] };
    after(() => Promise.all(mesh.nodes.map((node) => node.stop())));
    const relays = ['cloud-01'];
    const office = await Sidecar.start({ nodeId: 'office-01', peers: [peerOf(other)], relays });
    const home = await Sidecar.start({ nodeId: 'home-01', peers: [peerOf(other), peerOf(believed)], relays });
    mesh.nodes.push(office, home);
    await home.peer('cloud-02');
    await until('office to be known at home', 15_000, async () => (await home.json('/api/v1/peers')).some((p) => p.nodeId === 'office-01'));
    const seen = () => home.json('/api/v1/peers').then((peers) => peers.find((p) => p.nodeId === 'office-01'));
    assert.deepEqual([(await seen()).state, (await seen()).connected], ['unreachable', false]);
    assert.equal((await metrics(other)).clawmatrix_relayed_frames_total, 0);
    await office.stop();
    Object.assign(office, new Sidecar({ ...office.config, peers: [peerOf(other), peerOf(believed)] }, office.dir));
    await office.up();
    await until('office through the believed one', 30_000, async () => (await seen()).reachableVia === 'cloud-01');
  });

  test('node_that_does_not_relay_is_no_way', async () => {
    const hub = await Sidecar.start({ nodeId: 'cloud-01', listen: true, listenHost: '127.0.0.1', listenPort: await freePort(), relay: false });
    const office = await Sidecar.start({ nodeId: 'office-01', peers: [peerOf(hub)] });
    const home = await Sidecar.start({ nodeId: 'home-01', peers: [peerOf(hub)] });
    after(() => Promise.all([hub, office, home].map((node) => node.stop())));
    await home.peer('cloud-01');
    await office.peer('cloud-01');
    const answer = await home.fetch('/nodes/office-01/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'x', messages: [] }) });
    assert.ok([404, 503].includes(answer.status), `${answer.status}`);
    assert.equal((await metrics(hub)).clawmatrix_relayed_frames_total, 0);
  });
});
