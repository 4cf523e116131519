//! `clawmatrix doctor`: looks for what is wrong and says how to mend it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use serde::Serialize;

use super::{
    Context,
    client::{Client, block_on},
    error::{CliError, FAILED},
    locate, output,
    status::{self, names_way_out, way_out},
};
use crate::{
    config::{Config, ConfigError},
    state::open_to_others,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file to check [default: ~/.config/clawmatrix/node.json when that node is meant].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Grade {
    /// As it should be.
    Ok,
    /// Works, but should be looked at.
    Warning,
    /// Does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    grade: Grade,
    /// What was looked at: `config`, `port`, `peer`.
    subject: &'static str,
    message: String,
    /// How to mend it.
    hint: String,
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        grade: Grade,
        subject: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Finding {
            grade,
            subject,
            message: message.into(),
            hint: hint.into(),
        });
    }

    fn ok(&mut self, subject: &'static str, message: impl Into<String>) {
        self.add(Grade::Ok, subject, message, "");
    }

    fn warning(
        &mut self,
        subject: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Grade::Warning, subject, message, hint);
    }

    fn error(
        &mut self,
        subject: &'static str,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.add(Grade::Error, subject, message, hint);
    }
}

pub(super) fn run(args: &Args, context: &Context) -> Result<u8, CliError> {
    let mut findings = Findings::default();
    let running = locate::running(&context.common);
    let state = match &running {
        Ok(node) => Some(node.state.clone()),
        Err(_) => locate::state_dir(&context.common).ok(),
    };
    let config = check_config(args, state.as_deref(), running.is_ok(), &mut findings);
    check_clock(state.as_deref(), &mut findings);
    if let Some(state) = &state {
        check_state_dir(state, config.as_ref(), &mut findings);
    }
    match running {
        Ok(node) => {
            findings.ok(
                "node",
                format!(
                    "runs as process {}, local API on port {}",
                    node.endpoint.pid, node.endpoint.proxy_port
                ),
            );
            if let Some(port) = node.endpoint.listen_port {
                findings.ok("port", format!("accepts links on port {port}"));
            }
            check_node(Client::of(node), &mut findings);
        }
        Err(error) => {
            findings.error("node", error.message(), error.hint());
            if let Some(config) = &config {
                check_ports(config, &mut findings);
            }
        }
    }
    if context.common.json {
        output::json(&findings.0)?;
    } else {
        output::print(&render(&findings.0, context))?;
    }
    let bad = findings.0.iter().any(|f| f.grade == Grade::Error);
    Ok(if bad { FAILED } else { 0 })
}

fn render(findings: &[Finding], context: &Context) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.grade {
            Grade::Ok => context.paint.green("ok"),
            Grade::Warning => context.paint.yellow("warning"),
            Grade::Error => context.paint.red("error"),
        };
        text.push_str(&format!(
            "{mark}: {}: {}\n",
            finding.subject, finding.message
        ));
        if !finding.hint.is_empty() {
            text.push_str(&format!("  hint: {}\n", finding.hint));
        }
    }
    text
}

/// The file of a node without OpenClaw. Under OpenClaw the gateway holds the configuration: the
/// running node's warnings tell of it.
fn check_config(
    args: &Args,
    state: Option<&Path>,
    runs: bool,
    findings: &mut Findings,
) -> Option<Config> {
    let own = state.is_none() || state == locate::own_state_dir().as_deref();
    let file = match &args.config {
        Some(file) => file.clone(),
        None if own => locate::own_config_file().filter(|f| f.exists())?,
        None => return None,
    };
    match Config::from_file(&file) {
        Ok(config) => {
            findings.ok("config", format!("`{}` is valid", file.display()));
            // A running node tells its own warnings.
            if !runs {
                for warning in &config.warnings {
                    findings.warning("config", warning, "");
                }
            }
            for older in &config.accept_secrets {
                if older.not_after.is_some_and(|end| end < SystemTime::now()) {
                    findings.warning(
                        "config",
                        "an entry of `acceptSecrets` has expired",
                        "remove it",
                    );
                }
            }
            Some(config)
        }
        Err(ConfigError(problems)) => {
            for problem in problems {
                let message = if problem.path.is_empty() {
                    problem.message
                } else {
                    format!("`{}`: {}", problem.path, problem.message)
                };
                findings.error("config", message, problem.hint);
            }
            None
        }
    }
}

/// A clock far off breaks dates of `acceptSecrets`, certificates and records.
fn check_clock(state: Option<&Path>, findings: &mut Findings) {
    const HINT: &str = "set the clock, and keep it with NTP (`timedatectl set-ntp true`)";
    let now = SystemTime::now();
    // 2026-01-01: before this program was made.
    if now < SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600) {
        findings.error("clock", "the system clock is years behind", HINT);
        return;
    }
    let ahead = state
        .and_then(|s| std::fs::metadata(s.join("run")).ok()?.modified().ok())
        .and_then(|changed| changed.duration_since(now).ok())
        .is_some_and(|ahead| ahead > Duration::from_secs(60));
    if ahead {
        findings.warning(
            "clock",
            "the system clock has gone back since the node last wrote its files",
            HINT,
        );
    } else {
        findings.ok("clock", "plausible");
    }
}

