//! What the kernel holds a confined command to, and all it starts: rules on files (Landlock), and no
//! rights of root that lead past them.

use std::path::PathBuf;

use landlock::{
    ABI, Access as _, AccessFs, BitFlags, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope,
    path_beneath_rules,
};

use rustix::thread::{
    CapabilitySet, capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// The least the kernel must know: the third version (Linux 6.2). Before it a file could be emptied by its
/// path from anywhere, which is weaker than what was asked for.
const LEAST: ABI = ABI::V3;
/// What is used beyond that where it is there: signals, sockets, devices.
const MOST: ABI = ABI::V9;

/// Read and run: programs, their libraries and data.
const PROGRAMS: [&str; 10] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/gnu/store",
];
/// Read: what programs look up. The rest of `/etc` may hold secrets of the machine.
const FACTS: [&str; 34] = [
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/ca-certificates",
    "/etc/debian_version",
    "/etc/fonts",
    "/etc/gai.conf",
    "/etc/gitconfig",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/inputrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ld.so.preload",
    "/etc/locale.alias",
    "/etc/localtime",
    "/etc/machine-id",
    "/etc/magic",
    "/etc/mime.types",
    "/etc/nsswitch.conf",
    "/etc/os-release",
    "/etc/passwd",
    "/etc/pki/tls/certs",
    "/etc/profile",
    "/etc/protocols",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/shells",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/proc",
    "/sys/devices/system/cpu",
];
/// Read and write.
const DEVICES: [&str; 5] = [
    "/dev/full",
    "/dev/null",
    "/dev/random",
    "/dev/urandom",
    "/dev/zero",
];

/// What root keeps: rights over files, within the rules, and over its own processes. Others look into
/// processes outside, make devices, or open files by number.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::NET_BIND_SERVICE);

/// Binds this process and all it starts for good. A folder that is not there gives no right.
pub(super) fn confine(roots: &[PathBuf]) -> Result<(), String> {
    shed().map_err(|error| format!("the rights of root: {error}"))?;
    enter(roots).map_err(|error| format!("Landlock: {error}"))
}

/// Gives up what a command could get around the rules with. Without root there is nothing to lose but what
/// a service manager may have added.
fn shed() -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    if rustix::process::geteuid().is_root() {
        for right in CapabilitySet::all().difference(KEPT).iter() {
            // One the kernel does not know is in no set.
            if capability_is_in_bounding_set(right).unwrap_or(false) {
                remove_capability_from_bounding_set(right)?;
            }
        }
    }
    let mut sets = capabilities(None)?;
    sets.inheritable = CapabilitySet::empty();
    set_capabilities(None, sets)
}

fn enter(roots: &[PathBuf]) -> Result<(), String> {
    let status = rules()
        .and_then(|rules| {
            let read = AccessFs::ReadFile | AccessFs::ReadDir;
            rules
                .add_rules(path_beneath_rules(PROGRAMS, read | AccessFs::Execute))?
                .add_rules(path_beneath_rules(FACTS, read))?
                .add_rules(path_beneath_rules(DEVICES, everything()))?
                .add_rules(path_beneath_rules(
                    roots,
                    everything() & !(AccessFs::MakeBlock | AccessFs::MakeChar),
                ))?
                .restrict_self()
        })
        .map_err(|error| error.to_string())?;
    if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
        return Err("the kernel does not enforce it".to_owned());
    }
    Ok(())
}

pub(super) fn supported() -> Result<(), String> {
    rules().map(drop).map_err(|error| error.to_string())
}

fn everything() -> BitFlags<AccessFs> {
    AccessFs::from_all(MOST)
}

fn rules() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(LEAST))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(everything())?
        .scope(Scope::Signal | Scope::AbstractUnixSocket)?
        .create()
}
