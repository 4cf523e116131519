//! From what a caller wants run to what is run: program, words, folder, environment (protocol 8.3).

use std::{
    collections::BTreeMap,
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{Access, access};

use super::{
    bounds::Bounds,
    place::{Last, Places, Refusal, missing, shown},
};
use crate::{
    policy::{Policy, Verdict, command},
    tools::args::{Exec, invalid},
    wire::{
        code::{Code, Failure},
        limits::EXEC_TIMEOUT,
    },
};

/// Where programs are looked for when the node itself was started without `PATH`.
const USUAL_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// What runs a shell text.
const SHELL: &str = "/bin/sh";

/// What the configuration says of every command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commands {
    /// The longest run.
    pub timeout: Duration,
    /// What it may use.
    pub bounds: Bounds,
}

impl Default for Commands {
    fn default() -> Self {
        Self {
            timeout: EXEC_TIMEOUT,
            bounds: Bounds::default(),
        }
    }
}

/// What every command of this node starts with; read once.
#[derive(Debug, Clone)]
pub struct Surroundings {
    path: OsString,
    lang: OsString,
    home: PathBuf,
}

impl Surroundings {
    /// Those of this process.
    #[must_use]
    pub fn of_process() -> Self {
        Self {
            path: env::var_os("PATH").unwrap_or_else(|| USUAL_PATH.into()),
            lang: env::var_os("LANG").unwrap_or_else(|| "C.UTF-8".into()),
            home: env::var_os("HOME").map_or_else(|| "/".into(), PathBuf::from),
        }
    }

    /// Home of the account.
    #[must_use]
    pub fn home(&self) -> &Path {
        &self.home
    }
}

/// A command as its rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// A text for a shell.
    Shell(String),
    /// A program, by its real path, and its words, the name it was called by first.
    Program(PathBuf, Vec<String>),
}

/// A command ready to run.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Program, by its real path.
    pub program: PathBuf,
    /// Its words, its name first.
    pub argv: Vec<String>,
    /// Where it starts.
    pub workdir: PathBuf,
    /// Its whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Its longest run.
    pub limit: Duration,
    /// What it may use, and where its files end.
    pub bounds: Bounds,
}

/// Finds out what would run. Looks at files, changes nothing.
///
/// # Errors
/// `invalid_request` for a program that is not there.
pub fn wanted(ask: &Exec, policy: &Policy, around: &Surroundings) -> Result<Wanted, Failure> {
    let argv = match (&ask.argv, &ask.command) {
        (Some(argv), _) => argv.clone(),
        (None, Some(text)) => match policy.splits().then(|| command::words(text)).flatten() {
            Some(words) => words,
            None => return Ok(Wanted::Shell(text.clone())),
        },
        (None, None) => return Err(invalid("`command` is missing")),
    };
    let Some(name) = argv.first() else {
        return Err(invalid("`argv` is empty"));
    };
    if argv.iter().any(|arg| arg.contains('\0')) {
        return Err(invalid("`argv` holds a NUL character"));
    }
    let program = find(name, around)?;
    Ok(Wanted::Program(program, argv))
}

fn find(name: &str, around: &Surroundings) -> Result<PathBuf, Failure> {
    let nowhere = || invalid(&format!("no program {} on the node", shown(name)));
    let usable = |path: &Path| {
        let real = std::fs::canonicalize(path).ok()?;
        (real.is_file() && access(&real, Access::EXEC_OK).is_ok()).then_some(real)
    };
    if name.starts_with('/') {
        return usable(Path::new(name)).ok_or_else(nowhere);
    }
    if name.contains('/') {
        return Err(invalid(&format!(
            "{}: name a program by its whole path, or by its name alone",
            shown(name)
        )));
    }
    env::split_paths(&around.path)
        .filter(|folder| folder.is_absolute())
        .find_map(|folder| usable(&folder.join(name)))
        .ok_or_else(nowhere)
}

/// Puts together what the verdict lets run.
///
/// # Errors
/// `policy_denied` for a variable or a folder that is not the caller's, `invalid_request` for
/// characters that hide something, `not_found` for a folder that is not there.
pub fn ready(
    ask: &Exec,
    wanted: Wanted,
    verdict: &Verdict,
    places: &Places,
    around: &Surroundings,
    commands: &Commands,
) -> Result<Ready, Failure> {
    let (program, argv) = match wanted {
        Wanted::Shell(text) => (SHELL.into(), vec!["sh".into(), "-c".into(), text]),
        Wanted::Program(program, argv) => (program, argv),
    };
    if !verdict.raw
        && let Some(what) = argv.iter().find_map(|arg| command::hidden(arg))
    {
        return Err(invalid(&format!(
            "an argument holds {what}, which rule `{}` does not let pass",
            verdict.rule
        )));
    }
    Ok(Ready {
        program,
        argv,
        workdir: workdir(ask.workdir.as_deref(), places)?,
        env: environment(&ask.env, verdict, around)?,
        bounds: commands.bounds.clone(),
        limit: ask.limit(commands.timeout)?,
    })
}

fn workdir(wanted: Option<&str>, places: &Places) -> Result<PathBuf, Failure> {
    let Some(path) = wanted else {
        return Ok(places.start().to_owned());
    };
    let refused = |refusal: Refusal| refusal.failure(path);
    let place = places.locate(path, Last::Follow).map_err(refused)?;
    if !place.exists {
        return Err(missing(path));
    }
    if !place.real.is_dir() {
        return Err(invalid(&format!("{}: `workdir` is no folder", shown(path))));
    }
    Ok(place.real)
}

fn environment(
    wanted: &BTreeMap<String, String>,
    verdict: &Verdict,
    around: &Surroundings,
) -> Result<Vec<(OsString, OsString)>, Failure> {
    let mut env: Vec<(OsString, OsString)> = vec![
        ("PATH".into(), around.path.clone()),
        ("LANG".into(), around.lang.clone()),
        ("HOME".into(), around.home.clone().into()),
    ];
    for (name, value) in wanted {
        if command::forbidden_variable(name) || !verdict.env.contains(name) {
            return Err(Failure::not_started(
                Code::PolicyDenied,
                format!(
                    "the variable {} may not be set by a caller under rule `{}`",
                    shown(name),
                    verdict.rule
                ),
            ));
        }
        if value.contains('\0') {
            return Err(invalid("`env` holds a NUL character"));
        }
        env.retain(|(known, _)| known != name.as_str());
        env.push((name.into(), value.into()));
    }
    Ok(env)
}
