// The official openai SDK of npm against home's /v1: what an agent's client sees of a model that is
// lent by another node must be what it sees of a local one.
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { createHash } from 'node:crypto';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { run } from './support/child.mjs';
import { pair, readEvents } from './support/mesh.mjs';
import { missing, root, sdkNode, sdkPython } from './support/places.mjs';

const skip = missing.binary() || missing.sdkNode();

describe('the openai SDKs', { skip, timeout: 180_000 }, () => {
  let mesh;
  let client;
  let OpenAI;
  before(async () => {
    ({ OpenAI } = createRequire(join(sdkNode, 'package.json'))('openai'));
    mesh = await pair();
    client = new OpenAI({ baseURL: `${mesh.home.url}/v1`, apiKey: mesh.home.token, maxRetries: 0, timeout: 30_000 });
  });
  after(() => mesh?.stop());

  const model = 'office-01/mock-1';
  const ask = (content, more = {}, options = {}) => client.chat.completions.create({ model, messages: [{ role: 'user', content }], ...more }, options);
  const text = (chunks) => chunks.map((c) => c.choices[0]?.delta?.content ?? '').join('');
  async function collect(stream) {
    const chunks = [];
    for await (const chunk of stream) chunks.push(chunk);
    return chunks;
  }

  test('models_are_listed_by_node_and_bare', async () => {
    const ids = (await client.models.list()).data.map((m) => m.id);
    assert.ok(ids.includes('office-01/mock-1'), `${ids}`);
    assert.ok(ids.includes('mock-1'), `${ids}`);
    assert.equal((await client.models.retrieve('office-01/mock-1')).owned_by, 'office-01');
  });

  test('answer_in_one_piece_keeps_usage_and_fingerprint', async () => {
    const answer = await ask('good morning', { seed: 7, logprobs: true });
    assert.equal(answer.choices[0].message.content, 'echo: good morning (end of echo)');
    assert.deepEqual(answer.usage.prompt_tokens_details, { cached_tokens: 3 });
    assert.equal(answer.system_fingerprint, 'fp_mock');
    const seen = mesh.provider.requests.at(-1);
    assert.equal(seen.body.model, 'mock-1', 'the provider is asked for its own name of the model');
    assert.equal(seen.body.seed, 7);
    assert.equal(seen.headers.authorization, 'Bearer sk-office-only', 'the key of the lender, never ours');
  });

  test('everything_but_the_model_reaches_the_provider_byte_for_byte', async () => {
    const body = `{ "messages" : [{"role":"user","content":"caf\\u00e9 \u{1F980}"}],\n\t"vendor_field":{"b":1,"a":[1.0,2e3]}, "model":"office-01/mock-1","temperature":0.10}`;
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body });
    assert.equal(answer.status, 200);
    await answer.text();
    const expected = createHash('sha256').update(body.replace('"office-01/mock-1"', '"mock-1"')).digest('hex');
    assert.equal(mesh.provider.requests.at(-1).rawSha256, expected);
  });

  test('stream_arrives_in_pieces_with_usage', async () => {
    const began = Date.now();
    let first;
    const chunks = [];
    for await (const chunk of await ask('one two three four [[slow 40]]', { stream: true, stream_options: { include_usage: true } })) {
      if (chunk.choices[0]?.delta?.content) first ??= Date.now() - began;
      chunks.push(chunk);
    }
    const total = Date.now() - began;
    assert.equal(text(chunks), 'echo: one two three four (end of echo)');
    assert.equal(chunks.at(-1).usage.total_tokens, 18);
    assert.ok(total - first > 150, `pieces were held back: first after ${first} ms of ${total} ms`);
  });

  test('reasoning_is_kept', async () => {
    const chunks = await collect(await ask('[[reason let me think]] hi', { stream: true }));
    assert.equal(chunks.map((c) => c.choices[0]?.delta?.reasoning_content ?? '').join(''), 'let me think');
  });

  test('tool_calls_are_kept_streamed_and_not', async () => {
    const tools = [{ type: 'function', function: { name: 'weather', parameters: { type: 'object', properties: { city: { type: 'string' } } } } }];
    const prompt = '[[tool:weather {"city":"Turin"}]]';
    const whole = await ask(prompt, { tools, tool_choice: 'auto', parallel_tool_calls: true });
    assert.deepEqual(whole.choices[0].message.tool_calls[0].function, { name: 'weather', arguments: '{"city":"Turin"}' });
    assert.equal(whole.choices[0].finish_reason, 'tool_calls');
    const runner = client.chat.completions.stream({ model, messages: [{ role: 'user', content: prompt }], tools });
    const final = await runner.finalChatCompletion();
    assert.equal(final.choices[0].message.tool_calls[0].function.arguments, '{"city":"Turin"}');
    const answered = await client.chat.completions.create({ model, tools, messages: [{ role: 'user', content: prompt }, final.choices[0].message, { role: 'tool', tool_call_id: 'call_1', content: 'rain' }] });
    assert.equal(answered.choices[0].message.content, 'tool said: rain');
  });

  test('ten_megabyte_image_arrives_whole', async () => {
    const url = `data:image/png;base64,${'QUJD'.repeat(2_500_000)}`;
    const answer = await ask([{ type: 'text', text: 'what is this' }, { type: 'image_url', image_url: { url } }]);
    const sum = createHash('sha256').update(url).digest('hex').slice(0, 16);
    assert.equal(answer.choices[0].message.content, `images: 1 ${sum}`);
  });

  test('every_other_post_route_goes_through', async () => {
    assert.deepEqual((await client.embeddings.create({ model, input: ['a', 'b'], encoding_format: 'float' })).data[1].embedding, [0.25, -0.5, 1]);
    assert.equal((await client.completions.create({ model, prompt: 'salt' })).choices[0].text, ' and salt');
    assert.equal((await client.responses.create({ model, input: 'x' })).output_text, 'echo: responses');
    const events = await collect(await client.responses.create({ model, input: 'x', stream: true }));
    assert.equal(events.at(-1).type, 'response.completed');
    const anthropic = await mesh.home.fetch('/v1/messages', { method: 'POST', headers: { 'anthropic-version': '2023-06-01' }, body: JSON.stringify({ model, max_tokens: 5, messages: [] }) });
    assert.equal((await anthropic.json()).content[0].text, 'echo: messages');
    assert.equal(mesh.provider.requests.at(-1).headers['anthropic-version'], '2023-06-01');
  });

  test('node_route_takes_the_model_without_its_node', async () => {
    const answer = await mesh.home.fetch('/nodes/office-01/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model: 'mock-1', messages: [{ role: 'user', content: 'hi' }] }) });
    assert.equal((await answer.json()).choices[0].message.content, 'echo: hi (end of echo)');
    assert.match(answer.headers.get('x-clawmatrix-route'), /office-01/);
    assert.ok(answer.headers.get('x-request-id'));
  });

  test('bare_model_name_finds_the_node', async () => {
    const answer = await client.chat.completions.create({ model: 'mock-1', messages: [{ role: 'user', content: 'hi' }] });
    assert.equal(answer.choices[0].message.content, 'echo: hi (end of echo)');
  });

  for (const [name, prompt, more] of [
    ['before_the_first_token', 'never [[hang]]', { stream: true }],
    ['without_streaming', 'never again [[hang]]', {}],
    ['in_mid_stream', 'a b c d e f g h i j k l [[slow 100]]', { stream: true }],
    ['in_a_silent_stream', 'a b c d [[hang-mid]]', { stream: true }],
  ]) {
    test(`client_that_goes_away_stops_the_provider_${name}`, async () => {
      const abort = new AbortController();
      const asked = ask(prompt, more, { signal: abort.signal });
      asked.catch(() => {});
      const record = await mesh.provider.request((r) => r.body?.messages?.[0]?.content === prompt && !r.goneAt);
      if (/mid|silent/.test(name)) {
        const stream = await asked;
        let pieces = 0;
        for await (const chunk of stream) {
          if (chunk.choices[0]?.delta?.content) pieces += 1;
          if (pieces === 2) break; // leaves the stream, which closes the connection
        }
      }
      const left = Date.now();
      abort.abort();
      await asked.catch(() => {});
      const ms = (await mesh.provider.gone(record)) - left;
      console.log(`# provider stopped ${ms} ms after the client left ${name.replaceAll('_', ' ')}`);
      assert.ok(ms < 1000, `the provider was stopped only after ${ms} ms`);
    });
  }

  test('provider_that_cuts_ends_the_stream_without_done', async () => {
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: 'a b c [[cut]]' }] }) });
    const read = await readEvents(answer);
    assert.equal(read.done, false);
    const error = read.events.findLast((e) => e.error)?.error;
    assert.ok(error, `no error event in ${read.text}`);
    assert.ok(error.code && error.message, JSON.stringify(error));
    await assert.rejects(async () => collect(await ask('a b c [[cut]]', { stream: true })), (e) => e instanceof OpenAI.APIError);
  });

  test('provider_429_and_500_reach_the_sdk_as_their_errors', async () => {
    await assert.rejects(ask('[[status 429]]'), (e) => {
      assert.ok(e instanceof OpenAI.RateLimitError, `${e}`);
      assert.ok(e.headers.get('retry-after'));
      return true;
    });
    await assert.rejects(ask('[[status 400]]'), (e) => e instanceof OpenAI.BadRequestError && /scripted 400/.test(e.message));
    await assert.rejects(ask('[[status 500]]'), (e) => e instanceof OpenAI.InternalServerError);
  });

  test('event_of_four_mebibytes_in_small_pieces', async () => {
    const began = Date.now();
    const chunks = await collect(await ask('[[big 4194304]] [[say end]]', { stream: true }));
    assert.equal(text(chunks).length, 4_194_304 + 3);
    console.log(`# an event of 4 MiB in small pieces took ${Date.now() - began} ms`);
  });

  test('garbage_passes_as_it_is_and_disturbs_nobody', async () => {
    const answer = await mesh.home.fetch('/v1/chat/completions', { method: 'POST', body: JSON.stringify({ model, stream: true, messages: [{ role: 'user', content: '[[garbage]]' }] }) });
    const bytes = Buffer.from(await answer.arrayBuffer());
    assert.ok(bytes.includes(Buffer.from('this is no event\n')));
    assert.equal((await ask('still there?')).choices[0].message.content, 'echo: still there? (end of echo)');
  });

  test('hanging_provider_holds_up_nobody_else', async () => {
    const abort = new AbortController();
    const hung = Array.from({ length: 8 }, (_, i) => ask(`hang ${i} [[hang]]`, { stream: true }, { signal: abort.signal }).catch(() => {}));
    await mesh.provider.request((r) => r.body?.messages?.[0]?.content === 'hang 7 [[hang]]');
    const began = Date.now();
    await ask('quick');
    assert.ok(Date.now() - began < 2000);
    abort.abort();
    await Promise.all(hung);
  });

  test('wrong_token_is_refused_before_anything_else', async () => {
    const asked = mesh.provider.requests.length;
    const other = new OpenAI({ baseURL: `${mesh.home.url}/v1`, apiKey: 'sk-wrong', maxRetries: 0 });
    await assert.rejects(other.models.list(), (e) => e instanceof OpenAI.AuthenticationError);
    await assert.rejects(other.chat.completions.create({ model, messages: [] }), (e) => e instanceof OpenAI.AuthenticationError && e.code === 'invalid_api_key');
    assert.equal(mesh.provider.requests.length, asked);
  });

  test('unknown_model_names_itself', async () => {
    await assert.rejects(client.chat.completions.create({ model: 'office-01/nothing', messages: [] }), (e) => {
      assert.ok(e instanceof OpenAI.NotFoundError, `${e}`);
      assert.equal(e.code, 'model_not_found');
      assert.match(e.message, /nothing/);
      return true;
    });
  });

  test('python_sdk_sees_the_same', { skip: missing.sdkPython() }, async () => {
    const done = await run(sdkPython, [join(root, 'tests/real/support/sdk.py'), `${mesh.home.url}/v1`], { env: { ...process.env, CLAWMATRIX_TOKEN: mesh.home.token } });
    console.log(done.stdout.trim().replace(/^/gm, '# python: '));
    assert.equal(done.code, 0, done.output);
    const record = await mesh.provider.request((r) => r.body?.messages?.[0]?.content?.startsWith?.('python leaves'));
    const left = Number(done.stdout.match(/^left (\d+)$/m)[1]);
    const ms = (await mesh.provider.gone(record)) - left;
    console.log(`# provider stopped ${ms} ms after the Python client left`);
    assert.ok(ms < 1000, `the provider was stopped only after ${ms} ms`);
  });
});
