use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;

use super::*;

const SECRET: &str = "Zx7-pq2LmV9sKd0-tR4wYh8uB3nC6jF1";

fn env(name: &str) -> Option<String> {
    (name == "SET_SECRET").then(|| SECRET.to_owned())
}

fn read_as(config: Value, openclaw: bool) -> Result<Config, ConfigError> {
    let source = Source {
        openclaw,
        folder: Path::new("/nowhere"),
        env: &env,
    };
    Config::from_value(config, &source)
}

fn read(config: Value) -> Result<Config, ConfigError> {
    read_as(config, false)
}

/// The least configuration, with `more` put in.
fn with(more: Value) -> Value {
    let mut config = json!({"nodeId": "office-01", "secret": SECRET});
    for (key, value) in more.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// The problems of the least configuration with `more`, as `path: message`.
fn problems(more: Value) -> Vec<String> {
    match read(with(more)) {
        Ok(_) => Vec::new(),
        Err(error) => {
            for problem in &error.0 {
                assert!(!problem.hint.is_empty(), "no way out: {problem:?}");
                assert!(!problem.message.contains(SECRET), "{problem:?}");
            }
            error
                .0
                .iter()
                .map(|p| format!("{}: {}", p.path, p.message))
                .collect()
        }
    }
}

fn hint(more: Value) -> String {
    read(with(more)).unwrap_err().0[0].hint.clone()
}

#[test]
fn least_configuration_gets_every_default() {
    let config = read(with(json!({}))).unwrap();
    assert_eq!(config.mesh.as_str(), "default");
    assert_eq!(config.proxy_port, 19001);
    assert!(config.listen.is_none() && !config.relay);
    assert_eq!(config.drain_timeout, Duration::from_secs(30));
    assert_eq!(config.heartbeat, Duration::from_secs(15));
    assert!(config.model_identity);
    assert_eq!(config.warnings, Vec::<String>::new());
    let config = read_as(with(json!({"listen": true})), true).unwrap();
    assert_eq!(config.drain_timeout, Duration::from_secs(5));
    assert_eq!(config.listen.unwrap().port, 19000);
    assert!(config.relay);
}

#[test]
fn configuration_of_the_earlier_plugin_is_valid() {
    let config = read_as(
        with(json!({
            "listen": true, "listenHost": "0.0.0.0", "listenPort": 19000,
            "peers": [{"nodeId": "cloud-01", "url": "ws://203.0.113.7:19000"}],
            "agents": [{"id": "coder", "description": "writes code", "tags": ["code"]}],
            "models": [{"id": "qwen3-32b", "provider": "ollama", "description": "local"}],
            "proxyModels": [{"id": "claude", "nodeId": "cloud-01", "description": "Claude"}],
            "tags": ["gpu"], "proxyPort": 19001, "handoffTimeout": 600_000,
            "toolProxy": {"enabled": false, "allow": [], "deny": [], "maxOutputBytes": 1_048_576}
        })),
        true,
    )
    .unwrap();
    assert_eq!(config.models[0].provider.as_deref(), Some("ollama"));
    assert_eq!(
        config.peers[0].url.as_str(),
        "ws://203.0.113.7:19000/mesh/v1"
    );
    assert!(config.peers[0].port_given);
}

#[test]
fn everything_wrong_is_told_at_once() {
    let error = read(json!({
        "nodeid": "office", "nodeId": "-bad-", "secret": "short", "listen": "yes", "proxyPort": 70000,
        "peers": [
            {"nodeId": "a", "url": "http://attic:19000"},
            {"nodeId": "A", "ulr": "ws://x"},
            "nonsense",
            {"nodeId": "b", "url": "ws://b", "key": "no"}
        ],
        "tags": [5, "ok", ""]
    }))
    .unwrap_err();
    let paths: Vec<&str> = error.0.iter().map(|p| p.path.as_str()).collect();
    for path in [
        "nodeid",
        "nodeId",
        "secret",
        "listen",
        "proxyPort",
        "peers[0].url",
        "peers[1].nodeId",
        "peers[1].ulr",
        "peers[1].url",
        "peers[2]",
        "peers[3].key",
        "tags[0]",
        "tags[2]",
    ] {
        assert!(paths.contains(&path), "{path} is not among {paths:?}");
    }
    assert_eq!(paths.len(), 13, "{error}");
}

#[test]
fn unknown_key_names_the_nearest() {
    assert_eq!(
        problems(json!({"listenPrt": 1})),
        ["listenPrt: unknown key"]
    );
    assert_eq!(hint(json!({"listenPrt": 1})), "did you mean `listenPort`?");
    assert_eq!(
        hint(json!({"peers": [{"nodeId": "a", "uri": "ws://a", "url": "ws://a"}]})),
        "did you mean `url`?"
    );
    assert_eq!(
        problems(json!({"models": [{"id": "m", "baseUrl": "http://a/v1", "apikey": "sk"}]})),
        ["models[0].apikey: unknown key"]
    );
}

#[test]
fn wrong_type_is_told_with_the_value() {
    assert_eq!(
        problems(json!({"listenPort": "19000"})),
        ["listenPort: `19000` is not a whole number"]
    );
    assert_eq!(
        problems(json!({"listenPort": 70000})),
        ["listenPort: `70000` is more than 65535"]
    );
    assert_eq!(
        problems(json!({"drainTimeout": 30_000})),
        ["drainTimeout: `30000` is more than 3600"]
    );
    assert_eq!(
        problems(json!({"trust": {"mode": "tofo"}})),
        ["trust.mode: `tofo` is not one of `tofu`, `explicit`"]
    );
    assert_eq!(
        hint(json!({"trust": {"mode": "tofo"}})),
        "did you mean `tofu`?"
    );
    assert_eq!(
        problems(json!({"models": "all"})),
        ["models: `all` is not `auto` or a list"]
    );
    assert_eq!(
        problems(json!({"peers": null})),
        ["peers: null is not a list"]
    );
    assert_eq!(
        read(json!([1])).unwrap_err().0[0].message,
        "the configuration is a list, not an object"
    );
}

#[test]
fn no_message_shows_a_secret() {
    let config = json!({
        "nodeId": "a", "secret": {"hunter": "hunter2-hunter2-hunter2"},
        "acceptSecrets": [{"secret": ["hunter2-hunter2-hunter2"]}, {"secret": "hunter2"}],
        "models": [{"id": "m", "baseUrl": "https://user:hunter2@host/v1", "apiKey": 42}],
        "peers": [{"nodeId": "b", "url": "ws://user:hunter2@b"}, {"nodeId": "c", "url": "ws://hunter2@:::"}],
        "identityFile": 1234
    });
    let text = read(config).unwrap_err().to_string();
    assert!(!text.contains("hunter2"), "{text}");
    assert!(!text.contains("42") && !text.contains("1234"), "{text}");
    assert!(text.contains("`models[0].apiKey`"), "{text}");
}

#[test]
fn short_secret_is_refused_and_sixteen_pass() {
    let at = |secret: &str| read(json!({"nodeId": "a", "secret": secret}));
    let error = at("k3Vq9xT1mZp7w2B").unwrap_err();
    assert_eq!(
        error.0[0].message,
        "the secret has 15 characters, fewer than 16"
    );
    assert!(error.0[0].hint.contains("clawmatrix secret new"));
    assert!(at("k3Vq9xT1mZp7w2Ba").is_ok());
}

#[test]
fn trivial_secret_needs_leave_and_weak_one_warns() {
    let at = |secret: &str, allow: bool| {
        read(json!({"nodeId": "a", "secret": secret, "allowWeakSecret": allow}))
    };
    let error = at("aaaaaaaaaaaaaaaa", false).unwrap_err();
    assert!(error.0[0].hint.contains("clawmatrix secret new"), "{error}");
    assert!(at("aaaaaaaaaaaaaaaa", true).unwrap().warnings[0].contains("weak"));
    assert!(at("password12345678", false).unwrap().warnings[0].contains("weak"));
}

#[test]
fn exactly_one_of_secret_and_secret_file() {
    let error = read(json!({"nodeId": "a"})).unwrap_err();
    assert_eq!(error.0[0].path, "secret");
    assert!(error.0[0].hint.contains("clawmatrix setup"));
    assert_eq!(
        problems(json!({"secretFile": "s"})),
        ["secretFile: `secret` is given too"]
    );
}

#[test]
fn secret_file_must_exist_and_be_private() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("secret");
    let at = || read(json!({"nodeId": "a", "secretFile": file}));
    assert!(
        at().unwrap_err().0[0]
            .message
            .contains("there is no such file")
    );
    fs::write(&file, format!("{SECRET}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let error = at().unwrap_err();
    assert!(error.0[0].message.contains("other accounts"), "{error}");
    assert!(error.0[0].hint.contains("chmod 600"), "{error}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(at().unwrap().secret.reveal(), SECRET);
}

#[test]
fn systemd_credential_may_be_read_by_the_group_of_its_list() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("mesh.secret");
    fs::write(&file, SECRET).unwrap();
    let folder = temp.path().to_str().unwrap().to_owned();
    let read = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        Config::from_value(
            json!({"nodeId": "a", "secretFile": "${CREDENTIALS_DIRECTORY}/mesh.secret"}),
            &Source {
                openclaw: false,
                folder: std::path::Path::new("/"),
                env: &|name| (name == "CREDENTIALS_DIRECTORY").then(|| folder.clone()),
            },
        )
    };
    assert_eq!(read(0o440).unwrap().secret.reveal(), SECRET);
    for mode in [0o460, 0o444] {
        assert!(read(mode).is_err(), "{mode:o}");
    }
}

#[test]
fn too_open_identity_file_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("identity.key");
    fs::write(&file, [0; 32]).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let found = problems(json!({"identityFile": file}));
    assert!(found[0].contains("other accounts"), "{found:?}");
}

