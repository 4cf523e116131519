use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::config::{Config, Source};

fn config(tool_proxy: &Value) -> Result<Config, String> {
    let source = Source {
        openclaw: false,
        folder: Path::new("/etc/clawmatrix"),
        env: &|name| (name == "HOME").then(|| "/home/op".to_owned()),
    };
    let whole = json!({
        "nodeId": "office-01",
        "secret": "vT2mQ9xLr4Kc8WzYp6NdBh3sJf7GaE5u",
        "toolProxy": tool_proxy,
    });
    Config::from_value(whole, &source).map_err(|error| {
        let texts = error.0.iter().map(|p| format!("{}: {}", p.path, p.message));
        texts.collect::<Vec<_>>().join("\n")
    })
}

fn policy(tool_proxy: Value) -> Policy {
    config(&tool_proxy).unwrap().tools.policy
}

fn rules(rules: Value) -> Policy {
    policy(json!({"enabled": true, "rules": rules}))
}

fn caller(node: &str, level: Level, labels: &[&str], tags: &[&str]) -> Subject {
    let texts = |list: &[&str]| {
        list.iter()
            .map(|text| (*text).to_owned())
            .collect::<Vec<_>>()
    };
    Subject {
        node: node.parse().unwrap(),
        level,
        labels: texts(labels).into(),
        tags: texts(tags),
    }
}

fn anyone() -> Subject {
    caller("home-01", Level::Pinned, &[], &[])
}

fn friend() -> Subject {
    caller("home-01", Level::Trusted, &[], &[])
}

fn judge(policy: &Policy, subject: &Subject, tool: &str, resource: Resource<'_>) -> String {
    let request = Request {
        tool,
        resource,
        agent: false,
    };
    policy.judge(subject, request).to_string()
}

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn run(policy: &Policy, path: &str, words: &[&str]) -> String {
    let argv = argv(words);
    judge(
        policy,
        &friend(),
        EXEC,
        Resource::Program { path, argv: &argv },
    )
}

#[test]
fn a_node_that_says_nothing_lends_no_tool() {
    for off in [json!({}), json!({"enabled": false, "allow": ["*"]})] {
        let verdict = judge(&policy(off), &friend(), READ, Resource::Path("/srv/a"));
        assert_eq!(verdict, "deny by `toolProxy.enabled`");
    }
}

/// T93
#[test]
fn deny_beats_allow_for_the_same_tool() {
    let lists = policy(json!({"enabled": true, "allow": ["exec", "re*"], "deny": ["EXEC"]}));
    let on_text = |tool| judge(&lists, &friend(), tool, Resource::Text("id"));
    assert_eq!(on_text(EXEC), "deny by `toolProxy.deny[0]`");
    assert_eq!(on_text("read"), "allow by `toolProxy.allow[1]`");
    assert_eq!(on_text("write"), "deny by `default`");
    let rules = rules(json!([
        {"id": "yes", "effect": "allow", "from": ["*"], "action": ["tool:*"]},
        {"id": "no", "effect": "deny", "from": ["*"], "action": ["tool:web_*"]},
    ]));
    let verdict = |tool| judge(&rules, &friend(), tool, Resource::None);
    assert_eq!(verdict("Web_Fetch"), "deny by `no`");
    assert_eq!(verdict("browser"), "allow by `yes`");
}

/// T94
#[test]
fn an_empty_rule_list_allows_nothing_and_an_empty_allow_everything() {
    let none = rules(json!([]));
    assert_eq!(
        judge(&none, &friend(), READ, Resource::Path("/a")),
        "deny by `default`"
    );
    let open = config(&json!({"enabled": true})).unwrap();
    let all = &open.tools.policy;
    for tool in [EXEC, READ, WRITE, "browser"] {
        assert_eq!(
            judge(all, &anyone(), tool, Resource::None),
            "allow by `toolProxy.allow`"
        );
    }
    let warned = |word: &str| open.warnings.iter().any(|w| w.contains(word));
    assert!(warned("`toolProxy.allow` is open") && warned("`toolProxy.roots` is empty"));
    let bound = config(&json!({"enabled": true, "allow": ["read"], "roots": ["/srv"]})).unwrap();
    assert_eq!(bound.warnings, Vec::<String>::new());
    let starred = config(&json!({"enabled": true, "allow": ["*"], "roots": ["/srv"]})).unwrap();
    assert_eq!(starred.warnings.len(), 1);
}

