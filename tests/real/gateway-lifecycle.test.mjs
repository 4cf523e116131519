// The sidecar's life under a real gateway: never two, never an orphan, and an honest health.
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { Gateway } from './support/gateway.mjs';
import { freePort, missing, processesUnder, until } from './support/places.mjs';
import { SECRET } from './support/sidecar.mjs';

const skip = missing.openclaw() || missing.tarball();

describe('life under a gateway', { skip, timeout: 420_000 }, () => {
  let gateway;
  let port;
  const sidecars = () => processesUnder(gateway.dir).filter((p) => p.exe.endsWith('/clawmatrix'));
  const one = () => until('exactly one sidecar', 20_000, () => {
    const found = sidecars();
    return found.length === 1 && existsSync(join(gateway.pluginState, 'run/endpoint')) && gateway.endpoint.pid === found[0].pid && found[0];
  });

  before(async () => {
    gateway = await Gateway.create('life');
    port = await freePort();
    const installed = await gateway.openclaw('plugins', 'install', process.env.CLAWMATRIX_PLUGIN_TGZ, '--force', '--accept-capabilities');
    assert.equal(installed.code, 0, installed.output);
    await gateway.start();
  });
  after(async () => {
    await gateway?.stop();
    if (gateway) assert.deepEqual(processesUnder(gateway.dir), []);
  });

  test('unconfigured_node_starts_no_sidecar_and_says_so', async () => {
    assert.deepEqual(sidecars(), []);
    const status = await gateway.openclaw('clawmatrix', 'status');
    assert.notEqual(status.code, 0);
    assert.match(status.output, /not configured: run openclaw clawmatrix setup/);
  });

  test('configuration_starts_it_without_a_restart', async () => {
    await gateway.patch({ plugins: { entries: { clawmatrix: { config: { nodeId: 'life-01', secret: SECRET, proxyPort: port } } } } });
    await one();
    assert.equal((await gateway.apiJson('/api/v1/status')).nodeId, 'life-01');
  });

  test('reload_leaves_exactly_one', async () => {
    const before = await one();
    const done = await gateway.openclaw('plugins', 'reload', 'clawmatrix');
    assert.equal(done.code, 0, done.output);
    const next = await until('a new sidecar', 20_000, () => {
      const found = sidecars();
      return found.length === 1 && found[0].pid !== before.pid && found[0];
    });
    assert.notEqual(next.pid, before.pid);
    await one();
  });

  test('sidecar_that_dies_is_started_again', async () => {
    const before = await one();
    process.kill(before.pid, 'SIGKILL');
    await until('its successor', 20_000, () => sidecars().some((p) => p.pid !== before.pid));
    await one();
  });

  test('agent_cannot_stop_it_by_asking_two_at_once', async () => {
    const answers = await Promise.all([gateway.call('clawmatrix.status'), gateway.call('clawmatrix.peers')]);
    assert.equal(answers[0].nodeId, 'life-01');
    await one();
  });

  test('port_in_use_is_the_health_of_the_gateway', async () => {
    const { createServer } = await import('node:net');
    const other = createServer();
    await new Promise((ok) => other.listen(0, '127.0.0.1', ok));
    const taken = other.address().port;
    await gateway.patch({ plugins: { entries: { clawmatrix: { config: { proxyPort: taken } } } } });
    const health = await until('the failure in the health of the gateway', 40_000, async () => {
      // With a probe: without one `health` answers a picture up to a minute old.
      const errors = (await gateway.call('health', { probe: true })).plugins.errors;
      return errors.find((e) => e.error.includes(String(taken)))?.error;
    });
    assert.match(health, /proxyPort/);
    other.close();
    await gateway.patch({ plugins: { entries: { clawmatrix: { config: { proxyPort: port } } } } });
    await one();
  });

  test('clean_stop_takes_the_sidecar_along', async () => {
    const began = Date.now();
    await gateway.stop();
    assert.deepEqual(sidecars(), []);
    console.log(`# gateway and sidecar stopped in ${Date.now() - began} ms`);
  });

  test('gateway_killed_with_9_leaves_nothing_after_5_s', async () => {
    await gateway.start();
    const sidecar = await one();
    // The gateway is the sidecar's parent; what was started may be a launcher above it.
    const parent = Number(readFileSync(`/proc/${sidecar.pid}/status`, 'utf8').match(/^PPid:\s+(\d+)/m)[1]);
    const began = Date.now();
    for (const pid of new Set([parent, gateway.child.pid])) process.kill(pid, 'SIGKILL');
    await until('the sidecar to end', 5_000, () => sidecars().length === 0);
    console.log(`# sidecar gone ${Date.now() - began} ms after the gateway was killed`);
    await gateway.child.ended;
  });
});
