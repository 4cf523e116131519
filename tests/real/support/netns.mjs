// A small internet of network namespaces: `home` and `office`, each alone behind a router of its own that
// translates addresses, and two machines with public addresses, `east` and `west`. Every uplink goes through
// `core`, where it can be slowed, made lossy or cut.
import { execFileSync, spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { Child, run } from './child.mjs';
import { binary, Hopeless, until } from './places.mjs';
import { Sidecar, environment } from './sidecar.mjs';

const here = (name) => fileURLToPath(new URL(name, import.meta.url));
const PATH = `${process.env.PATH}:/usr/sbin:/sbin`;
const env = environment({ PATH });
const exec = (command, args, options) => execFileSync(command, args, { env, stdio: ['pipe', 'pipe', 'pipe'], encoding: 'utf8', ...options });
const ip = (...args) => exec('ip', args);
const within = (space, ...args) => ip('netns', 'exec', space, ...args);

/** A reason to skip what needs namespaces, or false. */
export function noNamespaces() {
  if (process.platform !== 'linux') return 'network namespaces are Linux only';
  if (process.getuid() !== 0) return 'network namespaces need root';
  for (const program of ['ip', 'nft']) {
    try {
      exec('sh', ['-c', `command -v ${program}`]);
    } catch {
      return `${program} is missing (apt-get install iproute2 nftables)`;
    }
  }
  const name = `cmt${process.pid}-try`;
  try {
    ip('netns', 'add', name);
    within(name, 'nft', 'add table ip t; add chain ip t c { type nat hook postrouting priority 100; }');
    return false;
  } catch (error) {
    return `namespaces do not work here: ${String(error.stderr || error.message).trim()}`;
  } finally {
    try {
      ip('netns', 'del', name);
    } catch {
      // was not made
    }
  }
}

/** A reason to skip what needs links of a given rate, or false. */
export function noRates() {
  const reason = noNamespaces();
  if (reason) return reason;
  const name = `cmt${process.pid}-try`;
  ip('netns', 'add', name);
  try {
    within(name, 'tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'tbf', 'rate', '1mbit', 'burst', '3200', 'latency', '100ms');
    return false;
  } catch (error) {
    return `links cannot be limited here: ${String(error.stderr || error.message).trim()}`;
  } finally {
    ip('netns', 'del', name);
  }
}

/** Removes what an earlier run, killed with -9, has left behind. */
function sweep() {
  for (const line of ip('netns', 'list').split('\n')) {
    const [name, pid] = line.match(/^cmt(\d+)-\w+/) ?? [];
    if (name && !existsSync(`/proc/${pid}`)) ip('netns', 'del', name);
  }
}

/** Who has which uplink: the machine itself, or the router in front of it. */
const UPLINKS = { home: 'homegw', office: 'officegw', east: 'east', west: 'west' };

export class Internet {
  #spaces = [];
  #wires = {};
  #tag = `cmt${process.pid}`;
  /** `netem`, or `tun` where the kernel has none; `veth` has no delay and no loss, and carries any rate. */
  kind;

  static async up({ kind } = {}) {
    sweep();
    const net = new Internet();
    net.kind = kind;
    process.on('exit', () => net.down());
    try {
      await net.#build();
    } catch (error) {
      net.down();
      throw new Error(`cannot build the namespaces: ${error.stderr || error.message}`, { cause: error });
    }
    return net;
  }

  space(name) {
    return `${this.#tag}-${name}`;
  }

  #add(name, ...sysctls) {
    ip('netns', 'add', this.space(name));
    this.#spaces.push(this.space(name));
    ip('-n', this.space(name), 'link', 'set', 'lo', 'up');
    for (const setting of sysctls) within(this.space(name), 'sh', '-c', `echo 1 >/proc/sys/net/ipv4/${setting}`);
  }

  /** An interface name: at most 15 characters. */
  #dev(name) {
    return `m${process.pid}${name}`.slice(0, 15);
  }

  async #build() {
    this.#add('core', 'ip_forward');
    this.kind ??= this.#hasNetem() ? 'netem' : 'tun';
    for (const name of ['home', 'office', 'east', 'west']) this.#add(name);
    for (const name of ['homegw', 'officegw']) this.#add(name, 'ip_forward');
    let subnet = 0;
    for (const [name, outer] of Object.entries(UPLINKS)) {
      await this.#uplink(name, outer, `203.0.113.${subnet + 1}`, `203.0.113.${subnet + 2}`);
      subnet += 4;
    }
    this.address = { east: '203.0.113.10', west: '203.0.113.14' };
    this.#lan('home', 'homegw', '192.168.1');
    this.#lan('office', 'officegw', '192.168.2');
    within(this.space('core'), 'nft', 'add table ip cut; add set ip cut off { type ifname; }; add chain ip cut f { type filter hook forward priority 0; }; add rule ip cut f iifname @off drop; add rule ip cut f oifname @off drop');
  }

  #hasNetem() {
    try {
      within(this.space('core'), 'tc', 'qdisc', 'add', 'dev', 'lo', 'root', 'netem', 'delay', '1ms');
      within(this.space('core'), 'tc', 'qdisc', 'del', 'dev', 'lo', 'root');
      return true;
    } catch {
      return false;
    }
  }

  async #uplink(name, outer, near, far) {
    const [a, b] = [this.#dev(`${name[0]}a`), this.#dev(`${name[0]}b`)];
    if (this.kind === 'tun') {
      const wire = spawn('python3', [here('./wire.py'), a, b], { env, stdio: ['pipe', 'pipe', 'inherit'] });
      this.#wires[name] = wire;
      await new Promise((ok, no) => { wire.stdout.once('data', ok); wire.once('exit', () => no(new Error('python3 made no cable'))); });
    } else {
      ip('link', 'add', a, 'type', 'veth', 'peer', 'name', b);
    }
    ip('link', 'set', a, 'netns', this.space('core'));
    ip('link', 'set', b, 'netns', this.space(outer));
    for (const [space, dev, own] of [['core', a, near], [outer, b, far]]) {
      ip('-n', this.space(space), 'addr', 'add', `${own}/30`, 'dev', dev);
      ip('-n', this.space(space), 'link', 'set', dev, 'up');
    }
    ip('-n', this.space(outer), 'route', 'add', 'default', 'via', near);
    if (outer === name) return;
    // A home router: out with its own address, in only what was asked for.
    within(this.space(outer), 'nft', `add table ip t;
      add chain ip t out { type nat hook postrouting priority 100; }; add rule ip t out oifname ${b} masquerade;
      add chain ip t pass { type filter hook forward priority 0; policy drop; };
      add rule ip t pass ct state established,related accept; add rule ip t pass oifname ${b} accept;
      add chain ip t own { type filter hook input priority 0; policy drop; };
      add rule ip t own ct state established,related accept`);
  }

  #lan(name, router, prefix) {
    const [a, b] = [this.#dev(`${name[0]}l`), this.#dev(`${name[0]}r`)];
    ip('link', 'add', a, 'type', 'veth', 'peer', 'name', b);
    ip('link', 'set', a, 'netns', this.space(name));
    ip('link', 'set', b, 'netns', this.space(router));
    for (const [space, dev, own] of [[name, a, 2], [router, b, 1]]) {
      ip('-n', this.space(space), 'addr', 'add', `${prefix}.${own}/24`, 'dev', dev);
      ip('-n', this.space(space), 'link', 'set', dev, 'up');
    }
    ip('-n', this.space(name), 'route', 'add', 'default', 'via', `${prefix}.1`);
  }

  /** Delay and loss of an uplink, each way. */
  shape(name, { delayMs = 0, lossPercent = 0 }) {
    if (this.kind === 'tun') {
      this.#wires[name].stdin.write(`${delayMs} ${lossPercent}\n`);
      return;
    }
    for (const [space, end] of [['core', 'a'], [UPLINKS[name], 'b']]) {
      within(this.space(space), 'tc', 'qdisc', 'replace', 'dev', this.#dev(`${name[0]}${end}`), 'root', 'netem', 'delay', `${delayMs}ms`, 'loss', `${lossPercent}%`);
    }
  }

  /** Limits an uplink, each way, to so many Mbit/s. Packets wait for at most `queueMs`, as in a modem. */
  rate(name, mbit, queueMs = 100) {
    // Above what leaves between two ticks of the clock, and two packets at least.
    const burst = Math.max(3200, mbit * 1_250);
    for (const [space, end] of [['core', 'a'], [UPLINKS[name], 'b']]) {
      within(this.space(space), 'tc', 'qdisc', 'replace', 'dev', this.#dev(`${name[0]}${end}`), 'root', 'tbf', 'rate', `${mbit}mbit`, 'burst', `${burst}`, 'latency', `${queueMs}ms`);
    }
  }

  /** Drops every packet of an uplink without a word, or lets them through again. */
  cut(name, off = true) {
    within(this.space('core'), 'nft', off ? 'add' : 'delete', 'element', 'ip', 'cut', 'off', `{ ${this.#dev(`${name[0]}a`)} }`);
  }

  /** Whether a TCP connection can be made from one machine to an address. */
  async reaches(name, host, port) {
    const script = `const s=require('net').connect(${port},'${host}',()=>process.exit(0));s.setTimeout(2000,()=>process.exit(1));s.on('error',e=>process.exit(e.code==='ECONNREFUSED'?2:1))`;
    return (await this.run(name, process.execPath, '-e', script)).code === 0;
  }

  /** Runs a command on a machine to its end. */
  run(name, ...command) {
    return run('ip', ['netns', 'exec', this.space(name), ...command], { env });
  }

  /** Starts a command on a machine. */
  start(name, ...command) {
    return new Child('ip', ['netns', 'exec', this.space(name), ...command], { env });
  }

  /** Removes everything, by name. */
  down() {
    for (const wire of Object.values(this.#wires)) wire.kill('SIGKILL');
    this.#wires = {};
    for (const space of this.#spaces.splice(0).reverse()) {
      try {
        ip('netns', 'del', space);
      } catch {
        // went with something else
      }
    }
  }
}

/** A node on a machine of an {@link Internet}. */
export class Placed extends Sidecar {
  #asked = new Map();
  #next = 0;

  constructor(net, machine, config, dir) {
    super(config, dir);
    this.net = net;
    this.machine = machine;
  }

  static async start(net, machine, config) {
    const node = new Placed(net, machine, config);
    await node.up();
    return node;
  }

  spawn() {
    this.child = this.net.start(this.machine, binary, 'run', '--config', this.configFile, '--state-dir', this.stateDir);
    return this.child;
  }

  async up() {
    if (!this.hand?.running) {
      this.hand = this.net.start(this.machine, process.execPath, here('./inside.mjs'));
      createInterface({ input: this.hand.process.stdout }).on('line', (line) => {
        const answer = JSON.parse(line);
        this.#asked.get(answer.id)?.(answer);
        this.#asked.delete(answer.id);
      });
    }
    this.spawn();
    await until(`node ${this.config.nodeId}`, 20_000, async () => {
      if (!this.child.running) throw new Hopeless(`it ended with ${this.child.code}:\n${this.child.output}`);
      return existsSync(`${this.stateDir}/run/endpoint`) && this.endpoint.pid === this.child.pid && (await this.ask('/readyz')).status === 200;
    });
  }

  /** One request to its local API, made on its machine. */
  ask(path, init = {}) {
    const id = (this.#next += 1);
    const token = existsSync(`${this.stateDir}/run/token`) ? readFileSync(`${this.stateDir}/run/token`, 'utf8').trim() : '';
    const headers = { authorization: `Bearer ${token}`, 'content-type': 'application/json', ...init.headers };
    this.hand.process.stdin.write(`${JSON.stringify({ id, url: `http://127.0.0.1:${this.endpoint.proxyPort}${path}`, init: { ...init, headers } })}\n`);
    return new Promise((done) => this.#asked.set(id, done));
  }

  async json(path) {
    const answer = await this.ask(path);
    if (answer.status !== 200) throw new Error(`${path}: ${answer.status} ${answer.broken ?? answer.text}`);
    return JSON.parse(answer.text);
  }

  async view(nodeId) {
    return (await this.json('/api/v1/peers')).find((peer) => peer.nodeId === nodeId);
  }

  /** A streamed answer to `text`, as {@link ask} answers. */
  chat(model, text) {
    return this.ask('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: text }] }) });
  }

  /** Stops the process in its tracks, or lets it go on. */
  freeze(on = true) {
    process.kill(this.child.pid, on ? 'SIGSTOP' : 'SIGCONT');
  }

  /** As a power cut would end it. */
  async kill() {
    process.kill(this.child.pid, 'SIGKILL');
    await this.child.ended;
  }

  cli(...args) {
    return this.net.run(this.machine, binary, '--state-dir', this.stateDir, ...args);
  }

  async stop() {
    if (this.child?.running) {
      this.freeze(false);
      await super.stop();
    }
    await this.hand?.stop(500);
  }
}