/// T95
#[test]
fn tags_a_node_gives_itself_grant_nothing_and_may_deny() {
    let by_label = json!([{"id": "a", "effect": "allow", "from": ["label:admin"], "action": ["tool:exec"], "program": ["/bin/ls"]}]);
    let by_label = rules(by_label);
    let argv = argv(&["ls"]);
    let ls = Resource::Program {
        path: "/bin/ls",
        argv: &argv,
    };
    let liar = caller("evil", Level::Trusted, &[], &["admin"]);
    let admin = caller("home-01", Level::Trusted, &["admin"], &[]);
    assert_eq!(judge(&by_label, &liar, EXEC, ls), "deny by `default`");
    assert_eq!(judge(&by_label, &admin, EXEC, ls), "allow by `a`");
    for tag in ["tag:admin", "tags:admin"] {
        let rule = json!([{"id": "a", "effect": "allow", "from": [tag], "action": ["tool:exec"]}]);
        let refused = config(&json!({"enabled": true, "rules": rule})).unwrap_err();
        assert!(
            refused.contains("toolProxy.rules[0].from[0]") && refused.contains("self-asserted")
        );
    }
    let shunned = rules(json!([
        {"id": "all", "effect": "allow", "from": ["*"], "action": ["tool:*"], "minTrust": "pinned"},
        {"id": "guests", "effect": "deny", "from": ["tags:guest"], "action": ["tool:*"]},
    ]));
    let guest = caller("home-01", Level::Trusted, &[], &["guest"]);
    assert_eq!(
        judge(&shunned, &guest, "browser", Resource::None),
        "deny by `guests`"
    );
    assert_eq!(
        judge(&shunned, &anyone(), "browser", Resource::None),
        "allow by `all`"
    );
}

#[test]
fn a_pattern_of_names_holds_for_confirmed_keys_only() {
    let by_name = rules(json!([
        {"id": "homes", "effect": "allow", "from": ["home-*"], "action": ["tool:read"]},
        {"id": "one", "effect": "allow", "from": ["attic"], "action": ["tool:read"]},
        {"id": "bad", "effect": "deny", "from": ["HOME-13*"], "action": ["tool:*"]},
    ]));
    let read = |subject: &Subject| judge(&by_name, subject, READ, Resource::Path("/a"));
    assert_eq!(read(&friend()), "allow by `homes`");
    assert_eq!(read(&anyone()), "deny by `default`");
    assert_eq!(
        read(&caller("attic", Level::Pinned, &[], &[])),
        "allow by `one`"
    );
    assert_eq!(
        read(&caller("attic", Level::Seen, &[], &[])),
        "deny by `default`"
    );
    assert_eq!(
        read(&caller("home-13", Level::Pinned, &[], &[])),
        "deny by `bad`"
    );
}

#[test]
fn what_changes_something_asks_for_a_confirmed_key() {
    let all = rules(json!([{"id": "all", "effect": "allow", "from": ["*"], "action": ["tool:*"]}]));
    let verdict = |tool| judge(&all, &anyone(), tool, Resource::None);
    assert_eq!(verdict(READ), "allow by `all`");
    assert_eq!(verdict(LIST), "allow by `all`");
    for tool in [WRITE, EDIT, EXEC, EXEC_SHELL, "browser"] {
        assert_eq!(verdict(tool), "deny by `default`", "{tool}");
    }
    let confirmed = policy(json!({"enabled": true, "minTrust": "trusted"}));
    assert_eq!(
        judge(&confirmed, &anyone(), READ, Resource::None),
        "deny by `default`"
    );
    assert_eq!(
        judge(&confirmed, &friend(), READ, Resource::None),
        "allow by `toolProxy.allow`"
    );
}

