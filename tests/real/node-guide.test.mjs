// docs/agents-and-tools.md, run as it stands there: its configuration at office, its commands at home.
// Replaced are the folder that is lent, the address of the agent's server, ports and the secret.
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { tagged } from './support/blocks.mjs';
import { run } from './support/child.mjs';
import { pair } from './support/mesh.mjs';
import { binary, folder, missing, until } from './support/places.mjs';
import { Provider } from './support/provider.mjs';
import { environment } from './support/sidecar.mjs';

const PAGE = 'docs/agents-and-tools.md';

describe('the guide to tasks and tools', { skip: missing.binary(), timeout: 120_000 }, () => {
  let mesh;
  let server;
  let lent;
  before(async () => {
    server = await Provider.start({});
    lent = realpathSync(mkdtempSync(join(folder('guide'), 'shared-')));
    const { secretFile: _, listen: __, nodeId, agents, toolProxy, ...shown } = JSON.parse(tagged(PAGE, 'json', 'config guide')[0]);
    assert.equal(nodeId, 'office-01');
    mesh = await pair({ office: { ...shown, agents: [{ ...agents[0], baseUrl: server.baseUrl }], toolProxy: { ...toolProxy, roots: [lent] } } });
    await until('the agent of office', 10_000, async () => (await mesh.home.json('/api/v1/peers'))[0]?.agents.length === 1);
  });
  after(async () => {
    await mesh?.stop();
    await server?.stop();
  });

  test('every_command_does_what_the_page_says', async () => {
    const env = environment({ PATH: `${dirname(binary)}:${process.env.PATH}`, CLAWMATRIX_STATE_DIR: mesh.home.stateDir });
    const commands = tagged(PAGE, 'bash', 'guide')[0].trim().split('\n');
    const said = {};
    for (const command of commands) {
      const done = await run('bash', ['-euc', command], { env });
      assert.equal(done.code, 0, `${command}\n${done.output}`);
      said[command.replace(/^echo .*\| /, '').split(' ').slice(1, 4).join(' ')] = done.stdout;
    }
    assert.match(said.agents, /office-01\/main/);
    assert.match(said['handoff office-01/main "Which'], /^echo: Node `home-01` of the ClawMatrix mesh/);
    assert.ok(server.requests.some((r) => JSON.stringify(r.body).includes('Which branch is checked out')));
    assert.equal(said['exec office-01 --'], `${(await run('uname', ['-s'])).stdout}`);
    assert.equal(said['exec tags:gpu -c'].trim(), '0', 'the lent folder was empty then');
    assert.equal(said['read office-01 notes/today.txt'], 'hello, office\n');
    assert.match(said['list office-01 notes'], /today\.txt/);
    assert.equal(readFileSync(join(lent, 'notes/today.txt'), 'utf8'), 'hello, office\n');
  });

  // The table of outcomes names the commands' exit codes only for exec; the outcome is in the JSON.
  test('a_refusal_is_told_apart_from_what_never_began', async () => {
    const outcome = async (body) => (await (await mesh.home.fetch('/api/v1/tools/invoke', { method: 'POST', body: JSON.stringify(body) })).json()).outcome;
    const page = readFileSync(new URL(`../../${PAGE}`, import.meta.url), 'utf8');
    for (const seen of [await outcome({ node: 'office-01', tool: 'browser', args: {} }), await outcome({ node: 'nowhere', tool: 'read', args: { path: 'x' } })]) {
      assert.ok(page.includes(`| \`${seen}\` |`), `the page lists \`${seen}\``);
    }
    assert.deepEqual([await outcome({ node: 'office-01', tool: 'browser', args: {} }), await outcome({ node: 'nowhere', tool: 'read', args: { path: 'x' } })], ['not_dispatched', 'not_dispatched']);
  });
});
