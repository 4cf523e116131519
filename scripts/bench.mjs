// See scripts/bench. Three ways from one client to one static provider, measured in turns:
//   direct      client -> provider
//   nginx       client -> nginx -> TLS -> nginx -> provider
//   clawmatrix  client -> home-01 -> link -> office-01 -> provider
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, readFileSync, readdirSync, statSync, writeFileSync } from 'node:fs';
import { Agent, createServer, request } from 'node:http';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { Worker, isMainThread, parentPort } from 'node:worker_threads';
import { Child } from '../tests/real/support/child.mjs';
import { binary, folder, freePort, until } from '../tests/real/support/places.mjs';
import { Sidecar } from '../tests/real/support/sidecar.mjs';
import { relayNumbers, showRelays } from './bench-relay.mjs';

const STREAMS = 200;
const CHUNKS = 100;
const CHUNK_MS = 50;
const CHUNK_PAD = 'x'.repeat(120);
const TEN_MB = 10 * 1024 * 1024;
const now = () => Number(process.hrtime.bigint()) / 1000; // us, one clock for every process of the machine

async function main() {
  const { values } = parseArgs({ options: { short: { type: 'boolean' }, json: { type: 'string' }, only: { type: 'string' } } });
  const wanted = (name) => !values.only || values.only.split(',').includes(name);
  const seconds = values.short ? 2 : 8;
  const rounds = values.short ? 1 : 3;
  const bed = ['node', 'rates', 'bodies', 'streams'].some(wanted) ? await Bed.start() : null;
  const result = { machine: machine(), binary: { path: binary, bytes: statSync(binary).size }, rounds, seconds };
  try {
    if (wanted('node')) {
      result.node = await nodeNumbers(bed);
      const n = result.node;
      console.log(`\nbinary ${mb(result.binary.bytes)} MB; ready after ${n.readyMs} ms (median of ${n.readyAll.length}); resident: idle ${n.idle.home}+${n.idle.office} KiB (home+office), with 100 open streams ${n.open.home}+${n.open.office} KiB`);
    }
    if (wanted('rates')) {
      result.rates = rates(bed, rounds, seconds);
      table('small requests (1 KB up, 0.7 KB down)', result.rates);
    }
    if (wanted('bodies')) {
      result.bodies = bodies(bed, rounds, seconds);
      table('10 MB bodies', result.bodies);
    }
    if (wanted('streams')) {
      result.streams = await streams(bed, rounds);
      table(`${STREAMS} streams, a chunk every ${CHUNK_MS} ms each`, result.streams);
    }
    if (wanted('relay')) {
      result.relay = await relayNumbers(values.short);
      showRelays(result.relay);
    }
    if (values.json) writeFileSync(values.json, `${JSON.stringify(result, null, 2)}\n`);
  } finally {
    await bed?.stop();
  }
  process.exit(0); // the worker's server has no other end
}

/** What stands between client and provider, and how to reach it each way. */
class Bed {
  static async start() {
    const bed = new Bed();
    bed.dir = folder('bench');
    mkdirSync(join(bed.dir, 'tmp'));
    writeFileSync(join(bed.dir, 'big.json'), `{"id":"big","choices":[{"message":{"content":"${'x'.repeat(TEN_MB - 60)}"}}]}`);
    writeFileSync(join(bed.dir, 'small.json'), small());
    bed.worker = new Worker(new URL(import.meta.url));
    const streamPort = await new Promise((ok, no) => bed.worker.once('message', ok).once('error', no));
    const [u, a, b] = [await freePort(), await freePort(), await freePort()];
    execFileSync('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2', '-subj', '/CN=localhost', '-keyout', join(bed.dir, 'key.pem'), '-out', join(bed.dir, 'cert.pem')], { stdio: 'ignore' });
    const stream = `server 127.0.0.1:${streamPort}; keepalive 256;`;
    const proxy = 'proxy_http_version 1.1; proxy_set_header connection ""; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 300;';
    bed.upstream = await nginx(bed.dir, 'upstream', u, `
      server { listen 127.0.0.1:${u} reuseport; root ${bed.dir};
        location /small/ { default_type application/json; return 200 '${small()}'; }
        location /big/ { default_type application/json; error_page 404 405 =200 /big.json; return 405; }
        location = /big.json { default_type application/json; } }`);
    bed.inner = await nginx(bed.dir, 'inner', b, `
      upstream provider { server 127.0.0.1:${u}; keepalive 128; } upstream stream { ${stream} }
      server { listen 127.0.0.1:${b} ssl; ssl_certificate ${bed.dir}/cert.pem; ssl_certificate_key ${bed.dir}/key.pem; ssl_protocols TLSv1.3;
        location / { proxy_pass http://provider; ${proxy} } location /stream/ { proxy_pass http://stream; ${proxy} } location /open/ { proxy_pass http://stream; ${proxy} } location /up/ { proxy_pass http://stream; ${proxy} } }`);
    bed.outer = await nginx(bed.dir, 'outer', a, `
      upstream inner { server 127.0.0.1:${b}; keepalive 256; }
      server { listen 127.0.0.1:${a}; location / { proxy_pass https://inner; proxy_ssl_protocols TLSv1.3; proxy_ssl_verify off; proxy_ssl_session_reuse on; ${proxy} } }`);
    const model = (id, port) => ({ id, baseUrl: `http://127.0.0.1:${port}/${id}/v1` });
    bed.office = await Sidecar.start({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, models: [model('small', u), model('big', u), model('stream', streamPort), model('open', streamPort), model('up', streamPort)] });
    bed.home = await Sidecar.start({ nodeId: 'home-01', modelIdentity: false, peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${bed.office.endpoint.listenPort}` }] });
    await bed.home.model('office-01/small');
    const at = (base) => (kind) => `${base}/${kind}/v1/chat/completions`;
    bed.ways = {
      direct: { url: (kind) => at(`http://127.0.0.1:${kind === 'small' || kind === 'big' ? u : streamPort}`)(kind), pids: () => [] },
      nginx: { url: at(`http://127.0.0.1:${a}`), pids: () => [...family(bed.outer.pid), ...family(bed.inner.pid)] },
      clawmatrix: { url: () => `${bed.home.url}/v1/chat/completions`, token: bed.home.token, pids: () => [bed.home.endpoint.pid, bed.office.endpoint.pid] },
    };
    return bed;
  }

