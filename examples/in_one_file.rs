//! The design of Go's GeeCache in one file, on the bare packages, with nothing of this library.
//!
//! How do several processes share one cache? Each key has one owner. A node that is asked for a key
//! that it does not own asks the owner over HTTP, and only the owner searches the slow database.
//! Here the node on port 8001 owns the key Tom, and another is asked for it:
//!
//! ```text
//!  get Tom ── cached? ─ yes ──────────────────────────────────────────────────▶ value
//!                │ no
//!                ▼
//!          who owns Tom? ─ 8001 ─▶ GET 8001/_geecache/scores/Tom ─ answered? ─ yes ─▶ value
//!                │ this node             (the same get, there)         │ no
//!                │◀────────────────────────────────────────────────────┘
//!                ▼
//!          search the database ─▶ keep ─▶ value
//! ```
//!
//! Three nodes, of which the third also answers people:
//!
//! ```text
//! cargo build --example in_one_file
//! cargo run -q --example in_one_file -- --port 8001 &
//! cargo run -q --example in_one_file -- --port 8002 &
//! cargo run -q --example in_one_file -- --port 8003 --api 9999 &
//! curl "http://localhost:9999/api?key=Tom"     # 630, by way of 8001; see the log
//! curl "http://localhost:9999/api?key=Sam"     # 567: 8003 owns this key
//! curl "http://localhost:9999/api?key=kkk"     # kkk not exist
//! kill %1
//! curl "http://localhost:9999/api?key=Jack"    # 589, though its owner, 8001, is gone
//! kill %2 %3
//! ```
//!
//! `--host NAME` and `--peers URL,URL,…` put the nodes elsewhere; all must be given the same list,
//! with `http://HOST:PORT` of each. A library node and a Go node may be among them.
//!
//! Each part names the day of GeeCache's articles that builds it in Go. Day 6 and all that is not
//! in the articles is missing: the file ends on a table of what goes wrong without it, and of the
//! files of the library that cure it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::io::Cursor;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{env, process, thread};

use crossbeam_channel::bounded;
use log::{LevelFilter, error, info, warn};
use tiny_http::{Header, Method, Request, Response, Server};

// 1. Values and where they come from (day 2).

/// Immutable bytes that are cheap to clone.
type ByteView = Arc<[u8]>;

/// Searches the slow database. An error is a text for people.
type Getter = fn(key: &str) -> Result<ByteView, String>;

// 2. The cache of one node (day 1).

/// Holds up to `max_bytes`; then the entry that was unused for the longest time is evicted.
#[derive(Default)]
struct Cache {
    max_bytes: usize,
    // The sum of all keys' and values' lengths.
    bytes: usize,
    // Counts uses: an entry is as old as the number of its last use is low.
    uses: u64,
    entries: HashMap<String, (ByteView, u64)>,
    by_last_use: BTreeMap<u64, String>,
}

impl Cache {
    fn get(&mut self, key: &str) -> Option<ByteView> {
        let value = self.remove(key)?;
        self.add(key, value.clone()); // as the newest
        Some(value)
    }

    fn add(&mut self, key: &str, value: ByteView) {
        self.remove(key);
        self.bytes += key.len() + value.len();
        self.uses += 1;
        self.entries.insert(key.into(), (value, self.uses));
        self.by_last_use.insert(self.uses, key.into());
        while self.bytes > self.max_bytes {
            let Some(oldest) = self.by_last_use.values().next().cloned() else { break };
            self.remove(&oldest);
        }
    }

    fn remove(&mut self, key: &str) -> Option<ByteView> {
        let (value, last_use) = self.entries.remove(key)?;
        self.by_last_use.remove(&last_use);
        self.bytes -= key.len() + value.len();
        Some(value)
    }
}

// 3. The ring: all nodes agree on who owns a key, without asking one another (day 4).

/// Each node has 50 points on a circle of 2³² positions. A key belongs to the node of the first
/// point at or after its own position, so a node that joins or leaves moves only the keys that
/// come before its points.
#[derive(Default)]
struct Ring {
    points: BTreeMap<u32, String>,
}

const POINTS_PER_NODE: usize = 50;

