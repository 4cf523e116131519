// Machines whose clocks are a year off and jump by two while streams and commands run (T76): links, deadlines and
// answers do not follow the wall clock. libfaketime changes the time of a node's process, not of the machine.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { readEvents } from './support/mesh.mjs';
import { folder, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { Sidecar } from './support/sidecar.mjs';

const library = ['/usr/lib', ...(existsSync('/usr/lib') ? readdirSync('/usr/lib').map((name) => `/usr/lib/${name}`) : [])]
  .map((place) => join(place, 'faketime/libfaketime.so.1')).find(existsSync);
const YEAR = 365 * 86_400;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

describe('clocks that are wrong', { skip: missing.binary() || (!library && 'libfaketime is missing'), timeout: 120_000 }, () => {
  let provider;
  const nodes = {};
  const files = {};
  /** The clock of a node is so many seconds ahead from now on. */
  const ahead = (name, seconds) => {
    // Replaced as a whole: it is read all the time.
    writeFileSync(`${files[name]}.new`, `${seconds < 0 ? '' : '+'}${seconds}\n`);
    renameSync(`${files[name]}.new`, files[name]);
  };
  const start = async (config, seconds) => {
    const name = config.nodeId;
    files[name] = join(folder('clock'), 'time');
    ahead(name, seconds);
    const env = { LD_PRELOAD: library, FAKETIME_TIMESTAMP_FILE: files[name], FAKETIME_NO_CACHE: '1', FAKETIME_DONT_FAKE_MONOTONIC: '1' };
    nodes[name] = await Sidecar.start(config, undefined, env);
    return nodes[name];
  };
  const lent = folder('lent');
  before(async () => {
    provider = await Provider.start({});
    const office = await start({
      nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0,
      models: [{ id: 'mock-1', baseUrl: provider.baseUrl }], toolProxy: { enabled: true, roots: [lent] }, limits: { heartbeat: 1 },
    }, YEAR);
    await start({ nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }], limits: { heartbeat: 1 } }, -YEAR);
    await nodes['home-01'].model('office-01/mock-1');
  });
  after(() => Promise.all([...Object.values(nodes), provider].map((part) => part?.stop())));

  test('links_deadlines_and_answers_do_not_follow_the_wall_clock', async () => {
    const home = nodes['home-01'];
    const office = nodes['office-01'];
    const exec = async (body) => {
      const answer = await home.fetch('/api/v1/tools/exec', { method: 'POST', body: JSON.stringify({ node: 'office-01', ...body }) });
      return { status: answer.status, ...(await answer.json()) };
    };
    assert.equal((await exec({ argv: ['true'] })).outcome, 'completed');
    const recorded = (await office.cli('--json', 'audit', 'tail', '-n', '1')).stdout;
    const seconds = Number(/"ts":\s*(\d{10})/.exec(recorded)?.[1]);
    assert.ok(Math.abs(seconds - YEAR - Date.now() / 1000) < 3600, `the clock of office is a year ahead: ${recorded}`);

    const words = Array.from({ length: 40 }, (_, n) => `w${n}`).join(' ');
    const body = JSON.stringify({ model: 'office-01/mock-1', stream: true, messages: [{ role: 'user', content: `[[slow 100]] ${words}` }] });
    const stream = home.fetch('/v1/chat/completions', { method: 'POST', body }).then(readEvents);
    const marks = join(lent, 'marks');
    const running = exec({ command: `echo x >> ${marks}; sleep 4; echo done` });
    const began = Date.now();
    const timed = exec({ command: 'sleep 60', timeout: 3 });
    await until('the command to run', 10_000, () => existsSync(marks));
    for (const [there, here] of [[-YEAR, YEAR], [YEAR, -YEAR], [0, 0]]) {
      ahead('office-01', there);
      ahead('home-01', here);
      await sleep(700);
    }
    const late = await timed;
    assert.deepEqual([late.status, late.timedOut], [504, true], JSON.stringify(late));
    const took = Date.now() - began;
    assert.ok(took >= 3_000 && took < 8_000, `${took} ms`);
    const answer = await stream;
    assert.ok(answer.done && !answer.broken, answer.text.slice(-300));
    assert.ok(answer.text.includes('w39'));
    const done = await running;
    assert.deepEqual([done.outcome, done.stdout], ['completed', 'done\n'], JSON.stringify(done));
    assert.equal(readFileSync(marks, 'utf8'), 'x\n');
    assert.equal((await exec({ argv: ['true'] })).outcome, 'completed', 'what may run once is no staler than before');
    for (const node of [home, office]) {
      assert.equal(node.child.output.match(/link up/g)?.length, 1, `one link all the time:\n${node.child.output}`);
      assert.ok(node.child.running);
    }
    assert.equal((await office.cli('audit', 'verify')).code, 0);
  });
});
