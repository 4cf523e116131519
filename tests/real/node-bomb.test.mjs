// T100: a command that starts as many others as it can, within the limits of its node. What it starts is
// counted and few: 300 at most, one after the other, in a control group that holds no more than 400.
import assert from 'node:assert/strict';
import { chmodSync, chownSync, existsSync, mkdirSync, readFileSync, readdirSync, realpathSync, rmdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { Child } from './support/child.mjs';
import { binary, folder, missing, until } from './support/places.mjs';
import { Sidecar, environment } from './support/sidecar.mjs';

/** An account of its own, when we may take one: the system counts processes by account, and root's not at all. */
const root = process.getuid() === 0;
const account = root ? 54_321 : process.getuid();
const BOMB = 'my $f = 0; for (1..300) { my $p = fork(); if (!defined $p) { $f++ } elsif ($p == 0) { sleep 60; exit } } $| = 1; print "refused $f\n"; sleep 60';

/** Threads of the account, which is what the system counts. */
function threads() {
  let count = 0;
  for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
    try {
      const status = readFileSync(`/proc/${pid}/status`, 'utf8');
      if (Number(/^Uid:\s+(\d+)/m.exec(status)[1]) === account) count += Number(/^Threads:\s+(\d+)/m.exec(status)[1]);
    } catch {
      // gone
    }
  }
  return count;
}

/** A control group of at most 400 processes; or why there is none. */
function group() {
  const one = '/sys/fs/cgroup/pids';
  const two = '/sys/fs/cgroup';
  const has = (file) => existsSync(file) && readFileSync(file, 'utf8').split(/\s+/).includes('pids');
  const parent = existsSync(join(one, 'cgroup.procs')) ? one : has(join(two, 'cgroup.subtree_control')) ? two : null;
  if (!parent) return { why: 'no control group counts processes here' };
  const dir = join(parent, `clawmatrix-test-${process.pid}`);
  try {
    mkdirSync(dir);
    writeFileSync(join(dir, 'pids.max'), '400');
  } catch (error) {
    return { why: `no control group can be made: ${error.message}` };
  }
  const members = () => readFileSync(join(dir, 'cgroup.procs'), 'utf8').trim().split('\n').filter(Boolean).map(Number);
  return {
    take: (pid) => writeFileSync(join(dir, 'cgroup.procs'), String(pid)),
    members,
    async remove() {
      for (const pid of members()) process.kill(pid, 'SIGKILL');
      await until('the control group to be empty', 10_000, () => members().length === 0);
      rmdirSync(dir);
    },
  };
}

/** A node of the account. */
class Own extends Sidecar {
  spawn() {
    const how = root ? ['setpriv', `--reuid=${account}`, `--regid=${account}`, '--clear-groups', binary] : [binary];
    const [command, ...args] = [...how, 'run', '--config', this.configFile, '--state-dir', this.stateDir];
    if (root) for (const path of [this.dir, this.stateDir, this.configFile]) chownSync(path, account, account);
    this.child = new Child(command, args, { env: environment({ HOME: this.dir }) });
    return this.child;
  }
}

describe('a command that starts many', { skip: missing.binary() || (!existsSync('/usr/bin/perl') && 'no perl'), timeout: 120_000 }, () => {
  test('it_gets_no_further_than_its_limit_and_the_node_goes_on', async (t) => {
    const held = group();
    if (held.why) return t.skip(held.why);
    t.after(() => held.remove());
    const lent = realpathSync(folder('lent'));
    chmodSync(lent, 0o777);
    const before = threads();
    // The node itself has threads of its own, some of them only now and then.
    const most = before + 80;
    const office = new Own({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, drainTimeout: 1, toolProxy: { enabled: true, roots: [lent], maxProcesses: most } });
    await office.up();
    t.after(() => office.stop());
    held.take(office.endpoint.pid);
    const home = await Sidecar.start({ nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] });
    t.after(() => home.stop());
    await home.peer('office-01');
    const exec = async (body) => {
      const answer = await home.fetch('/api/v1/tools/exec', { method: 'POST', body: JSON.stringify({ node: 'office-01', ...body }) });
      return answer.json();
    };
    assert.ok(!(await office.json('/api/v1/status')).warnings.some((text) => text.includes('maxProcesses')));
    const bomb = exec({ argv: ['perl', '-e', BOMB], timeout: 4 });
    await until('it to be at its limit', 4000, () => threads() >= most - 20);
    // The node answers, and others still get their commands.
    assert.equal((await office.json('/api/v1/status')).nodeId, 'office-01');
    const other = await exec({ argv: ['true'] });
    assert.deepEqual([other.outcome, other.exitCode], ['completed', 0], JSON.stringify(other));
    assert.ok(threads() <= most + 20, `${threads()} of ${most}`);
    const answer = await bomb;
    assert.equal(answer.error.code, 'timeout', JSON.stringify(answer));
    const refused = Number(/refused (\d+)/.exec(answer.stdout)[1]);
    assert.ok(refused >= 300 - 80, `${refused} of 300 were refused`);
    console.log(`# ${300 - refused} of 300 processes were started, ${refused} refused, with maxProcesses ${most - before} above what the account had`);
    await until('all of them to be gone', 6000, () => held.members().length === 1);
  });
});