#[test]
fn tools_that_ask_wait_for_a_person() {
    let asks = policy(json!({"enabled": true, "ask": ["exec", "w*"]}));
    let level = |tool| {
        let request = Request {
            tool,
            resource: Resource::None,
            agent: false,
        };
        let verdict = asks.judge(&friend(), request);
        (verdict.level, verdict.rule.to_string(), verdict.runs())
    };
    assert_eq!(level(EXEC), (2, "toolProxy.ask[0]".into(), false));
    assert_eq!(level(WRITE), (2, "toolProxy.ask[1]".into(), false));
    assert_eq!(level(READ), (1, "toolProxy.allow".into(), true));
}

#[test]
fn the_guard_lets_models_change_nothing_alone() {
    let guarded = policy(json!({"enabled": true})).guarded(true);
    for (tool, agent, level) in [
        (EXEC, true, 2),
        (WRITE, true, 2),
        (EXEC, false, 1),
        (READ, true, 1),
    ] {
        let request = Request {
            tool,
            resource: Resource::None,
            agent,
        };
        assert_eq!(
            guarded.judge(&friend(), request).level,
            level,
            "{tool} {agent}"
        );
    }
}

#[test]
fn paths_of_rules_are_patterns_over_real_paths() {
    let files = rules(json!([
        {"id": "docs", "effect": "allow", "from": ["*"], "action": ["tool:read", "tool:list"], "paths": ["/srv/docs/**", "/srv/*.md", "~/notes/**"]},
        {"id": "private", "effect": "deny", "from": ["*"], "action": ["tool:*"], "paths": ["/srv/docs/private"]},
    ]));
    for (path, verdict) in [
        ("/srv/docs", "allow by `docs`"),
        ("/srv/docs/a/b", "allow by `docs`"),
        ("/srv/docs/private", "deny by `private`"),
        ("/srv/docs/private/key", "deny by `private`"),
        ("/srv/docs/privateer", "allow by `docs`"),
        ("/srv/readme.md", "allow by `docs`"),
        ("/srv/sub/readme.md", "deny by `default`"),
        ("/home/op/notes/x", "allow by `docs`"),
        ("/etc/passwd", "deny by `default`"),
    ] {
        assert_eq!(
            judge(&files, &anyone(), READ, Resource::Path(path)),
            verdict,
            "{path}"
        );
    }
    // A rule about paths says nothing about programs.
    assert_eq!(run(&files, "/bin/ls", &["ls"]), "deny by `default`");
}

