//! Transport as it is in the field (protocol 3.1, 3.5): the listener's own TLS, authorities of one's
//! own, pins, HTTP proxies, IPv6.

use std::{fs, net::SocketAddr};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::TlsConnector;

use super::*;
use crate::mesh::{
    carriage::{Network, Posture},
    dial::{proxy::HttpProxy, tls::web_tls},
    tls::TlsFiles,
};

/// An authority and a certificate for `localhost` and the loopback addresses that it signed.
struct Authority {
    _dir: tempfile::TempDir,
    files: TlsFiles,
    roots: Arc<RootCertStore>,
    pin: [u8; 32],
}

fn authority() -> Authority {
    let dir = tempfile::tempdir().unwrap();
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(params, ca_key);
    let key = KeyPair::generate().unwrap();
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let own = CertificateParams::new(names).unwrap();
    let own = own.signed_by(&key, &issuer).unwrap();
    let files = TlsFiles {
        cert: dir.path().join("cert.pem"),
        key: dir.path().join("key.pem"),
    };
    fs::write(&files.cert, own.pem()).unwrap();
    fs::write(&files.key, key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let parsed = rustls::server::ParsedCertificate::try_from(own.der()).unwrap();
    let spki = parsed.subject_public_key_info();
    Authority {
        _dir: dir,
        files,
        roots: Arc::new(roots),
        pin: <sha2::Sha256 as sha2::Digest>::digest(&spki).into(),
    }
}

async fn listening_at(name: &str, address: &str, tls: Option<&Authority>) -> Node {
    let listener = TcpListener::bind(address).await.unwrap();
    let tls = tls.map(|authority| ListenerTls::open(authority.files.clone()).unwrap());
    let seen = Recorder::new();
    Node {
        seen: seen.clone(),
        ..Node::listening(ourselves(name, 1), listener, tls, seen)
    }
}

async fn tls_node(name: &str, authority: &Authority) -> Node {
    listening_at(name, "127.0.0.1:0", Some(authority)).await
}

impl Node {
    fn at(&self, url: &str, tls: PeerTls) -> PeerConfig {
        PeerConfig {
            url: Url::parse(&url.replace("PORT", &self.port.to_string())).unwrap(),
            tls,
            ..self.peer()
        }
    }

    fn drops_of(&self, reason: Reason) -> u64 {
        let all = self.mesh.drops();
        let found = all.into_iter().find(|(name, _)| *name == reason.as_str());
        found.map_or(0, |(_, count)| count)
    }

    async fn problem_with(&self, peer: PeerConfig) -> String {
        let name = peer.node_id.to_string();
        self.mesh.dial(vec![peer]);
        let view = self.sees(&name, |view| view.problem.is_some()).await;
        view.problem.unwrap()
    }
}

const SECURE: &str = "wss://localhost:PORT/mesh/v1";

#[tokio::test]
async fn own_tls_serves_authorities_and_pins_and_shows_the_posture() {
    let authority = authority();
    let office = tls_node("office", &authority).await;
    let cases = [
        (
            "home",
            PeerTls::Authorities(authority.roots.clone()),
            Posture::Tls,
        ),
        ("attic", PeerTls::Pinned(authority.pin), Posture::Pinned),
    ];
    for (name, tls, posture) in cases {
        let home = Node::start(name, 1).await;
        home.mesh.dial(vec![office.at(SECURE, tls)]);
        home.linked_to("office").await;
        office.linked_to(name).await;
        let session = home.mesh.session(&office.name).await.unwrap();
        session
            .send(Class::Interactive, b"{\"hello\":1}", b"")
            .unwrap();
        let view = home.mesh.view();
        let link = view.borrow().links[&office.name].clone();
        assert_eq!((link.tls, link.dialed), (posture, true));
        assert_eq!(link.address, format!("localhost:{}", office.port));
        assert_eq!((link.network, link.proxy), (Network::Loopback, false));
        let view = office.mesh.view();
        let link = view.borrow().links[&home.name].clone();
        assert_eq!((link.tls, link.dialed), (Posture::Tls, false));
        assert_eq!(link.address, "127.0.0.1");
    }
    office.seen.until(|seen| seen.frames().len() == 2).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_with_the_way_out() {
    let authority = authority();
    let office = tls_node("office", &authority).await;
    let other = self::authority();
    let cases = [
        (SECURE, PeerTls::Web, "`tlsCa`"),
        (
            SECURE,
            PeerTls::Authorities(other.roots.clone()),
            "no authority in `tlsCa`",
        ),
        (
            SECURE,
            PeerTls::Pinned(other.pin),
            "not the one in `tlsPin`",
        ),
        (
            "wss://127.0.0.2:PORT/mesh/v1",
            PeerTls::Authorities(authority.roots.clone()),
            "another name",
        ),
        (
            "ws://127.0.0.1:PORT/mesh/v1",
            PeerTls::Web,
            "write `wss://`",
        ),
    ];
    for (n, (url, tls, says)) in cases.into_iter().enumerate() {
        if url.contains("127.0.0.2") && !cfg!(target_os = "linux") {
            continue;
        }
        let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let tls_at_all = Some(ListenerTls::open(authority.files.clone()).unwrap());
        let office = Node::listening(
            ourselves("office", 1),
            listener,
            tls_at_all,
            Recorder::new(),
        );
        let home = Node::start(&format!("home-{n}"), 1).await;
        let problem = home.problem_with(office.at(url, tls)).await;
        assert!(problem.contains(says), "{problem} / {says}");
    }
    let plain = Node::start("plain", 1).await;
    let problem = office.problem_with(plain.at(SECURE, PeerTls::Web)).await;
    assert!(problem.contains("write `ws://`"), "{problem}");
}

/// T47, T48 and T49 where TLS comes first.
#[tokio::test]
async fn limits_of_the_door_hold_before_and_after_tls() {
    let authority = authority();
    let office = tls_node("office", &authority).await;
    let connect = || TcpStream::connect(("127.0.0.1", office.port));
    let ended = async |mut socket: TcpStream| {
        let began = Instant::now();
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(9), socket.read_to_end(&mut rest))
            .await
            .expect("the node closes");
        began.elapsed()
    };
    // Silent, half a hello, and silent after TLS, all at once; the deadline is one for all of it.
    let silent = connect().await.unwrap();
    let mut half = connect().await.unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).await.unwrap();
    let settings = PeerTls::Authorities(authority.roots.clone()).settings(&web_tls());
    let connector = TlsConnector::from(settings);
    let secure = connector
        .connect("localhost".try_into().unwrap(), connect().await.unwrap())
        .await
        .unwrap();
    assert_eq!(secure.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let after_tls = async {
        let mut secure = secure;
        let began = Instant::now();
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(9), secure.read_to_end(&mut rest))
            .await
            .expect("the node closes");
        began.elapsed()
    };
    let (a, b, c) = tokio::join!(ended(silent), ended(half), after_tls);
    for time in [a, b, c] {
        assert!(
            (Duration::from_secs(4)..Duration::from_secs(7)).contains(&time),
            "{time:?}"
        );
    }
    // Failed handshakes count against their source, as those of the mesh do.
    let mut answered = 0;
    for _ in 0..30 {
        let mut socket = connect().await.unwrap();
        let _ = socket.write_all(&[0x16, 3, 1, 0, 4, 99, 0, 0, 0]).await;
        let mut alert = Vec::new();
        let _ = socket.read_to_end(&mut alert).await;
        answered += u32::from(!alert.is_empty());
    }
    assert!(
        (11..=12).contains(&answered),
        "five free, six a minute: {answered}"
    );
    assert_eq!(office.drops_of(Reason::TlsFailed), u64::from(answered));
}

