// A scripted OpenAI-style provider: what a lending node calls in tests and in scripts/demo.
//
// What it does is written into the prompt, so that the same script works through any client:
//   [[tool:NAME {json}]]  call that tool, then say what it answered
//   [[reason TEXT]]       stream reasoning before the answer
//   [[slow MS]]           that long before each piece of the answer
//   [[hang]]              take the request and say nothing
//   [[hang-mid]]          two pieces, then silence
//   [[cut]]               two pieces, then the connection is destroyed
//   [[status N]]          answer with that status and an OpenAI-style error
//   [[big BYTES]]         one event of that size, written in small pieces
//   [[garbage]]           200, text/event-stream, and bytes that are no events
//   [[401-once]]          refuse the key the first time this prompt is seen
// Without any of these it echoes the prompt word by word, with usage.
import { createHash } from 'node:crypto';
import { EventEmitter, once } from 'node:events';
import { createServer } from 'node:http';
import { pathToFileURL } from 'node:url';

const flat = (m) => (typeof m.content === 'string' ? m.content : (m.content ?? []).map((c) => c.text ?? '').join(''));
const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** The messages of the turn at hand: everything after the last plain answer. */
function turnOf(messages) {
  const from = messages.findLastIndex((m) => m.role === 'assistant' && !m.tool_calls?.length) + 1;
  return messages.slice(from);
}

/** Where each directive starts, or null. */
function directive(text, name) {
  const m = text.match(new RegExp(`\\[\\[${name}(?: ([^\\]]*))?\\]\\]`));
  return m && { arg: m[1] ?? '' };
}

export class Provider extends EventEmitter {
  /** Every request: `{method, path, headers, body, rawSha256, at, goneAt, endedAt}`; `goneAt` when the client left early. */
  requests = [];
  /** The key it accepts; anything else is answered 401. Null accepts all. */
  key;
  /** What it says to everything, instead of an echo. */
  script = null;
  /** How long before each piece of an answer, ms. */
  pace = 0;
  #server;
  #seen = new Set();
  #sockets = new Set();

  static async start({ key = null, port = 0, host = '127.0.0.1' } = {}) {
    const p = new Provider();
    p.setMaxListeners(0); // one for each request that a test waits for
    p.key = key;
    p.#server = createServer((req, res) => p.#serve(req, res).catch((error) => res.destroy(error)));
    p.#server.on('connection', (s) => {
      p.#sockets.add(s);
      s.on('close', () => p.#sockets.delete(s));
    });
    p.#server.listen(port, host);
    await once(p.#server, 'listening');
    return p;
  }

  get port() {
    return this.#server.address().port;
  }

  get baseUrl() {
    return `http://127.0.0.1:${this.port}/v1`;
  }

  /** The newest request that satisfies `test`, waiting for it if need be. */
  async request(test = () => true, timeoutMs = 10_000) {
    const deadline = Date.now() + timeoutMs;
    for (;;) {
      const hit = this.requests.findLast(test);
      if (hit) return hit;
      if (Date.now() > deadline) throw new Error(`the provider saw no such request within ${timeoutMs} ms`);
      await Promise.race([once(this, 'request'), sleep(100)]);
    }
  }

  /** When the client of `record` went away (ms of Date.now()), waiting for it if need be. */
  async gone(record, timeoutMs = 10_000) {
    const deadline = Date.now() + timeoutMs;
    while (!record.goneAt) {
      if (Date.now() > deadline) throw new Error(`the provider was not stopped within ${timeoutMs} ms`);
      await Promise.race([once(this, 'gone'), sleep(50)]);
    }
    return record.goneAt;
  }

