// The quick start of README.md, its two gateways on one machine, and the steps of BOOTSTRAP.md, run as
// they stand there on real gateways. Only host names, ports and the folder of the tarball are replaced.
import assert from 'node:assert/strict';
import { copyFileSync, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { tagged } from './support/blocks.mjs';
import { Child, run } from './support/child.mjs';
import { Gateway, openclawProvider } from './support/gateway.mjs';
import { folder, freePort, missing, openclawPrefix, processesUnder, tarball, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { environment } from './support/sidecar.mjs';

const skip = missing.openclaw() || missing.tarball();
const named = tagged('README.md', 'bash', 'office')[0].match(/\.\/dist\/(\S+\.tgz)/)[1];

async function shell(script, env, cwd) {
  let done;
  // OpenClaw refuses a patch while its file changes under it, and says that the same command is to be repeated.
  for (let times = 0; times < 3; times++) {
    done = await run('bash', ['-euc', script], { env, cwd, timeoutMs: 240_000 });
    if (done.code === 0 || !/openclaw config patch/.test(script) || !/Re-run the same command/.test(done.output)) break;
  }
  assert.equal(done.code, 0, `${script}\n${done.output}`);
  return done.output;
}

describe('the docs on real gateways', { skip, timeout: 900_000 }, () => {
  let provider;
  let office;
  let home;
  let meshPort;

  /** Runs a block in a gateway's own folder and environment. */
  function block(gateway, page, role, at = 0) {
    const script = tagged(page, 'bash', role)[at].replaceAll(/(^|\s)--listen\b(?! \d)/g, `$1--listen ${meshPort}`).replaceAll('office.example:19000', `127.0.0.1:${meshPort}`);
    return shell(script, gateway.env, gateway.dir);
  }
  const connected = () => until('the link', 60_000, async () => (await home.apiJson('/api/v1/peers')).some((p) => p.nodeId === 'office-01' && p.connected));

  before(async () => {
    meshPort = await freePort();
    provider = await Provider.start({ key: 'sk-office-only' });
    const local = openclawProvider(provider, [{ id: 'qwen3-32b', name: 'Qwen' }]);
    office = await Gateway.create('docs-office', { models: { providers: { local } }, agents: { defaults: { model: { primary: 'local/qwen3-32b' } } } });
    home = await Gateway.create('docs-home');
    for (const gateway of [office, home]) {
      mkdirSync(join(gateway.dir, 'dist'));
      copyFileSync(tarball, join(gateway.dir, 'dist', named));
      copyFileSync(tarball, join(gateway.dir, named));
    }
  });
  after(async () => {
    await Promise.all([office?.stop(), home?.stop(), provider?.stop()]);
    for (const gateway of [office, home]) if (gateway) assert.deepEqual(processesUnder(gateway.dir), []);
  });

  test('quick_start_from_install_to_an_answer', async () => {
    await block(office, 'README.md', 'office');
    const { secretFile } = office.config.plugins.entries.clawmatrix.config;
    assert.ok(secretFile, 'setup names the file of the secret');
    copyFileSync(secretFile, join(home.dir, 'mesh.secret'));
    await block(home, 'README.md', 'home');
    // Two nodes on one machine cannot both have the default port.
    for (const gateway of [office, home]) await gateway.patch({ plugins: { entries: { clawmatrix: { config: { proxyPort: await freePort() } } } } });
    await Promise.all([office.start(), home.start()]);
    await block(office, 'README.md', 'office', 1);
    await until('the model at home', 60_000, () => home.config.models?.providers?.['office-01']?.models?.some((m) => m.id === 'qwen3'));
    const said = await block(home, 'README.md', 'home', 1);
    assert.match(said, /Peers \(1\/1 connected\)\s+office-01 \(connected, \d+ms\)/);
    assert.match(said, /^ {2}Models: qwen3$/m);
    await until('the new default model', 30_000, async () => (await home.turn('are you there')).text.startsWith('echo: are you there'));
    assert.equal(provider.requests.at(-1).body.model, 'qwen3-32b');
    const trust = await block(home, 'README.md', 'trust');
    assert.match(trust, /^Key id: [0-9a-f-]{39}$/m);
    assert.match(trust, /^office-01 \(pinned\)$/m);
  });

  test('bootstrap_over_a_running_installation', async () => {
    for (const gateway of [office, home]) {
      const said = await block(gateway, 'BOOTSTRAP.md', 'install');
      assert.match(said, /Applied in Gateway generation/);
      assert.ok(existsSync(said.trim().split('\n').at(-1)), said);
    }
    // As if they had never been configured, but for the port: two nodes here cannot both have the default one.
    const forget = { nodeId: null, secretFile: null, listen: null, listenPort: null, peers: null, models: null };
    for (const gateway of [office, home]) await gateway.patch({ plugins: { entries: { clawmatrix: { config: forget } } } });
    await block(office, 'BOOTSTRAP.md', 'office');
    await block(office, 'BOOTSTRAP.md', 'lend');
    await block(home, 'BOOTSTRAP.md', 'home');
    await connected();
    const before = await block(home, 'BOOTSTRAP.md', 'verify');
    assert.match(before, /ok: peer: office-01 is connected/);
    assert.match(before, /no agent can see the cluster tools/);
    await block(home, 'BOOTSTRAP.md', 'tools');
    await until('the warning to go', 30_000, async () => !JSON.stringify(await home.apiJson('/api/v1/status')).includes('no agent can see'));
    await block(home, 'BOOTSTRAP.md', 'use');
    await connected();
    await until('an answer', 30_000, async () => (await home.turn('still there')).text.startsWith('echo: still there'));
  });
});

describe('two gateways on one machine', { skip, timeout: 600_000 }, () => {
  const gateways = [];
  after(() => Promise.all(gateways.map((g) => g.stop())));

  test('by_hand_as_readme_says', async () => {
    const dir = folder('docs-two');
    mkdirSync(join(dir, 'dist'));
    copyFileSync(tarball, join(dir, 'dist', named));
    const bin = join(openclawPrefix, 'node_modules/.bin');
    const env = environment({ PATH: `${bin}:${process.env.PATH}`, HOME: dir, NO_COLOR: '1', NODE_COMPILE_CACHE: join(openclawPrefix, 'compile-cache') });
    const ports = new Map();
    for (const shown of ['19201', '19202', '19210', '19211', '19212']) ports.set(shown, String(await freePort()));
    const variables = {};
    for (const name of ['office', 'home']) {
      const text = tagged('README.md', 'bash', `two-gateways ${name}`)[0].replaceAll(/\b192\d\d\b/g, (port) => ports.get(port));
      [variables[name]] = text.split('\n');
      // The last command stays: it takes the shell's place, so that the test can end it.
      const gateway = new Child('bash', ['-euc', text.replace(/^openclaw gateway run$/m, 'exec openclaw gateway run')], { env, cwd: dir, input: '' });
      gateways.push(gateway);
      await until(`gateway ${name}`, 180_000, () => {
        if (!gateway.running) throw new Error(`it ended with ${gateway.code}:\n${gateway.output}`);
        return /\[gateway\] ready\b/.test(gateway.output);
      });
    }
    await until('the peer in a third terminal', 60_000, async () => /office-01 \(connected, /.test(await shell(`${variables.home}\nopenclaw clawmatrix status`, env, dir)));
  });
});
