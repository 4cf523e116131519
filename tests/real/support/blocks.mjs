// The fenced blocks of the docs, so that tests run what readers are told.
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { root } from './places.mjs';

/** The fenced blocks of a page: `{language, role, text, line}`; `role` is what follows the language. */
export function blocks(page) {
  const found = [];
  let open = null;
  for (const [i, line] of readFileSync(join(root, page), 'utf8').split('\n').entries()) {
    const fence = line.match(/^(\s*)```(\S*)\s*(.*)$/);
    if (!fence) open?.text.push(line.startsWith(open.indent) ? line.slice(open.indent.length) : line);
    else if (open) {
      found.push({ ...open, text: open.text.join('\n') });
      open = null;
    } else open = { indent: fence[1], language: fence[2], role: fence[3].trim(), text: [], line: i + 1 };
  }
  return found;
}

/** The texts of the blocks of `page` with this language and role, in order; there must be one. */
export function tagged(page, language, role) {
  const found = blocks(page).filter((b) => b.language === language && b.role === role).map((b) => b.text);
  assert.ok(found.length > 0, `${page} has no block \`${language} ${role}\``);
  return found;
}