  async stop() {
    this.#server.close();
    for (const s of this.#sockets) s.destroy();
    this.#server.closeAllConnections();
  }

  async #serve(req, res) {
    const record = { method: req.method, path: req.url, headers: req.headers, at: Date.now() };
    res.on('close', () => {
      if (res.writableFinished) record.endedAt = Date.now();
      else {
        record.goneAt = Date.now();
        this.emit('gone', record);
      }
    });
    const parts = [];
    for await (const part of req) parts.push(part);
    const raw = Buffer.concat(parts);
    record.rawBytes = raw.length;
    record.rawSha256 = createHash('sha256').update(raw).digest('hex');
    try {
      record.body = raw.length ? JSON.parse(raw.toString()) : undefined;
    } catch {
      record.body = undefined;
    }
    this.requests.push(record);
    this.emit('request', record);

    const sent = req.headers.authorization ?? (req.headers['x-api-key'] ? `Bearer ${req.headers['x-api-key']}` : '');
    if (this.key && sent !== `Bearer ${this.key}`) return this.#error(res, 401, 'Incorrect API key provided.', 'invalid_api_key');
    const path = req.url.split('?')[0];
    if (req.method === 'GET' && path.endsWith('/models')) {
      return this.#json(res, 200, { object: 'list', data: [{ id: 'mock-1', object: 'model', created: 1, owned_by: 'mock' }] });
    }
    if (req.method === 'POST' && path.endsWith('/chat/completions')) return this.#chat(record, res);
    if (req.method === 'POST' && path.endsWith('/embeddings')) return this.#embeddings(record, res);
    if (req.method === 'POST' && path.endsWith('/completions')) return this.#completion(record, res);
    if (req.method === 'POST' && path.endsWith('/responses')) return this.#responses(record, res);
    if (req.method === 'POST' && path.endsWith('/messages')) return this.#messages(record, res);
    return this.#error(res, 404, `no such route: ${path}`, 'not_found');
  }

