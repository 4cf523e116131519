// Every configuration shown in the docs is one the program accepts, and every command shown exists.
import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { describe, test } from 'node:test';
import { blocks } from './support/blocks.mjs';
import { run } from './support/child.mjs';
import { binary, folder, missing, root } from './support/places.mjs';
import { environment } from './support/sidecar.mjs';

const PAGES = ['README.md', 'BOOTSTRAP.md', 'CONTRIBUTING.md', 'docs/operations.md', 'docs/agents-and-tools.md'].filter((name) => existsSync(join(root, name)));

/** JSON with comments and trailing commas, as OpenClaw's files may have. */
function parse(text) {
  let out = '';
  for (let i = 0; i < text.length; i += 1) {
    if (text[i] === '"') {
      const from = i;
      for (i += 1; text[i] !== '"'; i += 1) if (text[i] === '\\') i += 1;
      out += text.slice(from, i + 1);
    } else if (text.startsWith('//', i)) {
      i = text.indexOf('\n', i) - 1;
      if (i < 0) break;
    } else out += text[i];
  }
  return JSON.parse(out.replaceAll(/,(\s*[}\]])/g, '$1'));
}

/** The node's own configuration inside what a block shows, if it shows one. */
function configOf(value) {
  const nested = value?.plugins?.entries?.clawmatrix?.config;
  if (nested) return nested;
  return value?.nodeId ? value : null;
}

/** Puts a certificate of our own in place of the reader's, where one is named. */
async function standIns(config, dir) {
  const peers = (config.peers ?? []).filter((peer) => peer.tlsCa);
  if (!config.tls && !peers.length) return;
  const [cert, key] = [join(dir, 'cert.pem'), join(dir, 'key.pem')];
  const made = await run('openssl', ['req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=cloud.example.com']);
  assert.equal(made.code, 0, made.output);
  if (config.tls) {
    assert.deepEqual(Object.keys(config.tls), ['cert', 'key']);
    config.tls = { cert, key };
  }
  for (const peer of peers) peer.tlsCa = cert;
}

describe('the docs', { skip: missing.binary(), timeout: 120_000 }, () => {
  test('there_are_docs_to_check', () => assert.ok(PAGES.includes('README.md')));

  test('links_between_pages_lead_somewhere', () => {
    for (const page of [...PAGES, 'CHANGELOG.md', 'docs/decisions/README.md']) {
      for (const [, target] of readFileSync(join(root, page), 'utf8').matchAll(/\]\((?!https?:)([^)#]+)[^)]*\)/g)) {
        assert.ok(existsSync(join(root, dirname(page), target)), `${page} links to ${target}`);
      }
    }
  });

  test('decisions_are_numbered_listed_and_cited_as_they_are', () => {
    const pages = readdirSync(join(root, 'docs/decisions')).filter((name) => name !== 'README.md').sort();
    const index = readFileSync(join(root, 'docs/decisions/README.md'), 'utf8');
    for (const [i, name] of pages.entries()) {
      const number = String(i + 1).padStart(4, '0');
      assert.match(name, new RegExp(`^${number}-[a-z0-9-]+\\.md$`));
      const title = readFileSync(join(root, 'docs/decisions', name), 'utf8').split('\n')[0].replace('# ', '');
      assert.ok(title.startsWith(number), `${name} begins with its number`);
      assert.ok(index.includes(`[${title}](${name})`), `the index lists ${title}`);
    }
    for (const [, number] of readFileSync(join(root, 'docs/protocol.md'), 'utf8').matchAll(/decisions (\d{4})/g)) {
      assert.ok(pages.some((name) => name.startsWith(number)), `no decision ${number}`);
    }
  });

  for (const page of PAGES) {
    for (const block of blocks(page)) {
      if (/^json5?c?$/.test(block.language)) {
        test(`${page}:${block.line} is a configuration that is accepted`, async (t) => {
          const value = parse(block.text);
          const config = configOf(value);
          // The doctor reads the file of a node without OpenClaw, where providers cannot be resolved.
          const underOpenclaw = config !== value;
          if (!config) return t.diagnostic('no configuration of a node; it parses');
          const dir = folder('docs');
          const file = join(dir, 'node.json');
          // A secret in the docs stands for the reader's own: the one shown must be refused.
          const shown = { ...config };
          if (typeof shown.secret === 'string') shown.secret = 'rQ7-docs-check-0a8Zk3mW';
          if (shown.secretFile) {
            delete shown.secretFile;
            shown.secret = 'rQ7-docs-check-0a8Zk3mW';
          }
          await standIns(shown, dir);
          writeFileSync(file, JSON.stringify(shown), { mode: 0o600 });
          const env = environment();
          for (const name of block.text.matchAll(/"apiKeyEnv"\s*:\s*"(\w+)"|\$\{(\w+)\}/g)) env[name[1] ?? name[2]] = 'stand-in-of-good-length';
          const done = await run(binary, ['--state-dir', join(dir, 'state'), '--json', 'doctor', '--config', file], { env });
          const findings = JSON.parse(done.stdout);
          const wrong = (findings.findings ?? findings).filter((f) => f.subject === 'config' && f.grade === 'error' && !(underOpenclaw && /runs without OpenClaw/.test(f.message)));
          assert.deepEqual(wrong, [], block.text);
        });
      }
      if (/^(sh|bash|shell|console)$/.test(block.language)) {
        test(`${page}:${block.line} shows commands that exist`, async () => {
          const lines = block.text.replaceAll(/\\\n\s*/g, ' ').split('\n').map((line) => line.replace(/^\s*\$ /, '').trim());
          for (const line of lines) {
            if (!line || line.startsWith('#')) continue;
            const words = line.split(/\s+/).map((w) => w.replaceAll(/^["']|["']$/g, ''));
            const at = words.findIndex((w) => w === 'clawmatrix' || w.endsWith('/clawmatrix'));
            const verb = words.slice(at + 1).find((w) => !w.startsWith('-'));
            if (at >= 0 && verb && words[at - 1] !== 'install' && !['enable', 'disable', 'reload', 'restart', 'start', 'stop', 'status', '-u', 'inspect', 'uninstall'].includes(words[at - 1]) && verb !== 'path' && /^[a-z]+$/.test(verb)) {
              const after = words.slice(words.indexOf(verb, at + 1) + 1);
              let help = await run(binary, [verb, '--help']);
              assert.equal(help.code, 0, `no verb \`${verb}\` in: ${line}`);
              if (/^[a-z]+$/.test(after[0] ?? '')) {
                const sub = await run(binary, [verb, after[0], '--help']);
                if (sub.code === 0) help = sub;
              }
              for (const flag of words.slice(at + 1).filter((w) => /^--[a-z]/.test(w))) assert.ok(help.stdout.includes(flag.split('=')[0]), `\`${verb}\` has no ${flag}: ${line}`);
            }
            if (words[0]?.startsWith('scripts/')) assert.ok(existsSync(join(root, words[0])), `no ${words[0]}`);
            if (words.includes('plugins') && words.includes('install') && words.some((w) => w.includes('clawmatrix'))) {
              for (const flag of ['--force', '--accept-capabilities']) assert.ok(words.includes(flag), `without ${flag}: ${line}`);
            }
          }
        });
      }
    }
  }
});
