//! Three processes of `examples/node` behind HAProxy, with the settings of `examples/proxy`: asked
//! through it, and attacked: `make proxy`.
//!
//! All three and HAProxy are on one address of the loopback network; attackers use others.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{iter, thread};

use geecache::{Ring, RingHash};
use rusqlite::Connection;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::child::{allow_many_files, memory_of, threads_of};
use crate::node::{Folder, Process, counted, urls};
use crate::support::*;
use crate::tls::Authority;

const TOKEN: &str = "wgbGWnN2X0ds";
/// The address of a client that does no harm.
const CLIENT: Ipv4Addr = Ipv4Addr::LOCALHOST;
/// Others are answered within this time during each attack.
const PROMPT: Duration = Duration::from_secs(3);
/// How many threads and bytes more than before may be due to other things than an attack.
const MORE_THREADS: usize = 20;
const MORE_BYTES: u64 = 8 << 20;

struct Scene {
    proxy: Child,
    log: Lines,
    nodes: Vec<Process>,
    /// As they are known: those of HAProxy.
    urls: [String; 3],
    /// Where they listen.
    behind: [String; 3],
    config: Arc<ClientConfig>,
    folder: Folder,
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

impl Scene {
    fn start(test: &str, host: &'static str) -> Self {
        let folder = Folder::new(test);
        let [a, b, c, d, e, f] = urls(host);
        let (proxies, behind) = ([a, b, c], [d, e, f]);
        let urls = proxies.each_ref().map(|url| url.replace("http://", "https://"));
        let authority = Authority::new();
        let root = folder.file("root.pem", &authority.pem(), 0o644);
        let token = folder.file("token", TOKEN, 0o600);
        let certificate = folder.file("node.pem", &authority.pem_for(host), 0o600);

        let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/proxy/haproxy.cfg");
        let mut command = Command::new("haproxy");
        command.arg("-f").arg(config).arg("-db").env("CERTIFICATE", certificate);
        for i in 0..3 {
            command.env(format!("PROXY{}", i + 1), address_of(&proxies[i]));
            command.env(format!("NODE{}", i + 1), address_of(&behind[i]));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut proxy = command.spawn().expect("`make proxy` installs haproxy");
        let log = Lines::of(proxy.stderr.take().unwrap());
        let config = authority.client_config();
        let mut scene = Self { proxy, log, nodes: Vec::new(), urls, behind, config, folder };
        let node = |i: usize| {
            let listen = ["--listen", address_of(&scene.behind[i]), "--api", "127.0.0.1:0"];
            let more = ["--root-certificates", &root, "--token-file", &token];
            let database = scene.folder.database();
            Process::start(&scene.urls[i], &scene.urls, &database, &[listen, more].concat())
        };
        let nodes: Vec<_> = (0..3).map(node).collect();
        scene.nodes = nodes.into_iter().map(Process::wait_until_up).collect();
        for i in 0..3 {
            eventually("it answers through the proxy", || {
                scene.ask(i, "GET /healthz", "", b"").is_ok_and(|(status, _)| status == 200)
            });
        }
        scene
    }

    fn owner(&self, key: &str) -> usize {
        let ring = Ring::new(self.urls.clone(), 50, RingHash::Crc32);
        self.urls.iter().position(|url| ring.owner(key) == Some(url)).unwrap()
    }

    fn insert(&self, key: &str, value: &str) {
        let database = Connection::open(self.folder.database()).unwrap();
        database.busy_timeout(LONG).unwrap();
        database.execute("INSERT INTO scores VALUES (?1, ?2)", (key, value)).unwrap();
    }

    fn address(&self, node: usize) -> SocketAddr {
        self.urls[node].trim_start_matches("https://").parse().unwrap()
    }

    /// A connection to HAProxy in front of a node.
    fn tcp(&self, node: usize, source: Ipv4Addr) -> std::io::Result<TcpStream> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((source, 0)).into())?;
        socket.connect_timeout(&self.address(node).into(), PROMPT)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(LONG))?;
        stream.set_write_timeout(Some(LONG))?;
        Ok(stream)
    }

    fn tls(&self, node: usize, source: Ipv4Addr) -> std::io::Result<Tls> {
        let mut stream = self.tcp(node, source)?;
        let name = self.address(node).ip().into();
        let mut session = ClientConnection::new(self.config.clone(), name).unwrap();
        session.complete_io(&mut stream)?;
        Ok(StreamOwned::new(session, stream))
    }

    /// Asks a node through HAProxy. Each of `headers` ends with its line end.
    fn ask(
        &self,
        node: usize,
        request: &str,
        headers: &str,
        body: &[u8],
    ) -> std::io::Result<(u16, Vec<u8>)> {
        let mut stream = self.tls(node, CLIENT)?;
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\
             Content-Length: {length}\r\nAuthorization: Bearer {TOKEN}\r\n{headers}\r\n"
        );
        stream.write_all(&[head.as_bytes(), body].concat())?;
        answer(&mut stream)
    }

    /// The status and the value at a path of a node, through HAProxy.
    fn get(&self, node: usize, path: &str) -> (u16, String) {
        let (status, body) =
            self.ask(node, &format!("GET /_geecache/scores/{path}"), "", b"").unwrap();
        (status, String::from_utf8(body).unwrap())
    }

    /// How often any node loaded a key that another one owns.
    fn fallbacks(&self) -> u64 {
        self.behind.iter().map(|url| counted(url, "fallbacks")).sum()
    }

    /// The threads and the memory of the first node.
    fn state(&self) -> (usize, u64) {
        let pid = self.nodes[0].pid();
        (threads_of(pid), memory_of(pid))
    }

    /// Attacks the first node. While what `work` returns is held, others must be answered, and the
    /// node's threads and memory be as they were.
    fn attack<T>(&self, attack: &str, work: impl FnOnce() -> T) -> T {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (threads, memory) = self.state();
        let held = work();
        let (start, answer) = (Instant::now(), self.get(0, "Tom"));
        let (took, (threads_now, memory_now)) = (start.elapsed(), self.state());
        println!(
            "{attack}: others are answered in {:.1} ms; the node has {threads_now} threads, \
             {threads} before, and {:.1} MiB, {:.1} before; HAProxy has {:.0} MiB",
            took.as_secs_f64() * 1e3,
            mib(memory_now),
            mib(memory),
            mib(memory_of(self.proxy.id())),
        );
        assert_eq!(answer, (200, "630".into()), "{attack}");
        assert!(took < PROMPT && threads_now <= threads + MORE_THREADS, "{attack}");
        assert!(memory_now <= memory + MORE_BYTES, "{attack}");
        held
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.proxy.kill();
        let _ = self.proxy.wait();
        if thread::panicking() {
            eprintln!("{:#?}", self.log.so_far());
        }
    }
}

