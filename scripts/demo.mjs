// See scripts/demo. Prints only what it ran.
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { Gateway, openclawProvider } from '../tests/real/support/gateway.mjs';
import { folder, freePort, processesUnder, until } from '../tests/real/support/places.mjs';
import { Provider } from '../tests/real/support/provider.mjs';
import { inMemory, memoryIsReadable, metrics, peerOf } from '../tests/real/support/relays.mjs';
import { Sidecar } from '../tests/real/support/sidecar.mjs';

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

const QUESTION = 'Say in one sentence why two gateways are better than one.';
const TASK = 'Count the chairs in the meeting room.';
const HELLO = 'echo "hello from office: $(uname -sr), in $PWD"';
/** What office lends of its tools: commands alone, in a folder of its own. */
const LENT = (dir) => ({ enabled: true, allow: ['exec'], roots: [dir] });
const ANSWER = 'Because what one of them has, a model, a key, a graphics card, the other can use as if it were its own.';

async function main() {
  const provider = await step(process.env.DEMO_UPSTREAM_URL ? `model server: ${process.env.DEMO_UPSTREAM_URL}` : 'a scripted model server', upstream);
  const secret = randomBytes(32).toString('base64url');
  const cloud = await step('start the relay cloud-01: the sidecar alone', () => relay(secret));
  const mesh = withOpenclaw ? await gateways(provider, secret, cloud) : await sidecars(provider, secret, cloud);

  await step('status at home', async () => {
    await until('home to reach office through cloud-01', 30_000, async () => (await mesh.peers()).some((p) => p.nodeId === 'office-01' && p.state === 'relay' && p.reachableVia === 'cloud-01'));
    show(await mesh.cli('status'), 'office-01 (connected via cloud-01');
  });
  if (withOpenclaw) await step(`an agent turn at home on office-01/${provider.model}, streamed`, () => mesh.turn());
  await step(`clawmatrix chat office-01/${provider.model}, asked at home`, async () => {
    await until(`office-01/${provider.model} at home`, 30_000, async () => (await mesh.models()).data.some((m) => m.id === `office-01/${provider.model}`));
    show(await mesh.cli('chat', `office-01/${provider.model}`, QUESTION), '');
  });
  await step('clawmatrix handoff office-01/main: the agent of office does the work', async () => show(await mesh.cli('handoff', 'office-01/main', TASK), ''));
  await step('clawmatrix exec office-01, asked at home and allowed by office', async () => show(await mesh.cli('exec', 'office-01', '--workdir', mesh.lent, '--shell', HELLO), 'hello from office'));
  await step('what the relay saw of it', () => relaysView(cloud, mesh.pids(), provider.key));

  console.log(`\n${bold('done')} in ${((Date.now() - began) / 1000).toFixed(0)} s`);
  if (once) return;
  console.log('\nStill running; Ctrl-C ends it:');
  for (const line of mesh.urls()) console.log(`  ${line}`);
  await new Promise(() => {});
}

/** Prints what a command said; it must have worked, and `part` must be in it. */
function show(done, part) {
  process.stdout.write(`${done.stdout.trimEnd().replace(/^/gm, '  ')}\n`);
  if (done.code !== 0 || !done.stdout.trim() || !done.stdout.includes(part)) throw new Error(`it ended with ${done.code}: ${done.stderr || done.stdout}`);
}

async function relay(secret) {
  const cloud = new Sidecar({ nodeId: 'cloud-01', secret, listen: true, listenHost: '127.0.0.1', listenPort: await freePort() }, undefined, { CLAWMATRIX_LOG: 'clawmatrix=trace' });
  cleanups.push(() => cloud.stop());
  folders.push(cloud.dir);
  await cloud.up();
  console.log(`  ready after ${cloud.readyMs} ms; home and office will dial it, and never each other`);
  return cloud;
}