/// T98
#[test]
fn programs_that_run_others_need_a_rule_that_says_so() {
    let git = |more: Value| {
        let mut rule = json!({"id": "git", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "program": ["/usr/bin/*"]});
        rule.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        rules(json!([rule]))
    };
    let status = git(json!({"args": ["status", "*"]}));
    assert_eq!(
        run(&status, "/usr/bin/git", &["git", "status", "src"]),
        "allow by `git`"
    );
    for words in [
        &["git", "-c", "core.sshCommand=id", "status"][..],
        &["git", "status", "-c"],
        &["git", "status", "--exec=id"],
        &["git", "status"],
        &["git", "status", "src", "more"],
        &["git"],
    ] {
        assert_eq!(
            run(&status, "/usr/bin/git", words),
            "deny by `default`",
            "{words:?}"
        );
    }
    let many = git(json!({"args": ["log", "--format=*", "..."]}));
    assert_eq!(
        run(
            &many,
            "/usr/bin/git",
            &["git", "log", "--format=a", "--format=b"]
        ),
        "allow by `git`"
    );
    assert_eq!(
        run(
            &many,
            "/usr/bin/git",
            &["git", "log", "--format=a", "--output=x"]
        ),
        "deny by `default`"
    );

    let any = git(json!({"args": "any"}));
    let dangerous = git(json!({"args": "any", "dangerous": true}));
    for (path, words) in [
        ("/usr/bin/git", &["git", "-c", "core.sshCommand=id"][..]),
        (
            "/usr/bin/tar",
            &["tar", "xf", "a", "--checkpoint-action=exec=id"],
        ),
        ("/usr/bin/find", &["find", ".", "-exec", "id", ";"]),
        ("/usr/bin/find", &["find", "."]),
        ("/usr/bin/rsync", &["rsync", "-e", "id", "a", "b"]),
        ("/usr/bin/mawk", &["awk", "BEGIN{system(\"id\")}"]),
        ("/usr/bin/env", &["env", "id"]),
        ("/usr/bin/xargs", &["xargs", "id"]),
        ("/usr/bin/sudo", &["sudo", "id"]),
        ("/usr/bin/python3.12", &["python3", "-c", "1"]),
        ("/usr/bin/dash", &["sh", "-c", "id"]),
        ("/usr/bin/busybox", &["ls"]),
        ("/usr/bin/ls", &["sh"]),
    ] {
        assert_eq!(run(&any, path, words), "deny by `default`", "{words:?}");
        assert_eq!(run(&dangerous, path, words), "allow by `git`", "{words:?}");
    }
    assert_eq!(
        run(&any, "/usr/bin/ls", &["ls", "-la", "/"]),
        "allow by `git`"
    );

    // With patterns, `find` may search but neither run nor remove.
    let find = git(json!({"args": [".", "-name", "*", "-*", "..."]}));
    assert_eq!(
        run(
            &find,
            "/usr/bin/find",
            &["find", ".", "-name", "x", "-print"]
        ),
        "allow by `git`"
    );
    assert_eq!(
        run(
            &find,
            "/usr/bin/find",
            &["find", ".", "-name", "x", "-delete"]
        ),
        "deny by `default`"
    );

    // A rule without `program`: harmless ones only.
    let plain =
        rules(json!([{"id": "p", "effect": "allow", "from": ["*"], "action": ["tool:exec"]}]));
    assert_eq!(run(&plain, "/usr/bin/cat", &["cat", "x"]), "allow by `p`");
    assert_eq!(
        run(&plain, "/usr/bin/git", &["git", "status"]),
        "deny by `default`"
    );
}

#[test]
fn a_shell_is_an_action_of_its_own() {
    let exec =
        rules(json!([{"id": "e", "effect": "allow", "from": ["*"], "action": ["tool:exec"]}]));
    assert_eq!(
        judge(&exec, &friend(), EXEC_SHELL, Resource::Text("id")),
        "deny by `default`"
    );
    let shell = json!([
        {"id": "s", "effect": "allow", "from": ["*"], "action": ["tool:exec*"]},
        {"id": "rm", "effect": "deny", "from": ["*"], "action": ["tool:exec_shell"], "text": ["*rm *"]},
    ]);
    let shell = rules(shell);
    assert_eq!(
        judge(&shell, &friend(), EXEC_SHELL, Resource::Text("a | b")),
        "ask by `s`"
    );
    assert_eq!(
        judge(&shell, &friend(), EXEC_SHELL, Resource::Text("a; rm -r b")),
        "deny by `rm`"
    );
    let no_exec = rules(json!([
        {"id": "all", "effect": "allow", "from": ["*"], "action": ["tool:*"]},
        {"id": "none", "effect": "deny", "from": ["*"], "action": ["tool:exec"]},
    ]));
    assert_eq!(
        judge(&no_exec, &friend(), EXEC_SHELL, Resource::Text("a | b")),
        "deny by `none`"
    );
    let refused = json!({"enabled": true, "rules": [{"id": "x", "effect": "allow", "from": ["*"], "action": ["tool:exec_shell"], "text": ["ls*"]}]});
    assert!(
        config(&refused)
            .unwrap_err()
            .contains("cannot be allowed by its looks")
    );
}

