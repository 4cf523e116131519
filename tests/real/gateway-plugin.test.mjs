// The plugin on a real gateway, with a stub in the sidecar's place: what OpenClaw does with it, whatever
// the mesh does.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { Gateway } from './support/gateway.mjs';
import { folder, missing, root, until } from './support/places.mjs';
import { SECRET } from './support/sidecar.mjs';

const skip = missing.openclaw();
const PLATFORM = `${process.platform}-${process.arch}`;

/** The plugin's folder with the stub as its sidecar. */
function pluginFolder(dir = folder('plugin')) {
  const plugin = join(dir, 'package');
  cpSync(join(root, 'plugin'), plugin, { recursive: true, filter: (path) => !path.includes('node_modules') });
  mkdirSync(join(plugin, 'bin', PLATFORM), { recursive: true });
  cpSync(join(root, 'plugin/test/fixtures/stub-sidecar.mjs'), join(plugin, 'bin', PLATFORM, 'clawmatrix'));
  return plugin;
}

/** A gateway with the stubbed plugin installed from `source`. */
async function installed(name, source, config = {}) {
  const g = await Gateway.create(name, config);
  const done = await g.openclaw('plugins', 'install', source, '--force', '--accept-capabilities');
  assert.equal(done.code, 0, done.output);
  return g;
}

const plugin = (config) => ({ plugins: { entries: { clawmatrix: { config: { secret: SECRET, proxyPort: 0, ...config } } } } });
/** Joins `change` into the configuration of a gateway that does not run; quicker than OpenClaw's writer. */
const configure = (g, change) => {
  const join = (base, more) => {
    for (const [key, value] of Object.entries(more)) {
      base[key] = value && typeof value === 'object' && !Array.isArray(value) ? join(base[key] ?? {}, value) : value;
    }
    return base;
  };
  writeFileSync(g.configFile, JSON.stringify(join(g.config, change), null, 2));
};
/** What the stub saw, or nothing yet. */
const seen = (g) => JSON.parse(readFileSync(join(g.pluginState, 'seen.json'), 'utf8'));
const script = (g, file, value) => {
  mkdirSync(g.pluginState, { recursive: true });
  writeFileSync(join(g.pluginState, file), JSON.stringify(value));
};
const alive = (pid) => existsSync(`/proc/${pid}`) && !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
const parent = (pid) => Number(/^PPid:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]);
/** Sidecars of this gateway that run now. */
const sidecars = (g) =>
  execFileSync('ps', ['-eo', 'pid=,args=']).toString().split('\n').filter((line) => line.includes(`--state-dir ${g.pluginState}`) && !line.includes('ps -eo'));

/** What OpenClaw's health says of the plugin. Asked with a probe: `openclaw health` shows a picture up to a minute old. */
const problems = async (g) => (await g.call('health', { probe: true })).plugins.errors.filter((e) => e.id === 'clawmatrix').map((e) => e.error.replace(/^.*?clawmatrix-sidecar: /, ''));

const model = (id, more = {}) => ({ id, name: `${id} lent`, api: 'openai-completions', contextWindow: 100_000, maxTokens: 4096, input: ['text'], reasoning: false, ...more });
/** A catalog entry; the stub fills in its port. */
const entry = (provider, models) => ({
  provider, api: models[0].api, models,
  baseUrl: provider === 'clawmatrix' ? 'http://127.0.0.1:PORT/v1' : `http://127.0.0.1:PORT/nodes/${provider}/v1`,
});
const providers = (g) => g.config.models?.providers ?? {};

