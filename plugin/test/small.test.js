import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { findBinary } from '../binary.js';
import { verbArgs } from '../cli.js';
import { get } from '../client.js';
import plugin from '../index.js';
import { dynamicModel } from '../provider.js';
import { TOOLS, visibilityWarning } from '../tools.js';

const json = (/** @type {string} */ name) => JSON.parse(readFileSync(new URL(`../${name}`, import.meta.url), 'utf8'));

function temporary() {
  const dir = mkdtempSync(join(tmpdir(), 'cm-shim-'));
  return { dir };
}

test('manifest, package and tool table agree', () => {
  const manifest = json('openclaw.plugin.json');
  const names = TOOLS.map((tool) => tool.name);
  assert.deepEqual(manifest.contracts.tools, names);
  assert.deepEqual(Object.keys(manifest.toolMetadata), names);
  assert.equal(manifest.id, plugin.id);
  assert.equal(json('package.json').version, manifest.version);
  assert.equal(manifest.configSchema.required, undefined, 'a schema that requires keys keeps OpenClaw from enabling the plugin');
  assert.equal(json('package.json').scripts, undefined);
  assert.equal(json('package.json').dependencies, undefined);
});

test('the package binary is preferred, then the bundled one', () => {
  const { dir } = temporary();
  const bundled = join(dir, 'bin/linux-x64/clawmatrix');
  mkdirSync(join(dir, 'bin/linux-x64'), { recursive: true });
  writeFileSync(bundled, '');
  const where = { rootDir: dir, platform: 'linux', arch: 'x64', resolvePackage: () => { throw new Error('none'); } };
  assert.throws(() => findBinary(where), /not executable.*chmod \+x/);
  chmodSync(bundled, 0o755);
  assert.equal(findBinary(where), bundled);
  const packaged = join(dir, 'packaged');
  writeFileSync(packaged, '', { mode: 0o755 });
  assert.equal(findBinary({ ...where, resolvePackage: () => packaged }), packaged);
  const own = join(dir, 'own');
  writeFileSync(own, '', { mode: 0o755 });
  assert.equal(findBinary({ ...where, sidecarPath: own }), own);
  assert.throws(() => findBinary({ ...where, sidecarPath: join(dir, 'absent') }), /does not exist/);
  rmSync(dir, { recursive: true });
});

test('a platform without a binary is named together with the ways out', () => {
  const where = { rootDir: '/nonexistent', resolvePackage: () => { throw new Error('none'); } };
  assert.throws(() => findBinary({ ...where, platform: 'freebsd', arch: 'x64' }), /freebsd-x64.*sidecarPath/);
  assert.throws(() => findBinary({ ...where, platform: 'win32', arch: 'x64' }), /win32-x64.*WSL2/);
  assert.throws(() => findBinary({ ...where, platform: 'linux', arch: 'x64' }), /no sidecar for linux-x64.*cargo build/);
});

test('the verb and its options pass untouched, root options do not', () => {
  assert.deepEqual(verbArgs(['clawmatrix', 'status', '--json']), ['status', '--json']);
  assert.deepEqual(verbArgs(['--profile', 'clawmatrix', 'clawmatrix', 'exec', '--', 'clawmatrix']), ['exec', '--', 'clawmatrix']);
  assert.deepEqual(verbArgs(['clawmatrix']), []);
});

test('agents that may see the tools silence the warning', () => {
  assert.match(visibilityWarning({}) ?? '', /tools\.alsoAllow/);
  assert.match(visibilityWarning({ tools: { allow: ['read'] } }) ?? '', /tools\.allow/);
  for (const word of ['clawmatrix', 'cluster_peers', 'cluster_*', 'group:plugins', '*']) {
    assert.equal(visibilityWarning({ tools: { alsoAllow: [word] } }), undefined, word);
    assert.equal(visibilityWarning({ agents: { list: [{}, { tools: { allow: [word] } }] } }), undefined, word);
    assert.equal(visibilityWarning({ agents: { entries: { main: { tools: { allow: [word] } } } } }), undefined, word);
  }
  assert.equal(visibilityWarning({ tools: { profile: 'full' } }), undefined);
  assert.ok(visibilityWarning({ tools: { profile: 'full', deny: ['clawmatrix'] } }));
  assert.ok(visibilityWarning({ tools: { alsoAllow: ['cluster_peers'], deny: ['cluster_*'] } }));
});

test('a dynamic model keeps its node in the id and finds our address', () => {
  const offer = { id: 'claude', api: 'anthropic-messages', contextWindow: 200000, maxTokens: 1, input: ['text'], reasoning: false };
  const catalog = [{ provider: 'office-01', baseUrl: 'http://127.0.0.1:1/nodes/office-01/v1', api: 'anthropic-messages', models: [offer] }];
  const model = dynamicModel(catalog, 'office-01/claude', 't');
  assert.equal(model?.id, 'office-01/claude');
  assert.equal(model?.provider, 'clawmatrix');
  assert.equal(model?.baseUrl, 'http://127.0.0.1:1');
  assert.deepEqual(model?.headers, { authorization: 'Bearer t' });
  assert.equal(dynamicModel(catalog, 'claude', 't'), undefined);
});

test('the control API is found by its files and its errors keep their code', async () => {
  const { dir } = temporary();
  await assert.rejects(get(dir, '/api/v1/status'), { code: 'not_running' });
  const server = createServer((request, answer) => {
    const good = request.headers.authorization === 'Bearer t' && request.url === '/api/v1/status';
    answer.writeHead(good ? 200 : 403).end(JSON.stringify(good ? { nodeId: 'a' } : { error: { code: 'forbidden', message: 'no scope' } }));
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', () => resolve(undefined)));
  const { port } = /** @type {import('node:net').AddressInfo} */ (server.address());
  mkdirSync(join(dir, 'run'));
  writeFileSync(join(dir, 'run/endpoint'), JSON.stringify({ proxyPort: port }));
  writeFileSync(join(dir, 'run/token'), 't\n');
  assert.deepEqual(await get(dir, '/api/v1/status'), { nodeId: 'a' });
  await assert.rejects(get(dir, '/api/v1/other'), { code: 'forbidden', message: 'no scope' });
  server.closeAllConnections();
  await new Promise((resolve) => server.close(resolve));
  await assert.rejects(get(dir, '/api/v1/status'), { code: 'not_running' });
  rmSync(dir, { recursive: true });
});

test('registering starts nothing and touches no runtime where it must not', () => {
  for (const mode of ['cli-metadata', 'discovery', 'full']) {
    /** @type {string[]} */
    const calls = [];
    const record = (/** @type {string} */ name) => () => void calls.push(name);
    /** @type {any} */
    const api = {
      registrationMode: mode,
      registerCli: record('cli'),
      registerTool: record('tool'),
      registerService: record('service'),
      registerGatewayMethod: record('method'),
      registerProvider: record('provider'),
      get runtime() {
        throw new Error('touched');
      },
    };
    plugin.register(api);
    const tools = TOOLS.map(() => 'tool');
    const expected = { 'cli-metadata': ['cli'], discovery: ['cli', ...tools], full: ['cli', ...tools, 'service', 'method', 'method'] };
    assert.deepEqual(calls, expected[/** @type {keyof expected} */ (mode)]);
  }
});
