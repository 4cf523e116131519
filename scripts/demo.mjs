// See scripts/demo. Prints only what it ran.
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { run } from '../tests/real/support/child.mjs';
import { Gateway, openclawProvider } from '../tests/real/support/gateway.mjs';
import { binary, folder, freePort, processesUnder, until } from '../tests/real/support/places.mjs';
import { Provider } from '../tests/real/support/provider.mjs';
import { environment, Sidecar } from '../tests/real/support/sidecar.mjs';

const once = process.argv.includes('--once');
const withOpenclaw = !process.argv.includes('--no-openclaw');
const bold = (text) => (process.stdout.isTTY ? `\u001b[1m${text}\u001b[0m` : text);
const cleanups = [];
const folders = [];
const began = Date.now();

/** One step of the demo: its name is said when it fails. */
async function step(name, work) {
  console.log(`\n${bold(`▸ ${name}`)}`);
  try {
    return await work();
  } catch (error) {
    throw Object.assign(error, { step: error.step ?? name });
  }
}

/** What office lends of its tools: commands alone, in a folder of its own. */
const LENT = (dir) => ({ enabled: true, allow: ['exec'], roots: [dir] });
const HELLO = 'echo "hello from office: $(uname -sr), in $PWD"';
const QUESTION = 'Say in one sentence why two gateways are better than one.';
const ANSWER = 'Because what one of them has, a model, a key, a graphics card, the other can use as if it were its own.';

async function main() {
  const provider = await step(process.env.DEMO_UPSTREAM_URL ? `model server: ${process.env.DEMO_UPSTREAM_URL}` : 'a scripted model server', upstream);
  const secret = randomBytes(32).toString('base64url');
  const meshPort = await freePort();
  const mesh = withOpenclaw ? await gateways(provider, secret, meshPort) : await sidecars(provider, secret, meshPort);

  await step('status at home', async () => {
    await until('home to be linked with office', 30_000, async () => (await mesh.peers()).some((p) => p.nodeId === 'office-01' && p.connected));
    const done = await mesh.status();
    process.stdout.write(done.stdout.replace(/^/gm, '  ').trimEnd() + '\n');
    if (done.code !== 0 || !done.stdout.includes('office-01')) throw new Error(`status ended with ${done.code}: ${done.stderr}`);
  });
  if (withOpenclaw) await step(`an agent turn at home on office-01/${provider.model}, streamed`, () => mesh.turn());
  await step(`clawmatrix chat office-01/${provider.model}, asked at home`, async () => {
    const done = await mesh.chat();
    console.log(`  ${done.stdout.trim()}`);
    if (done.code !== 0 || !done.stdout.trim()) throw new Error(`chat ended with ${done.code}: ${done.stderr}`);
  });

  await step('clawmatrix exec office-01, asked at home and allowed by office', async () => {
    const done = await mesh.exec();
    console.log(`  ${done.stdout.trim()}`);
    if (done.code !== 0 || !done.stdout.includes('hello from office')) throw new Error(`exec ended with ${done.code}: ${done.stderr}`);
  });

  console.log(`\n${bold('done')} in ${((Date.now() - began) / 1000).toFixed(0)} s`);
  if (once) return;
  console.log('\nStill running; Ctrl-C ends it:');
  for (const line of mesh.urls()) console.log(`  ${line}`);
  await new Promise(() => {});
}

async function upstream() {
  if (process.env.DEMO_UPSTREAM_URL) {
    const model = process.env.DEMO_UPSTREAM_MODEL;
    if (!model) throw new Error('DEMO_UPSTREAM_MODEL is missing');
    return { baseUrl: process.env.DEMO_UPSTREAM_URL, key: process.env.DEMO_UPSTREAM_KEY || undefined, model };
  }
  const provider = await Provider.start({ key: `sk-${randomBytes(12).toString('hex')}` });
  cleanups.push(() => provider.stop());
  Object.assign(provider, { script: ANSWER, pace: 60 });
  console.log(`  ${provider.baseUrl}`);
  return Object.assign(provider, { model: 'scripted-1' });
}