describe('plugin on a gateway', { skip, timeout: 900_000 }, () => {
  const running = [];
  after(() => Promise.all(running.map((g) => g.stop())));
  const start = async (g) => {
    running.push(g);
    await g.start();
    return g;
  };

  test('installed over the earlier plugin, it takes its entries over and leaves foreign ones alone', async () => {
    const earlier = join(folder('earlier'), 'clawmatrix');
    mkdirSync(earlier);
    const manifest = { id: 'clawmatrix', configSchema: { type: 'object', required: ['nodeId', 'secret'], properties: { nodeId: { type: 'string' }, secret: { type: 'string' } } } };
    writeFileSync(join(earlier, 'openclaw.plugin.json'), JSON.stringify(manifest));
    writeFileSync(join(earlier, 'package.json'), JSON.stringify({ name: 'clawmatrix', version: '0.0.9', type: 'module', openclaw: { extensions: ['./index.js'] } }));
    writeFileSync(join(earlier, 'index.js'), 'export default { id: "clawmatrix", register() {} };\n');
    const foreign = { baseUrl: 'http://127.0.0.1:9/v1', apiKey: 'sk-foreign', api: 'openai-completions', models: [{ id: 'x', name: 'x' }] };
    const handWritten = { baseUrl: 'http://127.0.0.1:19001/v1', apiKey: 'sk-clawmatrix-proxy', api: 'openai-completions', timeoutSeconds: 77, models: [{ id: 'old', name: 'Old one', contextWindow: 50_000, maxTokens: 500 }] };
    const g = await installed('earlier', earlier, { models: { providers: { 'Office-01': foreign, clawmatrix: handWritten } } });
    configure(g, { plugins: { entries: { clawmatrix: { enabled: true, config: { nodeId: 'home-01', secret: SECRET } } } } });
    const done = await g.openclaw('plugins', 'install', pluginFolder(), '--force', '--accept-capabilities');
    assert.equal(done.code, 0, done.output);
    configure(g, plugin({ nodeId: 'home-01' }));
    script(g, 'catalog.json', [entry('office-01', [model('a')]), entry('clawmatrix', [model('a')])]);
    await start(g);
    await until('the entry is taken over', 10_000, () => providers(g).clawmatrix.apiKey === 'openclaw-token');
    const { clawmatrix } = providers(g);
    assert.equal(clawmatrix.baseUrl, `http://127.0.0.1:${g.endpoint.proxyPort}/v1`);
    assert.equal(clawmatrix.timeoutSeconds, 77);
    assert.deepEqual(clawmatrix.models.map((m) => m.name), ['a lent', 'Old one']);
    assert.deepEqual(providers(g)['Office-01'], foreign);
    assert.equal(providers(g)['office-01'], undefined);
    await until('the warning', 10_000, () => seen(g).warnings.some((w) => w.includes('already has a provider "Office-01"')));
    assert.match((await g.turn('hello', { model: 'clawmatrix/old' })).text, /answer of old at \/v1\/chat\/completions/);
    await g.stop();
  });

  test('from a folder: unconfigured it waits, configured it runs, and everything reaches it', async () => {
    const g = await start(await installed('folder', pluginFolder()));
    await until('the health text', 20_000, async () => (await problems(g)).includes('not configured: run openclaw clawmatrix setup'));
    assert.deepEqual(sidecars(g), []);
    const path = await g.openclaw('clawmatrix', 'path');
    assert.equal(path.code, 0);
    assert.ok(statSync(path.stdout.trim()).mode & 0o100, 'executable');

    process.env.CM_TEST_KEY = 'sk-of-the-environment';
    await g.patch({
      ...plugin({ nodeId: 'home-01', models: [{ id: 'mock-1', provider: 'mock' }, { id: 'm2', provider: 'nowhere' }] }),
      models: { providers: { mock: { baseUrl: 'http://127.0.0.1:1/v1', apiKey: 'sk-of-mock', api: 'openai-completions', models: [{ id: 'mock-1', name: 'Mock', contextWindow: 64_000, maxTokens: 100 }] } } },
      tools: { alsoAllow: ['clawmatrix'] },
    });
    await until('the sidecar with its providers', 20_000, () => seen(g).messages.at(-1)?.providers?.mock);
    delete process.env.CM_TEST_KEY;
    const { argv, env, messages } = seen(g);
    const mock = messages.at(-1).providers.mock;
    assert.equal(mock.apiKey, 'sk-of-mock');
    assert.equal(mock.models[0].contextWindow, 64_000);
    assert.match(messages.at(-1).warnings.join(), /"nowhere"/);
    assert.doesNotMatch(messages.at(-1).warnings.join(), /cluster tools/);
    assert.equal(messages[0].config.secret, SECRET);
    for (const secret of [SECRET, 'sk-of-mock', 'gateway-token-of-the-tests']) assert.ok(!JSON.stringify([argv, env]).includes(secret), 'no secret in argv or environment');

    assert.equal((await g.call('clawmatrix.status')).nodeId, 'home-01');
    assert.equal((await g.call('clawmatrix.peers'))[0].nodeId, 'office-01');
    const peers = await g.tool('cluster_peers');
    assert.match(JSON.stringify(peers.body), /office-01/);
    const verb = await g.openclaw('clawmatrix', 'exec', '--json', '--exit=7', '--', '--version');
    assert.equal(verb.code, 7, verb.output);
    assert.deepEqual(JSON.parse(verb.stdout), { argv: ['exec', '--json', '--exit=7', '--', '--version'], state: g.pluginState });

    // A node seen now is usable without a restart, on an idle machine within 3 s; a turn on a busy one takes
    // longer by itself, so the time is printed. The first turn of a gateway is slow: done before.
    script(g, 'catalog.json', [entry('office-01', [model('claude')])]);
    await until('the first entry', 10_000, () => providers(g)['office-01']);
    await until('the first turn', 30_000, async () => /answer of claude/.test((await g.turn('hi', { model: 'office-01/claude' })).text));
    const began = Date.now();
    script(g, 'catalog.json', [entry('office-01', [model('claude')]), entry('late-01', [model('opus', { api: 'anthropic-messages' }), model('qwen/q3')])]);
    await until('a turn of the new node', 30_000, async () => /answer of qwen\/q3 at \/nodes\/late-01\/v1/.test((await g.turn('hi', { model: 'late-01/qwen/q3' })).text));
    console.log(`# a node seen now was usable after ${Date.now() - began} ms`);
    assert.match((await g.turn('hi', { model: 'late-01/opus' })).text, /answer of opus at \/nodes\/late-01\/v1\/messages/);
    assert.match((await g.openclaw('models', 'list', '--all')).output, /late-01\/qwen\/q3 .*yes/);

    // The same again is no write.
    script(g, 'catalog.json', [entry('office-01', [model('claude', { cost: { input: 3 } })]), entry('late-01', [model('opus', { api: 'anthropic-messages' }), model('qwen/q3')])]);
    await until('the catalog is read', 5_000, () => seen(g).catalogs === 3);
    script(g, 'catalog.json', [entry('office-01', [model('claude')])]);
    await until('the entry goes with its node', 10_000, () => !providers(g)['late-01']);
    assert.ok(providers(g).mock);
    const writes = () => g.child.output.match(/provider entries written: .*/g);
    await until('the write is logged', 5_000, () => writes().at(-1) === 'provider entries written: -late-01');
    assert.deepEqual(writes().slice(0, -1), ['provider entries written: office-01', 'provider entries written: late-01']);

    // A reload leaves exactly one sidecar.
    const first = seen(g).pid;
    assert.equal((await g.openclaw('plugins', 'reload', 'clawmatrix')).code, 0);
    await until('the next sidecar', 10_000, () => seen(g).pid !== first);
    assert.equal(sidecars(g).length, 1);
    assert.ok(!alive(first));

    // kill -9 of the gateway leaves nothing.
    const last = seen(g).pid;
    process.kill(parent(last), 'SIGKILL');
    await until('the sidecar is gone', 5_000, () => !alive(last));
    g.child.killNow();
  });

  test('from a tarball: what keeps the sidecar from running is the health of the service', async () => {
    const source = pluginFolder();
    const tgz = join(source, '../clawmatrix.tgz');
    execFileSync('tar', ['-czf', tgz, '-C', join(source, '..'), 'package']);
    const g = await installed('tarball', tgz);
    configure(g, plugin({ nodeId: 'home-01' }));
    script(g, 'stub.json', { failed: { code: 78, message: 'peers[0].url: not a URL' } });
    await start(g);
    await until('the health text', 20_000, async () => (await problems(g)).includes('peers[0].url: not a URL'));
    assert.deepEqual(sidecars(g), [], 'a configuration error is not retried');
    script(g, 'stub.json', {});
    await g.patch(plugin({ nodeId: 'home-02' }));
    await until('it runs after the configuration changed', 20_000, () => seen(g).messages[0]?.config.nodeId === 'home-02' && g.endpoint);
    await until('the health is mended', 20_000, async () => (await problems(g)).length === 0);
    const { pid } = seen(g);
    await g.stop();
    assert.ok(!alive(pid), 'a gateway that ends takes its sidecar along');
  });

  test('setup writes through OpenClaw, and models can stay out of the configuration', async () => {
    const g = await installed('dynamic', pluginFolder());
    const setup = await g.openclaw('clawmatrix', 'setup');
    assert.equal(setup.code, 0, setup.output);
    assert.equal(g.config.plugins.entries.clawmatrix.config.nodeId, 'made-by-setup');
    configure(g, plugin({ modelRegistration: 'dynamic' }));
    const again = await g.openclaw('clawmatrix', 'setup');
    assert.equal(again.code, 1);
    assert.match(again.stderr, /configured already[^]*--force/);
    script(g, 'catalog.json', [entry('office-01', [model('claude'), model('opus', { api: 'anthropic-messages' })])]);
    await start(g);
    await until('the catalog for the provider', 10_000, () => existsSync(join(g.pluginState, 'run/catalog.json')));
    const turn = await g.turn('hi', { model: 'clawmatrix/office-01/claude' });
    assert.match(turn.text, /answer of office-01\/claude at \/v1\/chat\/completions/, turn.raw);
    const other = await g.turn('hi', { model: 'clawmatrix/office-01/opus' });
    assert.match(other.text, /answer of office-01\/opus at \/v1\/messages/, `${other.raw}\n${JSON.stringify(seen(g).requests.at(-1))}`.slice(0, 3000));
    assert.deepEqual(providers(g), {});
    await g.stop();
  });
});
