// Runs one agent turn as a client of the gateway that may see tools at work, and prints each event of a tool as
// a line of JSON. Run by the gateway's own Node: `node tool-events.mjs OPENCLAW_FOLDER ws://…`, the prompt on standard input,
// the gateway's token in OPENCLAW_GATEWAY_TOKEN.
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [folder, url] = process.argv.slice(2);
const { GatewayClient } = await import(pathToFileURL(join(folder, 'dist/plugin-sdk/gateway-runtime.js')).href);
const message = readFileSync(0, 'utf8');
const say = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const fail = (error) => {
  console.error(error);
  process.exit(1);
};

const client = new GatewayClient({
  url, token: process.env.OPENCLAW_GATEWAY_TOKEN, clientName: 'cli', mode: 'cli', role: 'operator',
  scopes: ['operator.admin', 'operator.read', 'operator.write'], caps: ['tool-events'],
  onConnectError: fail,
  onHelloOk: () => client.request('chat.send', { sessionKey: 'main', message, idempotencyKey: `turn-${process.pid}` }).catch(fail),
  onEvent: ({ event, payload }) => {
    if (event === 'agent' && payload?.stream === 'tool') say(payload.data);
    if (event === 'chat' && ['final', 'error', 'aborted'].includes(payload?.state)) {
      say({ phase: 'final', state: payload?.state, message: payload?.message });
      process.exit(payload?.state === 'final' ? 0 : 1);
    }
  },
});
client.start();
