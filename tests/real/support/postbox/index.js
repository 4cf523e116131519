// A channel of OpenClaw as others write them, without a service behind it: what is sent is a line of JSON in the file that
// `channels.postbox.file` names.
import { appendFileSync } from 'node:fs';

const account = (cfg) => ({ accountId: 'default', file: cfg.channels?.postbox?.file });
const plugin = {
  id: 'postbox',
  meta: { id: 'postbox', label: 'Postbox', selectionLabel: 'Postbox', docsPath: '/channels/postbox', blurb: 'Writes what is sent into a file.' },
  capabilities: { chatTypes: ['direct'] },
  config: {
    listAccountIds: () => ['default'],
    resolveAccount: account,
    inspectAccount: (cfg) => ({ enabled: true, configured: Boolean(account(cfg).file) }),
    isConfigured: (found) => Boolean(found?.file),
  },
  // There is nothing to connect: it is up until it is stopped.
  gateway: { startAccount: ({ abortSignal }) => new Promise((stopped) => abortSignal.addEventListener('abort', stopped)) },
  outbound: {
    deliveryMode: 'direct',
    sendText: async ({ cfg, to, text, accountId }) => {
      appendFileSync(account(cfg).file, `${JSON.stringify({ to, text, accountId })}\n`);
      return { channel: 'postbox', messageId: `${Date.now()}` };
    },
  },
};

export default {
  id: 'postbox',
  name: 'Postbox',
  description: 'A channel for tests',
  register(api) {
    api.registerChannel({ plugin });
  },
};
