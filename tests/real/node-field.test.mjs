// Links as they are made in the field: the node's own TLS with files that are renewed, reverse proxies and
// HTTP proxies that end quiet connections (T132 in a short form; CLAWMATRIX_LONG=1 makes it ten minutes).
import assert from 'node:assert/strict';
import { chmodSync, copyFileSync, mkdirSync, writeFileSync } from 'node:fs';
import { createServer as createHttp } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { blocks } from './support/blocks.mjs';
import { Child, run } from './support/child.mjs';
import { readEvents } from './support/mesh.mjs';
import { folder, freePort, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { Sidecar, environment } from './support/sidecar.mjs';

const env = environment({ PATH: `${process.env.PATH}:/usr/sbin` });
const long = Boolean(process.env.CLAWMATRIX_LONG);
/** Idle and busy time of a link through a proxy, ms. */
const WATCH = long ? 600_000 : 10_000;
/** After so much silence the proxies of these tests end a connection, in seconds. */
const IDLE = 3;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

async function without(...programs) {
  for (const name of programs) if ((await run('sh', ['-c', `command -v ${name}`], { env })).code !== 0) return `${name} is missing`;
  return false;
}
const noOpenssl = await without('openssl');
const noNginx = noOpenssl || await without('nginx');
const noCaddy = await without('caddy');

async function sh(dir, script) {
  const done = await run('bash', ['-euc', script], { cwd: dir, env });
  assert.equal(done.code, 0, `${script}\n${done.output}`);
  return done.stdout.trim();
}

/** `NAME.pem` and `NAME.key`, signed by `ca.pem`, which is made when it is missing. */
async function certificate(dir, name, days = 30) {
  await sh(dir, `
    exec 2>/dev/null
    ec='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
    [ -e ca.pem ] || openssl req -x509 $ec -keyout ca.key -out ca.pem -days 30 -subj /CN=our-own-authority
    openssl req $ec -keyout ${name}.key -out ${name}.csr -subj /CN=localhost
    printf 'subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\\n' >ext
    openssl x509 -req -in ${name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days ${days} -extfile ext -out ${name}.pem
    chmod 600 ${name}.key`);
  return { cert: join(dir, `${name}.pem`), key: join(dir, `${name}.key`) };
}

/** An HTTP proxy for `CONNECT` that ends a tunnel after so much silence; counts tunnels. */
async function httpProxy(idleMs) {
  const server = createHttp((_, answer) => answer.writeHead(405).end());
  const proxy = { opened: 0, ended: 0, stop: () => new Promise((done) => { for (const s of sockets) s.destroy(); server.close(() => done()); }) };
  const sockets = new Set();
  server.on('connect', (request, near) => {
    if (request.headers['proxy-authorization'] !== `Basic ${Buffer.from('me:pass word').toString('base64')}`) {
      return near.end('HTTP/1.1 407 Proxy Authentication Required\r\n\r\n');
    }
    const [host, port] = request.url.split(':');
    const far = connect(Number(port), host, () => {
      proxy.opened += 1;
      near.write('HTTP/1.1 200 Connection established\r\n\r\n');
      near.pipe(far).pipe(near);
    });
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on('error', () => {}).on('close', () => sockets.delete(socket));
      socket.setTimeout(idleMs, () => { proxy.ended += 1; near.destroy(); far.destroy(); });
    }
  });
  await new Promise((ok) => server.listen(0, '127.0.0.1', ok));
  proxy.port = server.address().port;
  return proxy;
}

/** Waits until something listens at `port`. */
const open = (port) => until(`port ${port}`, 15_000, () => new Promise((ok) => {
  const socket = connect(port, '127.0.0.1', () => ok(true)).on('error', () => ok(false)).on('close', () => ok(false));
  socket.end();
}));

/** How often this node made a link. */
const linksOf = (node) => node.child.output.match(/link up/g)?.length ?? 0;

