//! Files that no tool opens, whatever rules say: keys, credentials, this node's own state, what the
//! kernel shows as files (protocol 8.2). Rules can add to it by `deny`, nothing takes from it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use rustix::fs::{FileType, Stat, lstat};

/// Name of the list in refusals and in the audit record.
pub const BUILT_IN: &str = "builtin.paths";

/// Files and folders of an account that hold credentials.
const IN_HOME: &str = ".ssh .gnupg .aws .azure .kube .docker .netrc .git-credentials .npmrc .pypirc .pgpass .my.cnf \
.password-store .vault-token .config/clawmatrix .config/gcloud .config/gh .config/git/credentials .config/op \
.cargo/credentials .cargo/credentials.toml .local/share/keyrings .local/share/clawmatrix .openclaw .clawdbot Library/Keychains";
/// The same of the machine.
const OF_SYSTEM: &str = "/proc /sys /dev /etc/shadow /etc/shadow- /etc/gshadow /etc/gshadow- /etc/sudoers /etc/sudoers.d \
/etc/ssh /etc/ssl/private /etc/krb5.keytab /run/secrets /run/credentials /private/etc/master.passwd";
/// Names that mean the same wherever they stand.
const ANYWHERE: &str = ".ssh .gnupg .aws .kube .netrc .git-credentials .pgpass .password-store id_rsa id_ed25519 id_ecdsa \
identity.key identity.next operator.key openclaw.token";
/// Files looked at for a second name of what is opened.
const SAME_FILE_LIMIT: usize = 100_000;
/// Filesystems the kernel makes up: proc, sysfs, debugfs, securityfs, cgroup and cgroup2.
const MADE_UP: [u64; 6] = [
    0x9fa0,
    0x6265_6572,
    0x6462_6720,
    0x7363_6673,
    0x0027_e0eb,
    0x6367_7270,
];

/// The list, resolved for one node.
#[derive(Debug, Clone, Default)]
pub struct Denied {
    /// Folders and files, with everything beneath.
    trees: Vec<PathBuf>,
    /// Folders within them that are free.
    free: Vec<PathBuf>,
}

impl Denied {
    /// The list for an account whose home is `home`, and `more`: state and configuration of this node
    /// and of its gateway.
    #[must_use]
    pub fn new(home: &Path, more: &[PathBuf]) -> Self {
        let words = |text: &'static str| text.split_ascii_whitespace();
        let mut trees: Vec<PathBuf> = words(IN_HOME).map(|name| home.join(name)).collect();
        trees.extend(words(OF_SYSTEM).map(PathBuf::from));
        trees.extend(more.iter().cloned());
        // As it is written and as it really lies.
        let real: Vec<PathBuf> = trees
            .iter()
            .filter_map(|tree| fs::canonicalize(tree).ok())
            .collect();
        trees.extend(real);
        trees.sort();
        trees.dedup();
        Self {
            trees,
            free: Vec::new(),
        }
    }

    /// Lets the workspaces of agents be reached, which OpenClaw keeps within its state folder.
    #[must_use]
    pub fn but(mut self, free: Vec<PathBuf>) -> Self {
        let real: Vec<PathBuf> = free
            .iter()
            .filter_map(|f| fs::canonicalize(f).ok())
            .collect();
        self.free = free;
        self.free.extend(real);
        self
    }

    /// Whether `real`, a path without links, is on the list.
    #[must_use]
    pub fn covers(&self, real: &Path) -> bool {
        let secret = real.components().any(|part| {
            let part = part.as_os_str().to_string_lossy();
            ANYWHERE
                .split_ascii_whitespace()
                .any(|name| part.eq_ignore_ascii_case(name))
        });
        if secret {
            return true;
        }
        let deepest = |list: &[PathBuf]| {
            let above = list.iter().filter(|tree| beneath(real, tree));
            above.map(|tree| tree.components().count()).max()
        };
        match (deepest(&self.trees), deepest(&self.free)) {
            (None, _) => false,
            (Some(_), None) => true,
            // The folder that is named more closely counts.
            (Some(denied), Some(free)) => denied >= free,
        }
    }

    /// Whether this file has a second name on the list. Blocks on the disk; only files with more than
    /// one name need it.
    #[must_use]
    pub fn holds(&self, file: &Stat) -> bool {
        let made_up = ["/proc", "/sys", "/dev"].map(Path::new);
        let mut left = SAME_FILE_LIMIT;
        let mut open: Vec<PathBuf> = self
            .trees
            .iter()
            .filter(|tree| !made_up.contains(&tree.as_path()))
            .cloned()
            .collect();
        while let Some(path) = open.pop() {
            if left == 0 {
                // Too much to look at: better refused.
                return true;
            }
            left -= 1;
            if self.free.contains(&path) || path.ends_with("node_modules") {
                continue;
            }
            let Ok(about) = lstat(&path) else {
                continue;
            };
            if about.st_dev == file.st_dev && about.st_ino == file.st_ino {
                return true;
            }
            if FileType::from_raw_mode(about.st_mode) == FileType::Directory
                && let Ok(entries) = fs::read_dir(&path)
            {
                open.extend(entries.flatten().map(|entry| entry.path()));
            }
        }
        false
    }
}

/// Whether a filesystem is made up by the kernel.
#[must_use]
pub fn made_up(kind: u64) -> bool {
    MADE_UP.contains(&kind)
}

/// Without regard to case: some filesystems have none.
fn beneath(path: &Path, tree: &Path) -> bool {
    let mut parts = path.components();
    tree.components().all(|of_tree| {
        parts
            .next()
            .is_some_and(|part| part.as_os_str().eq_ignore_ascii_case(of_tree.as_os_str()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// T108 in part: by name.
    #[test]
    fn credentials_are_on_the_list_and_workspaces_are_not() {
        let home = Path::new("/home/op");
        let openclaw = home.join(".openclaw");
        let denied = Denied::new(home, &[PathBuf::from("/var/lib/cm")])
            .but(vec![openclaw.join("workspace")]);
        for path in [
            "/home/op/.ssh/id_x",
            "/home/op/.SSH/config",
            "/home/other/.ssh/authorized_keys",
            "/home/op/.netrc",
            "/proc/self/fd/3",
            "/dev/sda",
            "/etc/shadow",
            "/var/lib/cm/identity.key",
            "/var/lib/cm/run/token",
            "/home/op/.openclaw/openclaw.json",
            "/srv/backup/identity.key",
            "/home/op/.openclaw/workspace/.aws/x",
            "/home/op/.config/clawmatrix/node.json",
            "/home/op/.openclaw",
        ] {
            assert!(denied.covers(Path::new(path)), "{path}");
        }
        for path in [
            "/home/op",
            "/home/op/notes.txt",
            "/home/op/.openclaw/workspace/AGENTS.md",
            "/var/lib/cmx",
            "/etc/hosts",
            "/home/op/.config/app",
        ] {
            assert!(!denied.covers(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_second_name_is_found_by_its_number() {
        let temp = tempfile::tempdir().unwrap();
        let state = temp.path().join("state/deep");
        fs::create_dir_all(&state).unwrap();
        fs::write(state.join("secret"), "x").unwrap();
        fs::hard_link(state.join("secret"), temp.path().join("innocent")).unwrap();
        fs::write(temp.path().join("other"), "x").unwrap();
        let denied = Denied::new(Path::new("/nonexistent"), &[temp.path().join("state")]);
        let of = |name: &str| lstat(temp.path().join(name)).unwrap();
        assert!(denied.holds(&of("innocent")));
        assert!(!denied.holds(&of("other")));
    }
}
