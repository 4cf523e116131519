// Runs inside a network namespace and makes HTTP requests for a test outside: one JSON object a line,
// `{id, url, init}` in, `{id, status, text, broken, firstMs, gaps, gapMs, ms}` out. `gaps` are the silences before
// the pieces of the body, `gapMs` is the longest.
import { createInterface } from 'node:readline';

async function ask({ id, url, init }) {
  const began = performance.now();
  const answer = { id, status: 0, text: '', broken: null, firstMs: null, gaps: [], gapMs: 0 };
  const decoder = new TextDecoder();
  try {
    const response = await fetch(url, init);
    answer.status = response.status;
    answer.headers = Object.fromEntries(response.headers);
    let last = performance.now();
    for await (const piece of response.body ?? []) {
      const now = performance.now();
      answer.firstMs ??= now - began;
      answer.gaps.push(Math.round(now - last));
      last = now;
      answer.text += decoder.decode(piece, { stream: true });
    }
  } catch (error) {
    answer.broken = String(error.cause ?? error);
  }
  answer.gapMs = Math.max(0, ...answer.gaps);
  answer.ms = performance.now() - began;
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

createInterface({ input: process.stdin }).on('line', (line) => ask(JSON.parse(line)));