fn check_state_dir(state: &Path, config: Option<&Config>, findings: &mut Findings) {
    let shown = state.display();
    if open_to_others(state).is_ok_and(|open| open) {
        findings.error(
            "state",
            format!("`{shown}` can be read by other accounts"),
            format!("`chmod 700 {shown}`"),
        );
    }
    let kept_elsewhere =
        config.is_some_and(|c| c.identity_file.is_some() || c.identity_seed.is_some());
    match volatile(state) {
        Some(kind) if !kept_elsewhere => findings.warning(
            "state",
            format!("`{shown}` is on {kind}: the node's key is lost with it, and other nodes then refuse the new one"),
            "put the state folder on a disk or volume, or keep the key with `identityFile`",
        ),
        _ => findings.ok("state", format!("`{shown}`")),
    }
}

/// The kind of file system, when it does not outlive a restart.
fn volatile(path: &Path) -> Option<&'static str> {
    #[cfg(target_os = "linux")]
    {
        // Numbers of linux/magic.h.
        const TMPFS: u32 = 0x0102_1994;
        const RAMFS: u32 = 0x8584_58f6;
        const OVERLAY: u32 = 0x794c_7630;
        let kind = rustix::fs::statfs(path).ok()?.f_type;
        // The number is 32 bits, in a field whose type differs by platform.
        match kind as u32 {
            TMPFS | RAMFS => Some("a memory file system"),
            OVERLAY => Some("a container's own layer"),
            _ => None,
        }
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        None
    }
}

/// Ports a stopped node will want.
fn check_ports(config: &Config, findings: &mut Findings) {
    let local = IpAddr::from(Ipv4Addr::LOCALHOST);
    let mut wanted = vec![("proxyPort", SocketAddr::from((local, config.proxy_port)))];
    if let Some(listen) = &config.listen {
        wanted.push(("listenPort", SocketAddr::from((listen.host, listen.port))));
    }
    for (key, address) in wanted {
        if address.port() == 0 {
            continue;
        }
        match TcpListener::bind(address) {
            Ok(_) => findings.ok("port", format!("`{key}` {} is free", address.port())),
            Err(error) => {
                let free = TcpListener::bind(SocketAddr::from((address.ip(), 0)))
                    .and_then(|l| l.local_addr())
                    .map_or_else(
                        |_| "another port".to_owned(),
                        |a| format!("{} is free", a.port()),
                    );
                findings.error(
                    "port",
                    format!("cannot listen on `{address}`: {error}"),
                    format!("set `{key}` ({free}), or stop the program that has it"),
                );
            }
        }
    }
}

/// What the running node says of itself and its peers.
fn check_node(client: Result<Client, CliError>, findings: &mut Findings) {
    let answer = client.and_then(|client| {
        let status = block_on(client.get("/api/v1/status"))?;
        status::read(status)
    });
    let status = match answer {
        Ok(status) => status,
        Err(error) => {
            findings.error("node", error.message(), error.hint());
            return;
        }
    };
    for warning in &status.warnings {
        findings.warning("node", output::clean(warning), "");
    }
    for peer in &status.peers {
        let name = output::clean(&peer.node_id);
        if peer.connected {
            findings.ok("peer", format!("{name} is connected"));
            continue;
        }
        let problem = peer.problem.as_deref().map_or("no reason known", |p| p);
        let hint = way_out(&peer.node_id, problem).unwrap_or_else(|| match peer.problem {
            // Its own words name the way out.
            Some(_) if names_way_out(problem) => String::new(),
            _ => "is the node running there, and is the address in `peers` right?".to_owned(),
        });
        findings.error(
            "peer",
            format!("{name} is not reached: {}", output::clean(problem)),
            hint,
        );
    }
    if status.peers.is_empty() {
        findings.warning(
            "peer",
            "no other node is known",
            "list one in `peers`, or set `listen` and let another node dial this one",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(more: &serde_json::Value) -> Config {
        let mut value = json!({"nodeId": "a", "secret": "Zx7-pq2LmV9sKd0-tR4wYh8uB3nC6jF1"});
        for (k, v) in more.as_object().unwrap() {
            value[k] = v.clone();
        }
        let source = crate::config::Source {
            openclaw: false,
            folder: Path::new("/"),
            env: &|_| None,
        };
        Config::from_value(value, &source).unwrap()
    }

    #[test]
    fn taken_port_is_an_error_with_a_free_one() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut findings = Findings::default();
        check_ports(&config(&json!({ "proxyPort": port })), &mut findings);
        assert_eq!(findings.0[0].grade, Grade::Error);
        assert!(findings.0[0].hint.contains("proxyPort") && findings.0[0].hint.contains("is free"));
    }

    #[test]
    fn open_state_folder_is_an_error() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut findings = Findings::default();
        check_state_dir(temp.path(), None, &mut findings);
        assert!(
            findings
                .0
                .iter()
                .any(|f| f.grade == Grade::Error && f.hint.contains("chmod 700"))
        );
    }
}
