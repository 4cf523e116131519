// What a command of another node may do to the machine it runs on: real nodes, the real kernel.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, realpathSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { folder, freePort, missing, until } from './support/places.mjs';
import { Sidecar } from './support/sidecar.mjs';

const alive = (pid) => {
  try {
    return !/^State:\s+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'utf8'));
  } catch {
    return false;
  }
};
const office = (toolProxy) => ({ nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0, drainTimeout: 1, toolProxy: { enabled: true, ...toolProxy } });
const homeOf = async (node) => {
  const home = await Sidecar.start({ nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${node.endpoint.listenPort}` }] });
  await home.peer('office-01');
  return home;
};
const exec = async (home, body, signal) => {
  const answer = await home.fetch('/api/v1/tools/exec', { method: 'POST', signal, body: JSON.stringify({ node: 'office-01', ...body }) });
  return { status: answer.status, ...(await answer.json()) };
};
// Writes down its number and starts two more of itself, one of them in a session of its own, as often as
// the second word says; whoever started something waits for it. With 2: seven processes in four sessions,
// and three that wait for one of them.
const NEST = `echo $$ >> "$1"
[ "$2" -gt 0 ] || exec sleep 1000
setsid sh "$0" "$1" $(($2 - 1)) &
(sh "$0" "$1" $(($2 - 1)); :) &
wait
`;
const nestIn = (root) => {
  writeFileSync(join(root, 'nest'), NEST);
  const numbers = () => readFileSync(join(root, 'pids'), 'utf8').trim().split('\n').map(Number);
  return { body: { argv: ['sh', join(root, 'nest'), join(root, 'pids'), '2'] }, started: () => until('seven processes', 10_000, () => numbers().length === 7 && numbers()) };
};

describe('commands and the machine', { skip: missing.binary(), timeout: 120_000 }, () => {
  test('a_confined_command_dies_with_a_node_that_is_killed', async (t) => {
    const root = realpathSync(folder('lent'));
    const node = await Sidecar.start(office({ roots: [root], confine: true }));
    t.after(() => node.stop());
    if ((await node.json('/api/v1/status')).warnings.some((text) => text.includes('toolProxy.confine'))) return t.skip('no Landlock here');
    const home = await homeOf(node);
    t.after(() => home.stop());
    const running = exec(home, { argv: ['sh', '-c', 'echo $$ > pid; exec sleep 60'] });
    running.catch(() => {});
    const pid = await until('the command to begin', 5000, () => existsSync(join(root, 'pid')) && Number(readFileSync(join(root, 'pid'), 'utf8')));
    assert.ok(alive(pid));
    process.kill(node.endpoint.pid, 'SIGKILL');
    await until('the command to go with its node', 5000, () => !alive(pid));
  });

  // T85
  test('what_left_its_group_ends_when_the_client_goes_away', async (t) => {
    const root = realpathSync(folder('lent'));
    const node = await Sidecar.start(office({ roots: [root] }));
    t.after(() => node.stop());
    const home = await homeOf(node);
    t.after(() => home.stop());
    const nest = nestIn(root);
    const client = new AbortController();
    const running = exec(home, nest.body, client.signal);
    running.catch(() => {});
    const pids = await nest.started();
    assert.ok(pids.every(alive));
    const at = Date.now();
    client.abort();
    await until('all of them to be gone', 6000, () => !pids.some(alive));
    console.log(`# from the client's end at home to seven processes gone at office: ${Date.now() - at} ms`);
  });

  test('what_left_its_group_ends_with_a_node_that_stops', async (t) => {
    const root = realpathSync(folder('lent'));
    const node = await Sidecar.start(office({ roots: [root] }));
    t.after(() => node.stop());
    const home = await homeOf(node);
    t.after(() => home.stop());
    const nest = nestIn(root);
    const running = exec(home, nest.body);
    const pids = await nest.started();
    await node.stop();
    assert.ok(!pids.some(alive));
    assert.equal((await running).outcome, 'cancelled');
    assert.doesNotMatch(readFileSync(join(node.stateDir, 'run/commands'), 'utf8').split('\n').slice(1).join(''), /\d/, 'nothing is left for the next one');
  });

  test('what_a_killed_node_left_running_is_ended_by_the_next', async (t) => {
    const root = realpathSync(folder('lent'));
    const node = await Sidecar.start({ ...office({ roots: [root] }), listenPort: await freePort() });
    t.after(() => node.stop());
    const home = await homeOf(node);
    t.after(() => home.stop());
    const nest = nestIn(root);
    exec(home, nest.body).catch(() => {});
    const pids = await nest.started();
    process.kill(node.endpoint.pid, 'SIGKILL');
    await node.child.ended;
    assert.ok(pids.every(alive), 'nothing else ends them');
    const at = Date.now();
    await node.up();
    assert.ok(!pids.some(alive), 'they are gone before the node is ready');
    console.log(`# from the start of the next node to its first answer, seven processes ended: ${Date.now() - at} ms`);
    assert.match(node.child.output, /the node was killed while this command ran.*processes=10/);
    const again = await until('office to answer', 15_000, async () => {
      const answer = await exec(home, { argv: ['true'] });
      return answer.outcome === 'completed' && answer;
    });
    assert.equal(again.exitCode, 0);
  });
});
