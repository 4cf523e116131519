// The part of OpenClaw's plugin API that this plugin uses, and the messages it exchanges with the
// sidecar. OpenClaw calls its whole plugin API experimental, so what we rely on is written down here
// and tested against a real gateway, instead of being taken from its package.

export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

export interface Logger {
  debug?(text: string): void;
  info(text: string): void;
  warn(text: string): void;
  error(text: string): void;
}

export interface ServiceHealth {
  reportFailure(error: Error): void;
  clearFailure(): void;
}

export interface ServiceContext {
  config: OpenClawConfig;
  stateDir: string;
  logger: Logger;
  serviceHealth?: ServiceHealth;
}

export interface ModelEntry {
  id: string;
  name?: string;
  api?: string;
  baseUrl?: string;
  contextWindow?: number;
  maxTokens?: number;
  input?: string[];
  reasoning?: boolean;
  cost?: Json;
  [key: string]: unknown;
}

export interface ProviderConfig {
  baseUrl?: string;
  apiKey?: unknown;
  api?: string;
  headers?: Record<string, unknown>;
  models?: ModelEntry[];
  [key: string]: unknown;
}

export interface OpenClawConfig {
  models?: { providers?: Record<string, ProviderConfig>; [key: string]: unknown };
  plugins?: { entries?: Record<string, { config?: PluginConfig; [key: string]: unknown }>; [key: string]: unknown };
  tools?: ToolsConfig;
  gateway?: { port?: number; auth?: { mode?: string; token?: string; password?: string }; [key: string]: unknown };
  session?: { mainKey?: string; [key: string]: unknown };
  agents?: { defaults?: { [key: string]: unknown }; entries?: Record<string, AgentConfig>; list?: AgentConfig[]; [key: string]: unknown };
  [key: string]: unknown;
}

export interface ToolsConfig {
  profile?: string;
  allow?: string[];
  alsoAllow?: string[];
  deny?: string[];
  [key: string]: unknown;
}

export interface AgentConfig {
  id?: string;
  tools?: ToolsConfig;
  [key: string]: unknown;
}

/** `plugins.entries.clawmatrix.config`; the sidecar validates it, so every field may be anything. */
export interface PluginConfig {
  nodeId?: unknown;
  secret?: unknown;
  secretFile?: unknown;
  models?: unknown;
  modelRegistration?: unknown;
  sidecarPath?: unknown;
  [key: string]: unknown;
}

export interface ResolvedAuth {
  apiKey?: string;
  mode?: string;
  source?: string;
}

export interface Runtime {
  config: {
    current(): OpenClawConfig;
    mutateConfigFile(request: {
      afterWrite: { mode: 'auto' };
      writeOptions?: { allowConfigSizeDrop?: boolean };
      mutate(draft: OpenClawConfig): void;
    }): Promise<unknown>;
  };
  modelAuth: {
    resolveApiKeyForProvider(request: { provider: string; cfg: OpenClawConfig }): Promise<ResolvedAuth>;
    getRuntimeAuthForModel?(request: {
      model: { provider: string; id: string; api: string; baseUrl: string };
      cfg: OpenClawConfig;
    }): Promise<ResolvedAuth & { baseUrl?: string }>;
  };
  state: { resolveStateDir(env?: NodeJS.ProcessEnv): string };
  channel?: {
    outbound?: {
      loadAdapter?(channel: string): Promise<{
        sendText?(message: { cfg: OpenClawConfig; to: string; text: string; accountId?: string }): Promise<unknown>;
      } | undefined>;
    };
  };
  agent: {
    resolveAgentWorkspaceDir(cfg: OpenClawConfig, agentId: string): string;
    runEmbeddedAgent(run: AgentRun): Promise<AgentResult>;
    session?: {
      createSessionEntry?(entry: { cfg: OpenClawConfig; key: string; agentId?: string }): Promise<unknown>;
      listSessionEntries?(of: { agentId: string }): { sessionKey: string; entry: SessionEntry }[];
      patchSessionEntry?(patch: {
        agentId: string;
        sessionKey: string;
        preserveActivity?: boolean;
        update(entry: SessionEntry): Partial<SessionEntry> | null;
      }): Promise<unknown>;
    };
  };
  modelConfig?: {
    resolveDefaultModelForAgent?(ask: { cfg: OpenClawConfig; agentId: string }): { provider: string; model: string } | undefined;
  };
  system: {
    enqueueSystemEvent(text: string, options: { sessionKey: string; agentId?: string; contextKey?: string }): boolean;
    requestHeartbeat?(options: { source: string; intent: string; reason?: string; agentId?: string; sessionKey?: string }): void;
    runHeartbeatOnce(options: { reason?: string; agentId?: string; sessionKey?: string }): Promise<{ status?: string; reason?: string } | undefined>;
  };
}

/** What we read and write of OpenClaw's record of a session. */
export interface SessionEntry {
  status?: string;
  endedAt?: number;
  abortedLastRun?: boolean;
  mainRestartRecovery?: unknown;
  restartRecoveryRuns?: unknown;
}

export interface AgentRun {
  agentId: string;
  sessionKey: string;
  sessionId: string;
  runId: string;
  config: OpenClawConfig;
  workspaceDir: string;
  prompt: string;
  timeoutMs: number;
  provider?: string;
  model?: string;
  toolsAllow?: string[];
  senderIsOwner?: boolean;
  terminalReplyExpectation?: 'required' | 'optional';
  abortSignal?: AbortSignal;
  onExecutionStarted?(): unknown;
  onPartialReply?(payload: { text?: string; delta?: string }): void;
  onAssistantMessageStart?(): void;
  onAgentEvent?(event: AgentEvent): void;
}