/// The status and the body of an answer that ends with its connection.
fn answer(stream: &mut impl Read) -> std::io::Result<(u16, Vec<u8>)> {
    let mut all = Vec::new();
    // Some peers end TLS without saying so.
    if let Err(error) = stream.read_to_end(&mut all)
        && all.is_empty()
    {
        return Err(error);
    }
    let end = all.windows(4).position(|four| four == b"\r\n\r\n");
    let end = end.ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = String::from_utf8_lossy(&all[..end]);
    let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
    Ok((status.unwrap(), all[end + 4..].into()))
}

/// Writes until the other side refuses more. How much, and the status of its answer if it arrives.
fn write_until_refused(stream: &mut Tls, part: &[u8], most: usize) -> (usize, Option<u16>) {
    let mut written = 0;
    while written < most && stream.write_all(part).is_ok() {
        written += part.len();
    }
    let _ = stream.flush();
    (written, answer(stream).ok().map(|(status, _)| status))
}

#[test]
#[ignore = "needs HAProxy: make proxy"]
fn nodes_behind_haproxy_ask_each_other_through_it() {
    let scene = Scene::start("proxy-ask", "127.0.0.38");
    let keys =
        ["a/b", "%2F", "..", "../../metrics", "a//b", "//", "/", ".", "a b+c", "ü?&#=", "\\"];
    let long = format!("{}ü", "%".repeat(16_382));
    let keys: Vec<_> = keys.into_iter().chain([&*long]).collect();
    for key in &keys {
        scene.insert(key, &value_of(key));
    }
    let escape = |key: &str| -> String { key.bytes().map(|byte| format!("%{byte:02X}")).collect() };
    for (i, node) in scene.nodes.iter().enumerate() {
        let before = [counted(&scene.behind[i], "peer_loads"), scene.fallbacks()];
        for key in &keys {
            assert_eq!(
                node.ask(&format!("GET /api?key={}", escape(key))).text(),
                value_of(key),
                "{key:.9}"
            );
        }
        let foreign = keys.iter().filter(|key| scene.owner(key) != i).count() as u64;
        assert!(foreign > 0);
        let after = [counted(&scene.behind[i], "peer_loads"), scene.fallbacks()];
        assert_eq!(after, [before[0] + foreign, before[1]]);
    }
    println!("{} keys, one of 54 KB as a path, from their owners: none fell back", keys.len());
    // As by hand, in every way to write them.
    let paths = [("a%2Fb", "a/b"), ("a%2fb", "a/b"), ("a/b", "a/b"), ("%252F", "%2F")];
    let dots = [("..", ".."), ("%2e%2E", ".."), (".", "."), ("../../metrics", "../../metrics")];
    let slashes = [("a//b", "a//b"), ("a%2F%2Fb", "a//b"), ("/", "/"), ("//", "//")];
    for (path, key) in [paths, dots, slashes].as_flattened() {
        assert_eq!(scene.get(0, path), (200, value_of(key)), "{path}");
    }
    println!("%2F, .., // and others arrive as they were sent");

    // The largest question, and one byte more, which HAProxy may cut short.
    let long = "k".repeat(16_384);
    let rest = (1 << 20) - 4 - 63 * (2 + long.len()) - 2;
    let asked = [0, 1].map(|more| {
        let last = "k".repeat(rest + more);
        let body = batch_of(&iter::repeat_n(&*long, 63).chain([&*last]).collect::<Vec<_>>());
        assert_eq!(body.len(), (1 << 20) + more);
        scene.ask(0, "POST /_geecache/scores", "", &body).ok().map(|(status, _)| status)
    });
    assert!(asked[0] == Some(200) && asked[1].is_none_or(|status| status == 413), "{asked:?}");
    println!("a question of 1 MiB is answered, one of a byte more is not");

    // Past the token, and past TLS.
    let mut stream = scene.tls(0, CLIENT).unwrap();
    stream
        .write_all(b"GET /_geecache/scores/Tom HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .unwrap();
    assert_eq!(answer(&mut stream).unwrap().0, 401);
    let mut plain = scene.tcp(0, CLIENT).unwrap();
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert!(answer(&mut plain).is_err());

    // What others send of themselves.
    let upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n";
    let asked = scene.ask(0, "POST /_geecache/scores", upgrade, &batch_of(&["Tom"])).unwrap();
    assert_eq!(asked.0, 200, "the upgrade is left out");

    for node in &scene.nodes {
        assert_eq!(node.ask("DELETE /api?key=Tom").status, 204);
    }
    println!("a removal reaches all nodes");
}

#[test]
#[ignore = "needs HAProxy: make proxy"]
fn haproxy_bounds_what_strangers_take() {
    const PART: &[u8] = &[b'0'; 16 << 10];
    const MOST: usize = 64 << 20;
    allow_many_files();
    let scene = Scene::start("proxy-attack", "127.0.0.39");
    let attacker = |i: u8| Ipv4Addr::new(127, 0, 0, 40 + i);
    let send = |bytes: &str| {
        let mut stream = scene.tls(0, attacker(0)).unwrap();
        stream.write_all(bytes.as_bytes()).unwrap();
        stream
    };
    // The node's own threads and connections of HAProxy are there.
    for _ in 0..20 {
        assert_eq!(scene.get(0, "Tom").0, 200);
    }

    let before = scene.state();
    for head in ["GET /", "GET / HTTP/1.1\r\nHost: x\r\nX: ", "GET / HTTP/1.1\r\n0: "] {
        scene.attack("a header without an end", || {
            let (written, status) = write_until_refused(&mut send(head), PART, MOST);
            assert!(written < MOST, "{written} bytes");
            println!("  after {written} bytes of {head:?}: {status:?}");
        });
    }
    let lines = "X: y\r\n".repeat(20_000);
    scene.attack("header lines without an end", || {
        let head = "GET / HTTP/1.1\r\nHost: x\r\n";
        let (written, status) = write_until_refused(&mut send(head), lines.as_bytes(), MOST);
        assert!(written < MOST, "{written} bytes");
        println!("  after {written} bytes: {status:?}");
    });
    let chunked =
        "POST /_geecache/scores HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
    for size in ["", "5;x=", "fffffffffffffff"] {
        scene.attack("a chunk size without an end", || {
            let mut stream = send(&format!("{chunked}{size}"));
            let (written, status) = write_until_refused(&mut stream, PART, MOST);
            assert!(written < MOST, "{written} bytes");
            println!("  after {written} bytes behind {size:?}: {status:?}");
        });
    }
    for line in [
        "GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n",
        "GET /healthz HTTP/3.0\r\nHost: x\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "POST /_geecache/scores HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n",
    ] {
        scene.attack("requests of other versions, and huge announcements", || {
            let held: Vec<_> = (0..100).map(|_| send(line)).collect();
            let statuses = held.into_iter().map(|mut held| answer(&mut held).ok().map(|a| a.0));
            let statuses: Vec<_> = statuses.collect();
            println!("  {:?}: {:?}", line.lines().next().unwrap(), statuses[0]);
            assert!(
                statuses.iter().all(|status| status.is_none_or(|s| [400, 408, 413].contains(&s)))
            );
        });
    }

    // From several addresses, since one alone would not be let in.
    let held = scene.attack("1,000 half-open requests", || {
        let quarter = |i| {
            let half_open = |_| {
                let mut stream = scene.tls(0, attacker(i as u8)).unwrap();
                stream.write_all(b"GET /_geecache/scores/Tom HTTP/1.1\r\nHost: ").unwrap();
                stream
            };
            (0..250).map(half_open).collect::<Vec<_>>()
        };
        together(4, quarter)
    });
    for (status, mut stream) in
        held.into_iter().flatten().map(|mut stream| (answer(&mut stream).ok(), stream))
    {
        assert_eq!(status.map(|(status, _)| status), Some(408));
        assert_eq!(stream.read(&mut [0]).ok().unwrap_or(0), 0);
    }
    println!("  each got 408 and was closed");
    let held = scene.attack("2,000 connections from one address", || {
        // Most are reset at once.
        (0..2_000).map(|_| scene.tcp(0, attacker(0))).collect::<Vec<_>>()
    });
    drop(held);
    let held = scene.attack("2,000 connections from eight addresses", || {
        (0..2_000).map(|i| scene.tcp(0, attacker(1 + (i % 8) as u8)).unwrap()).collect::<Vec<_>>()
    });
    for mut stream in held {
        assert_eq!(stream.read(&mut [0; 1024]).unwrap_or(0), 0, "closed, in time");
    }
    let (threads, memory) = scene.state();
    assert!(threads <= before.0 + MORE_THREADS && memory <= before.1 + MORE_BYTES);
}
