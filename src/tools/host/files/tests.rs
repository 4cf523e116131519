//! Paths that want to lead elsewhere, and what is done with files.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::PathBuf,
};

use super::*;
use crate::tools::host::{
    denied::Denied,
    place::{Last, Refusal},
};

struct World {
    temp: tempfile::TempDir,
    places: Places,
}

impl World {
    /// A root `in`, a folder `out` beside it, a denied one `state`.
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        for name in ["in/sub", "out", "state"] {
            fs::create_dir_all(temp.path().join(name)).unwrap();
        }
        for (name, text) in [
            ("in/a.txt", "hello"),
            ("out/secret", "no"),
            ("state/identity.key", "key"),
        ] {
            fs::write(temp.path().join(name), text).unwrap();
        }
        let places = Places {
            roots: vec![temp.path().join("in")],
            home: temp.path().to_owned(),
            denied: Denied::new(temp.path(), &[temp.path().join("state")]),
        };
        Self { temp, places }
    }

    fn open() -> Self {
        let mut world = Self::new();
        world.places.roots.clear();
        world
    }

    fn at(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn read(&self, path: &str) -> Result<String, Failure> {
        self.read_part(path, 0, None, 1 << 20).map(|(_, text)| text)
    }

    fn read_part(
        &self,
        path: &str,
        offset: u64,
        limit: Option<u64>,
        most: usize,
    ) -> Result<(Value, String), Failure> {
        let place = self
            .places
            .locate(path, Last::Follow)
            .map_err(|r| r.failure(path))?;
        let ask = Read {
            path: path.into(),
            offset,
            limit,
        };
        let (about, bytes) = read(&self.places, &place.real, &ask, most)?;
        Ok((about, String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn write(&self, path: &str, content: &str) -> Result<Value, Failure> {
        let place = self
            .places
            .locate(path, Last::Keep)
            .map_err(|r| r.failure(path))?;
        write(&self.places, &place, path, content.as_bytes())
    }

    fn edit(&self, path: &str, old: &str, new: &str, all: bool) -> Result<Value, Failure> {
        let place = self
            .places
            .locate(path, Last::Keep)
            .map_err(|r| r.failure(path))?;
        let ask = Edit {
            path: path.into(),
            old_bytes: old.len(),
            all,
        };
        edit(&self.places, &place, &ask, [old, new].concat().as_bytes())
    }
}

/// T89
#[test]
fn paths_that_are_none_are_refused() {
    let world = World::new();
    let inside = world.text("in");
    for path in [
        "",
        "..",
        "a/../../b",
        "%2e%2e/out/secret",
        "%2E./x",
        "..%2fout",
        "a//b",
        "//etc",
        "a\0b",
        "C:\\x",
        "a\\b",
        "file::$DATA",
        "a:$data",
        "../out/secret",
        "sub/../a.txt",
        "~/../x",
    ] {
        for whole in [path.to_owned(), format!("{inside}/{path}")] {
            if path.is_empty() && !whole.is_empty() {
                continue;
            }
            let refused = world.places.locate(&whole, Last::Follow);
            assert!(
                matches!(refused, Err(Refusal::Wrong(_))),
                "{whole:?}: {refused:?}"
            );
        }
    }
    for outside in [
        world.text("out/secret"),
        "/etc/passwd".into(),
        "~/out/secret".into(),
        world.text("in") + "x",
        "/".into(),
    ] {
        let refused = world.places.locate(&outside, Last::Follow);
        assert_eq!(refused, Err(Refusal::Rule("toolProxy.roots")), "{outside}");
    }
    assert!(world.places.locate("c:/x", Last::Follow).is_err());
    assert_eq!(world.read("a.txt").unwrap(), "hello");
    assert_eq!(
        world.read("./sub/.././a.txt").unwrap_err().code,
        Code::InvalidRequest
    );
    assert_eq!(world.read(&world.text("in/a.txt")).unwrap(), "hello");
    let absent = world.read("b.txt").unwrap_err();
    assert_eq!(
        (absent.code, absent.stage),
        (Code::NotFound, crate::wire::code::Stage::NotStarted)
    );
    let long = "a/".repeat(200);
    assert!(world.places.locate(&long, Last::Follow).is_err());
}

/// T90
#[test]
fn links_out_of_the_root_lead_nowhere() {
    let world = World::new();
    symlink(world.at("out/secret"), world.at("in/file")).unwrap();
    symlink(world.at("out"), world.at("in/folder")).unwrap();
    symlink("../out/secret", world.at("in/relative")).unwrap();
    symlink("a.txt", world.at("in/good")).unwrap();
    for path in ["file", "folder/secret", "relative", "folder"] {
        let refused = world.places.locate(path, Last::Follow);
        assert_eq!(refused, Err(Refusal::Rule("toolProxy.roots")), "{path}");
    }
    assert_eq!(
        world.write("folder/new", "x").unwrap_err().code,
        Code::PolicyDenied
    );
    assert_eq!(world.read("good").unwrap(), "hello");
    assert!(!world.at("out/new").exists());
}

/// Works while `in/real` is now a folder and now a link to `out`.
fn while_a_name_swaps(world: &World, work: impl FnOnce()) {
    fs::create_dir(world.at("in/real")).unwrap();
    fs::write(world.at("in/real/secret"), "yes").unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                // Rename is atomic: the name is always one of the two.
                let _ = symlink(world.at("out"), world.at("in/link"));
                let _ = fs::rename(world.at("in/real"), world.at("in/kept"));
                let _ = fs::rename(world.at("in/link"), world.at("in/real"));
                let _ = fs::remove_file(world.at("in/real"));
                let _ = fs::rename(world.at("in/kept"), world.at("in/real"));
            }
        });
        let worked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        worked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// T90: the search for the real path may see either; what is opened is never outside.
#[test]
fn a_link_that_comes_and_goes_never_leads_out() {
    let world = World::new();
    let (mut inside, mut refused) = (0_u32, 0_u32);
    while_a_name_swaps(&world, || {
        for _ in 0..100_000 {
            match world.read("real/secret") {
                Ok(text) => {
                    assert_eq!(text, "yes");
                    inside += 1;
                }
                Err(_) => refused += 1,
            }
        }
    });
    assert!(inside > 0 && refused > 0, "{inside} {refused}");
}

/// T90 for what is written, under a new name and over one that is there.
#[test]
fn a_link_that_comes_and_goes_takes_no_write_out() {
    let world = World::new();
    let (mut inside, mut refused) = (0_u32, 0_u32);
    while_a_name_swaps(&world, || {
        // Each write is synced.
        for n in 0..1_000 {
            let made = world.write(&format!("real/new-{}", n % 20), "x");
            let edited = world.edit("real/secret", "s", "s!", false);
            for done in [made.is_ok(), edited.is_ok()] {
                if done {
                    inside += 1;
                } else {
                    refused += 1;
                }
            }
        }
    });
    assert!(inside > 0 && refused > 0, "{inside} {refused}");
    assert_eq!(fs::read_dir(world.at("out")).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(world.at("out/secret")).unwrap(), "no");
}

/// T91
#[test]
fn what_is_no_plain_file_is_refused_without_waiting() {
    let world = World::open();
    let fifo = world.at("in/fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(world.at("in/socket")).unwrap();
    fs::hard_link(world.at("state/identity.key"), world.at("in/innocent")).unwrap();
    fs::hard_link(world.at("in/a.txt"), world.at("in/second")).unwrap();
    for (path, code) in [
        (world.text("in/fifo"), Code::InvalidRequest),
        (world.text("in/socket"), Code::InvalidRequest),
        (world.text("in/sub"), Code::InvalidRequest),
        (world.text("in/innocent"), Code::PolicyDenied),
        ("/dev/zero".into(), Code::PolicyDenied),
        ("/dev/stdin".into(), Code::PolicyDenied),
        ("/proc/self/environ".into(), Code::PolicyDenied),
        ("/proc/self/fd/0".into(), Code::PolicyDenied),
        ("/sys/kernel/notes".into(), Code::PolicyDenied),
    ] {
        let refused = world.read(&path).unwrap_err();
        assert_eq!(refused.code, code, "{path}: {refused}");
        assert!(world.write(&path, "x").is_err(), "{path}");
        assert!(world.edit(&path, "a", "b", false).is_err(), "{path}");
    }
    assert_eq!(world.read(&world.text("in/second")).unwrap(), "hello");
    assert_eq!(
        fs::read_to_string(world.at("state/identity.key")).unwrap(),
        "key"
    );
}

/// T108: by its name, through links, by a second name, through /proc.
#[test]
fn keys_are_not_read_by_any_spelling() {
    let world = World::open();
    symlink(world.at("state"), world.at("in/link")).unwrap();
    symlink(world.at("state/identity.key"), world.at("in/other")).unwrap();
    fs::hard_link(world.at("state/identity.key"), world.at("in/hard")).unwrap();
    fs::create_dir(world.at(".ssh")).unwrap();
    fs::write(world.at(".ssh/config"), "x").unwrap();
    let cwd = format!("/proc/self/cwd{}", world.text("state/identity.key"));
    for path in [
        "state/identity.key".to_owned(),
        "~/state/identity.key".into(),
        world.text("state/identity.key"),
        "in/link/identity.key".into(),
        "in/other".into(),
        "in/hard".into(),
        "./state/./identity.key".into(),
        "state/identity.key/".into(),
        ".ssh/config".into(),
        "~/.ssh/config".into(),
        cwd,
    ] {
        assert!(world.read(&path).is_err(), "{path}");
        assert!(world.write(&path, "x").is_err(), "{path}");
    }
    for folder in ["state", "in/link", ".ssh", "/proc/self"] {
        assert_eq!(
            world.places.locate(folder, Last::Follow),
            Err(Refusal::Rule("builtin.paths")),
            "{folder}"
        );
    }
    assert_eq!(
        fs::read_to_string(world.at("state/identity.key")).unwrap(),
        "key"
    );
    // Nor is anything put there.
    assert!(world.write("state/new", "x").is_err());
    assert!(world.write("in/.ssh/authorized_keys", "x").is_err());
    assert!(!world.at("state/new").exists() && !world.at("in/.ssh").exists());
}

/// T92
#[test]
fn a_write_over_a_link_changes_nothing() {
    let world = World::new();
    symlink(world.at("out/secret"), world.at("in/link")).unwrap();
    symlink("a.txt", world.at("in/near")).unwrap();
    for path in ["link", "near"] {
        let refused = world.write(path, "x").unwrap_err();
        assert!(refused.message.contains("is a link"), "{refused}");
        assert!(world.edit(path, "o", "x", true).is_err());
    }
    assert_eq!(fs::read_to_string(world.at("out/secret")).unwrap(), "no");
    assert_eq!(fs::read_to_string(world.at("in/a.txt")).unwrap(), "hello");
    assert!(
        fs::symlink_metadata(world.at("in/link"))
            .unwrap()
            .is_symlink()
    );
}

#[test]
fn a_write_makes_folders_keeps_the_mode_and_leaves_nothing_else() {
    let world = World::new();
    let made = world.write("new/deep/file", "one").unwrap();
    assert_eq!(made, json!({"bytes": 3, "created": true}));
    fs::set_permissions(world.at("in/a.txt"), fs::Permissions::from_mode(0o751)).unwrap();
    let before = fs::metadata(world.at("in/a.txt")).unwrap().ino();
    assert_eq!(world.write("a.txt", "two").unwrap()["created"], false);
    let after = fs::metadata(world.at("in/a.txt")).unwrap();
    assert_eq!(after.mode() & 0o777, 0o751);
    assert_ne!(after.ino(), before, "replaced as a whole");
    assert_eq!(fs::read_to_string(world.at("in/a.txt")).unwrap(), "two");
    let names: Vec<_> = fs::read_dir(world.at("in"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    assert!(world.write("a.txt/x", "x").is_err());
    assert!(
        world
            .write("sub", "x")
            .unwrap_err()
            .message
            .contains("is a folder")
    );
}

#[test]
fn an_edit_replaces_exactly_one_place_or_says_why_not() {
    let world = World::new();
    fs::write(world.at("in/a.txt"), "one two two\n").unwrap();
    let said = |old: &str, new: &str, all| world.edit("a.txt", old, new, all).unwrap_err().message;
    assert!(said("three", "x", false).contains("not in the file"));
    assert!(said("two", "x", false).contains("2 times"));
    assert!(said("one", "one", false).contains("the same"));
    assert!(said("", "x", false).contains("empty"));
    assert_eq!(
        fs::read_to_string(world.at("in/a.txt")).unwrap(),
        "one two two\n"
    );
    assert_eq!(
        world.edit("a.txt", "one ", "", false).unwrap(),
        json!({"bytes": 8, "replaced": 1})
    );
    assert_eq!(
        world.edit("a.txt", "two", "2", true).unwrap()["replaced"],
        2
    );
    assert_eq!(fs::read_to_string(world.at("in/a.txt")).unwrap(), "2 2\n");
    assert_eq!(
        world.edit("none", "a", "b", false).unwrap_err().code,
        Code::NotFound
    );
}

#[test]
fn ranges_are_cut_between_characters() {
    let world = World::new();
    fs::write(world.at("in/t"), "aé日🙂z").unwrap();
    let part = |offset, limit, most| world.read_part("t", offset, limit, most).unwrap();
    let (about, text) = part(0, None, 100);
    assert_eq!(
        (about, &*text),
        (
            json!({"size": 11, "offset": 0, "truncated": false}),
            "aé日🙂z"
        )
    );
    // Up to five bytes: `aé` and a piece of 日, which is left for the next.
    assert_eq!(part(0, None, 5).1, "aé");
    assert_eq!(part(0, Some(7), 100).1, "aé日");
    assert_eq!(part(3, None, 100).1, "日🙂z");
    assert_eq!(
        part(10, Some(5), 100),
        (
            json!({"size": 11, "offset": 10, "truncated": false}),
            "z".into()
        )
    );
    assert_eq!(part(99, None, 100).1, "");
    fs::write(world.at("in/b"), b"\xff\xfe\x00\x01\xc3\xc3").unwrap();
    let place = world.places.locate("b", Last::Follow).unwrap();
    let ask = Read {
        path: "b".into(),
        offset: 0,
        limit: Some(5),
    };
    assert_eq!(
        &read(&world.places, &place.real, &ask, 100).unwrap().1[..],
        b"\xff\xfe\x00\x01\xc3"
    );
}

#[test]
fn folders_are_shown_with_what_is_in_them() {
    let world = World::new();
    symlink("a.txt", world.at("in/l")).unwrap();
    let listed = list(&world.at("in").canonicalize().unwrap(), "in").unwrap();
    let shown: Vec<_> = listed["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["name"].as_str().unwrap(), e["type"].as_str().unwrap()))
        .collect();
    assert_eq!(shown, [("a.txt", "file"), ("l", "link"), ("sub", "folder")]);
    assert_eq!(listed["entries"][0]["size"], 5);
    let refused = list(&world.at("in/a.txt").canonicalize().unwrap(), "a.txt").unwrap_err();
    assert!(refused.message.contains("not a folder"));
    assert!(
        !list(std::path::Path::new("/"), "/").unwrap()["entries"]
            .as_array()
            .unwrap()
            .is_empty()
    );
}