impl Ring {
    fn new(nodes: &[String]) -> Self {
        let mut points = BTreeMap::new();
        // In the order of their names: where two points collide, all nodes must keep the same one.
        for node in BTreeSet::from_iter(nodes) {
            for i in 0..POINTS_PER_NODE {
                points.insert(crc32fast::hash(format!("{i}{node}").as_bytes()), node.clone());
            }
        }
        Self { points }
    }

    fn owner(&self, key: &str) -> Option<&str> {
        let position = crc32fast::hash(key.as_bytes());
        let next = self.points.range(position..).next();
        // After the last point comes the first.
        let (_, node) = next.or_else(|| self.points.first_key_value())?;
        Some(node)
    }
}

// 4. The seam between a get and the network: a group knows its peers by these traits alone (day 5).

trait PeerPicker: Send + Sync {
    /// The peer that owns `key`; `None` if this node owns it.
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn PeerGetter>>;
}

trait PeerGetter: Send + Sync {
    /// Asks the peer for `key` of `group`.
    fn get(&self, group: &str, key: &str) -> Result<ByteView, String>;
}

// 5. One get, from the question to the answer (days 2 and 5).

/// A namespace of keys, with their getter. Groups of the same name on several nodes are one cache.
struct Group {
    name: String,
    getter: Getter,
    // Not locked while a getter or a peer is asked: that takes long.
    main_cache: Mutex<Cache>,
    peers: Option<Arc<dyn PeerPicker>>,
}

impl Group {
    fn new(name: &str, max_bytes: usize, getter: Getter) -> Self {
        let cache = Cache { max_bytes, ..Cache::default() };
        Self { name: name.into(), getter, main_cache: Mutex::new(cache), peers: None }
    }

    fn register_peers(&mut self, peers: Arc<dyn PeerPicker>) {
        self.peers = Some(peers);
    }

    fn get(&self, key: &str) -> Result<ByteView, String> {
        if key.is_empty() {
            return Err("a key is required".into());
        }
        let cached = self.main_cache.lock().unwrap().get(key);
        if let Some(value) = cached {
            info!("[GeeCache] hit {key}");
            return Ok(value);
        }
        self.load(key)
    }

    fn load(&self, key: &str) -> Result<ByteView, String> {
        let owner = self.peers.as_ref().and_then(|peers| peers.pick_peer(key));
        if let Some(peer) = owner {
            match self.get_from_peer(&*peer, key) {
                Ok(value) => return Ok(value),
                Err(why) => warn!("[GeeCache] no answer from the owner of {key}: {why}"),
            }
        }
        self.get_locally(key)
    }

    fn get_from_peer(&self, peer: &dyn PeerGetter, key: &str) -> Result<ByteView, String> {
        peer.get(&self.name, key)
    }

    fn get_locally(&self, key: &str) -> Result<ByteView, String> {
        let value = (self.getter)(key)?;
        self.main_cache.lock().unwrap().add(key, value.clone());
        Ok(value)
    }
}

// 6. Asking over HTTP (day 5).

const BASE_PATH: &str = "/_geecache/";

/// How long a question to a peer may take, from beginning to end.
const TIMEOUT: Duration = Duration::from_secs(3);

/// All nodes, as one of them sees them.
struct HttpPool {
    self_url: String,
    // Ring and getters are behind the same lock: with two, a get that runs while the list changes
    // could find an owner in the ring of one list and no getter for it in the other.
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    ring: Ring,
    // By URL. This node itself has none.
    getters: HashMap<String, Arc<HttpGetter>>,
}

impl HttpPool {
    fn new(self_url: &str) -> Self {
        Self { self_url: self_url.into(), nodes: Mutex::default() }
    }

    /// Replaces the list of nodes. This one is in it, and all nodes must be given the same.
    fn set(&self, urls: &[String]) {
        let others = urls.iter().filter(|&url| *url != self.self_url);
        let getters = others.map(|url| (url.clone(), Arc::new(HttpGetter::new(url)))).collect();
        let nodes = Nodes { ring: Ring::new(urls), getters };
        *self.nodes.lock().unwrap() = nodes;
    }
}

impl PeerPicker for HttpPool {
    fn pick_peer(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        let nodes = self.nodes.lock().unwrap();
        let getter = nodes.getters.get(nodes.ring.owner(key)?)?;
        Some(getter.clone())
    }
}

/// Asks one peer.
struct HttpGetter {
    base_url: String,
    agent: ureq::Agent,
}

