// Finds the sidecar's executable. Nothing is downloaded: it came with the plugin or the operator
// named one.

import { accessSync, constants, statSync } from 'node:fs';
import { createRequire } from 'node:module';
import { homedir } from 'node:os';
import { isAbsolute, join, resolve } from 'node:path';

const SUPPORTED = ['linux-x64', 'linux-arm64', 'darwin-x64', 'darwin-arm64'];

/**
 * @typedef {object} Where
 * @property {string} rootDir folder of the plugin
 * @property {unknown} [sidecarPath] the operator's own binary, wins when set
 * @property {string} [platform]
 * @property {string} [arch]
 * @property {(name: string) => string} [resolvePackage]
 */

/**
 * Path of the executable.
 * @param {Where} where
 * @returns {string}
 * @throws {Error} with a text for the operator, naming the ways out
 */
export function findBinary(where) {
  const target = `${where.platform ?? process.platform}-${where.arch ?? process.arch}`;
  if (where.sidecarPath !== undefined && where.sidecarPath !== null) {
    return checkOwn(where.sidecarPath);
  }
  const candidates = [
    packaged(target, where.resolvePackage ?? createRequire(join(where.rootDir, 'index.js')).resolve),
    join(where.rootDir, 'bin', target, 'clawmatrix'),
  ];
  for (const path of candidates) {
    if (path && exists(path)) {
      if (!executable(path)) {
        throw new Error(`the sidecar ${path} is not executable; run: chmod +x '${path}'`);
      }
      return path;
    }
  }
  const ways =
    'build it with `cargo build --release` and set plugins.entries.clawmatrix.config.sidecarPath to the binary';
  if (target.startsWith('win32')) {
    throw new Error(`clawmatrix does not run on ${target}; run OpenClaw inside WSL2`);
  }
  if (!SUPPORTED.includes(target)) {
    throw new Error(`clawmatrix has no sidecar for ${target} (it has ${SUPPORTED.join(', ')}); ${ways}`);
  }
  throw new Error(`this copy of the plugin has no sidecar for ${target}; install a package built with it, or ${ways}`);
}

/** @param {unknown} value */
function checkOwn(value) {
  if (typeof value !== 'string' || value === '') {
    throw new Error('sidecarPath must be the path of the clawmatrix binary');
  }
  const path = value.startsWith('~/') ? join(homedir(), value.slice(2)) : isAbsolute(value) ? value : resolve(value);
  if (!exists(path)) throw new Error(`sidecarPath: ${path} does not exist`);
  if (!executable(path)) throw new Error(`sidecarPath: ${path} is not executable`);
  return path;
}

/**
 * @param {string} target
 * @param {(name: string) => string} resolvePackage
 */
function packaged(target, resolvePackage) {
  try {
    return resolvePackage(`@clawmatrix/${target}/bin/clawmatrix`);
  } catch {
    return undefined; // not installed: the bundled one is next
  }
}

/** @param {string} path */
function exists(path) {
  try {
    return statSync(path).isFile();
  } catch {
    return false;
  }
}

/** @param {string} path */
function executable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