#[test]
fn identity_may_be_a_file_or_a_resolved_secret() {
    let at = |value: Value, openclaw| read_as(with(json!({ "identityFile": value })), openclaw);
    let seed = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc";
    let config = at(json!("keys/a.key"), true).unwrap();
    assert_eq!(
        config.identity_file.unwrap(),
        Path::new("/nowhere/keys/a.key")
    );
    let config = at(json!(seed), true).unwrap();
    assert_eq!(*config.identity_seed.as_ref().unwrap().reveal(), [7; 32]);
    let temp = tempfile::tempdir().unwrap();
    let state = StateDir::open(temp.path()).unwrap();
    let known = Identity::from_seed(&Zeroizing::new([7; 32])).public();
    assert_eq!(config.identity(&state).unwrap().public(), known);
    assert!(state.read("identity.key").unwrap().is_none());
    let reference = json!({"source": "env", "provider": "default", "id": "SET_SECRET"});
    let error = at(reference, false).unwrap_err();
    assert!(error.0[0].message.contains("not a key"), "{error}");
}

#[test]
fn peer_urls_follow_the_rules() {
    let url = |text: &str| {
        read(with(json!({"peers": [{"nodeId": "b", "url": text}]})))
            .map(|c| (c.peers[0].url.to_string(), c.peers[0].port_given))
    };
    for (text, full, port) in [
        ("ws://b", "ws://b/mesh/v1", false),
        ("wss://b/", "wss://b/mesh/v1", false),
        ("ws://b:80", "ws://b/mesh/v1", true),
        ("wss://b:8443/prefix/mesh", "wss://b:8443/prefix/mesh", true),
        ("ws://[::1]:19000", "ws://[::1]:19000/mesh/v1", true),
        ("wss://b/x?y=1", "wss://b/x?y=1", false),
    ] {
        assert_eq!(url(text).unwrap(), (full.to_owned(), port), "{text}");
    }
    for (text, message) in [
        ("http://b:19000", "not a WebSocket URL"),
        ("b:19000", "not a URL"),
        ("ws://", "not a URL"),
        ("ws://b#x", "`#`"),
        ("ws://b:99999", "not a URL"),
        ("ws://u:p@b", "password"),
    ] {
        let error = url(text).unwrap_err();
        assert!(error.0[0].message.contains(message), "{text}: {error}");
        assert_eq!(error.0[0].path, "peers[0].url");
    }
}

