// count.mjs LOG EXIT_CODE: what the test runners in this log counted, as JSON on one line:
// {passed, failed, skipped, reasons[]}. A step without a summary we know is one check.
import { readFileSync } from 'node:fs';

const log = readFileSync(process.argv[2], 'utf8').replaceAll(/\u001b\[[0-9;]*m/g, '');
const ok = process.argv[3] === '0';
let passed = 0;
let failed = 0;
let skipped = 0;
let known = false;
const number = (text, pattern) => Number(text.match(pattern)?.[1] ?? 0);

// nextest: `Summary [ 1.2s] 10 tests run: 8 passed (1 slow), 1 failed, 1 timed out, 2 skipped`
for (const [line] of log.matchAll(/^ *Summary \[.*$/gm)) {
  known = true;
  passed += number(line, /(\d+) passed/);
  failed += number(line, /(\d+) failed/) + number(line, /(\d+) timed out/) + number(line, /(\d+) exec failed/);
  skipped += number(line, /(\d+) skipped/);
}
// cargo test: `test result: ok. 3 passed; 0 failed; 0 ignored; …`
for (const m of log.matchAll(/^test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored/gm)) {
  known = true;
  passed += Number(m[1]);
  failed += Number(m[2]);
  skipped += Number(m[3]);
}
// node --test: `ℹ pass 3` (spec) or `# pass 3` (tap); a describe block is no test
for (const m of log.matchAll(/^(?:ℹ|#) (pass|fail|cancelled|skipped|todo) (\d+)$/gm)) {
  known = true;
  if (m[1] === 'pass') passed += Number(m[2]);
  else if (m[1] === 'fail' || m[1] === 'cancelled') failed += Number(m[2]);
  else skipped += Number(m[2]);
}
// our own scripts: `N passed, N failed`
for (const m of log.matchAll(/^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$/gm)) {
  known = true;
  passed += Number(m[1]);
  failed += Number(m[2]);
  skipped += Number(m[3] ?? 0);
}
const reasons = [...log.matchAll(/^\s*﹣ (.*)$/gm)].map((m) => m[1]).filter((line, i, all) => all.indexOf(line) === i);
// A suite that is skipped whole is no test to node's summary, but it is here.
skipped = Math.max(skipped, reasons.length);
if (reasons.length > 0) known = true;
// A step that fails beside its tests is a failure.
if (!known) ok ? (passed += 1) : (failed += 1);
else if (!ok && failed === 0) failed += 1;
console.log(JSON.stringify({ passed, failed, skipped, reasons }));