/** All that the relay knows: its peers, its counters, its log at the finest level, its memory. */
async function relaysView(cloud, others, key) {
  show(await cloud.cli('status'), 'office-01 (connected');
  const counted = await metrics(cloud);
  const frames = counted.clawmatrix_relayed_frames_total;
  console.log(`\n  passed on for others: ${frames} frames, ${counted.clawmatrix_relayed_bytes_total} bytes`);
  if (!(frames > 0)) throw new Error('it passed nothing on');
  console.log('  its log at the finest level, the last three of them:');
  for (const line of cloud.child.stderr.split('\n').filter((l) => l.includes('passing on a frame')).slice(-3)) console.log(`    ${line.slice(0, 220)}`);
  const words = [QUESTION, ...(process.env.DEMO_UPSTREAM_URL ? [] : [ANSWER]), TASK, 'hello from office', ...(key ? [key] : [])];
  const { pid } = cloud.endpoint;
  for (const word of words) {
    if (cloud.child.output.includes(word)) throw new Error(`\`${word}\` is in its log`);
    if (memoryIsReadable(pid) && inMemory(pid, word).found) throw new Error(`\`${word}\` is in its memory`);
  }
  const readable = memoryIsReadable(pid);
  const looked = readable ? `its log and ${(inMemory(pid, QUESTION).bytes / 1024 / 1024).toFixed(0)} MiB of memory were` : 'its log was (its memory not: that takes root)';
  console.log(`  ${looked} searched for question, answer, task, command and key: nothing found`);
  if (readable) console.log(`  (the same search finds them ${words.reduce((sum, word) => sum + others.reduce((n, other) => n + inMemory(other, word).found, 0), 0)} times in the memory of home and office)`);
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

async function gateways(provider, secret, cloud) {
  const entry = { id: provider.model, name: provider.model };
  const office = await Gateway.create('demo-office', { models: { providers: { acme: openclawProvider(provider, [entry]) } }, agents: { defaults: { model: { primary: `acme/${provider.model}` } } } });
  const home = await Gateway.create('demo-home', { agents: { defaults: { model: { primary: `office-01/${provider.model}` } } } });
  folders.push(office.dir, home.dir);
  await step('install the plugin on both gateways: openclaw plugins install <tarball> --force --accept-capabilities', async () => {
    await Promise.all([
      office.installPlugin({ nodeId: 'office-01', secret, proxyPort: 0, peers: [peerOf(cloud)], models: [{ id: provider.model, provider: 'acme', description: 'lent by office' }], agents: [{ id: 'main', description: 'office work' }], toolProxy: LENT(join(office.dir, 'ws')) }),
      home.installPlugin({ nodeId: 'home-01', secret, proxyPort: await freePort(), peers: [peerOf(cloud)], proxyModels: [{ id: provider.model, nodeId: 'office-01' }] }, { tools: { alsoAllow: ['cluster_peers'] } }),
    ]);
    console.log('  installed, then configured: office-01 lends model, agent and commands; both dial cloud-01');
  });
  await step('start both gateways', async () => {
    cleanups.push(() => Promise.all([office.stop(), home.stop()]));
    await Promise.all([office.start(), home.start()]);
    console.log(`  office ${office.url}   home ${home.url}`);
  });
  return {
    peers: () => home.apiJson('/api/v1/peers'),
    models: () => home.apiJson('/v1/models'),
    lent: join(office.dir, 'ws'),
    pids: () => [home.endpoint.pid, office.endpoint.pid],
    cli: (...args) => home.openclaw('clawmatrix', ...args),
    async turn() {
      await until(`office-01/${provider.model} at home`, 30_000, async () => (await home.apiJson('/v1/models')).data.some((m) => m.id === `office-01/${provider.model}`));
      process.stdout.write(`  you: ${QUESTION}\n  agent: `);
      const turn = await home.turn(QUESTION, { model: `office-01/${provider.model}`, onText: (piece) => process.stdout.write(piece) });
      process.stdout.write('\n');
      if (!turn.text) throw new Error(`no answer: ${turn.raw}`);
      console.log(`  (${turn.pieces} pieces, the first after ${turn.firstMs} ms, all after ${turn.totalMs} ms)`);
    },
    urls: () => [`home gateway    ${home.url} (OPENCLAW_STATE_DIR=${home.stateDir} OPENCLAW_CONFIG_PATH=${home.configFile})`, `office gateway  ${office.url}`, `home's models   http://127.0.0.1:${home.endpoint.proxyPort}/v1 (token in ${home.pluginState}/openclaw.token)`],
  };
}

async function sidecars(provider, secret, cloud) {
  const stop = [];
  const lent = folder('demo-lent');
  cleanups.push(() => Promise.all(stop.map((node) => node.stop())));
  const nodes = await step('start two nodes without OpenClaw', async () => {
    const office = new Sidecar({ nodeId: 'office-01', secret, peers: [peerOf(cloud)], models: [{ id: provider.model, baseUrl: provider.baseUrl, apiKey: provider.key }], agents: [{ id: 'main', baseUrl: provider.baseUrl, apiKey: provider.key, model: provider.model }], toolProxy: LENT(lent) });
    const home = new Sidecar({ nodeId: 'home-01', secret, peers: [peerOf(cloud)] });
    stop.push(office, home);
    folders.push(office.dir, home.dir);
    await Promise.all([office.up(), home.up()]);
    console.log(`  ready after ${office.readyMs} and ${home.readyMs} ms`);
    return { office, home };
  });
  const { home } = nodes;
  return {
    peers: () => home.json('/api/v1/peers'),
    models: () => home.json('/v1/models'),
    lent,
    pids: () => [home.endpoint.pid, nodes.office.endpoint.pid],
    cli: (...args) => home.cli(...args),
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
