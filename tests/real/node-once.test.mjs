// A command of another node runs once at most, whichever process dies: `home-01` asks, `office-01` runs, `cloud-01`
// between them, and one of the three is killed at any moment of any command (T82, T124; protocol 7.1).
import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { folder, missing } from './support/places.mjs';
import { relayed } from './support/relays.mjs';

const ROUNDS = process.env.CLAWMATRIX_LONG ? 1000 : 30;
const COMMANDS = 6;
/** How long a round waits for its answers; later ones still count. */
const PATIENCE = 8000;
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** What an answer allows: how often its command may have run. Nothing but the answer decides. */
function promised({ status, body }) {
  if (body.outcome === 'completed') return [1];
  if (body.outcome === 'outcome_unknown') return [0, 1];
  if (body.outcome === 'not_dispatched') return [0];
  assert.fail(`no answer of a command that was killed or not: ${status} ${JSON.stringify(body)}`);
}

describe('commands and dying nodes', { skip: missing.binary(), timeout: process.env.CLAWMATRIX_LONG ? 5 * 3600_000 : 900_000 }, () => {
  let mesh;
  before(async () => {
    mesh = await relayed({ office: { toolProxy: { enabled: true, allow: ['exec'] } } });
  });
  after(() => mesh?.stop());

  test('no_command_runs_twice_and_every_answer_is_true', async () => {
    const file = join(folder('once'), 'ran');
    const seed = Number(process.env.CLAWMATRIX_SEED ?? Date.now() % 100_000);
    console.log(`# CLAWMATRIX_SEED=${seed}`);
    let x = seed + 1;
    const chance = (most) => (x = (x * 48_271) % 2_147_483_647) % most;
    const answers = new Map();
    const counts = { completed: 0, not_dispatched: 0, outcome_unknown: 0, 'origin gone': 0 };
    const pending = new Set();
    const ask = (n) => {
      // Some write at once and linger, some write late; some hold the request up on its way out.
      const script = n % 2 ? `echo ${n} >> ${file}; sleep 0.0${n % 9}` : `sleep 0.0${n % 9}; echo ${n} >> ${file}`;
      const asked = (async () => {
        let answer;
        try {
          const response = await mesh.home.fetch('/api/v1/tools/exec', { method: 'POST', body: JSON.stringify({ node: 'office-01', command: script, timeout: 20 }) });
          answer = { status: response.status, body: await response.json() };
        } catch {
          counts['origin gone'] += 1;
          return; // Whoever asked is told nothing.
        }
        answers.set(n, answer);
        counts[answer.body.outcome] = (counts[answer.body.outcome] ?? 0) + 1;
      })().finally(() => pending.delete(asked));
      pending.add(asked);
    };
    const killed = { cloud: 0, home: 0, office: 0 };
    for (let round = 0; round < ROUNDS; round += 1) {
      const name = Object.keys(killed)[round % 3];
      for (let i = 0; i < COMMANDS; i += 1) {
        ask(round * COMMANDS + i);
        await sleep(chance(15));
      }
      await sleep(chance(60));
      const node = mesh[name];
      node.child.killNow();
      await node.child.ended;
      killed[name] += 1;
      // What is asked now finds no way, or another process.
      await sleep(chance(40));
      await node.up();
      await Promise.race([Promise.all(pending), sleep(PATIENCE)]);
      await mesh.reached(30_000);
    }
    await Promise.all(pending);
    await sleep(1000); // What was still at work at an office that was killed.
    const ran = new Map();
    for (const line of (existsSync(file) ? readFileSync(file, 'utf8') : '').split('\n').filter(Boolean)) ran.set(Number(line), (ran.get(Number(line)) ?? 0) + 1);
    console.log(`# ${ROUNDS * COMMANDS} commands, ${ran.size} ran; killed ${JSON.stringify(killed)}; told ${JSON.stringify(counts)}`);
    for (const [n, times] of ran) assert.equal(times, 1, `command ${n} ran ${times} times: ${JSON.stringify(answers.get(n))}`);
    for (const [n, answer] of answers) {
      assert.ok(promised(answer).includes(ran.get(n) ?? 0), `command ${n} ran ${ran.get(n) ?? 0} times, but was told ${JSON.stringify(answer)}`);
    }
    // It is about commands cut short: without any the test has seen nothing.
    assert.ok(counts.completed > 0 && counts.outcome_unknown > 0 && counts['origin gone'] > 0, JSON.stringify(counts));
  });
});