#[test]
fn duplicate_ids_are_refused() {
    assert_eq!(
        problems(json!({
            "peers": [{"nodeId": "b", "url": "ws://b"}, {"nodeId": "B", "url": "ws://c"}],
            "agents": [{"id": "x"}, {"id": "x"}],
            "models": [{"id": "m", "baseUrl": "http://a/v1"}, {"id": "m", "baseUrl": "http://a/v1"}],
            "proxyModels": [{"id": "m"}, {"id": "m", "nodeId": "b"}, {"id": "m"}]
        })),
        [
            "peers[1].nodeId: `B` stands in `peers[0]` already",
            "agents[1].id: `x` stands in `agents[0]` already",
            "models[1].id: `m` stands in `models[0]` already",
            "proxyModels[2].id: `m` stands in `proxyModels[0]` already",
        ]
    );
    assert_eq!(
        problems(json!({"peers": [{"nodeId": "Office-01", "url": "ws://b"}]})),
        ["peers[0].nodeId: `Office-01` is this node itself"]
    );
}

#[test]
fn bad_patterns_and_tags_in_allow_are_refused() {
    let found = problems(json!({
        "models": [{"id": "m", "baseUrl": "http://a/v1", "allow": ["home-[", "tags:admin", "home-*", "label:family"]}],
        "toolProxy": {"deny": ["a{"]},
        "relays": [""]
    }));
    assert_eq!(found.len(), 4, "{found:?}");
    assert!(
        found[0].starts_with("models[0].allow[0]: `home-[` is not a pattern"),
        "{found:?}"
    );
    assert!(found[1].contains("self-asserted"), "{found:?}");
}