#[test]
fn rules_that_cannot_be_understood_stop_the_start() {
    for (rule, problem) in [
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["model:*"]}),
            "is no action of a tool",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": [], "action": ["tool:*"]}),
            "from: is empty",
        ),
        (
            json!({"id": "a", "effect": "deny", "from": ["*"], "action": ["tool:*"], "minTrust": "pinned"}),
            "no meaning in a deny",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:["]}),
            "is not a pattern",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "program": ["git"]}),
            "not an absolute path",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "args": "any"}),
            "program: missing",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "env": ["LD_PRELOAD"]}),
            "cannot be left to a caller",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "level": 4}),
            "level",
        ),
        (
            json!({"id": "a", "effect": "maybe", "from": ["*"], "action": ["tool:exec"]}),
            "effect",
        ),
        (
            json!({"id": "a", "from": ["*"], "action": ["tool:exec"]}),
            "effect: missing",
        ),
        (
            json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:exec"], "comand": "x"}),
            "comand: unknown key",
        ),
    ] {
        let refused = config(&json!({"enabled": true, "rules": [rule]})).unwrap_err();
        assert!(refused.contains(problem), "{rule}: {refused}");
        // Also while tools are off: what is switched on later must be right.
        assert!(config(&json!({"rules": [rule]})).is_err());
    }
    let twice = json!({"id": "a", "effect": "allow", "from": ["*"], "action": ["tool:*"]});
    let twice = config(&json!({"rules": [twice, twice]})).unwrap_err();
    assert!(twice.contains("rules[1].id: `a` stands in"), "{twice}");
}

#[test]
fn commands_are_confined_to_folders_that_are_named() {
    let nowhere = config(&json!({"enabled": true, "confine": true})).unwrap_err();
    assert_eq!(nowhere, "toolProxy.confine: needs `toolProxy.roots`");
    let free = config(&json!({"enabled": true})).unwrap().tools.commands;
    assert_eq!(free, crate::tools::host::command::Commands::default());
    let bound = json!({"enabled": true, "confine": true, "roots": ["/srv"], "maxProcesses": 64, "maxMemoryBytes": 1 << 30});
    let bound = config(&bound).unwrap();
    let bounds = &bound.tools.commands.bounds;
    assert_eq!((bounds.processes, bounds.memory), (64, Some(1 << 30)));
    let helper = bounds.helper.as_ref().unwrap();
    assert_eq!(helper.roots, Some(vec!["/srv".into()]));
    // It is said at the start when it cannot be done.
    let told = bound
        .warnings
        .iter()
        .any(|w| w.contains("`toolProxy.confine`"));
    assert_eq!(told, crate::tools::host::bounds::supported().is_err());
}

/// What the operator chose holds from the first instruction of a command on.
#[test]
fn chosen_limits_are_in_place_before_a_command_begins() {
    use crate::tools::host::bounds;

    for (key, value) in [("maxProcesses", 64), ("maxMemoryBytes", 1 << 30)] {
        let bound = config(&json!({"enabled": true, "roots": ["/srv"], key: value})).unwrap();
        let helper = &bound.tools.commands.bounds.helper;
        assert_eq!(helper.is_some(), bounds::LIMITS, "{key}");
        assert!(helper.iter().all(|helper| helper.roots.is_none()), "{key}");
        let told = bound
            .warnings
            .iter()
            .any(|w| w.contains("`toolProxy.maxProcesses` binds nothing"));
        assert_eq!(
            told,
            key == "maxProcesses" && !bounds::counts_processes(),
            "{key}"
        );
    }
}

