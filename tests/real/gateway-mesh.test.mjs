// The main job on real parts: two OpenClaw gateways with the packed plugin; office lends a model of its
// own provider, home's agent uses it as `office-01/<model>`.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { statSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Gateway, openclawProvider } from './support/gateway.mjs';
import { freePort, missing, processesUnder, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { metrics, peerOf, startRelay } from './support/relays.mjs';
import { SECRET } from './support/sidecar.mjs';

const skip = missing.openclaw() || missing.tarball();

describe('two gateways', { skip, timeout: 420_000 }, () => {
  let lent;
  let local;
  let office;
  let home;
  let meshPort;
  before(async () => {
    lent = await Provider.start({ key: 'sk-office-only' });
    local = await Provider.start({ key: 'sk-home-only' });
    meshPort = await freePort();
    office = await Gateway.create('office', {
      models: { providers: { acme: openclawProvider(lent, [{ id: 'mock-1', name: 'Mock', contextWindow: 64_000, maxTokens: 2048, input: ['text', 'image'], reasoning: true }]) } },
      agents: { defaults: { model: { primary: 'acme/mock-1' } } },
    });
    home = await Gateway.create('home', {
      models: { providers: { spare: openclawProvider(local, [{ id: 'spare-1', name: 'Spare' }]) } },
      agents: { defaults: { model: { primary: 'spare/spare-1' } } },
      tools: { toolSearch: false },
    });
    await Promise.all([
      office.installPlugin({
        nodeId: 'office-01', secret: SECRET, listen: true, listenHost: '127.0.0.1', listenPort: meshPort, proxyPort: 0, tags: ['work'],
        models: [{ id: 'mock-1', provider: 'acme', description: 'the scripted one' }], agents: [{ id: 'main', description: 'office work' }],
      }),
      home.installPlugin({ nodeId: 'home-01', secret: SECRET, proxyPort: await freePort(), peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${meshPort}` }] },
        { tools: { alsoAllow: ['cluster_peers'] } }),
    ]);
    await Promise.all([office.start(), home.start()]);
  });
  after(async () => {
    const dirs = [office?.dir, home?.dir].filter(Boolean);
    await Promise.all([office?.stop(), home?.stop(), lent?.stop(), local?.stop()]);
    for (const dir of dirs) assert.deepEqual(processesUnder(dir), [], 'a stopped gateway left a process behind');
  });

  test('installed_from_the_tarball_with_an_executable_sidecar', () => {
    const found = execFileSync('find', [join(home.stateDir, 'extensions'), '-name', 'clawmatrix', '-type', 'f', '-path', '*/bin/*']).toString().trim().split('\n');
    assert.equal(found.length, 1, `${found}`);
    assert.ok(statSync(found[0]).mode & 0o100);
  });

  test('model_of_office_shows_up_in_the_configuration_of_home', async () => {
    const began = Date.now();
    const entry = await until('the provider entry office-01', 20_000, () => home.config.models?.providers?.['office-01']);
    console.log(`# entry written, seen ${Date.now() - began} ms after the test began`);
    assert.equal(entry.models[0].id, 'mock-1');
    assert.equal(entry.models[0].contextWindow, 64_000, 'window of the lender\'s own entry');
    assert.match(entry.baseUrl, /^http:\/\/127\.0\.0\.1:\d+\/nodes\/office-01\/v1$/);
    assert.ok(!JSON.stringify(entry).includes('sk-office-only'));
    assert.ok(!JSON.stringify(office.config).includes('__proto__'));
  });

  test('agent_turn_at_home_streams_text_of_the_model_at_office', async () => {
    const turn = await until('a turn on office-01/mock-1', 60_000, async () => {
      const t = await home.turn('good morning [[slow 30]]', { model: 'office-01/mock-1' });
      return t.text && t;
    });
    assert.equal(turn.text, 'echo: good morning (end of echo)', turn.raw);
    assert.ok(turn.pieces > 1, `${turn.pieces} piece(s): not streamed`);
    assert.equal(turn.usage?.total_tokens, 18, JSON.stringify(turn.usage));
    assert.equal(lent.requests.at(-1).headers.authorization, 'Bearer sk-office-only');
    assert.equal(lent.requests.at(-1).body.model, 'mock-1');
    console.log(`# first text after ${turn.firstMs} ms, whole after ${turn.totalMs} ms`);
  });

  test('model_at_office_calls_a_tool_of_home', async () => {
    const turn = await home.turn('look: [[tool:cluster_peers {}]]', { model: 'office-01/mock-1' });
    assert.match(turn.text, /tool said: .*office-01/s, turn.raw);
    const [asked, answered] = lent.requests.slice(-2);
    assert.ok(asked.body.tools.some((t) => t.function.name === 'cluster_peers'), 'home\'s tools are offered to the model');
    assert.equal(answered.body.messages.at(-1).role === 'tool' || answered.body.messages.some((m) => m.role === 'tool'), true);
  });

  test('reasoning_and_images_survive_the_way', async () => {
    const answer = await home.api('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: [{ type: 'text', text: 'see' }, { type: 'image_url', image_url: { url: 'data:image/png;base64,QUJD' } }] }] }) });
    assert.match((await answer.json()).choices[0].message.content, /^images: 1 /);
    const turn = await home.turn('[[reason thinking about it]] so', { model: 'office-01/mock-1' });
    assert.match(turn.text, /echo: +so/, turn.raw);
  });

  test('status_shows_both_nodes', async () => {
    const status = await home.call('clawmatrix.status');
    assert.equal(status.nodeId, 'home-01');
    const peer = status.peers.find((p) => p.nodeId === 'office-01');
    assert.equal(peer.connected, true, JSON.stringify(status));
    assert.equal(peer.state, 'direct');
    assert.ok(JSON.stringify(peer.models).includes('mock-1'));
    const table = await home.openclaw('clawmatrix', 'status');
    assert.equal(table.code, 0, table.output);
    for (const part of ['ClawMatrix Cluster', 'home-01', 'Peers (1/1 connected)', 'office-01 (connected', 'mock-1']) assert.ok(table.stdout.includes(part), `no "${part}" in:\n${table.output}`);
    const peers = await home.openclaw('clawmatrix', 'peers');
    assert.equal(JSON.parse(peers.stdout)[0].nodeId, 'office-01');
  });

  test('tool_shows_the_peers_without_a_model', async () => {
    const { status, body } = await home.tool('cluster_peers');
    assert.equal(status, 200, JSON.stringify(body));
    assert.ok(JSON.stringify(body).includes('office-01'));
  });

  test('provider_that_sends_429_and_500_fails_honestly', async () => {
    for (const wanted of [429, 500]) {
      const answer = await home.api('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: `[[status ${wanted}]]` }] }) });
      assert.ok([wanted, 502].includes(answer.status), `${answer.status}`);
      assert.match(answer.headers.get('x-clawmatrix-route'), /error=provider/);
      assert.match(JSON.stringify(await answer.json()), new RegExp(`scripted ${wanted}`));
    }
  });

  test('key_that_changes_at_office_is_fetched_again', async () => {
    lent.key = 'sk-office-new';
    await office.patch({ models: { providers: { acme: { apiKey: 'sk-office-new' } } } });
    const answer = await until('an answer with the new key', 20_000, async () => {
      const a = await home.api('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: 'new key' }] }) });
      return a.status === 200 && a.json();
    });
    assert.equal(answer.choices[0].message.content, 'echo: new key (end of echo)');
  });

  test('fallback_model_takes_over_when_office_is_gone', async () => {
    await home.patch({ agents: { defaults: { model: { primary: 'office-01/mock-1', fallbacks: ['spare/spare-1'] } } } });
    await until('the new default model', 30_000, async () => {
      const seen = lent.requests.length;
      await home.turn('are you there');
      return lent.requests.length > seen;
    });
    await office.stop();
    await until('office to be away', 15_000, async () => !(await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01')?.connected);
    await home.turn('the first fallback warms OpenClaw up');
    const turn = await home.turn('who answers');
    assert.equal(turn.text, 'echo: who answers (end of echo)', turn.raw);
    assert.equal(local.requests.at(-1).headers.authorization, 'Bearer sk-home-only');
    console.log(`# the fallback model answered after ${turn.firstMs} ms`);
    assert.ok(turn.firstMs < 2000, `the fallback took ${turn.firstMs} ms`);
    assert.ok(home.config.models.providers['office-01'], 'the entry stays while the node is away');
  });

  test('office_comes_back_by_itself', async () => {
    await office.start();
    await until('office to be back', 70_000, async () => (await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01')?.connected);
    const turn = await home.turn('welcome back', { model: 'office-01/mock-1' });
    assert.equal(turn.text, 'echo: welcome back (end of echo)', turn.raw);
  });

  // Last: it takes the direct link away.
  test('agent_turn_and_message_go_through_a_relay_that_both_dial', async () => {
    const cloud = await startRelay('cloud-01');
    try {
      const through = (more) => ({ plugins: { entries: { clawmatrix: { config: { peers: [peerOf(cloud)], ...more } } } } });
      await Promise.all([office.patch(through({ listen: false })), home.patch(through({}))]);
      const seen = await until('office through cloud-01', 60_000, async () => (await home.apiJson('/api/v1/peers')).find((p) => p.nodeId === 'office-01' && p.state === 'relay'));
      assert.deepEqual([seen.connected, seen.reachableVia], [true, 'cloud-01']);
      await until('the model of office', 30_000, async () => (await home.apiJson('/v1/models')).data.some((m) => m.id === 'office-01/mock-1'));
      const turn = await home.turn('far away [[slow 30]]', { model: 'office-01/mock-1' });
      assert.equal(turn.text, 'echo: far away (end of echo)', turn.raw);
      assert.ok(turn.pieces > 1, `${turn.pieces} piece(s): not streamed`);
      assert.equal(turn.usage?.total_tokens, 18, JSON.stringify(turn.usage));
      const sent = await home.api('/api/v1/send', { method: 'POST', body: JSON.stringify({ target: 'office-01/main', message: 'over the relay', wake: false }) });
      assert.equal((await sent.json()).delivered, true);
      assert.ok((await metrics(cloud)).clawmatrix_relayed_frames_total > 0);
      assert.ok(!cloud.child.output.includes('far away') && !cloud.child.output.includes('over the relay'));
      console.log(`# first text through the relay after ${turn.firstMs} ms`);
    } finally {
      await cloud.stop();
    }
  });
});