impl HttpGetter {
    fn new(node: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            // What the environment says of proxies is not meant for peers.
            .proxy(None)
            .max_redirects(0);
        Self { base_url: format!("{node}{BASE_PATH}"), agent: config.build().into() }
    }
}

impl PeerGetter for HttpGetter {
    fn get(&self, group: &str, key: &str) -> Result<ByteView, String> {
        if !is_plain(group) || !is_plain(key) {
            return Err("such a key does not travel".into());
        }
        let url = format!("{}{group}/{key}", self.base_url);
        info!("[HttpPool] GET {url}");
        // Any status from 400 on is an error here.
        let mut answer = self.agent.get(&url).call().map_err(|why| why.to_string())?;
        if answer.status() != 200 {
            return Err(format!("it answered {}", answer.status()));
        }
        let value = answer.body_mut().read_to_vec().map_err(|why| why.to_string())?;
        Ok(value.into())
    }
}

/// Whether this text can stand in a URL as it is. There is no escaping here; a wrong one would be
/// worse: Go's GeeCache asks for `a+b` where it means `a b`, and takes the answer.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

// 7. Answering over HTTP (day 3): a fixed number of workers, and a bounded queue in front of them.

const WORKERS: usize = 8;
const QUEUE: usize = 64;

type Reply = Response<Cursor<Vec<u8>>>;

