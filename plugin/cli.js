// `openclaw clawmatrix <verb>`: the sidecar's own commands, run against the gateway's node.

import { spawn } from 'node:child_process';

import { findBinary } from './binary.js';
import { stateDirFromEnv, stateFolder } from './client.js';
import { NOT_CONFIGURED, isConfigured } from './service.js';
import { sidecarEnv } from './sidecar.js';

/** Variables a command needs besides the sidecar's: the terminal's, and where OpenClaw is. */
const COMMAND_ENV = [
  'TERM', 'COLORTERM', 'NO_COLOR', 'FORCE_COLOR', 'COLUMNS', 'LINES', 'PAGER', 'EDITOR',
  'OPENCLAW_STATE_DIR', 'OPENCLAW_CONFIG_PATH', 'OPENCLAW_PROFILE',
];
/** OpenClaw's options that may stand before the command and take a value. */
const ROOT_OPTIONS = ['--profile', '--log-level', '--container'];

export const DESCRIPTOR = {
  name: 'clawmatrix',
  description: 'ClawMatrix mesh of OpenClaw gateways',
  hasSubcommands: true,
};

/**
 * @param {import('./types.js').PluginApi} api
 * @param {import('./types.js').Command} program
 */
export function registerCommands(api, program) {
  program
    .command(DESCRIPTOR.name)
    .description(DESCRIPTOR.description)
    .argument('[verb...]', 'as of the clawmatrix binary; `help` lists them')
    .allowUnknownOption()
    .allowExcessArguments()
    .helpOption(false)
    .action(async () => {
      process.exitCode = await runVerb(api, verbArgs(process.argv.slice(2)));
    });
}

/**
 * What stands after our command's name, untouched: Commander would take options that OpenClaw knows too.
 * @param {string[]} argv
 */
export function verbArgs(argv) {
  for (let at = 0; at < argv.length; at += 1) {
    if (ROOT_OPTIONS.includes(argv[at])) at += 1;
    else if (argv[at] === DESCRIPTOR.name) return argv.slice(at + 1);
  }
  return [];
}

/**
 * @param {import('./types.js').PluginApi} api
 * @param {string[]} args
 * @returns {Promise<number>} exit code
 */
async function runVerb(api, args) {
  /** @type {string} */
  let binary;
  const config = api.pluginConfig ?? api.config?.plugins?.entries?.clawmatrix?.config;
  try {
    binary = findBinary({ rootDir: api.rootDir ?? import.meta.dirname, sidecarPath: config?.sidecarPath });
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    return 1;
  }
  if (args[0] === 'path') {
    console.log(binary);
    return 0;
  }
  if (args.length === 0) args = ['--help'];
  const writes = args[0] === 'setup' && !args.includes('--help') && !args.includes('-h');
  if (writes && isConfigured(config) && !args.includes('--force')) {
    console.error('error: this node is configured already');
    console.error('  hint: change one setting with `openclaw config set plugins.entries.clawmatrix.config.<key>`, or start over with `--force`');
    return 1;
  }
  const { code, output } = await run(binary, writes ? [...args, '--emit'] : args, writes);
  if (writes && code === 0) return writeConfig(output);
  if (code !== 0 && !isConfigured(config)) console.error(NOT_CONFIGURED);
  return code;
}

/**
 * @param {string} binary
 * @param {string[]} args
 * @param {boolean} capture its standard output instead of passing it on
 * @returns {Promise<{ code: number, output: string }>}
 */
function run(binary, args, capture) {
  const env = {
    ...sidecarEnv(process.env, COMMAND_ENV),
    CLAWMATRIX_STATE_DIR: process.env.CLAWMATRIX_STATE_DIR ?? stateFolder(stateDirFromEnv()),
  };
  return new Promise((resolve) => {
    // The terminal sends Ctrl-C to both of us: the command decides what it means, we wait for it.
    const ignore = () => {};
    process.on('SIGINT', ignore);
    const child = spawn(binary, args, { stdio: ['inherit', capture ? 'pipe' : 'inherit', 'inherit'], env });
    const output = /** @type {string[]} */ ([]);
    child.stdout?.setEncoding('utf8').on('data', (part) => output.push(part));
    const done = (/** @type {number} */ code) => {
      process.off('SIGINT', ignore);
      resolve({ code, output: output.join('') });
    };
    child.on('error', (error) => {
      console.error(`${binary} could not be started: ${error.message}`);
      done(1);
    });
    child.on('close', (code, signal) => done(code ?? (signal === 'SIGINT' ? 130 : 1)));
  });
}

/**
 * Puts settings the binary made into OpenClaw's configuration, by OpenClaw's own writer, which a running
 * gateway notices.
 * @param {string} output one JSON object: keys of `plugins.entries.clawmatrix.config`
 * @returns {Promise<number>} exit code
 */
async function writeConfig(output) {
  try {
    const settings = JSON.parse(output);
    const name = 'openclaw/plugin-sdk/config-mutation';
    const { mutateConfigFile } = await import(name);
    await mutateConfigFile({
      afterWrite: { mode: 'auto' },
      mutate(/** @type {import('./types.js').OpenClawConfig} */ draft) {
        const plugins = (draft.plugins ??= {});
        const entry = ((plugins.entries ??= {}).clawmatrix ??= {});
        const config = { ...entry.config };
        if (settings.secret || settings.secretFile) {
          delete config.secret; // only one of the two may be there
          delete config.secretFile;
        }
        entry.config = { ...config, ...settings };
      },
    });
    console.error('Written to OpenClaw\'s configuration; a running gateway applies it by itself.');
    return 0;
  } catch (error) {
    console.error(`OpenClaw's configuration was not changed: ${error instanceof Error ? error.message : error}`);
    return 1;
  }
}