  async stop() {
    await Promise.all([this.home?.stop(), this.office?.stop(), this.outer?.stop(), this.inner?.stop(), this.upstream?.stop()]);
    await this.worker?.terminate();
  }
}

function small() {
  return `{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"small","choices":[{"index":0,"message":{"role":"assistant","content":"${'word '.repeat(100)}"},"finish_reason":"stop"}],"usage":{"prompt_tokens":200,"completion_tokens":100,"total_tokens":300}}`;
}

async function nginx(dir, name, port, http) {
  const conf = join(dir, `${name}.conf`);
  writeFileSync(conf, `${process.getuid() === 0 ? 'user root; ' : ''}daemon off; worker_processes 1; pid ${dir}/${name}.pid; error_log ${dir}/${name}.log error;
    events { worker_connections 4096; }
    http { access_log off; client_max_body_size 64m; client_body_buffer_size 64k; keepalive_requests 100000000; keepalive_timeout 300; sendfile on; tcp_nodelay on;
      client_body_temp_path ${dir}/tmp/${name}-b; proxy_temp_path ${dir}/tmp/${name}-p; fastcgi_temp_path ${dir}/tmp/${name}-f; uwsgi_temp_path ${dir}/tmp/${name}-u; scgi_temp_path ${dir}/tmp/${name}-s; ${http} }`);
  const child = new Child('nginx', ['-c', conf, '-p', dir, '-e', join(dir, `${name}.log`)]);
  await until(`nginx ${name}: ${child.output}`, 5000, () => {
    if (!child.running) throw new Error(child.output);
    return spawnSync('sh', ['-c', `exec 3<>/dev/tcp/127.0.0.1/${port}`], { shell: '/bin/bash' }).status === 0;
  });
  return child;
}

/** A process and its children. */
function family(pid) {
  const found = [pid];
  for (const p of readdirSync('/proc').filter((n) => /^\d+$/.test(n))) {
    try {
      if (Number(readFileSync(`/proc/${p}/stat`, 'utf8').split(') ')[1].split(' ')[1]) === pid) found.push(Number(p));
    } catch {
      // gone
    }
  }
  return found;
}

/** CPU time of these processes, us. */
function cpu(pids) {
  const tick = 1e6 / 100; // USER_HZ is 100 on every Linux we run on
  return pids.reduce((sum, pid) => {
    const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1].split(' ');
    return sum + (Number(fields[11]) + Number(fields[12])) * tick;
  }, 0);
}

const rssKiB = (pid) => Number(readFileSync(`/proc/${pid}/status`, 'utf8').match(/^VmRSS:\s+(\d+)/m)[1]);