#[tokio::test]
async fn other_protocols_over_tls_are_refused() {
    let authority = authority();
    let office = tls_node("office", &authority).await;
    let mut settings =
        (*PeerTls::Authorities(authority.roots.clone()).settings(&web_tls())).clone();
    settings.alpn_protocols = vec![b"h2".to_vec()];
    let socket = TcpStream::connect(("127.0.0.1", office.port))
        .await
        .unwrap();
    let refused = TlsConnector::from(Arc::new(settings))
        .connect("localhost".try_into().unwrap(), socket)
        .await;
    assert!(refused.is_err());
}

/// T47 with TLS: an honest node gets in past thousands of half-open connections.
#[tokio::test]
async fn half_open_sockets_do_not_keep_an_honest_node_out_of_tls() {
    const SOCKETS: u32 = 1000;
    let authority = authority();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tls = Some(ListenerTls::open(authority.files.clone()).unwrap());
    let office = Node::listening(ourselves("office", 1), listener, tls, Recorder::new());
    let mut sockets = Vec::new();
    for n in 0..SOCKETS {
        let from = [127, 1, (n / 200) as u8, 1 + (n % 200) as u8];
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let to = SocketAddr::from(([127, 0, 0, 1], office.port));
        sockets.push(socket.connect(to).await.unwrap());
    }
    let home = Node::start("home", 1).await;
    let began = Instant::now();
    home.mesh
        .dial(vec![office.at(SECURE, PeerTls::Pinned(authority.pin))]);
    home.linked_to("office").await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert!(office.drops_of(Reason::PendingOverflow) >= u64::from(SOCKETS) - 256);
}

/// An HTTP proxy that knows `CONNECT` and wants `me:secret`; gives its port, and tells what it was
/// asked for.
async fn http_proxy() -> (u16, tokio::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = tokio::sync::mpsc::channel(64);
    let tasks = Tasks::new();
    tasks.clone().spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let tell = tell.clone();
            tasks.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(near.read_u8().await.unwrap());
                }
                let head = String::from_utf8(head).unwrap();
                let _ = tell.try_send(head.clone());
                let wanted = format!(
                    "proxy-authorization: Basic {}",
                    STANDARD.encode("me:secret")
                );
                let target = head.split(' ').nth(1).unwrap().to_owned();
                let refusal = match () {
                    () if !head.contains(&wanted) => Some("407 Proxy Authentication Required"),
                    () if target.ends_with(":25") => Some("403 Forbidden"),
                    () => None,
                };
                if let Some(refusal) = refusal {
                    let _ = near
                        .write_all(format!("HTTP/1.1 {refusal}\r\n\r\n").as_bytes())
                        .await;
                    return;
                }
                let mut far = TcpStream::connect(target.as_str()).await.unwrap();
                near.write_all(b"HTTP/1.1 200 Connection established\r\nvia: test\r\n\r\n")
                    .await
                    .unwrap();
                let _ = copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    (port, told)
}

