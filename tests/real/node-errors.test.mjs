// Bad input on a real node: each mistake gets its own text and exit code, names the way out, and
// disturbs nothing else.
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { run } from './support/child.mjs';
import { pair } from './support/mesh.mjs';
import { binary, folder, missing, until } from './support/places.mjs';
import { environment, SECRET, Sidecar } from './support/sidecar.mjs';

/** Starts a node that must not come up; answers its exit code and everything it said. */
async function refused(config, { text, dir = folder('refused'), prepare } = {}) {
  const node = new Sidecar(typeof config === 'string' ? {} : config, dir);
  if (typeof config === 'string') writeFileSync(node.configFile, config, { mode: 0o600 });
  prepare?.(node);
  const child = node.spawn();
  child.process.stdin.end();
  const timer = setTimeout(() => child.killNow(), 15_000);
  await child.ended;
  clearTimeout(timer);
  if (text) assert.match(child.stderr, text);
  assert.ok(!child.output.includes(SECRET), 'the secret is in the output');
  return child;
}

describe('bad input', { skip: missing.binary(), timeout: 180_000 }, () => {
  test('port_in_use_names_port_key_and_a_free_one', async () => {
    const taken = createServer();
    await new Promise((ok) => taken.listen(0, '127.0.0.1', ok));
    const { port } = taken.address();
    const api = await refused({ nodeId: 'home-01', proxyPort: port }, { text: new RegExp(`${port}[\\s\\S]*proxyPort`) });
    assert.equal(api.code, 69);
    const mesh = await refused({ nodeId: 'home-01', listen: true, listenHost: '127.0.0.1', listenPort: port }, { text: new RegExp(`${port}[\\s\\S]*listenPort`) });
    assert.equal(mesh.code, 69);
    taken.close();
  });

  test('second_node_on_one_state_folder_is_refused_and_the_first_goes_on', async () => {
    const first = await Sidecar.start({ nodeId: 'home-01' });
    after(() => first.stop());
    const endpoint = first.endpoint;
    const second = await refused({ nodeId: 'home-01' }, { dir: first.dir });
    assert.equal(second.code, 73);
    assert.match(second.stderr, /state/);
    assert.deepEqual(first.endpoint, endpoint, 'the endpoint file is still the first one\'s');
    assert.equal((await first.fetch('/v1/models')).status, 200);
    await first.stop();
    assert.equal(first.child.code, 0, first.child.output);
  });

  test('half_written_configuration', async () => {
    const child = await refused('{"nodeId":"home-01","secret":"');
    assert.equal(child.code, 78);
    assert.match(child.stderr, /node\.json|JSON/);
  });

  test('every_problem_is_reported_in_one_go', async () => {
    const child = await refused({ nodeId: 'not a name', secret: 'short', proxyPort: 'many', peers: [{ nodeId: 'a', url: 'http://x' }], colour: 'red' });
    assert.equal(child.code, 78);
    for (const path of ['nodeId', 'secret', 'proxyPort', 'peers[0].url', 'colour']) assert.ok(child.stderr.includes(path), `nothing about ${path} in:\n${child.stderr}`);
    assert.ok(!/\bshort\b/.test(child.stderr.replaceAll(/too short|shorter/g, '')), `the secret is in:\n${child.stderr}`);
  });

  test('trivial_secret_is_refused_with_the_command_that_makes_a_good_one', async () => {
    const child = await refused({ nodeId: 'home-01', secret: 'aaaaaaaaaaaaaaaaaaaa' });
    assert.equal(child.code, 78);
    assert.match(child.stderr, /secret new/);
  });

  test('key_file_open_to_others_is_refused', async () => {
    const first = await Sidecar.start({ nodeId: 'home-01' });
    await first.stop();
    const child = await refused({ nodeId: 'home-01' }, { dir: first.dir, prepare: (node) => chmodSync(join(node.stateDir, 'identity.key'), 0o644) });
    assert.notEqual(child.code, 0);
    assert.match(child.stderr, /identity\.key/);
    assert.match(child.stderr, /chmod|0600/);
  });

  test('unreadable_configuration_names_the_file', async () => {
    const dir = folder('nofile');
    mkdirSync(join(dir, 'state'), { mode: 0o700 });
    const child = await run(binary, ['run', '--config', join(dir, 'absent.json'), '--state-dir', join(dir, 'state')], { env: environment() });
    assert.ok([1, 78].includes(child.code), `${child.code}`);
    assert.match(child.stderr, /absent\.json/);
  });

  test('usage_errors_exit_2', async () => {
    const child = await run(binary, ['fly'], { env: environment() });
    assert.equal(child.code, 2);
  });

  test('wrong_secret_is_said_at_home_and_changes_nothing_at_office', async () => {
    const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0 });
    const home = await Sidecar.start({ nodeId: 'home-01', secret: 'another-secret-of-good-length-91xQ', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] });
    after(() => Promise.all([office.stop(), home.stop()]));
    await until('the refusal at home', 10_000, () => /secret/.test(home.child.stderr));
    assert.match(home.child.stderr, /`?secret`? must match|secrets differ|auth_failed/);
    await until('the reason at office', 10_000, () => /secrets differ/.test(office.child.stderr));
    assert.equal((await office.json('/api/v1/peers')).filter((p) => p.connected).length, 0);
    const status = await home.cli('status');
    assert.match(status.stdout, /0\/1 connected/);
  });

  test('dead_provider_and_dead_node', async () => {
    const mesh = await pair();
    after(() => mesh.stop());
    const ask = () => mesh.home.fetch('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: 'hi' }] }) });
    const { port } = mesh.provider;
    await mesh.provider.stop();
    const noProvider = await ask();
    const body = await noProvider.json();
    assert.equal(noProvider.status, 502, JSON.stringify(body));
    assert.equal(body.error.code, 'upstream_error');
    assert.ok(!JSON.stringify(body).includes(String(port)), 'the provider\'s address stays at office');
    assert.match(noProvider.headers.get('x-clawmatrix-route'), /error=(mesh|provider)/);

    mesh.office.child.killNow();
    await mesh.office.child.ended;
    const began = Date.now();
    const noNode = await until('the end of the link', 15_000, async () => {
      const answer = await ask();
      return answer.status === 503 && answer;
    });
    console.log(`# a killed node is answered 503 after ${Date.now() - began} ms`);
    const gone = await noNode.json();
    assert.ok(['peer_unreachable', 'no_route'].includes(gone.error.code), JSON.stringify(gone));
    assert.ok(noNode.headers.get('retry-after'));
    assert.match(gone.error.message, /office-01/);
  });

  test('oversize_body_is_413_and_the_next_request_works', async () => {
    const mesh = await pair();
    after(() => mesh.stop());
    const body = `{"model":"office-01/mock-1","messages":[{"role":"user","content":"${'x'.repeat(33 * 1024 * 1024)}"}]}`;
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body }).catch((error) => error);
    if (answer instanceof Response) {
      assert.equal(answer.status, 413);
      assert.equal((await answer.json()).error.code, 'payload_too_large');
    } else assert.match(String(answer.cause ?? answer), /reset|EPIPE|closed/i);
    assert.equal((await mesh.home.fetch('/v1/models')).status, 200);
  });

  test('no_secret_in_arguments_environment_or_log', async () => {
    const mesh = await pair();
    after(() => mesh.stop());
    for (const node of [mesh.office, mesh.home]) {
      const { pid } = node.endpoint;
      const shown = readFileSync(`/proc/${pid}/cmdline`, 'utf8') + node.child.output;
      for (const marker of [SECRET, mesh.provider.key, node.token]) assert.ok(!shown.includes(marker), `a secret is shown by ${node.config.nodeId}`);
    }
  });

  test('local_api_listens_on_loopback_alone', { skip: process.platform !== 'linux' && 'reads /proc' }, async () => {
    // Protocol T114.
    const mesh = await pair();
    after(() => mesh.stop());
    for (const node of [mesh.office, mesh.home]) {
      const port = node.endpoint.proxyPort.toString(16).toUpperCase().padStart(4, '0');
      const listening = ['tcp', 'tcp6'].flatMap((table) => readFileSync(`/proc/net/${table}`, 'utf8').split('\n'))
        .map((line) => line.trim().split(/\s+/))
        .filter(([, local, , state]) => state === '0A' && local.endsWith(`:${port}`))
        .map(([, local]) => local.split(':')[0]);
      assert.deepEqual(listening, ['0100007F'], `sockets of ${node.config.nodeId}`);
    }
  });
});
