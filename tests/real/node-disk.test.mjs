// A state folder on a disk that is full (T104): what must be recorded is refused, everything else goes on, and once
// there is room again nothing needs a restart.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { folder, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { Sidecar } from './support/sidecar.mjs';

const small = folder('small-disk');
const mounted = process.platform === 'linux' && spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=8m,mode=700', 'tmpfs', small]).status === 0;

/** Takes every byte that is left. */
function fill(file) {
  const fd = openSync(file, 'w');
  try {
    for (const size of [65_536, 4096, 1]) {
      for (;;) {
        try {
          writeSync(fd, Buffer.alloc(size));
        } catch (error) {
          assert.equal(error.code, 'ENOSPC');
          break;
        }
      }
    }
  } finally {
    closeSync(fd);
  }
}

describe('a full disk', { skip: missing.binary() || (!mounted && 'a small disk takes root'), timeout: 120_000 }, () => {
  let provider;
  let office;
  let home;
  const lent = folder('lent');
  before(async () => {
    provider = await Provider.start({});
    office = await Sidecar.start({
      nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0,
      models: [{ id: 'mock-1', baseUrl: provider.baseUrl }], toolProxy: { enabled: true, roots: [lent] },
    }, small);
    home = await Sidecar.start({ nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${office.endpoint.listenPort}` }] });
    await home.model('office-01/mock-1');
  });
  after(async () => {
    await Promise.all([home, office, provider].map((part) => part?.stop()));
    spawnSync('umount', ['-l', small]);
  });
  const tool = async (verb, body) => {
    const answer = await home.fetch(`/api/v1/tools/${verb}`, { method: 'POST', body: JSON.stringify({ node: 'office-01', ...body }) });
    return { status: answer.status, ...(await answer.json()) };
  };
  const marks = join(lent, 'marks');
  const ran = () => (existsSync(marks) ? readFileSync(marks, 'utf8').split('\n').length - 1 : 0);
  const exec = () => tool('exec', { command: `echo x >> ${marks}` });

  test('what_must_be_recorded_is_refused_until_there_is_room', async () => {
    let done = 0;
    assert.equal((await exec()).outcome, 'completed');
    done += 1;
    const full = join(small, 'full');
    fill(full);
    // The last page of the record has room for some lines.
    let refused;
    for (let turn = 0; turn < 100 && !refused; turn += 1) {
      const answer = await exec();
      if (answer.outcome === 'completed') done += 1;
      else refused = answer;
    }
    assert.deepEqual([refused?.status, refused?.error.code, refused?.outcome], [503, 'audit_unavailable', 'not_dispatched'], JSON.stringify(refused));
    const write = await tool('write', { path: 'made', content: 'x' });
    assert.deepEqual([write.status, write.error.code], [503, 'audit_unavailable'], JSON.stringify(write));
    assert.ok(!existsSync(join(lent, 'made')));
    assert.equal(ran(), done, 'what was refused has not run');
    for (let turn = 0; turn < 3; turn += 1) {
      const body = JSON.stringify({ model: 'office-01/mock-1', messages: [{ role: 'user', content: 'still there' }] });
      const answer = await home.fetch('/v1/chat/completions', { method: 'POST', body });
      assert.equal(answer.status, 200, await answer.text());
    }
    assert.ok(office.child.running);
    unlinkSync(full);
    await until('commands to run again', 20_000, async () => (await exec()).outcome === 'completed');
    assert.equal(ran(), done + 1);
    const verified = await until('a sound record', 20_000, async () => {
      const { code, output } = await office.cli('audit', 'verify');
      return code === 0 && output;
    });
    assert.match(verified, /\d/);
    assert.ok(office.child.running);
  });
});
