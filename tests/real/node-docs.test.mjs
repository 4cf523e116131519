// What README.md, BOOTSTRAP.md and docs/operations.md tell people without OpenClaw, run as it stands
// there. Replaced are only host names, ports, folders and the path of the server behind a model.
import assert from 'node:assert/strict';
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { blocks, tagged } from './support/blocks.mjs';
import { Child, run } from './support/child.mjs';
import { binary, folder, freePort, missing, sdkNode, sdkPython, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { Sidecar, environment } from './support/sidecar.mjs';

const OPERATIONS = 'docs/operations.md';
/** Where Debian puts programs for root. */
const PATH = `${dirname(binary)}:${process.env.PATH}:/usr/sbin`;

/** An account of its own for one node: HOME, and the binary in the path as `clawmatrix`. */
function account(name) {
  const dir = folder(`docs-${name}`);
  const env = environment({ HOME: dir, PATH });
  for (const variable of ['XDG_CONFIG_HOME', 'XDG_STATE_HOME']) delete env[variable];
  return { dir, env, state: join(dir, '.local/state/clawmatrix'), config: join(dir, '.config/clawmatrix/node.json') };
}

async function sh(who, script, env = {}) {
  const done = await run('bash', ['-euc', script], { env: { ...who.env, ...env }, cwd: who.dir });
  assert.equal(done.code, 0, `${script}\n${done.output}`);
  return done;
}

function edit(file, change) {
  writeFileSync(file, JSON.stringify(change(JSON.parse(readFileSync(file, 'utf8')))));
}

/** Starts `clawmatrix run`, which stays, and waits for its local API; answers its child and port. */
async function stays(who, script) {
  const child = new Child('bash', ['-euc', `exec ${script.trim()}`], { env: who.env, cwd: who.dir });
  const port = await until(`the node of ${who.dir}`, 20_000, async () => {
    assert.ok(child.running, child.output);
    if (!existsSync(join(who.state, 'run/endpoint'))) return 0;
    const { proxyPort } = JSON.parse(readFileSync(join(who.state, 'run/endpoint'), 'utf8'));
    return (await fetch(`http://127.0.0.1:${proxyPort}/readyz`)).status === 200 && proxyPort;
  });
  return { child, port };
}

/** A reason to skip what needs these programs, or false. */
async function without(...programs) {
  for (const name of programs) if ((await run('sh', ['-c', `command -v ${name}`], { env: { PATH } })).code !== 0) return `${name} is missing`;
  return false;
}
const noNginx = await without('nginx', 'openssl');
const noSystemd = await without('systemd-analyze');

describe('the docs without OpenClaw', { skip: missing.binary(), timeout: 240_000 }, () => {
  let provider;
  const running = [];
  before(async () => {
    provider = await Provider.start({});
  });
  after(async () => {
    await Promise.all(running.map((node) => node.stop()));
    await provider?.stop();
  });

  test('readme_alone_from_setup_to_the_sdks', async (t) => {
    const gpu = account('gpu');
    const laptop = account('laptop');
    const meshPort = await freePort();
    const [lend] = tagged('README.md', 'bash', 'alone-lend');
    await sh(gpu, lend.replace(/--listen$/m, `--listen ${meshPort}`));
    const shown = JSON.parse(tagged('README.md', 'json', 'config gpu')[0]);
    edit(gpu.config, (made) => {
      assert.deepEqual(Object.keys(shown).filter((key) => !(key in made)), ['models'], 'the reader adds models and nothing else');
      for (const key of ['nodeId', 'secretFile', 'listen']) assert.deepEqual(made[key], shown[key]);
      return { ...shown, models: [{ ...shown.models[0], baseUrl: provider.baseUrl }], listenPort: meshPort, proxyPort: 0 };
    });
    running.push((await stays(gpu, tagged('README.md', 'bash', 'alone-run')[0])).child);

    copyFileSync(join(dirname(gpu.config), 'secret'), join(laptop.dir, 'mesh.secret'));
    const [setup, start] = tagged('README.md', 'bash', 'alone-use')[0].trim().split('\n');
    await sh(laptop, setup.replace('gpu.example:19000', `127.0.0.1:${meshPort}`));
    edit(laptop.config, (made) => ({ ...made, proxyPort: 0 }));
    const { child, port } = await stays(laptop, start);
    running.push(child);
    await until('the link', 15_000, async () => /1\/1 connected/.test((await sh(laptop, 'clawmatrix status')).stdout));
    const said = await sh(laptop, tagged('README.md', 'bash', 'alone-ask')[0]);
    assert.match(said.stdout, /^gpu-01 \(connected, \d+ms\)$/m);
    assert.match(said.stdout, /^gpu-01\/qwen3 +131072 /m);
    assert.match(said.stdout, /^echo: Say hello\. \(end of echo\)$/m);
    assert.equal(provider.requests.at(-1).body.model, 'qwen3-32b');
    const token = said.stdout.trim().split('\n').at(-1);

    const here = (text) => text.replaceAll('127.0.0.1:19001', `127.0.0.1:${port}`);
    for (const [language, reason] of [['python', missing.sdkPython()], ['js', missing.sdkNode()]]) {
      await t.test(`sdk_${language}`, { skip: reason }, async () => {
        const text = here(tagged('README.md', language, 'sdk')[0]);
        const file = join(laptop.dir, language === 'js' ? 'ask.mjs' : 'ask.py');
        const openai = language === 'js' && createRequire(join(sdkNode, 'package.json')).resolve('openai');
        writeFileSync(file, openai ? text.replace(`'openai'`, `'${openai}'`) : text);
        const done = await run(language === 'js' ? process.execPath : sdkPython, [file], { env: { ...laptop.env, CLAWMATRIX_TOKEN: token } });
        assert.equal(done.code, 0, done.output);
        assert.equal(done.stdout, 'echo: Say hello. (end of echo)\n');
      });
    }
  });

  test('tokens_as_described', async () => {
    const node = await Sidecar.start({ nodeId: 'tokens-01' });
    running.push(node.child);
    const who = { dir: node.dir, env: environment({ PATH, CLAWMATRIX_STATE_DIR: node.stateDir }) };
    const said = await sh(who, tagged(OPERATIONS, 'bash', 'tokens')[0]);
    const [notebook, grafana] = said.stdout.match(/^cmx_\S+$/gm);
    const get = async (path, token) => (await fetch(`${node.url}${path}`, { headers: { authorization: `Bearer ${token}` } })).status;
    assert.equal(await get('/v1/models', notebook), 200);
    assert.equal(await get('/metrics', notebook), 403);
    assert.equal(await get('/metrics', grafana), 401, 'it was revoked');
    assert.equal(await get('/metrics', node.token), 200);
    for (const path of ['/healthz', '/readyz']) assert.equal((await fetch(`${node.url}${path}`)).status, 200);
  });

  test('nginx_snippet_carries_a_link_and_tls_pin_is_as_printed', { skip: noNginx }, async () => {
    const dir = folder('docs-nginx');
    const who = { dir, env: environment({ PATH }) };
    await sh(who, 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout cloud.key -out cloud.pem -days 2 -subj /CN=cloud.example.com 2>/dev/null');
    const pin = (await sh(who, tagged(OPERATIONS, 'bash', 'tls-pin')[0])).stdout.trim();
    const behind = blocks('BOOTSTRAP.md').find((b) => b.role.startsWith('config') && b.text.includes('trustedProxies'));
    const { limits, listenHost } = JSON.parse(behind.text);
    const cloud = await Sidecar.start({ nodeId: 'cloud-01', listen: true, listenPort: 0, listenHost, limits, models: [{ id: 'mock-1', baseUrl: provider.baseUrl }] });
    running.push(cloud.child);

    const health = await fetch(`http://127.0.0.1:${cloud.endpoint.listenPort}/healthz`);
    assert.deepEqual([health.status, await health.text()], [200, ''], 'as the section on ports says');

    const port = await freePort();
    const [snippet] = blocks('BOOTSTRAP.md').filter((b) => b.language === 'nginx').map((b) => b.text);
    const server = snippet.replace('listen 443 ssl', `listen 127.0.0.1:${port} ssl`).replaceAll('/etc/ssl/', `${dir}/`).replace('127.0.0.1:19000', `127.0.0.1:${cloud.endpoint.listenPort}`);
    mkdirSync(join(dir, 'tmp'));
    const temps = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${dir}/tmp/${kind};`).join('\n');
    writeFileSync(join(dir, 'nginx.conf'), `pid ${dir}/nginx.pid;\nevents {}\nhttp {\naccess_log off;\n${temps}\n${server}\n}\n`);
    chmodSync(dir, 0o755);
    const nginx = new Child('nginx', ['-p', dir, '-c', join(dir, 'nginx.conf'), '-e', 'stderr', '-g', 'daemon off;'], { env: who.env });
    running.push(nginx);

    const home = await Sidecar.start({ nodeId: 'home-01', peers: [{ nodeId: 'cloud-01', url: `wss://127.0.0.1:${port}`, tlsPin: pin }] });
    running.push(home.child);
    await home.peer('cloud-01').catch((error) => assert.fail(`${error.message}\n${home.child.output}\n${nginx.output}`));
    const answer = await home.fetch('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'cloud-01/mock-1', stream: true, messages: [{ role: 'user', content: 'through nginx' }] }) });
    assert.match(await answer.text(), /nginx[\s\S]*\[DONE\]/);

    const unpinned = await Sidecar.start({ nodeId: 'home-02', peers: [{ nodeId: 'cloud-01', url: `wss://127.0.0.1:${port}` }] });
    running.push(unpinned.child);
    await until('the refused certificate', 15_000, async () => /TLS failed/.test((await unpinned.cli('status')).stdout));
  });

  test('systemd_unit_is_accepted', { skip: noSystemd }, async () => {
    const dir = folder('docs-unit');
    const unit = tagged('BOOTSTRAP.md', 'ini', 'systemd')[0];
    assert.match(unit, /^ExecStart=\/usr\/local\/bin\/clawmatrix run --config \S+ --state-dir \S+$/m);
    writeFileSync(join(dir, 'clawmatrix.service'), unit.replace('/usr/local/bin/clawmatrix', binary));
    const done = await run('systemd-analyze', ['verify', '--man=no', join(dir, 'clawmatrix.service')]);
    assert.equal(done.code, 0, done.output);
    assert.doesNotMatch(done.output, /clawmatrix\.service/);
  });

  test('secret_is_changed_in_three_rounds', async () => {
    const fresh = (await run(binary, ['secret', 'new'])).stdout.trim();
    const old = (await run(binary, ['secret', 'new'])).stdout.trim();
    const port = await freePort();
    const shape = JSON.parse(tagged(OPERATIONS, 'json', 'config rotation')[0]).acceptSecrets[0];
    const dirs = { office: folder('docs-rotate'), home: folder('docs-rotate') };
    const base = {
      office: { nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: port },
      home: { nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${port}` }] },
    };
    const nodes = {};
    const round = async (name, secret, more) => {
      await nodes[name]?.stop();
      writeFileSync(join(dirs[name], 'mesh.secret'), `${secret}\n`, { mode: 0o600 });
      nodes[name] = await Sidecar.start({ ...base[name], secret: undefined, secretFile: 'mesh.secret', ...more }, dirs[name]);
      running.push(nodes[name].child);
      if (nodes.home?.child.running && nodes.office?.child.running) await nodes.home.peer('office-01', 30_000);
    };
    await round('office', old, {});
    await round('home', old, {});
    process.env.CLAWMATRIX_NEW_SECRET = fresh;
    for (const name of ['office', 'home']) await round(name, old, { acceptSecrets: [shape] });
    for (const name of ['home', 'office']) await round(name, fresh, { acceptSecrets: [{ secret: old, notAfter: '2999-12-31' }] });
    for (const name of ['office', 'home']) await round(name, fresh, {});
    delete process.env.CLAWMATRIX_NEW_SECRET;
    const late = await Sidecar.start({ ...base.home, nodeId: 'late-01', secret: old });
    running.push(late.child);
    await until('the old secret is refused', 15_000, async () => /`secret` must match/.test((await late.cli('status')).stdout));
  });

  test('backup_of_the_named_files_is_the_same_node', async () => {
    const office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0 });
    running.push(office.child);
    const config = { nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] };
    const first = await Sidecar.start(config);
    running.push(first.child);
    await first.peer('office-01');
    const token = (await first.cli('token', 'create', 'kept')).stdout.trim();
    const key = (await first.cli('identity')).stdout;
    await first.stop();
    const second = new Sidecar(config);
    for (const file of ['identity.key', 'pins.json', 'tokens.json']) {
      assert.match(readFileSync(new URL('../../docs/operations.md', import.meta.url), 'utf8'), new RegExp(`\`${file}\``));
      copyFileSync(join(first.stateDir, file), join(second.stateDir, file));
    }
    await second.up();
    running.push(second.child);
    await second.peer('office-01', 30_000);
    assert.equal((await second.cli('identity')).stdout, key);
    assert.equal((await fetch(`${second.url}/v1/models`, { headers: { authorization: `Bearer ${token}` } })).status, 200);
  });
});