async function gateways(provider, secret, meshPort) {
  const entry = { id: provider.model, name: provider.model };
  const office = await Gateway.create('demo-office', { models: { providers: { acme: openclawProvider(provider, [entry]) } }, agents: { defaults: { model: { primary: `acme/${provider.model}` } } } });
  const home = await Gateway.create('demo-home', { agents: { defaults: { model: { primary: `office-01/${provider.model}` } } } });
  folders.push(office.dir, home.dir);
  await step('install the plugin on both gateways: openclaw plugins install <tarball> --force --accept-capabilities', async () => {
    await Promise.all([
      office.installPlugin({ nodeId: 'office-01', secret, listen: true, listenHost: '127.0.0.1', listenPort: meshPort, proxyPort: 0, models: [{ id: provider.model, provider: 'acme', description: 'lent by office' }], toolProxy: LENT(join(office.dir, 'ws')) }),
      home.installPlugin({ nodeId: 'home-01', secret, proxyPort: await freePort(), peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${meshPort}` }], proxyModels: [{ id: provider.model, nodeId: 'office-01' }] }, { tools: { alsoAllow: ['cluster_peers'] } }),
    ]);
    console.log('  installed, then configured: office-01 lends the model, home-01 dials office-01');
  });
  await step('start both gateways', async () => {
    cleanups.push(() => Promise.all([office.stop(), home.stop()]));
    await Promise.all([office.start(), home.start()]);
    console.log(`  office ${office.url}   home ${home.url}`);
  });
  return {
    peers: () => home.apiJson('/api/v1/peers'),
    status: () => home.openclaw('clawmatrix', 'status'),
    async turn() {
      await until(`office-01/${provider.model} at home`, 30_000, async () => (await home.apiJson('/v1/models')).data.some((m) => m.id === `office-01/${provider.model}`));
      process.stdout.write(`  you: ${QUESTION}\n  agent: `);
      const turn = await home.turn(QUESTION, { model: `office-01/${provider.model}`, onText: (piece) => process.stdout.write(piece) });
      process.stdout.write('\n');
      if (!turn.text) throw new Error(`no answer: ${turn.raw}`);
      console.log(`  (${turn.pieces} pieces, the first after ${turn.firstMs} ms, all after ${turn.totalMs} ms)`);
    },
    exec: () => home.openclaw('clawmatrix', 'exec', 'office-01', '-c', HELLO),
    chat: () => home.openclaw('clawmatrix', 'chat', `office-01/${provider.model}`, QUESTION),
    urls: () => [`home gateway    ${home.url} (OPENCLAW_STATE_DIR=${home.stateDir} OPENCLAW_CONFIG_PATH=${home.configFile})`, `office gateway  ${office.url}`, `home's models   http://127.0.0.1:${home.endpoint.proxyPort}/v1 (token in ${home.pluginState}/openclaw.token)`],
  };
}

async function sidecars(provider, secret, meshPort) {
  const stop = [];
  cleanups.push(() => Promise.all(stop.map((node) => node.stop())));
  const nodes = await step('start two nodes without OpenClaw', async () => {
    const office = new Sidecar({ nodeId: 'office-01', secret, listen: true, listenHost: '127.0.0.1', listenPort: meshPort, models: [{ id: provider.model, baseUrl: provider.baseUrl, apiKey: provider.key }], toolProxy: LENT(folder('demo-lent')) });
    const home = new Sidecar({ nodeId: 'home-01', secret, peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${meshPort}` }] });
    stop.push(office, home);
    folders.push(office.dir, home.dir);
    await Promise.all([office.up(), home.up()]);
    console.log(`  ready after ${office.readyMs} and ${home.readyMs} ms`);
    return { office, home };
  });
  const { home } = nodes;
  return {
    peers: () => home.json('/api/v1/peers'),
    status: () => home.cli('status'),
    exec: () => home.cli('exec', 'office-01', '-c', HELLO),
    chat: async () => {
      await home.model(`office-01/${provider.model}`);
      return run(binary, ['--state-dir', home.stateDir, 'chat', `office-01/${provider.model}`, QUESTION], { env: environment() });
    },
    urls: () => [`home's models   ${home.url}/v1 (token in ${home.stateDir}/run/token)`, `home's status   clawmatrix --state-dir ${home.stateDir} status`],
  };
}

/** Ends everything that was started; whatever is left is a failure. */
let ending;
function end() {
  ending ??= (async () => {
    for (const work of cleanups.reverse()) await work()?.catch?.(() => {});
    const left = folders.flatMap((dir) => processesUnder(dir));
    if (left.length) throw Object.assign(new Error(`left behind: ${JSON.stringify(left)}`), { step: 'stop' });
  })();
  return ending;
}

for (const signal of ['SIGINT', 'SIGTERM']) {
  process.removeAllListeners(signal);
  process.on(signal, () => {
    console.log('\nstopping');
    end().then(() => process.exit(signal === 'SIGINT' ? 130 : 143), () => process.exit(1));
  });
}
try {
  await main();
  await end();
  process.exit(0);
} catch (error) {
  console.error(`\nstep failed: ${error.step ?? 'start'}: ${error.message}${error.cause ? `\n  ${error.cause.message ?? error.cause}` : ''}`);
  await end().catch(() => {});
  process.exit(1);
}
