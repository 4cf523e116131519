// T117 on machines of their own (support/netns.mjs), since this machine's own addresses are never dialed: nodes that
// know one another by the relay east alone, one of which advertises where it listens.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { noNamespaces, Internet, Placed } from './support/netns.mjs';
import { missing, until } from './support/places.mjs';

const PROVIDER = fileURLToPath(new URL('./support/provider.mjs', import.meta.url));
const PORT = 19000;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

describe('advertised addresses', { skip: missing.binary() || noNamespaces(), timeout: 300_000 }, () => {
  let net;
  const nodes = {};
  const running = [];
  const start = async (machine, config) => {
    nodes[machine] = await Placed.start(net, machine, config);
    running.push(nodes[machine]);
    return nodes[machine];
  };
  const peers = () => [{ nodeId: 'east', url: `ws://${net.address.east}:${PORT}` }];
  const chat = async (node) => (await node.chat('west/mock-1', 'hello')).status;

  before(async () => {
    net = await Internet.up();
    const provider = net.start('west', process.execPath, PROVIDER, '18080');
    running.push(provider);
    await until('the provider', 15_000, () => provider.stdout.includes('http'));
    await start('east', { nodeId: 'east', listen: true, listenHost: '0.0.0.0', listenPort: PORT });
    await start('west', {
      nodeId: 'west', peers: peers(), relay: false, listen: true, listenHost: '0.0.0.0', listenPort: PORT,
      // The first is another node, which is recognised by its key; the second is west itself.
      advertise: [`ws://${net.address.east}:${PORT}`, `ws://${net.address.west}:${PORT}`],
      models: [{ id: 'mock-1', baseUrl: 'http://127.0.0.1:18080/v1' }],
    });
    await start('home', { nodeId: 'home-01', peers: peers(), dialAdvertised: { cidrs: ['203.0.113.0/28'] } });
    await start('office', { nodeId: 'office-01', peers: peers(), dialAdvertised: true });
  });
  after(async () => {
    await Promise.all(running.map((child) => child.stop()));
    net?.down();
  });

  test('nodes_that_met_through_a_relay_link_within_the_ranges_they_were_given', async (t) => {
    await until('both to reach west', 60_000, async () => await chat(nodes.home) === 200 && await chat(nodes.office) === 200);
    const began = Date.now();
    await until('home to link to west', 60_000, async () => (await nodes.home.view('west')).state === 'direct');
    t.diagnostic(`linked after ${Date.now() - began} ms`);
    const { link } = await nodes.home.view('west');
    assert.deepEqual([link.dialed, link.advertised, link.address], [true, true, `${net.address.west}:${PORT}`]);
    assert.equal((await nodes.west.view('home-01')).link.advertised, false, 'west accepted it');
    assert.equal(await chat(nodes.home), 200);
    assert.deepEqual((await nodes.home.json('/api/v1/status')).warnings, [], 'no alarm about the wrong address');
    // For office the same address is outside what `true` stands for.
    await sleep(5_000);
    const office = await nodes.office.view('west');
    assert.deepEqual([office.state, office.reachableVia, office.link], ['relay', 'east', null]);
    assert.equal(await chat(nodes.office), 200);
  });

  test('the_link_comes_back_and_carries_on_without_the_relay', async () => {
    await nodes.west.kill();
    await until('home to lose it', 30_000, async () => (await nodes.home.view('west')).state !== 'direct');
    await nodes.west.up();
    await until('home to link again', 90_000, async () => (await nodes.home.view('west')).state === 'direct');
    await nodes.east.kill();
    await until('home to work without east', 30_000, async () => await chat(nodes.home) === 200);
  });
});