/// Receives requests and hands them to the workers. If the listener fails, the process ends.
fn serve(server: Server, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> ! {
    let answer = Arc::new(answer);
    let (queue, requests) = bounded::<Request>(QUEUE);
    for _ in 0..WORKERS {
        let (requests, answer) = (requests.clone(), answer.clone());
        thread::spawn(move || {
            for request in requests {
                let reply = match request.method() {
                    Method::Get => answer(&request),
                    _ => refusal(405, "ask by GET"),
                };
                // An error means that the client is gone.
                let _ = request.respond(reply);
            }
        });
    }
    loop {
        match server.recv() {
            Ok(request) => {
                if let Err(full) = queue.try_send(request) {
                    let _ = full.into_inner().respond(refusal(503, "too many requests wait"));
                }
            }
            Err(why) => {
                error!("the listener failed: {why}");
                process::exit(1);
            }
        }
    }
}

/// What peers ask: `/_geecache/{group}/{key}`.
fn answer_peer(groups: &HashMap<String, Arc<Group>>, request: &Request) -> Reply {
    let path = request.url().strip_prefix(BASE_PATH);
    match path.and_then(|path| path.split_once('/')) {
        Some((group, key)) if is_plain(group) && is_plain(key) => match groups.get(group) {
            Some(group) => reply(group.get(key)),
            None => refusal(404, &format!("no such group: {group}")),
        },
        _ => refusal(400, "bad request"),
    }
}

/// What people ask: `/api?key=Tom`.
fn answer_api(scores: &Group, request: &Request) -> Reply {
    match request.url().strip_prefix("/api?key=") {
        Some(key) if is_plain(key) => reply(scores.get(key)),
        _ => refusal(400, "ask for /api?key=Tom; a key has letters and digits"),
    }
}

fn reply(answer: Result<ByteView, String>) -> Reply {
    match answer {
        Ok(value) => {
            let kind = Header::from_bytes("Content-Type", "application/octet-stream");
            Response::from_data(&*value).with_header(kind.expect("a valid header"))
        }
        Err(why) => refusal(500, &why),
    }
}

fn refusal(status: u16, why: &str) -> Reply {
    Response::from_string(format!("{why}\n")).with_status_code(status)
}

// 8. A node (day 5).

fn search_slow_db(key: &str) -> Result<ByteView, String> {
    info!("[SlowDB] search key {key}");
    thread::sleep(Duration::from_millis(100));
    let scores = [("Tom", "630"), ("Jack", "589"), ("Sam", "567")];
    let row = scores.iter().find(|(name, _)| *name == key);
    let (_, score) = row.ok_or(format!("{key} not exist"))?;
    Ok(score.as_bytes().into())
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (mut host, mut port, mut api) = ("localhost", "8001", None);
    let mut peers = "http://localhost:8001,http://localhost:8002,http://localhost:8003";
    for option in arguments.chunks(2) {
        match option {
            [name, value] if name == "--host" => host = value,
            [name, value] if name == "--port" => port = value,
            [name, value] if name == "--api" => api = Some(value),
            [name, value] if name == "--peers" => peers = value,
            _ => return Err("--port 8001 --api 9999 --host NAME --peers URL,URL,…".into()),
        }
    }
    env_logger::Builder::new().filter_level(LevelFilter::Info).init();

    let self_url = format!("http://{host}:{port}");
    let pool = HttpPool::new(&self_url);
    pool.set(&peers.split(',').map(String::from).collect::<Vec<_>>());
    let mut scores = Group::new("scores", 2 << 10, search_slow_db);
    scores.register_peers(Arc::new(pool));
    let scores = Arc::new(scores);

    let listen = |port: &str| {
        let address = format!("{host}:{port}");
        Server::http(&*address).map_err(|why| format!("cannot listen on {address}: {why}"))
    };
    let server = listen(port)?;
    info!("geecache is running at {self_url}");
    if let Some(port) = api {
        let (server, scores) = (listen(port)?, scores.clone());
        info!("frontend server is running at http://{host}:{port}");
        thread::spawn(move || serve(server, move |request| answer_api(&scores, request)));
    }
    let groups = HashMap::from([(scores.name.clone(), scores)]);
    serve(server, move |request| answer_peer(&groups, request))
}

// 9. What is wrong with it. Each row can be tried with the three nodes above; each is the reason
// for a part of the library, and the last column names the file to read.
//
// try                             you see                               cured in src/
// -------------------------------------------------------------------------------------------------
// get a new key eight times at    up to eight searches: each miss       flight.rs
//   once                            searches for itself
// get kkk twice from 8003         four searches: "no such key" looks    http/wire.rs
//                                   like a broken owner, and is not     group/mod.rs
//                                   kept
// get a%20b                       400: keys are not escaped             http/wire.rs
// get Tom from 8003 again and     a question to 8001 each time: no      group/mod.rs
//   again                           copies are kept of other nodes'     group/doorkeeper.rs
//                                   keys
// get 100 keys that 8001 owns     100 questions, one for each key       group/batch.rs
//                                                                       http/frame.rs
//                                                                       http/client/combine.rs
// freeze 8001 by kill -STOP, get  each key takes 3 s: a mute node is    http/client/cooldown.rs
//   keys that it owns               asked anew for each; get eight at   http/server/intake.rs
//                                   once, and hits on 8003 wait too,
//                                   since all its workers do
// stop 8001, start a web server   its page: whatever answers 200 is     http/client/exchange.rs
//   there, get Tom                  taken for the owner
// give two nodes such --peers     3 s and 17 searches: they ask each    group/mod.rs
//   that each takes the other       other until all workers of both     http/pool.rs
//   for Tom's owner                 wait
// change Tom's score in the       the old score: values neither expire  cache/record.rs
//   database                        nor can be removed                  group/remove.rs
// add 1,000 scores and get each   the cache has lost all it had: only   cache/s3fifo.rs
//   once, or one of 3 KiB           the newest entries stay, and too    cache/mod.rs
//                                   large a one evicts all
// get cached keys on many         they take turns: the cache has one    cache/shard.rs
//   threads                         lock
// get 200 missing keys at once    503 to many, and to hits: each        http/server/queue.rs
//                                   request needs one of eight          http/server/intake.rs
//                                   workers, or one of 64 places
// announce a body and send none,  nobody is answered: a worker waits    http/server/slow_clients.rs
//   eight times                     for each of those clients
// open 16 connections at once,    now and then some get no answer       http/server/listener.rs
//   ask on each                     until others close: tiny_http gave
//                                   them no thread
// open more connections than      the process ends: tiny_http stops at  http/server/listener.rs
//   ulimit -n allows                the first error
// let search_slow_db panic,       nobody is answered: each panic ended  group/mod.rs
//   eight times                     a worker
// strace -f 8003 while it asks    a clone3 for each question: ureq      http/client/addresses.rs
//   8001                            looks names up on a new thread
// kill a node that is searching   its callers get no answer: nothing    http/server/mod.rs
//                                   is finished first
// ask from another machine (with  the values of all keys: no token, no  http/server/routes.rs
//   --host), or listen in           TLS                                 http/client/transport.rs
// look for the hit ratio          there is only the log                 stats.rs
//                                                                       metrics.rs