describe('links in the field', { skip: missing.binary(), timeout: long ? 3_600_000 : 300_000 }, () => {
  let provider;
  /** What must have ended at the end, whatever failed in between. */
  const running = [];
  const start = async (config) => {
    const node = await Sidecar.start(config);
    running.push(node.child);
    return node;
  };
  const lender = (more) => start({ nodeId: 'cloud-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, models: [{ id: 'mock-1', baseUrl: provider.baseUrl }], ...more });
  /** One streamed answer, whole. */
  const ask = async (node, text) => {
    const body = JSON.stringify({ model: 'cloud-01/mock-1', stream: true, messages: [{ role: 'user', content: text }] });
    const answer = await readEvents(await node.fetch('/v1/chat/completions', { method: 'POST', body }));
    assert.ok(answer.done && !answer.broken, answer.text);
    return answer;
  };
  /** Idle for a while, then busy for a while: one link all the time, every stream whole. */
  const watch = async (home) => {
    await ask(home, 'first');
    await sleep(WATCH);
    const end = Date.now() + WATCH;
    let streams = 0;
    while (Date.now() < end) {
      // Quiet for longer than the proxy allows, in the middle of a stream.
      await ask(home, streams % 4 === 3 ? `[[slow ${IDLE * 1000 + 500}]] one` : 'two');
      streams += 1;
    }
    assert.ok(streams > 3);
    assert.equal(linksOf(home), 1, home.child.output);
  };
  before(async () => {
    provider = await Provider.start({});
  });
  after(async () => {
    await Promise.all(running.map((child) => child.stop()));
    await provider?.stop();
  });

  test('own_tls_is_served_checked_and_renewed', { skip: noOpenssl }, async () => {
    const dir = folder('own-tls');
    const made = await certificate(dir, 'first');
    const files = { cert: join(dir, 'cert.pem'), key: join(dir, 'key.pem') };
    const install = ({ cert, key }) => { copyFileSync(cert, files.cert); copyFileSync(key, files.key); chmodSync(files.key, 0o600); };
    install(made);
    const cloud = await lender({ tls: files, listenHost: '::' });
    const port = cloud.endpoint.listenPort;
    const home = await start({ nodeId: 'home-01', peers: [{ nodeId: 'cloud-01', url: `wss://localhost:${port}`, tlsCa: join(dir, 'ca.pem') }] });
    await home.model('cloud-01/mock-1');
    await ask(home, 'over our own TLS');
    assert.match((await cloud.cli('status')).stdout, new RegExp(`^Listen: port ${port}, tls$`, 'm'));
    assert.match((await home.cli('status')).stdout, new RegExp(`^  Link: dialed localhost:${port}, loopback, tls$`, 'm'));
    const { link } = (await home.json('/api/v1/peers'))[0];
    assert.deepEqual(link, { tls: 'tls', dialed: true, network: 'loopback', address: `localhost:${port}`, proxy: false, advertised: false });

    // Both versions of IP, and HTTP/1.1 alone.
    const served = (to, more = '') => sh(dir, `openssl s_client -connect ${to}:${port} -CAfile ca.pem -verify_return_error ${more} </dev/null 2>/dev/null`);
    for (const to of ['127.0.0.1', '[::1]']) assert.match(await served(to, '-alpn h2,http/1.1'), /ALPN protocol: http\/1\.1/);
    const serial = async () => (await sh(dir, `openssl s_client -connect 127.0.0.1:${port} </dev/null 2>/dev/null | openssl x509 -noout -serial`));
    const before = await serial();
    install(await certificate(dir, 'second', 5));
    await until('the renewed certificate', 60_000, async () => (await serial()) !== before);
    assert.equal(linksOf(home), 1, 'a renewal breaks no link');
    await ask(home, 'after the renewal');
    await until('the warning', 15_000, async () => /expires on/.test((await cloud.cli('status')).stdout));

    // The shutdown of a listener with TLS is as clean as without.
    await cloud.stop();
    assert.equal(cloud.child.code, 0);
    for (const [what, spoil, says] of [
      ['another pair', () => copyFileSync(made.key, files.key), /does not belong to the certificate/],
      ['an open key', () => chmodSync(files.key, 0o644), /can be read or written by other accounts/],
      ['no certificate as well', () => writeFileSync(files.cert, ''), /other accounts[\s\S]*holds no certificate/],
    ]) {
      spoil();
      const ended = cloud.spawn();
      await ended.ended;
      assert.equal(ended.code, 78, what);
      assert.match(ended.output, says);
    }
  });

  test('expired_certificate_is_refused_at_the_start', { skip: noOpenssl }, async () => {
    const dir = folder('expired');
    await certificate(dir, 'own');
    // openssl of Debian 12 makes no certificate that ended in the past but through `ca`.
    await sh(dir, `exec 2>/dev/null; touch index.txt; echo 01 >serial; mkdir certs
      printf '[ca]\\ndefault_ca=x\\n[x]\\ndatabase=index.txt\\nserial=serial\\nnew_certs_dir=certs\\ndefault_md=sha256\\npolicy=p\\n[p]\\ncommonName=supplied\\n' >ca.cnf
      openssl ca -batch -config ca.cnf -cert ca.pem -keyfile ca.key -in own.csr -out own.pem -extfile ext -startdate 20200101000000Z -enddate 20210101000000Z`);
    const node = new Sidecar({ nodeId: 'cloud-01', listen: true, listenPort: 0, tls: { cert: join(dir, 'own.pem'), key: join(dir, 'own.key') } });
    const child = node.spawn();
    await child.ended;
    assert.equal(child.code, 78);
    assert.match(child.output, /`tls\.cert`: .* has expired on 2021-01-01T00:00:00Z/);
  });

  test('nginx_that_ends_quiet_connections_keeps_links_and_streams', { skip: noNginx }, async () => {
    const dir = folder('nginx');
    const { cert, key } = await certificate(dir, 'cloud');
    const cloud = await lender({ limits: { heartbeat: 1, trustedProxies: ['127.0.0.1/32'] } });
    const port = await freePort();
    const [snippet] = blocks('BOOTSTRAP.md').filter((b) => b.language === 'nginx').map((b) => b.text);
    const server = snippet.replace('listen 443 ssl', `listen 127.0.0.1:${port} ssl`).replace('/etc/ssl/cloud.pem', cert).replace('/etc/ssl/cloud.key', key)
      .replace('127.0.0.1:19000', `127.0.0.1:${cloud.endpoint.listenPort}`).replaceAll('90s', `${IDLE}s`);
    mkdirSync(join(dir, 'tmp'));
    const temps = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((kind) => `${kind}_temp_path ${dir}/tmp/${kind};`).join('\n');
    writeFileSync(join(dir, 'nginx.conf'), `pid ${dir}/nginx.pid;\nevents {}\nhttp {\naccess_log off;\n${temps}\n${server}\n}\n`);
    chmodSync(dir, 0o755);
    const nginx = new Child('nginx', ['-p', dir, '-c', join(dir, 'nginx.conf'), '-e', 'stderr', '-g', 'daemon off;'], { env });
    running.push(nginx);
    await open(port);
    const peers = [{ nodeId: 'cloud-01', url: `wss://localhost:${port}`, tlsCa: join(dir, 'ca.pem') }];
    const home = await start({ nodeId: 'home-01', limits: { heartbeat: 1 }, peers });
    await home.model('cloud-01/mock-1').catch((error) => assert.fail(`${error.message}\n${home.child.output}\n${nginx.output}`));
    // nginx says that it was reached over TLS, and is believed.
    const [{ link }] = await cloud.json('/api/v1/peers');
    assert.deepEqual([link.tls, link.dialed], ['tls', false]);
    await watch(home);
    await home.stop();

    // The other way round: with a slower heartbeat at both ends this proxy does end the link.
    const { listenPort } = cloud.endpoint;
    await cloud.stop();
    const slow = await start({ ...cloud.config, listenPort, limits: { heartbeat: 60, trustedProxies: ['127.0.0.1/32'] } });
    const late = await start({ nodeId: 'home-02', limits: { heartbeat: 60 }, peers });
    await late.peer('cloud-01', 30_000);
    await until('the link ended by the proxy', 30_000, () => /link down/.test(late.child.output));
    await late.stop();
    await slow.stop();
    await nginx.stop();
  });

  test('http_proxy_that_ends_quiet_connections_keeps_links_and_streams', async () => {
    const proxy = await httpProxy(IDLE * 1000);
    running.push(proxy);
    const cloud = await lender({ limits: { heartbeat: 1 } });
    const url = `ws://127.0.0.1:${cloud.endpoint.listenPort}`;
    // Variables of the environment name a proxy that does not exist: they are not read.
    for (const name of ['http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY']) process.env[name] = 'http://127.0.0.1:1';
    const config = { nodeId: 'home-01', limits: { heartbeat: 1 }, peers: [{ nodeId: 'cloud-01', url, proxy: `http://me:pass%20word@127.0.0.1:${proxy.port}` }] };
    const home = await start(config);
    const direct = await start({ nodeId: 'home-03', peers: [{ nodeId: 'cloud-01', url }] });
    for (const name of ['http_proxy', 'https_proxy', 'all_proxy', 'HTTP_PROXY', 'HTTPS_PROXY', 'ALL_PROXY']) delete process.env[name];
    await home.model('cloud-01/mock-1');
    await direct.peer('cloud-01');
    const [{ link }] = await home.json('/api/v1/peers');
    assert.deepEqual([link.tls, link.proxy], ['insecure', true]);
    assert.equal(proxy.opened, 1);
    await watch(home);
    assert.deepEqual([proxy.opened, proxy.ended], [1, 0]);

    const refused = await start({ ...config, nodeId: 'home-02', peers: [{ ...config.peers[0], proxy: `http://me:hunter22@127.0.0.1:${proxy.port}` }] });
    await until('the refusal', 15_000, async () => /HTTP 407/.test((await refused.cli('status')).stdout));
    for (const node of [home, refused]) {
      const said = node.child.output + (await node.cli('status')).output + (await node.cli('--json', 'doctor', '--config', node.configFile)).output;
      for (const secret of ['pass word', 'pass%20word', 'hunter22', Buffer.from('me:pass word').toString('base64')]) assert.ok(!said.includes(secret), said);
    }
    await Promise.all([home, direct, refused, cloud].map((node) => node.stop()));
    await proxy.stop();
  });

  test('caddy_snippet_carries_a_link', { skip: noCaddy || noOpenssl }, async () => {
    const dir = folder('caddy');
    const { cert, key } = await certificate(dir, 'cloud');
    const cloud = await lender({ limits: { trustedProxies: ['127.0.0.1/32'] } });
    const port = await freePort();
    const [snippet] = blocks('BOOTSTRAP.md').filter((b) => b.language === 'caddy').map((b) => b.text);
    // Caddy gets its certificate from a public authority; here it is given one.
    const site = snippet.replace('cloud.example.com {', `https://localhost:${port} {\n\tbind 127.0.0.1\n\ttls ${cert} ${key}`)
      .replace('127.0.0.1:19000', `127.0.0.1:${cloud.endpoint.listenPort}`);
    writeFileSync(join(dir, 'Caddyfile'), `{\n\tadmin off\n\tauto_https disable_redirects\n}\n${site}`);
    const caddy = new Child('caddy', ['run', '--config', join(dir, 'Caddyfile'), '--adapter', 'caddyfile'], { env: { ...env, HOME: dir, XDG_DATA_HOME: dir, XDG_CONFIG_HOME: dir } });
    running.push(caddy);
    await open(port);
    const home = await start({ nodeId: 'home-01', peers: [{ nodeId: 'cloud-01', url: `wss://localhost:${port}`, tlsCa: join(dir, 'ca.pem') }] });
    await home.model('cloud-01/mock-1').catch((error) => assert.fail(`${error.message}\n${home.child.output}\n${caddy.output}`));
    await ask(home, 'through Caddy');
    const [{ link }] = await cloud.json('/api/v1/peers');
    assert.deepEqual([link.tls, link.dialed], ['tls', false]);
    await Promise.all([home, cloud].map((node) => node.stop()));
    await caddy.stop(1_000);
  });
});