#[test]
fn allow_lists_compile() {
    let config = read(with(json!({
        "models": [{"id": "m", "baseUrl": "http://a/v1", "allow": ["home-*", "label:family"]}]
    })))
    .unwrap();
    let allow = config.models[0].allow.as_ref().unwrap();
    assert!(allow.nodes.is_match("home-02") && !allow.nodes.is_match("office"));
    assert_eq!(allow.patterns, ["home-*"]);
    assert_eq!(allow.labels, ["family"]);
}

#[test]
fn bad_keys_pins_and_addresses_are_refused() {
    let found = problems(json!({
        "peers": [{"nodeId": "b", "url": "wss://b", "key": "AAAA", "tlsPin": "zz"},
                  {"nodeId": "c", "url": "ws://c", "tlsPin": "00".repeat(32)}],
        "trust": {"nodes": {"d": {"key": "x"}, "-": {}}},
        "listenHost": "office.example", "limits": {"trustedProxies": ["10.0.0.0/33", "10.0.0.0/8"]},
        "tls": {"cert": "c", "key": "k"},
        "acceptSecrets": [{"secret": SECRET, "notAfter": "soon"}]
    }));
    let paths: Vec<&str> = found.iter().filter_map(|f| f.split(": ").next()).collect();
    assert_eq!(
        paths,
        [
            "acceptSecrets[0].notAfter",
            "listenHost",
            "tls.cert",
            "peers[0].key",
            "peers[0].tlsPin",
            "peers[1].tlsPin",
            "trust.nodes.-",
            "trust.nodes.d.key",
            "limits.trustedProxies[0]",
        ]
    );
}

#[test]
fn tls_of_peers_and_their_proxies_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
    let good = file("ca.pem", &own.self_signed(&key).unwrap().pem());
    let empty = file("empty.pem", "");
    let found = problems(json!({"peers": [
        {"nodeId": "a", "url": "ws://a", "tlsCa": good},
        {"nodeId": "b", "url": "wss://b", "tlsCa": empty},
        {"nodeId": "c", "url": "wss://c", "tlsCa": "nowhere.pem"},
        {"nodeId": "d", "url": "wss://d", "tlsCa": good, "tlsPin": "00".repeat(32)},
        {"nodeId": "e", "url": "ws://e", "proxy": "socks5://me:hunter22@proxy"},
        {"nodeId": "f", "url": "wss://f", "tlsCa": good, "proxy": "http://me:hunter22@proxy:3128"}
    ]}));
    let expected = [
        "peers[0].tlsCa: `url` is not `wss://`",
        "peers[1].tlsCa: `",
        "peers[2].tlsCa: cannot read `",
        "peers[3].tlsCa: `tlsPin` is given too",
        "peers[4].proxy: the value (not shown) is not an `http://` URL",
    ];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}");
        assert!(!found.contains("hunter22"), "{found}");
    }
}

/// T116 for the listener's key.
#[test]
fn tls_key_that_others_can_read_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let own = rcgen::CertificateParams::new(vec!["a".into()]).unwrap();
    let (cert_file, key_file) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert_file, own.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&key_file, key.serialize_pem()).unwrap();
    let config =
        |listen: bool| json!({"listen": listen, "tls": {"cert": cert_file, "key": key_file}});
    let mode = |mode| {
        std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(0o644);
    let found = problems(config(true));
    assert!(
        found[0].starts_with("tls.key: ") && found[0].contains("other accounts"),
        "{found:?}"
    );
    mode(0o600);
    let read = read(with(config(true))).unwrap();
    assert!(read.listen.unwrap().tls.is_some());
    let off = self::read(with(config(false))).unwrap();
    assert!(
        off.warnings
            .iter()
            .any(|w| w.contains("`tls` has no effect")),
        "{:?}",
        off.warnings
    );
}

