//! Tools of this node that others may use.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{List, MinTrust};

/// Tools of this node that other nodes may use.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ToolProxy {
    /// Let other nodes use tools here.
    #[schemars(title = "Enabled", extend("default" = false))]
    pub enabled: Option<bool>,
    /// Tool names, with `*` and `?`, that may be used. Empty or `["*"]` allows every tool, which
    /// is answered by a warning.
    #[schemars(title = "Allow", extend("default" = []))]
    pub allow: Option<List<String>>,
    /// Tool names, with `*` and `?`, that may not be used; beats `allow`.
    #[schemars(title = "Deny", extend("default" = []))]
    pub deny: Option<List<String>>,
    /// Longest output of one call, in bytes; more is cut and marked.
    #[schemars(title = "Longest output (bytes)", range(min = 1024, max = 67_108_864), extend("default" = 1_048_576))]
    pub max_output_bytes: Option<u64>,
    /// Tools that wait for a person's approval.
    #[schemars(title = "Ask first", extend("default" = []))]
    pub ask: Option<List<String>>,
    /// Folders that read, write, edit, list and exec's `workdir` are bound to. Empty: everything
    /// but the built-in deny list.
    #[schemars(title = "Folders", extend("default" = []))]
    pub roots: Option<List<String>>,
    /// Environment variables a caller may set for a command, beside what a rule's own `env` lists.
    #[schemars(title = "Environment", extend("default" = []))]
    pub env: Option<List<String>>,
    /// Longest run of a command, in seconds.
    #[schemars(title = "Command timeout (s)", range(min = 1, max = 86_400), extend("default" = 1800))]
    pub exec_timeout: Option<u64>,
    /// Confine commands, and all they start, to `roots` and to what programs need of the system
    /// (Landlock, Linux 6.2 or later). Where the kernel cannot do it, no command runs.
    #[schemars(title = "Confine commands", extend("default" = false))]
    pub confine: Option<bool>,
    /// Address space of each process of a command, in bytes. Runtimes such as Node.js and Java reserve
    /// much more than they use. Default: no bound.
    #[schemars(title = "Memory of a command (bytes)", range(min = 16_777_216))]
    pub max_memory_bytes: Option<u64>,
    /// Processes of the account while a command runs; root is not bound.
    #[schemars(title = "Processes", range(min = 8, max = 4_194_304), extend("default" = 4096))]
    pub max_processes: Option<u64>,
    /// Finer rules (protocol 8.1); when present they alone decide.
    #[schemars(title = "Rules")]
    pub rules: Option<List<Rule>>,
    /// `pinned`: every member whose key is pinned; `trusted`: only confirmed keys.
    #[schemars(title = "Least trust", extend("default" = "pinned"))]
    pub min_trust: Option<MinTrust>,
}

/// One rule. A matching `deny` beats every `allow`; what no rule allows is denied.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Its name, which refusals and the audit record show.
    #[schemars(title = "Name", required)]
    pub id: Option<String>,
    /// `allow` or `deny`.
    #[schemars(title = "Effect", required)]
    pub effect: Option<RuleEffect>,
    /// Whom it is about: node names with `*` and `?`, or `label:<name>`; in a `deny` also
    /// `tags:<tag>`. In an `allow` a pattern other than `*` alone holds for confirmed keys only.
    #[schemars(title = "From", required)]
    pub from: Option<List<String>>,
    /// Least trust in the caller. Default: `pinned` for read and list, else `trusted`.
    #[schemars(title = "Least trust")]
    pub min_trust: Option<MinTrust>,
    /// `tool:<name>`, with `*` and `?`. A command that needs a shell is `tool:exec_shell`.
    #[schemars(title = "Actions", required)]
    pub action: Option<List<String>>,
    /// For read, write, edit and list: patterns over the real path, in which `*` does not pass a
    /// `/` and `**` does. Default: every path within `roots`.
    #[schemars(title = "Paths")]
    pub paths: Option<List<String>>,
    /// For exec: patterns over the program's real path, `/usr/bin/git`.
    #[schemars(title = "Programs")]
    pub program: Option<List<String>>,
    /// Arguments of the program: `"any"`, or one pattern each, in order; a last `"..."` lets the
    /// pattern before it match further ones. A pattern that does not begin with `-` matches no
    /// option. Default: no arguments.
    #[schemars(title = "Arguments", with = "Option<RuleArgs>")]
    pub args: Option<Value>,
    /// In a `deny` for `tool:exec_shell`: patterns over the whole text. No security boundary.
    #[schemars(title = "Shell text")]
    pub text: Option<List<String>>,
    /// Also shells, interpreters and whatever else runs other programs, and any arguments of
    /// programs that are not known to be harmless.
    #[schemars(title = "Dangerous programs", extend("default" = false))]
    pub dangerous: Option<bool>,
    /// Let arguments hold control and invisible characters.
    #[schemars(title = "Raw arguments", extend("default" = false))]
    pub raw: Option<bool>,
    /// Environment variables the caller may set.
    #[schemars(title = "Environment", extend("default" = []))]
    pub env: Option<List<String>>,
    /// 0 reads, 1 runs by itself, 2 needs a person, 3 needs one at the machine itself. Default: 0
    /// for read and list, 2 for exec_shell, else 1.
    #[schemars(title = "Level", range(min = 0, max = 3))]
    pub level: Option<u8>,
    /// How much one caller may do under this rule.
    #[schemars(title = "Limits")]
    pub limits: Option<RuleLimits>,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RuleEffect {
    /// It may happen.
    Allow,
    /// It may not.
    Deny,
}

/// Limits of one rule.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RuleLimits {
    /// Requests of one caller within a minute.
    #[schemars(title = "Per minute", range(min = 1))]
    pub per_minute: Option<u32>,
    /// Requests of one caller within a day.
    #[schemars(title = "Per day", range(min = 1))]
    pub per_day: Option<u32>,
    /// Requests of one caller at once.
    #[schemars(title = "At once", range(min = 1))]
    pub concurrent: Option<u32>,
    /// Tokens of one caller within a day (UTC): a third of the bytes, since no tool says how many it
    /// takes. A request that has begun is finished.
    #[schemars(title = "Tokens a day", range(min = 1))]
    pub tokens_per_day: Option<u64>,
    /// Bytes of one caller within a day (UTC): arguments, contents and output. A request that has begun is
    /// finished.
    #[schemars(title = "Bytes a day", range(min = 1))]
    pub bytes_per_day: Option<u64>,
}

/// Schema only: the word `any`, or a list of patterns.
#[derive(JsonSchema)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes a schema, is never built")]
enum RuleArgs {
    Any(AnyArgs),
    Each(Vec<String>),
}

/// Schema only.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes a schema, is never built")]
enum AnyArgs {
    Any,
}
