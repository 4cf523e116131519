//! The command line: one file a verb. Besides `main` this is the only place that prints.
//!
//! Results go to standard output, messages to standard error. Only verbs that work are here.

mod agents;
mod approvals;
mod audit;
mod can;
mod chat;
mod client;
mod completions;
mod doctor;
mod error;
mod events;
mod exec;
mod files;
mod handoff;
mod identity;
mod locate;
mod models;
mod output;
mod peers;
mod policy;
mod run;
mod schema;
mod secret;
mod send;
mod setup;
mod status;
mod terminal;
mod token;
mod trust;
mod usage;
mod version;

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{error::CliError, output::Paint};
use crate::tools::host::bounds;

/// What scripts and service managers go by.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 69 port in use, 73 state folder in use, \
78 bad configuration, 130 Ctrl-C.";

/// One mesh of OpenClaw gateways: lent models over authenticated links.
#[derive(Debug, Parser)]
#[command(
    name = "clawmatrix",
    after_help = EXIT_CODES,
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    verb: Verb,
}

/// What every verb takes.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// Print the result as JSON.
    #[arg(long, global = true)]
    json: bool,
    /// State folder of the node [default: that of the running node].
    #[arg(long, global = true, value_name = "DIR", env = "CLAWMATRIX_STATE_DIR")]
    state_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run one node in the foreground.
    Run(run::Args),
    /// Make the first configuration.
    Setup(setup::Args),
    /// Show this node and its peers.
    Status,
    /// Print the peers as JSON.
    Peers,
    /// What other nodes use of what this one lets them have.
    Usage,
    /// List the models usable from here.
    Models(models::Args),
    /// List the agents that take tasks and messages.
    Agents,
    /// Talk to a model; the answer streams to the terminal.
    Chat(chat::Args),
    /// Give a task to an agent of another node; the answer streams to the terminal.
    Handoff(handoff::Args),
    /// Leave a message for an agent of another node.
    Send(send::Args),
    /// Run a command on another node; its exit code is this one's, 255 when ClawMatrix failed.
    Exec(exec::Args),
    /// Read a file of another node.
    Read(files::Read),
    /// Write a file of another node, from standard input.
    Write(files::Write),
    /// Change a piece of a file of another node.
    Edit(files::Edit),
    /// Show a folder of another node.
    List(files::List),
    /// Use any other tool of another node.
    Tool(files::Tool),
    /// Print this node's public key and its short form, or change it.
    Identity(identity::Args),
    /// Whose keys are believed.
    Trust(trust::Args),
    /// Make cluster secrets.
    Secret(secret::Args),
    /// Is this allowed here, and by which rule?
    Can(can::Args),
    /// Check the tool rules against cases.
    Policy(policy::Args),
    /// What other nodes asked for, and whether the record is whole.
    Audit(audit::Args),
    /// What waits for a person here, and the person's decision.
    Approvals(approvals::Args),
    /// Print what happens on this node, as it happens.
    Events,
    /// Tokens of the local API.
    Token(token::Args),
    /// Check configuration, ports, clock, peers and OpenClaw's settings.
    Doctor(doctor::Args),
    /// Print the schemas of the configuration and of the sidecar's messages.
    Schema(schema::Args),
    /// Print completions for a shell.
    Completions(completions::Args),
    /// Print the version.
    Version,
}

/// What verbs share.
#[derive(Debug)]
struct Context {
    common: Common,
    paint: Paint,
}

/// Reads the arguments, does what they ask, and says how it went.
#[must_use]
pub fn main() -> ExitCode {
    // What a node starts in place of a command that is to be confined; before anything else is set up.
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == bounds::HELPER) {
        return bounds::run(args);
    }
    // Clap prints usage errors itself, with code 2.
    let cli = Cli::parse();
    let context = Context {
        common: cli.common,
        paint: Paint::of_stdout(),
    };
    match dispatch(cli.verb, &context) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "{}", error.text(Paint::of_stderr()));
            ExitCode::from(error.code)
        }
    }
}

fn dispatch(verb: Verb, context: &Context) -> Result<u8, CliError> {
    match verb {
        Verb::Run(args) => run::run(&args, context),
        Verb::Setup(args) => setup::run(&args, context),
        Verb::Status => status::run(context),
        Verb::Peers => peers::run(context),
        Verb::Usage => usage::run(context),
        Verb::Models(args) => models::run(&args, context),
        Verb::Agents => agents::run(context),
        Verb::Chat(args) => chat::run(&args, context),
        Verb::Handoff(args) => handoff::run(&args, context),
        Verb::Send(args) => send::run(&args, context),
        Verb::Exec(args) => exec::run(&args, context),
        Verb::Read(args) => files::read(&args, context),
        Verb::Write(args) => files::write(&args, context),
        Verb::Edit(args) => files::edit(&args, context),
        Verb::List(args) => files::list(&args, context),
        Verb::Tool(args) => files::tool(&args, context),
        Verb::Identity(args) => identity::run(&args, context),
        Verb::Trust(args) => trust::run(&args, context),
        Verb::Can(args) => can::run(&args, context),
        Verb::Policy(args) => policy::run(&args, context),
        Verb::Audit(args) => audit::run(&args, context),
        Verb::Approvals(args) => approvals::run(&args, context),
        Verb::Events => events::run(context),
        Verb::Token(args) => token::run(&args, context),
        Verb::Secret(args) => secret::run(&args, context),
        Verb::Doctor(args) => doctor::run(&args, context),
        Verb::Schema(args) => schema::run(&args, context),
        Verb::Completions(args) => completions::run(&args),
        Verb::Version => version::run(context),
    }
}