/// T96
#[test]
fn commands_are_split_as_a_shell_would_or_need_one() {
    for (command, words) in [
        ("ls -la  /srv", &["ls", "-la", "/srv"][..]),
        ("echo 'a b' \"c d\" e\\ f", &["echo", "a b", "c d", "e f"]),
        ("printf \"a\\\"b\\n\"", &["printf", "a\"b\\n"]),
        (
            "echo '$(id)' '`id`' 'a;b|c'",
            &["echo", "$(id)", "`id`", "a;b|c"],
        ),
        ("echo ''", &["echo", ""]),
        ("\techo\ta", &["echo", "a"]),
        ("ls \u{ff1b}id", &["ls", "\u{ff1b}id"]),
        ("ls --color=auto", &["ls", "--color=auto"]),
    ] {
        assert_eq!(
            command::words(command).as_deref(),
            Some(&*argv(words)),
            "{command}"
        );
    }
    for command in [
        "ls;id",
        "ls|id",
        "ls &",
        "ls && id",
        "echo $(id)",
        "echo `id`",
        "echo \"$HOME\"",
        "echo \"`id`\"",
        "ls *",
        "ls a?",
        "ls [a]",
        "ls {a,b}",
        "ls ~",
        "# x",
        "! ls",
        "ls\nid",
        "ls \\\nid",
        "A=1 ls",
        "A+=1 ls",
        "cd /",
        "exec ls",
        ". x",
        "while",
        "",
        "  ",
        "''",
        "echo 'open",
        "echo \"open",
        "echo \\",
        "(ls)",
        "ls > x",
        "ls < x",
    ] {
        assert_eq!(command::words(command), None, "{command:?}");
    }
}

/// T96
#[test]
fn characters_that_hide_something_are_named() {
    for bad in [
        "a\0",
        "a\tb",
        "a\nb",
        "\u{1b}[0m",
        "a\u{a0}b",
        "a\u{200b}b",
        "\u{202e}a",
        "\u{2066}a",
        "e\u{301}",
        "\u{feff}a",
        "\u{85}",
    ] {
        assert!(command::hidden(bad).is_some(), "{bad:?}");
    }
    for good in [
        "", "plain", "é", "日本", "\u{ff1b}", "--exec=x", "a;b", "$(id)",
    ] {
        assert_eq!(command::hidden(good), None, "{good:?}");
    }
}

/// T97
#[test]
fn variables_that_change_code_are_never_a_callers() {
    for bad in [
        "LD_PRELOAD",
        "ld_library_path",
        "DYLD_INSERT_LIBRARIES",
        "MY_PRELOAD",
        "PATH",
        "IFS",
        "BASH_ENV",
        "ENV",
        "NODE_OPTIONS",
        "PYTHONPATH",
        "PYTHONSTARTUP",
        "GIT_SSH_COMMAND",
        "PERL5OPT",
        "RUBYOPT",
        "",
        "A=B",
        "A B",
        "1A",
        "A\0",
    ] {
        assert!(command::forbidden_variable(bad), "{bad:?}");
    }
    for good in ["LC_ALL", "TZ", "CI", "_X1"] {
        assert!(!command::forbidden_variable(good), "{good}");
    }
}

mod properties {
    use proptest::prelude::*;

    use super::super::command;

    proptest! {
        /// A command put together from quoted words is split into the same words.
        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("[^\0']{0,8}", 1..5)) {
            let text = words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ");
            let mut expected = vec!["run".to_owned()];
            expected.extend(words);
            let split = command::words(&format!("run {text}")).unwrap_or_default();
            prop_assert_eq!(split, expected);
        }

        /// Any text gives words or none, and words never come out of what a shell would act on.
        #[test]
        fn any_text_is_split_or_not(text in "\\PC{0,40}") {
            if let Some(words) = command::words(&text) {
                prop_assert!(!words.is_empty() && !words[0].is_empty());
            }
            let _ = command::hidden(&text);
        }
    }
}