/** Runs wrk once: `{requests, us, p50, p99, errors}`. */
function wrk(bed, way, kind, connections, seconds, upBytes = 1000) {
  const script = join(bed.dir, 'wrk.lua');
  const body = upBytes < 10_000 ? JSON.stringify({ model: 'M', messages: [{ role: 'user', content: 'x'.repeat(upBytes - 60) }] }) : null;
  const model = way.token ? `office-01/${kind}` : kind;
  writeFileSync(script, `
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
${way.token ? `wrk.headers["authorization"] = "Bearer ${way.token}"` : ''}
wrk.body = ${body ? `'${body.replace('"M"', `"${model}"`)}'` : `'{"model":"${model}","messages":[{"role":"user","content":"' .. string.rep("x", ${upBytes}) .. '"}]}'`}
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('RESULT {"requests":%d,"us":%d,"p50":%d,"p99":%d,"bytes":%d,"errors":%d}\\n', summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), summary.bytes, e.connect + e.read + e.write + e.status + e.timeout))
end
`);
  const before = cpu(way.pids());
  const done = spawnSync('wrk', ['-t1', `-c${connections}`, `-d${seconds}s`, '--timeout', '20s', '-s', script, way.url(kind)], { encoding: 'utf8' });
  const line = done.stdout?.match(/^RESULT (.*)$/m);
  if (!line) throw new Error(`wrk: ${done.stdout}${done.stderr}`);
  const r = JSON.parse(line[1]);
  if (r.errors) throw new Error(`${readdirSync(bed.dir).filter((f) => f.endsWith('.log')).map((f) => readFileSync(join(bed.dir, f), 'utf8').slice(-600))}\n${r.errors} of ${r.requests} requests failed (${way.url(kind)}):\n${done.stdout}`);
  return { ...r, cpu: cpu(way.pids()) - before };
}

const median = (list) => list.toSorted((a, b) => a - b)[Math.floor(list.length / 2)];

/** Measures each way in turns and keeps the median of every number. */
function turns(bed, rounds, measure) {
  const all = Object.fromEntries(Object.keys(bed.ways).map((name) => [name, []]));
  for (let round = 0; round < rounds; round += 1) for (const [name, way] of Object.entries(bed.ways)) all[name].push(measure(way));
  return collect(all);
}

function collect(all) {
  const kept = {};
  for (const [name, list] of Object.entries(all)) kept[name] = Object.fromEntries(Object.keys(list[0]).map((key) => [key, median(list.map((r) => r[key]))]));
  return kept;
}

function rates(bed, rounds, seconds) {
  const rows = [];
  for (const name of Object.keys(bed.ways)) wrk(bed, bed.ways[name], 'small', 16, 1); // warm
  const one = turns(bed, rounds, (way) => wrk(bed, way, 'small', 1, seconds));
  rows.push(row('p50 at 1 connection, us', one, (r) => r.p50));
  rows.push(row('added p50 at 1 connection, us', one, (r) => r.p50 - one.direct.p50, { direct: false }));
  for (const c of [1, 16, 64]) {
    const r = c === 1 ? one : turns(bed, rounds, (way) => wrk(bed, way, 'small', c, seconds));
    rows.push(row(`req/s at ${c}`, r, (x) => (x.requests / x.us) * 1e6));
    rows.push(row(`CPU us per request at ${c}`, r, (x) => x.cpu / x.requests, { direct: false }));
  }
  return rows;
}

function bodies(bed, rounds, seconds) {
  const rows = [];
  for (const c of [1, 4]) {
    const down = turns(bed, rounds, (way) => wrk(bed, way, 'big', c, seconds));
    rows.push(row(`10 MB down, MB/s at ${c}`, down, (r) => r.bytes / r.us));
  }
  const up = turns(bed, rounds, (way) => wrk(bed, way, 'up', 1, seconds, TEN_MB));
  rows.push(row('10 MB up, MB/s at 1', up, (r) => (r.requests * TEN_MB) / r.us));
  return rows;
}

/** Opens `count` streams; answers when all ended: delays per chunk in us, and the chunks seen. */
function readStreams(way, kind, count, onOpen) {
  const agent = new Agent({ keepAlive: false, maxSockets: Infinity });
  const delays = [];
  let opened = 0;
  const requests = [];
  const ends = Array.from({ length: count }, () => new Promise((ok, no) => {
    const req = request(way.url(kind), { method: 'POST', agent, headers: { 'content-type': 'application/json', ...(way.token ? { authorization: `Bearer ${way.token}` } : {}) } }, (res) => {
      if (res.statusCode !== 200) no(new Error(`status ${res.statusCode}`));
      let first = true;
      res.on('data', (bytes) => {
        const at = now();
        for (const m of bytes.toString().matchAll(/"t":(\d+)/g)) delays.push(at - Number(m[1]));
        if (first) {
          first = false;
          opened += 1;
          if (opened === count) onOpen?.();
        }
      });
      res.on('end', ok).on('error', () => ok());
    });
    req.on('error', (error) => (kind === 'open' ? ok() : no(error)));
    requests.push(req);
    req.end(JSON.stringify({ model: way.token ? `office-01/${kind}` : kind, stream: true, messages: [{ role: 'user', content: 'go' }] }));
  }));
  return { ended: Promise.all(ends).then(() => delays), close: () => requests.forEach((r) => r.destroy()) };
}

