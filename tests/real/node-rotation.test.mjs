// A node changes its key by the command line and a restart: T27 with real processes.
import assert from 'node:assert/strict';
import { copyFileSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { readEvents } from './support/mesh.mjs';
import { folder, freePort, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { Sidecar } from './support/sidecar.mjs';

describe('the key of a node', { skip: missing.binary(), timeout: 120_000 }, () => {
  const running = [];
  after(async () => {
    await Promise.all(running.map((one) => one.stop()));
  });
  const peer = async (node) => (await node.json('/api/v1/peers')).find((p) => p.nodeId === 'office-01');
  const follows = async (node, key) => {
    const { keyId, connected } = await peer(node);
    return keyId === key && connected;
  };

  test('is_changed_by_a_command_and_a_restart_and_the_others_follow', async () => {
    const provider = await Provider.start();
    const port = await freePort();
    const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: port, models: [{ id: 'mock-1', baseUrl: provider.baseUrl }] });
    const peers = [{ nodeId: 'office-01', url: `ws://127.0.0.1:${port}` }];
    const home = await Sidecar.start({ nodeId: 'home-01', peers });
    const away = await Sidecar.start({ nodeId: 'away-01', peers });
    running.push(provider, office, home, away);
    await home.model('office-01/mock-1');
    await away.peer('office-01');
    const trusted = await home.cli('trust', 'accept', 'office-01', (await peer(home)).keyId);
    assert.equal(trusted.code, 0, trusted.output);
    await away.stop();

    const old = (await office.json('/api/v1/status')).keyId;
    const stolen = join(folder('rotation'), 'identity.key');
    copyFileSync(join(office.stateDir, 'identity.key'), stolen);
    const done = await office.cli('--json', 'identity', 'rotate');
    assert.equal(done.code, 0, done.output);
    const { next } = JSON.parse(done.stdout);
    assert.equal((await office.json('/api/v1/status')).keyId, old, 'the running node keeps its key');
    assert.match((await office.cli('identity')).stdout, new RegExp(`From the next start: ${next.publicKey}`));
    assert.equal((await office.cli('identity', 'rotate')).code, 1, 'one at a time');

    // A kill is as good as a stop.
    office.child.killNow();
    await office.up();
    assert.equal((await office.json('/api/v1/status')).keyId, next.keyId);
    assert.ok(!existsSync(join(office.stateDir, 'identity.next')));
    await until('home to follow', 20_000, () => follows(home, next.keyId));
    assert.equal((await peer(home)).trust, 'trusted', 'trust stays');
    assert.deepEqual((await home.json('/api/v1/status')).warnings.filter((w) => /identity|key/.test(w)), []);
    const body = JSON.stringify({ model: 'office-01/mock-1', stream: true, messages: [{ role: 'user', content: 'hello again' }] });
    const answer = await readEvents(await home.fetch('/v1/chat/completions', { method: 'POST', body }));
    assert.ok(answer.done, answer.text);

    await away.up();
    await until('the node that was away to follow', 20_000, () => follows(away, next.keyId));
    const verified = await office.cli('audit', 'verify');
    assert.equal(verified.code, 0, `heads of the old key are still ours: ${verified.output}`);

    // Whoever has the old key is not the node any more, also after a restart of the one it tries.
    await office.stop();
    await home.stop();
    await home.up();
    const thief = await Sidecar.start({ ...office.config, identityFile: stolen });
    running.push(thief);
    const warning = await until('the warning', 20_000, async () => (await home.json('/api/v1/status')).warnings.find((w) => w.includes('which it gave up for')));
    assert.match(warning, new RegExp(old));
    assert.equal(home.child.output.match(/node refused/g).length, 1, 'told once');
    assert.ok(!(await peer(home)).connected);
  });
});