#[test]
fn same_port_twice_is_refused() {
    assert_eq!(
        problems(json!({"listen": true, "listenPort": 19001})),
        ["proxyPort: `19001` is also `listenPort`"]
    );
    assert!(problems(json!({"listen": true, "listenPort": 0, "proxyPort": 0})).is_empty());
    assert!(problems(json!({"listenPort": 19001})).is_empty());
}

#[test]
fn listening_on_both_ip_versions() {
    let config = read(with(json!({"listen": true, "listenHost": "::"}))).unwrap();
    assert!(config.listen.unwrap().host.is_ipv6());
}

#[test]
fn variables_and_references_are_read_without_openclaw_only() {
    for secret in [
        json!("${SET_SECRET}"),
        json!({"source": "env", "provider": "default", "id": "SET_SECRET"}),
    ] {
        let config = json!({"nodeId": "a", "secret": secret});
        assert_eq!(read(config).unwrap().secret.reveal(), SECRET);
    }
    let model = |more: Value| json!({"models": [more]});
    let found = problems(model(
        json!({"id": "m", "baseUrl": "http://a/v1", "apiKeyEnv": "NOT_SET"}),
    ));
    assert_eq!(
        found,
        ["models[0].apiKeyEnv: environment variable `NOT_SET` is not set"]
    );
    assert_eq!(
        problems(json!({"tags": ["${NOT_SET}"]})),
        ["tags[0]: environment variable `NOT_SET` is not set"]
    );
    let reference = json!({"source": "exec", "provider": "vault", "id": "x"});
    let error = read(json!({"nodeId": "a", "secret": reference})).unwrap_err();
    assert!(error.0[0].message.contains("only OpenClaw"), "{error}");
    let error = read_as(json!({"nodeId": "a", "secret": reference}), true).unwrap_err();
    assert!(error.0[0].message.contains("did not resolve"), "{error}");
}

#[test]
fn value_from_a_variable_is_never_shown() {
    let error =
        read(json!({"nodeId": "a", "secret": SECRET, "listenPort": "${SET_SECRET}"})).unwrap_err();
    assert!(!error.to_string().contains(SECRET), "{error}");
}

#[test]
fn models_need_a_server_without_openclaw() {
    assert_eq!(problems(json!({"models": [{"id": "m"}, "auto"]})).len(), 2);
    let config = read_as(with(json!({"models": "auto"})), true).unwrap();
    assert!(config.models_auto && config.models.is_empty());
    assert_eq!(
        problems(json!({"models": [{"id": "m", "baseUrl": "ftp://a"}]})),
        ["models[0].baseUrl: `ftp://a` is not an `http://` or `https://` URL"]
    );
}

#[test]
fn half_written_file_is_told_with_line_and_column() {
    let source = Source {
        openclaw: false,
        folder: Path::new("/"),
        env: &env,
    };
    let error = Config::from_text(b"{\n  \"nodeId\": \"a\",\n", &source).unwrap_err();
    assert!(error.0[0].message.contains("line 3 column 0"), "{error}");
    assert!(error.0[0].hint.contains("half-written"), "{error}");
    let error = Config::from_text(b"{\"nodeId\" 1}", &source).unwrap_err();
    assert!(error.0[0].message.contains("line 1 column"), "{error}");
    assert!(Config::from_text(b"  ", &source).is_err());
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("node.json");
    std::fs::write(&file, b"{").unwrap();
    let error = Config::from_file(&file).unwrap_err();
    assert!(
        error.0[0].message.contains("node.json`: not JSON"),
        "{error}"
    );
}

#[test]
fn file_with_a_secret_that_others_can_read_warns() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("node.json");
    fs::write(&file, with(json!({})).to_string()).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(Config::from_file(&file).unwrap().warnings[0].contains("chmod 600"));
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(Config::from_file(&file).unwrap().warnings.is_empty());
}

