// Where the tests find what scripts/lib.sh prepared, and the folders they may write to.
import { existsSync, mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { createServer } from 'node:net';
import { homedir, tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export const root = resolve(dirname(fileURLToPath(import.meta.url)), '../../..');
export const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'clawmatrix');

/** The newest folder of the cache that begins with `prefix`. */
const cached = (prefix) => join(cache, (existsSync(cache) ? readdirSync(cache) : []).filter((name) => name.startsWith(prefix)).sort().at(-1) ?? prefix);

/** The sidecar binary under test. */
export const binary = process.env.CLAWMATRIX_BIN || join(process.env.CARGO_TARGET_DIR || join(root, 'target'), 'debug/clawmatrix');
/** The packed plugin, as OpenClaw installs it. */
export const tarball = process.env.CLAWMATRIX_PLUGIN_TGZ;
/** Folder with `node_modules/.bin/{node,openclaw}`. */
export const openclawPrefix = process.env.CLAWMATRIX_OPENCLAW || join(cache, 'openclaw-2026.9.6');
/** Folder with the official `openai` package of npm. */
export const sdkNode = process.env.CLAWMATRIX_SDK_NODE || cached('sdk-node-');
/** Python with the official `openai` package of PyPI. */
export const sdkPython = process.env.CLAWMATRIX_SDK_PYTHON || join(cached('sdk-python-'), 'bin/python');

/** A reason to skip what needs `what`, or false. */
export const missing = {
  binary: () => !existsSync(binary) && `no sidecar at ${binary}`,
  openclaw: () => !existsSync(join(openclawPrefix, 'node_modules/.bin/openclaw')) && `no OpenClaw at ${openclawPrefix}`,
  tarball: () => !(tarball && existsSync(tarball)) && 'no packed plugin (CLAWMATRIX_PLUGIN_TGZ)',
  sdkNode: () => !existsSync(join(sdkNode, 'node_modules/openai')) && `no openai package at ${sdkNode}`,
  sdkPython: () => !existsSync(sdkPython) && `no Python with openai at ${sdkPython}`,
};

/** An own folder, removed when the process ends (kept with CLAWMATRIX_TEST_KEEP=1). */
export function folder(name) {
  const dir = mkdtempSync(join(tmpdir(), `cm-${name}-`));
  folders.push(dir);
  return dir;
}
const folders = [];
process.on('exit', () => {
  if (process.env.CLAWMATRIX_TEST_KEEP) return;
  for (const dir of folders) rmSync(dir, { recursive: true, force: true, maxRetries: 3 });
});

/** A port that was free a moment ago. */
export async function freePort() {
  const s = createServer();
  await new Promise((ok, no) => s.once('error', no).listen(0, '127.0.0.1', ok));
  const { port } = s.address();
  await new Promise((ok) => s.close(ok));
  return port;
}

/** What waiting longer cannot mend. */
export class Hopeless extends Error {}

/** Waits until `look` answers something true, and answers it; throws after `ms`, or at once what is {@link Hopeless}. */
export async function until(what, ms, look) {
  const deadline = Date.now() + ms;
  let last;
  for (;;) {
    try {
      const hit = await look();
      if (hit) return hit;
      last = undefined;
    } catch (error) {
      if (error instanceof Hopeless) throw error;
      last = error;
    }
    if (Date.now() > deadline) throw new Error(`waited ${ms} ms in vain for ${what}`, { cause: last });
    await new Promise((done) => setTimeout(done, 25));
  }
}

/** Processes whose program or working folder lies beneath `dir`: nothing a test started may be among them at its end. */
export function processesUnder(dir) {
  const found = [];
  for (const pid of readdirSync('/proc').filter((n) => /^\d+$/.test(n))) {
    try {
      const exe = readlinkSync(`/proc/${pid}/exe`);
      if (exe.startsWith(`${dir}/`)) found.push({ pid: Number(pid), exe });
    } catch {
      // gone, or not ours
    }
  }
  return found;
}
