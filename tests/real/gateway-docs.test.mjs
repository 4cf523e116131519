// The quick start of README.md and the checks of BOOTSTRAP.md, run as they stand there on two real
// gateways. Only addresses, ports and the version in file names are replaced.
import assert from 'node:assert/strict';
import { copyFileSync, mkdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { run } from './support/child.mjs';
import { Gateway, openclawProvider } from './support/gateway.mjs';
import { binary, freePort, missing, processesUnder, root, tarball, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';

const skip = missing.openclaw() || missing.tarball();

/** The fenced blocks of `page` with this tag, in order. */
function tagged(page, tag) {
  const text = readFileSync(join(root, page), 'utf8');
  const found = [...text.matchAll(new RegExp(`^\`\`\`bash ${tag}\\n([\\s\\S]*?)^\`\`\``, 'gm'))].map((m) => m[1]);
  assert.ok(found.length > 0, `${page} has no block \`bash ${tag}\``);
  return found;
}

describe('the docs on real gateways', { skip, timeout: 420_000 }, () => {
  let provider;
  let office;
  let home;
  let meshPort;

  /** Runs a block in a gateway's own folder and environment. */
  async function block(gateway, text) {
    const script = text.replaceAll(/(^|\s)--listen\b(?! \d)/g, `$1--listen ${meshPort}`).replaceAll('office.example:19000', `127.0.0.1:${meshPort}`);
    const done = await run('bash', ['-euc', script], { env: { ...gateway.env, PATH: `${dirname(binary)}:${gateway.env.PATH}` }, cwd: gateway.dir });
    assert.equal(done.code, 0, `${script}\n${done.output}`);
    return done.output;
  }

  before(async () => {
    meshPort = await freePort();
    provider = await Provider.start({ key: 'sk-office-only' });
    office = await Gateway.create('docs-office', { models: { providers: { mock: openclawProvider(provider) } }, agents: { defaults: { model: { primary: 'mock/mock-1' } } } });
    home = await Gateway.create('docs-home');
    const named = tagged('README.md', 'office')[0].match(/\.\/dist\/(\S+\.tgz)/)[1];
    for (const gateway of [office, home]) {
      mkdirSync(join(gateway.dir, 'dist'));
      copyFileSync(tarball, join(gateway.dir, 'dist', named));
    }
  });
  after(async () => {
    await Promise.all([office?.stop(), home?.stop(), provider?.stop()]);
    for (const gateway of [office, home]) if (gateway) assert.deepEqual(processesUnder(gateway.dir), []);
  });

  test('quick_start_from_install_to_an_answer', async () => {
    await block(office, tagged('README.md', 'office')[0]);
    const { secretFile } = office.config.plugins.entries.clawmatrix.config;
    assert.ok(secretFile, 'setup names the file of the secret');
    copyFileSync(secretFile, join(home.dir, 'mesh.secret'));
    await block(home, tagged('README.md', 'home')[0]);
    // Two nodes on one machine cannot both have the default port.
    for (const gateway of [office, home]) await gateway.patch({ plugins: { entries: { clawmatrix: { config: { proxyPort: await freePort() } } } } });
    await Promise.all([office.start(), home.start()]);
    await block(office, tagged('README.md', 'office')[1]);
    await until('the model at home', 40_000, () => home.config.models?.providers?.['office-01']?.models?.some((m) => m.id === 'qwen3'));
    const said = await block(home, tagged('README.md', 'home')[1]);
    assert.match(said, /Peers \(1\/1 connected\)/);
    await until('the new default model', 30_000, async () => (await home.turn('are you there')).text.startsWith('echo: are you there'));
    assert.equal(provider.requests.at(-1).body.model, 'mock-1');
  });

  test('checks_of_bootstrap_succeed', async () => {
    for (const tag of ['verify', 'tools', 'use']) for (const text of tagged('BOOTSTRAP.md', tag)) await block(home, text);
    for (const text of tagged('README.md', 'trust')) assert.match(await block(home, text), /office-01/);
  });
});