export interface AgentEvent {
  stream: string;
  data?: { name?: unknown; phase?: unknown; isError?: unknown; [key: string]: unknown };
}

export interface AgentResult {
  payloads?: { text?: string; isError?: boolean; isReasoning?: boolean; isCommentary?: boolean }[];
  meta?: { aborted?: boolean; error?: { message: string } };
}

export interface Tool {
  name: string;
  label: string;
  description: string;
  parameters: Json;
  execute(
    id: string,
    params: Record<string, unknown>,
    signal?: AbortSignal,
    onUpdate?: (update: unknown) => void,
  ): Promise<{ content: { type: 'text'; text: string }[]; details?: unknown }>;
}

export interface Injection {
  sessionKey: string;
  agentId?: string;
  text: string;
  idempotencyKey?: string;
  placement?: 'prepend_context';
}

/** What OpenClaw tells a tool of where it is called. */
export interface ToolContext {
  sessionKey?: string;
  agentId?: string;
}

export interface GatewayRequest {
  params?: unknown;
  respond(ok: boolean, payload?: unknown, error?: { code: string; message: string }): void;
}

/** The few methods of a Commander command that we call. */
export interface Command {
  command(name: string): Command;
  description(text: string): Command;
  argument(name: string, description?: string): Command;
  allowUnknownOption(): Command;
  allowExcessArguments(): Command;
  helpOption(flag: false): Command;
  action(run: (...values: any[]) => unknown): Command;
}

export interface DynamicModelContext {
  provider: string;
  modelId: string;
}

export interface PluginApi {
  id: string;
  rootDir?: string;
  registrationMode: string;
  pluginConfig?: PluginConfig;
  config?: OpenClawConfig;
  logger: Logger;
  /** Throws when touched in the modes `cli-metadata` and `setup-only`. */
  runtime: Runtime;
  registerService(service: {
    id: string;
    start(ctx: ServiceContext): Promise<void> | void;
    stop(ctx?: ServiceContext): Promise<void> | void;
  }): void;
  registerTool(make: (context: ToolContext) => Tool, options?: { name?: string; optional?: boolean }): void;
  session: {
    workflow: {
      enqueueNextTurnInjection(injection: Injection): Promise<{ enqueued: boolean; id?: string }>;
    };
  };
  registerGatewayMethod(
    name: string,
    handler: (request: GatewayRequest) => Promise<void> | void,
    options: { scope: string },
  ): void;
  registerProvider(provider: {
    id: string;
    label?: string;
    auth: unknown[];
    resolveDynamicModel(ctx: DynamicModelContext): ModelEntry | undefined;
    resolveSyntheticAuth(): { apiKey: string; source: string; mode: string } | undefined;
  }): void;
  registerCli(
    registrar: (ctx: { program: Command }) => void,
    options: { descriptors: { name: string; description: string; hasSubcommands: boolean }[] },
  ): void;
}

/** A provider that serves models this node lends. Holds a key: never logged. */
export interface UpstreamProvider {
  baseUrl: string;
  api: string;
  headers?: Record<string, string>;
  apiKey?: string;
  models?: ModelOffer[];
}

export interface ModelOffer {
  id: string;
  name?: string;
  api: string;
  contextWindow: number;
  maxTokens: number;
  input: string[];
  reasoning: boolean;
  cost?: Json;
  locality?: string;
  description?: string;
}

/** One provider entry that OpenClaw should have: a node, or `clawmatrix` for the bare ids. */
export interface CatalogEntry {
  provider: string;
  baseUrl: string;
  api: string;
  models: ModelOffer[];
}

export type ToSidecar =
  | { type: 'config'; config: Json; providers: Record<string, UpstreamProvider>; warnings: string[] }
  | { type: 'providers'; providers: Record<string, UpstreamProvider>; warnings: string[]; id?: number }
  | { type: 'run_started'; id: number }
  | { type: 'run_delta'; id: number; text: string }
  | { type: 'run_tool'; id: number; name: string; phase: 'start' | 'end'; failed?: boolean }
  | { type: 'run_end'; id: number; outcome: 'completed' | 'failed' | 'refused' | 'cancelled'; text: string; error?: string }
  | { type: 'message_done'; id: number; error?: string }
  | { type: 'tool_result'; id: number; status: number; body: Json }
  | { type: 'drain' };

export type FromSidecar =
  | { type: 'ready'; proxyPort: number; listenPort: number | null }
  | { type: 'failed'; code: number; message: string }
  | { type: 'refresh_key'; id: number; provider: string }
  | { type: 'catalog'; entries: CatalogEntry[] }
  | { type: 'run_agent'; id: number; agent: string; sessionKey: string; sessionId: string; prompt: string; tools?: string[]; timeoutMs: number }
  | { type: 'abort_run'; id: number }
  | { type: 'message'; id: number; agent: string; text: string; wake: boolean; key: string }
  | { type: 'notice'; channel: string; to: string; account?: string; text: string }
  | { type: 'invoke_tool'; id: number; tool: string; args: Json; sessionKey?: string; timeoutMs: number }
  | { type: 'abort_tool'; id: number };
