// ClawMatrix as an OpenClaw plugin. This file only registers; importing it starts nothing.
//
// OpenClaw registers a plugin several times per process, in modes and module instances that share no
// memory. The service is started in one of them alone; everything else finds its sidecar by files.

import { DESCRIPTOR, registerCommands } from './cli.js';
import { get, stateDirFromEnv, stateFolder } from './client.js';
import { registerDynamicProvider } from './provider.js';
import { sidecarService } from './service.js';
import { registerTools } from './tools.js';

/** Methods of the gateway that answer with a route of the sidecar. */
const METHODS = { 'clawmatrix.status': '/api/v1/status', 'clawmatrix.peers': '/api/v1/peers' };
/** Modes in which `api.runtime` throws. */
const WITHOUT_RUNTIME = ['cli-metadata', 'setup-only'];

export default {
  id: 'clawmatrix',
  name: 'ClawMatrix',
  description: 'One mesh of several OpenClaw gateways: models of one node, used on another as if local.',

  /** @param {import('./types.js').PluginApi} api */
  register(api) {
    api.registerCli(({ program }) => registerCommands(api, program), { descriptors: [DESCRIPTOR] });
    if (WITHOUT_RUNTIME.includes(api.registrationMode)) return;

    const folder = () => stateFolder(api.runtime.state?.resolveStateDir?.(process.env) ?? stateDirFromEnv());
    registerTools(api, folder);
    if (api.pluginConfig?.modelRegistration === 'dynamic') registerDynamicProvider(api, folder);
    if (api.registrationMode !== 'full') return;

    api.registerService(sidecarService(api));
    for (const [method, route] of Object.entries(METHODS)) {
      api.registerGatewayMethod(
        method,
        async ({ respond }) => {
          try {
            respond(true, await get(folder(), route));
          } catch (error) {
            respond(false, undefined, { code: 'UNAVAILABLE', message: error instanceof Error ? error.message : String(error) });
          }
        },
        { scope: 'operator.read' },
      );
    }
  },
};