#[test]
fn advertised_addresses_are_checked_as_others_will() {
    let config = |more: Value| read_as(with(more), false);
    let plain = config(json!({})).unwrap();
    assert!(plain.advertise.is_empty() && plain.dial_advertised.is_none());
    let own = ["ws://192.168.1.5:19000", "wss://office.example/x/mesh/v1"];
    let good = config(json!({"listen": true, "advertise": own, "dialAdvertised": true})).unwrap();
    assert_eq!(good.advertise, own);
    let may = |config: &Config, ip: &str| {
        let bounds = config.dial_advertised.as_ref().unwrap();
        bounds.permit(ip.parse().unwrap())
    };
    assert!(may(&good, "192.168.1.7") && !may(&good, "203.0.113.7") && !may(&good, "127.0.0.1"));
    let within = json!({"dialAdvertised": {"cidrs": ["203.0.113.0/24", "127.0.0.0/8"]}});
    let within = config(within).unwrap();
    assert!(may(&within, "203.0.113.7") && !may(&within, "192.168.1.7"));
    assert!(!may(&within, "127.0.0.1"), "never this machine");
    assert!(
        config(json!({"dialAdvertised": false}))
            .unwrap()
            .dial_advertised
            .is_none()
    );
    let deaf = config(json!({"advertise": own})).unwrap();
    assert!(deaf.advertise.is_empty() && deaf.warnings.iter().any(|w| w.contains("`advertise`")));
    for (more, path) in [
        (
            json!({"advertise": ["ws://127.0.0.1:19000"]}),
            "advertise[0]",
        ),
        (
            json!({"advertise": ["ws://10.0.0.1", "ws://0x0a.1"]}),
            "advertise[1]",
        ),
        (json!({"advertise": ["http://10.0.0.1"]}), "advertise[0]"),
        (
            json!({"advertise": ["ws://10.0.0.1/admin"]}),
            "advertise[0]",
        ),
        (json!({"advertise": vec!["ws://a.example"; 5]}), "advertise"),
        (json!({"dialAdvertised": "yes"}), "dialAdvertised"),
        (json!({"dialAdvertised": {}}), "dialAdvertised.cidrs"),
        (
            json!({"dialAdvertised": {"cidrs": []}}),
            "dialAdvertised.cidrs",
        ),
        (
            json!({"dialAdvertised": {"cidrs": ["10.0.0.0/33"]}}),
            "dialAdvertised.cidrs[0]",
        ),
        (
            json!({"dialAdvertised": {"ranges": []}}),
            "dialAdvertised.ranges",
        ),
    ] {
        let problems = config(more.clone()).unwrap_err().0;
        assert!(
            problems.iter().any(|p| p.path == path),
            "{more}: {problems:?}"
        );
    }
}

#[test]
fn keys_without_effect_are_named() {
    let config = read_as(
        with(json!({
            "agents": [{"id": "x"}], "routes": {"x": []}, "telemetry": {"endpoint": "x"}
        })),
        true,
    )
    .unwrap();
    assert_eq!(config.warnings.len(), 3, "{:?}", config.warnings);
    let schema = schema::config_schema();
    for key in ["routes", "telemetry"] {
        let warned = format!("`{key}` has no effect in this version");
        assert!(
            config.warnings.contains(&warned),
            "{key}: {:?}",
            config.warnings
        );
        // The manual says so, too.
        let path = key.replace('.', "/properties/");
        let text = &schema.pointer(&format!("/properties/{path}")).unwrap()["description"];
        assert!(
            text.as_str().unwrap().contains("no effect in this version"),
            "{text}"
        );
    }
}

#[test]
fn schema_requires_nothing_and_refuses_unknown_keys() {
    let schema = schema::config_schema();
    assert!(schema.get("required").is_none());
    assert_eq!(schema["additionalProperties"], json!(false));
    let text = schema.to_string();
    for gone in ["\"null\"", "$ref", "uint", "x-"] {
        assert!(!text.contains(gone), "{gone}");
    }
    for field in schema::fields(&schema) {
        assert!(
            !field.text("title").is_empty() && !field.text("description").is_empty(),
            "{}",
            field.path
        );
    }
    let secret: Vec<String> = schema::fields(&schema)
        .iter()
        .filter(|f| f.secret())
        .map(schema::Field::dotted)
        .collect();
    assert_eq!(
        secret,
        [
            "secret",
            "peers.*.proxy",
            "agents.*.apiKey",
            "models.*.apiKey",
            "acceptSecrets.*.secret",
            "identityFile"
        ]
    );
}
