// Two nodes without OpenClaw: `office-01` lends the scripted model, `home-01` dials it.
import { Provider } from './provider.mjs';
import { Sidecar } from './sidecar.mjs';

/** `officeEnv` is added to the environment of office's process. */
export async function pair({ office = {}, home = {}, models = [], officeEnv } = {}) {
  const provider = await Provider.start({ key: 'sk-office-only' });
  const officeNode = await Sidecar.start({
    nodeId: 'office-01', listen: true, listenHost: '127.0.0.1', listenPort: 0,
    models: [{ id: 'mock-1', baseUrl: provider.baseUrl, apiKey: provider.key, description: 'scripted' }, ...models], ...office,
  }, undefined, officeEnv);
  const homeNode = await Sidecar.start({
    nodeId: 'home-01', peers: [{ nodeId: 'office-01', url: `ws://127.0.0.1:${officeNode.endpoint.listenPort}` }], ...home,
  });
  await homeNode.model('office-01/mock-1');
  return {
    provider, office: officeNode, home: homeNode,
    async stop() {
      await Promise.all([homeNode.stop(), officeNode.stop(), provider.stop()]);
    },
  };
}

/** Reads an SSE answer to its end: `{status, headers, text, events[], done, broken}`. */
export async function readEvents(answer) {
  const result = { status: answer.status, headers: answer.headers, text: '', events: [], done: false, broken: null };
  const decoder = new TextDecoder();
  try {
    for await (const bytes of answer.body) result.text += decoder.decode(bytes, { stream: true });
  } catch (error) {
    result.broken = error;
  }
  for (const block of result.text.split('\n\n')) {
    const data = block.split('\n').filter((line) => line.startsWith('data: ')).map((line) => line.slice(6)).join('\n');
    if (data === '[DONE]') result.done = true;
    else if (data) {
      try {
        result.events.push(JSON.parse(data));
      } catch {
        result.events.push(data);
      }
    }
  }
  return result;
}
