// The cluster secret is changed while five nodes stream from one another: T24, T25 with real processes.
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { after, describe, test } from 'node:test';
import { readEvents } from './support/mesh.mjs';
import { missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { SECRET, Sidecar } from './support/sidecar.mjs';

const NEXT = 'zR4-another-one-5Jw8yT1u-tests-only';

describe('the secret of a running mesh', { skip: missing.binary(), timeout: 120_000 }, () => {
  const running = [];
  after(async () => {
    await Promise.all(running.map((one) => one.stop()));
  });
  const change = (node, more) => {
    writeFileSync(node.configFile, JSON.stringify({ ...node.config, ...more }));
    process.kill(node.endpoint.pid, 'SIGHUP');
  };
  const linked = async (node) => (await node.json('/api/v1/peers')).find((p) => p.nodeId === 'office-01').connected;
  const said = (node, text) => until(`${node.config.nodeId} to say: ${text}`, 15_000, () => node.child.output.includes(text));

  test('is_changed_in_three_rounds_by_sighup_and_no_stream_breaks', async () => {
    const provider = await Provider.start();
    running.push(provider);
    const names = ['cloud-01', 'n-01', 'n-02', 'n-03', 'n-04'];
    const nodes = [];
    for (const [at, nodeId] of names.entries()) {
      const place = at === 0 ? { listen: true, listenHost: '127.0.0.1', listenPort: 0 } : { peers: [{ nodeId: names[0], url: `ws://127.0.0.1:${nodes[0].endpoint.listenPort}` }] };
      const node = await Sidecar.start({ nodeId, models: [{ id: `m-${at}`, baseUrl: provider.baseUrl }], ...place });
      nodes.push(node);
      running.push(node);
    }
    const next = names.map((_, at) => (at + 1) % names.length);
    await Promise.all(nodes.map((node, at) => node.model(`${names[next[at]]}/m-${next[at]}`, 30_000)));

    let stop = false;
    const whole = names.map(() => 0);
    const broken = [];
    const work = nodes.map(async (node, at) => {
      const model = `${names[next[at]]}/m-${next[at]}`;
      while (!stop) {
        const body = JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: '[[slow 20]] one two three four five six seven eight' }] });
        const answer = await readEvents(await node.fetch('/v1/chat/completions', { method: 'POST', body }));
        if (answer.done) whole[at] += 1;
        else broken.push(`${names[at]}: ${answer.status} ${answer.text.slice(-300)}`);
      }
    });
    const more = async (what) => {
      const before = [...whole];
      await until(what, 30_000, () => whole.every((n, at) => n >= before[at] + 3));
    };
    await more('the first streams');
    const rounds = [
      { secret: SECRET, acceptSecrets: [{ secret: NEXT }] },
      { secret: NEXT, acceptSecrets: [{ secret: SECRET }] },
      { secret: NEXT },
    ];
    for (const [at, round] of rounds.entries()) {
      for (const node of nodes) {
        change(node, round);
        await new Promise((done) => setTimeout(done, 100));
      }
      await more(`streams after round ${at + 1}`);
      // What the guide tells an operator to wait for before the older secret goes.
      for (const node of nodes) {
        const older = async () => (await node.json('/api/v1/status')).warnings.some((w) => w.includes('another secret than'));
        await until(`${node.config.nodeId} to use the present secret alone`, 30_000, async () => !(await older()));
      }
    }
    stop = true;
    await Promise.all(work);
    console.log(`# whole streams by node: ${whole.join(', ')}`);
    assert.deepEqual(broken, [], broken.join('\n'));
    for (const node of nodes) assert.ok(!node.child.output.includes(NEXT) && !node.child.output.includes(SECRET), 'no secret in the log');

    const late = await Sidecar.start({ nodeId: 'late-01', peers: nodes[1].config.peers });
    running.push(late);
    await until('the old secret to be refused', 15_000, async () => /`secret` must match/.test((await late.cli('status')).stdout));
    // Told of the new one, it need not wait for its next attempt, a minute later.
    change(late, { secret: NEXT });
    await late.peer('cloud-01', 15_000);
  });

  test('a_wrong_file_changes_nothing_and_a_date_ends_a_secret', async () => {
    const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, acceptSecrets: [{ secret: NEXT }] });
    running.push(office);
    const peers = [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }];
    const home = await Sidecar.start({ nodeId: 'home-01', peers });
    const attic = await Sidecar.start({ nodeId: 'attic-01', secret: NEXT, peers });
    running.push(home, attic);
    await home.peer('office-01');
    await attic.peer('office-01');
    const warned = async () => (await office.cli('status')).stderr + (await office.cli('status')).stdout;
    await until('the warning that attic is behind', 10_000, async () => /another secret than `secret` is in use with `attic-01`/.test(await warned()));

    change(office, { secret: 'short', acceptSecrets: [] });
    const told = await until('the warning', 10_000, async () => (await office.json('/api/v1/status')).warnings.find((w) => w.includes('could not be read again')));
    assert.match(told, /`secret`/);
    assert.ok(await linked(attic), 'the old secrets are in force');

    const notAfter = new Date(Date.now() + 3000).toISOString().replace(/\.\d+Z/, 'Z');
    change(office, { acceptSecrets: [{ secret: NEXT, notAfter }] });
    await until('the link of attic to end', 15_000, async () => !(await linked(attic)));
    assert.ok(Date.now() > Date.parse(notAfter) - 1000);
    await said(attic, 'auth_failed');
    assert.ok(await linked(home), 'what proved the other secret goes on');
    assert.doesNotMatch(home.child.output, /link down/);
  });
});