  #json(res, status, body, headers = {}) {
    const text = JSON.stringify(body);
    res.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(text), 'x-request-id': 'req_mock', ...headers });
    res.end(text);
  }

  #error(res, status, message, code = null) {
    const type = status === 429 ? 'rate_limit_error' : status >= 500 ? 'server_error' : 'invalid_request_error';
    this.#json(res, status, { error: { message, type, code, param: null } }, status === 429 ? { 'retry-after': '2' } : {});
  }

  async #chat(record, res) {
    const body = record.body;
    if (!body || !Array.isArray(body.messages)) return this.#error(res, 400, 'messages: not a list', 'invalid_request');
    const turn = turnOf(body.messages);
    const text = turn.filter((m) => m.role === 'user').map(flat).join('\n');
    const images = turn.flatMap((m) => (Array.isArray(m.content) ? m.content : [])).filter((c) => c.type === 'image_url');
    const toolResults = turn.filter((m) => m.role === 'tool').map(flat);

    const status = directive(text, 'status');
    if (status) return this.#error(res, Number(status.arg), `scripted ${status.arg}`, `scripted_${status.arg}`);
    if (directive(text, '401-once') && !this.#seen.has(text)) {
      this.#seen.add(text);
      return this.#error(res, 401, 'Incorrect API key provided.', 'invalid_api_key');
    }
    if (directive(text, 'hang')) return undefined;

    const pace = Number(directive(text, 'slow')?.arg ?? this.pace);
    const answer = this.#answer(flat(turn.find((m) => m.role === 'user') ?? {}), images, toolResults);
    const calls = toolResults.length ? [] : [...text.matchAll(/\[\[tool:(\w+) (\{.*?\})\]\]/g)].map((m, i) => ({ index: i, id: `call_${i + 1}`, type: 'function', function: { name: m[1], arguments: m[2] } }));
    const reason = directive(text, 'reason')?.arg;
    const usage = { prompt_tokens: 11, completion_tokens: 7, total_tokens: 18, prompt_tokens_details: { cached_tokens: 3 } };
    const head = { id: 'chatcmpl-mock', created: 1, model: body.model, system_fingerprint: 'fp_mock' };

    if (!body.stream) {
      if (pace) await sleep(pace);
      const message = calls.length
        ? { role: 'assistant', content: null, tool_calls: calls.map(({ index: _, ...call }) => call) }
        : { role: 'assistant', content: answer, ...(reason ? { reasoning_content: reason } : {}) };
      return this.#json(res, 200, { ...head, object: 'chat.completion', choices: [{ index: 0, message, finish_reason: calls.length ? 'tool_calls' : 'stop' }], usage });
    }

    res.writeHead(200, { 'content-type': 'text/event-stream', 'cache-control': 'no-cache', 'x-request-id': 'req_mock' });
    if (directive(text, 'garbage')) {
      res.write('this is no event\n{"neither": is this\u0000');
      res.write(Buffer.from([0xff, 0xfe, 0x0a, 0x0a]));
      return res.end();
    }
    const send = (delta, finish = null, extra = {}) =>
      res.write(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', choices: [{ index: 0, delta, finish_reason: finish }], ...extra })}\n\n`);
    const pause = async () => {
      if (pace) await sleep(pace);
    };

    send({ role: 'assistant', content: '' });
    if (reason) for (const word of reason.split(/(?<= )/)) { await pause(); send({ reasoning_content: word }); }
    if (calls.length) {
      for (const call of calls) {
        const half = Math.floor(call.function.arguments.length / 2);
        send({ tool_calls: [{ ...call, function: { name: call.function.name, arguments: call.function.arguments.slice(0, half) } }] });
        await pause();
        send({ tool_calls: [{ index: call.index, function: { arguments: call.function.arguments.slice(half) } }] });
      }
      send({}, 'tool_calls');
    } else {
      const big = directive(text, 'big');
      if (big) await this.#bigEvent(res, head, Number(big.arg));
      const words = answer.split(/(?<= )/);
      for (const [i, word] of words.entries()) {
        if (res.destroyed) return undefined;
        await pause();
        send({ content: word });
        if (i === 1 && directive(text, 'cut')) {
          await sleep(20);
          return res.socket?.destroy();
        }
        if (i === 1 && directive(text, 'hang-mid')) return undefined;
      }
      send({}, 'stop');
    }
    if (body.stream_options?.include_usage) res.write(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', choices: [], usage })}\n\n`);
    res.end('data: [DONE]\n\n');
    return undefined;
  }

  /** What it says: the tool results, the images it saw, or the human's words back. */
  #answer(text, images, toolResults) {
    if (toolResults.length) return `tool said: ${toolResults.join(' | ')}`;
    if (images.length) {
      const sums = images.map((i) => createHash('sha256').update(i.image_url.url).digest('hex').slice(0, 16));
      return `images: ${images.length} ${sums.join(' ')}`;
    }
    const say = directive(text, 'say');
    if (say) return say.arg;
    if (this.script) return this.script;
    // OpenClaw puts the time before the human's words and notes of its own after them.
    const words = text.replace(/^\[[^\]\n]* UTC\] /, '').split('\n\n')[0].replaceAll(/\[\[[^\]]*\]\]/g, '');
    return `echo: ${words.trim().slice(0, 400)} (end of echo)`;
  }

  /** One event of `bytes` characters of content in pieces of 1,460 bytes. */
  async #bigEvent(res, head, bytes) {
    const event = Buffer.from(`data: ${JSON.stringify({ ...head, object: 'chat.completion.chunk', choices: [{ index: 0, delta: { content: 'x'.repeat(bytes) }, finish_reason: null }] })}\n\n`);
    for (let at = 0; at < event.length && !res.destroyed; at += 1460) {
      if (!res.write(event.subarray(at, at + 1460))) await new Promise((go) => this.#writable(res, go));
    }
  }

  /** Calls `go` once `res` takes more, or is gone. */
  #writable(res, go) {
    const done = () => {
      res.off('drain', done).off('close', done);
      go();
    };
    res.on('drain', done).on('close', done);
  }

  #embeddings(record, res) {
    const input = [].concat(record.body?.input ?? []);
    this.#json(res, 200, {
      object: 'list', model: record.body?.model, usage: { prompt_tokens: 2, total_tokens: 2 },
      data: input.map((_, index) => ({ object: 'embedding', index, embedding: record.body?.encoding_format === 'base64' ? Buffer.from(new Float32Array([0.25, -0.5, 1]).buffer).toString('base64') : [0.25, -0.5, 1] })),
    });
  }

  #completion(record, res) {
    this.#json(res, 200, { id: 'cmpl-mock', object: 'text_completion', created: 1, model: record.body?.model, choices: [{ index: 0, text: ` and ${record.body?.prompt}`, finish_reason: 'stop', logprobs: null }], usage: { prompt_tokens: 1, completion_tokens: 2, total_tokens: 3 } });
  }

  #responses(record, res) {
    const model = record.body?.model;
    const item = { id: 'msg_mock', type: 'message', status: 'completed', role: 'assistant', content: [{ type: 'output_text', text: 'echo: responses', annotations: [] }] };
    const whole = { id: 'resp_mock', object: 'response', created_at: 1, status: 'completed', model, output: [item], parallel_tool_calls: true, tools: [], tool_choice: 'auto', usage: { input_tokens: 4, input_tokens_details: { cached_tokens: 0 }, output_tokens: 2, output_tokens_details: { reasoning_tokens: 0 }, total_tokens: 6 } };
    if (!record.body?.stream) return this.#json(res, 200, whole);
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    let n = 0;
    const send = (type, data) => res.write(`event: ${type}\ndata: ${JSON.stringify({ type, sequence_number: n++, ...data })}\n\n`);
    send('response.created', { response: { ...whole, status: 'in_progress', output: [] } });
    send('response.output_item.added', { output_index: 0, item: { ...item, content: [], status: 'in_progress' } });
    send('response.content_part.added', { item_id: item.id, output_index: 0, content_index: 0, part: { type: 'output_text', text: '', annotations: [] } });
    send('response.output_text.delta', { item_id: item.id, output_index: 0, content_index: 0, delta: 'echo: ' });
    send('response.output_text.delta', { item_id: item.id, output_index: 0, content_index: 0, delta: 'responses' });
    send('response.output_text.done', { item_id: item.id, output_index: 0, content_index: 0, text: 'echo: responses' });
    send('response.output_item.done', { output_index: 0, item });
    send('response.completed', { response: whole });
    return res.end();
  }

  #messages(record, res) {
    const model = record.body?.model;
    const usage = { input_tokens: 5, output_tokens: 2 };
    if (!record.body?.stream) return this.#json(res, 200, { id: 'msg_mock', type: 'message', role: 'assistant', model, content: [{ type: 'text', text: 'echo: messages' }], stop_reason: 'end_turn', stop_sequence: null, usage });
    res.writeHead(200, { 'content-type': 'text/event-stream' });
    const send = (type, data) => res.write(`event: ${type}\ndata: ${JSON.stringify({ type, ...data })}\n\n`);
    send('message_start', { message: { id: 'msg_mock', type: 'message', role: 'assistant', model, content: [], stop_reason: null, stop_sequence: null, usage: { input_tokens: 5, output_tokens: 0 } } });
    send('content_block_start', { index: 0, content_block: { type: 'text', text: '' } });
    send('content_block_delta', { index: 0, delta: { type: 'text_delta', text: 'echo: ' } });
    send('content_block_delta', { index: 0, delta: { type: 'text_delta', text: 'messages' } });
    send('content_block_stop', { index: 0 });
    send('message_delta', { delta: { stop_reason: 'end_turn', stop_sequence: null }, usage });
    send('message_stop', {});
    return res.end();
  }
}

// `node provider.mjs [port] [key]`: by itself, for scripts.
if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const p = await Provider.start({ port: Number(process.argv[2] ?? 0), key: process.argv[3] ?? null });
  console.log(p.baseUrl);
}