#[tokio::test]
async fn links_go_through_a_proxy_with_and_without_tls() {
    let authority = authority();
    let (port, mut told) = http_proxy().await;
    let proxy = HttpProxy::parse(&format!("http://me:secret@localhost:{port}")).unwrap();
    let secure = tls_node("office", &authority).await;
    let plain = Node::start("attic", 1).await;
    let home = Node::start("home", 1).await;
    let peers = [
        plain.peer(),
        secure.at(SECURE, PeerTls::Pinned(authority.pin)),
    ];
    home.mesh.dial(
        peers
            .into_iter()
            .map(|peer| PeerConfig {
                proxy: Some(proxy.clone()),
                ..peer
            })
            .collect(),
    );
    for (node, posture) in [(&plain, Posture::Insecure), (&secure, Posture::Pinned)] {
        home.linked_to(node.name.as_str()).await;
        let view = home.mesh.view();
        let link = view.borrow().links[&node.name].clone();
        assert_eq!((link.tls, link.proxy), (posture, true));
    }
    // The proxy resolves the name, so it gets the name.
    let mut asked = [told.recv().await.unwrap(), told.recv().await.unwrap()];
    asked.sort();
    assert!(asked[0].starts_with(&format!("CONNECT 127.0.0.1:{} HTTP/1.1\r\n", plain.port)));
    assert!(asked[1].starts_with(&format!("CONNECT localhost:{} HTTP/1.1\r\n", secure.port)));
}

#[tokio::test]
async fn what_a_proxy_refuses_is_said_without_its_password() {
    let (port, _told) = http_proxy().await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let ssh = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ssh_port = ssh.local_addr().unwrap().port();
    Tasks::new().spawn(async move {
        let (mut socket, _) = ssh.accept().await.unwrap();
        let _ = socket.write_all(b"SSH-2.0-x\r\n\r\n").await;
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest).await;
    });
    let cases = [
        (format!("http://127.0.0.1:{port}"), 19000, "HTTP 407"),
        (
            format!("http://me:wrong@127.0.0.1:{port}"),
            19000,
            "HTTP 407",
        ),
        (format!("http://me:secret@127.0.0.1:{port}"), 25, "HTTP 403"),
        (
            format!("http://me:secret@127.0.0.1:{closed_port}"),
            19000,
            "connection refused",
        ),
        (
            format!("http://me:secret@127.0.0.1:{ssh_port}"),
            19000,
            "does not answer as an HTTP proxy",
        ),
    ];
    for (n, (proxy, target, says)) in cases.into_iter().enumerate() {
        let home = Node::start(&format!("home-{n}"), 1).await;
        let problem = home
            .problem_with(PeerConfig {
                url: Url::parse(&format!("ws://127.0.0.1:{target}/mesh/v1")).unwrap(),
                proxy: Some(HttpProxy::parse(&proxy).unwrap()),
                ..home.peer_called("office")
            })
            .await;
        assert!(
            problem.contains(says) && problem.contains("proxy"),
            "{problem} / {says}"
        );
        for secret in ["secret", "wrong", &STANDARD.encode("me:secret")] {
            assert!(!problem.contains(secret), "{problem}");
        }
    }
}

#[tokio::test]
async fn ipv6_links_work_with_and_without_tls_and_a_proxy() {
    if TcpListener::bind("[::1]:0").await.is_err() {
        // A machine without IPv6 has nothing to test.
        return;
    }
    let authority = authority();
    let secure = listening_at("office", "[::1]:0", Some(&authority)).await;
    let plain = listening_at("attic", "[::1]:0", None).await;
    let (port, _told) = http_proxy().await;
    let proxied = listening_at("cellar", "[::1]:0", None).await;
    let proxy = HttpProxy::parse(&format!("http://me:secret@127.0.0.1:{port}")).unwrap();
    let home = Node::start("home", 1).await;
    home.mesh.dial(vec![
        secure.at(
            "wss://[::1]:PORT/mesh/v1",
            PeerTls::Authorities(authority.roots.clone()),
        ),
        plain.at("ws://[::1]:PORT/mesh/v1", PeerTls::Web),
        PeerConfig {
            proxy: Some(proxy),
            ..proxied.at("ws://[::1]:PORT/mesh/v1", PeerTls::Web)
        },
    ]);
    for node in [&secure, &plain, &proxied] {
        home.linked_to(node.name.as_str()).await;
        node.linked_to("home").await;
    }
    let view = home.mesh.view();
    let link = view.borrow().links[&plain.name].clone();
    assert_eq!(link.address, format!("[::1]:{}", plain.port));
    assert_eq!(link.network, Network::Loopback);
}