async function streams(bed, rounds) {
  const all = Object.fromEntries(Object.keys(bed.ways).map((name) => [name, []]));
  for (let round = 0; round < rounds; round += 1) {
    for (const [name, way] of Object.entries(bed.ways)) {
      const before = cpu(way.pids());
      const delays = (await readStreams(way, 'stream', STREAMS).ended).toSorted((a, b) => a - b);
      if (delays.length !== STREAMS * CHUNKS) throw new Error(`${name}: ${delays.length} chunks of ${STREAMS * CHUNKS}`);
      all[name].push({ chunks: delays.length, p50: median(delays), p99: delays[Math.floor(delays.length * 0.99)], cpu: cpu(way.pids()) - before, rss: way.pids().reduce((sum, pid) => sum + rssKiB(pid), 0) });
    }
  }
  const r = collect(all);
  return [
    row('p50 of a chunk, us', r, (x) => x.p50),
    row('added p50 of a chunk, us', r, (x) => x.p50 - r.direct.p50, { direct: false }),
    row('CPU us per chunk', r, (x) => x.cpu / x.chunks, { direct: false }),
    row('resident after it, MB', r, (x) => x.rss / 1024, { direct: false }),
  ];
}

/** Of one node: ready time, resident memory idle and with 100 open streams. */
async function nodeNumbers(bed) {
  const readyAll = [];
  for (let i = 0; i < 5; i += 1) {
    const node = await Sidecar.start({ nodeId: `ready-${i}`, listen: true, listenHost: '127.0.0.1', listenPort: 0 });
    readyAll.push(node.readyMs);
    await node.stop();
  }
  const both = () => ({ home: rssKiB(bed.home.endpoint.pid), office: rssKiB(bed.office.endpoint.pid) });
  const idle = both();
  let open;
  await new Promise((ok, no) => {
    const streams = readStreams(bed.ways.clawmatrix, 'open', 100, () => {
      open = both();
      streams.close();
      ok();
    });
    streams.ended.catch(no);
  });
  return { readyMs: median(readyAll), readyAll, idle, open };
}

function row(name, r, of, { direct = true } = {}) {
  const value = (way) => of(r[way]);
  return { name, direct: direct ? value('direct') : null, nginx: value('nginx'), clawmatrix: value('clawmatrix'), ratio: value('clawmatrix') / value('nginx') };
}

function table(title, rows) {
  const n = (v) => (v === null ? '' : v >= 100 ? Math.round(v).toLocaleString('en') : v.toFixed(1));
  console.log(`\n${title}\n${''.padEnd(34)}${'direct'.padStart(10)}${'nginx tls'.padStart(12)}${'clawmatrix'.padStart(12)}${'ratio'.padStart(8)}`);
  for (const r of rows) console.log(`${r.name.padEnd(34)}${n(r.direct).padStart(10)}${n(r.nginx).padStart(12)}${n(r.clawmatrix).padStart(12)}${r.ratio.toFixed(2).padStart(8)}`);
}

function machine() {
  const info = readFileSync('/proc/cpuinfo', 'utf8');
  return { cpu: info.match(/model name\s*: (.*)/)?.[1], cores: info.match(/^processor/gm)?.length, node: process.version, date: new Date().toISOString() };
}

function mb(bytes) {
  return (bytes / 1024 / 1024).toFixed(1);
}

if (!isMainThread) {
  // The provider of paced streams and taker of uploads, on a thread of its own so that reading does not delay sending.
  const server = createServer((req, res) => {
    req.resume().on('end', () => {
      if (req.url.startsWith('/up/')) return res.end(small());
      res.writeHead(200, { 'content-type': 'text/event-stream' });
      const endless = req.url.startsWith('/open/'); // one chunk, then open for as long as the client likes
      let left = endless ? 1 : CHUNKS;
      const timer = setInterval(() => {
        res.write(`data: {"t":${Math.round(now())},"choices":[{"delta":{"content":"${CHUNK_PAD}"}}]}\n\n`);
        left -= 1;
        if (left === 0) {
          clearInterval(timer);
          if (!endless) res.end('data: [DONE]\n\n');
        }
      }, CHUNK_MS);
      return res.on('close', () => clearInterval(timer));
    });
  });
  server.keepAliveTimeout = 60_000;
  server.listen(0, '127.0.0.1', () => parentPort.postMessage(server.address().port));
} else await main();
