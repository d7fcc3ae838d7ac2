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
//! Each part names the day of GeeCache's articles that builds it in Go. Missing of their seven days:
//!
//! - day 7, answers between nodes in protobuf: here, as on day 6, they are the value's bytes;
//! - of day 1 the callback when an entry is evicted, of day 4 another hash than CRC-32, of day 5 the
//!   escaping of keys in URLs, and of day 2 the global table of groups: the server is handed its own.
//!
//! All that the articles do not have is missing as well, except for a deadline, a bounded number of
//! workers and one lock for the list of nodes. The file ends on a table of what goes wrong without it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::io::Cursor;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{env, io, process, thread};

use crossbeam_channel::bounded;
use log::{LevelFilter, error, info, warn};
use simplelog::WriteLogger;
use tiny_http::{Header, Method, Request, Response, Server};

// 1. Values and where they come from (day 2).

/// Immutable bytes that are cheap to clone.
type ByteView = Arc<[u8]>;

/// A value, or why there is none: a text for people.
type Answer = Result<ByteView, String>;

/// Searches the slow database.
type Getter = fn(key: &str) -> Answer;

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
    fn get(&self, group: &str, key: &str) -> Answer;
}

// 5. Single flight: a thousand callers of a key that is not cached make one search (day 6).

/// The loads under way. The first caller of a key leads, the others follow: they wait for the
/// leader's answer. Nothing is kept: once a load has ended, the next caller leads a new one.
#[derive(Default)]
struct Flight {
    // Guards the table alone: leaders load, and followers wait, without it.
    calls: Mutex<HashMap<String, Arc<Call>>>,
}

#[derive(Default)]
struct Call {
    // `None` while the leader loads.
    answer: Mutex<Option<Answer>>,
    is_answered: Condvar,
}

impl Flight {
    fn run(&self, key: &str, load: impl FnOnce() -> Answer) -> Answer {
        let mut calls = self.calls.lock().unwrap();
        if let Some(call) = calls.get(key).cloned() {
            drop(calls); // so that callers of other keys do not wait with us
            // No wake-up can be missed. The leader sets the answer under the lock under which it is
            // looked at here, and `wait_while` gives that lock back only once this thread sleeps.
            let answer = call.answer.lock().unwrap();
            let answer = call.is_answered.wait_while(answer, |answer| answer.is_none()).unwrap();
            return answer.clone().unwrap();
        }
        let call = Arc::<Call>::default();
        calls.insert(key.into(), call.clone());
        drop(calls);
        let answer = load();
        self.calls.lock().unwrap().remove(key);
        *call.answer.lock().unwrap() = Some(answer.clone());
        call.is_answered.notify_all();
        answer
    }
}

// 6. One get, from the question to the answer (days 2, 5 and 6).

/// A namespace of keys, with their getter. Groups of the same name on several nodes are one cache.
struct Group {
    name: String,
    getter: Getter,
    // Not locked while a getter or a peer is asked: that takes long.
    main_cache: Mutex<Cache>,
    flight: Flight,
    peers: Option<Arc<dyn PeerPicker>>,
}

impl Group {
    fn new(name: &str, max_bytes: usize, getter: Getter) -> Self {
        let cache = Cache { max_bytes, ..Cache::default() };
        let (main_cache, flight) = (Mutex::new(cache), Flight::default());
        Self { name: name.into(), getter, main_cache, flight, peers: None }
    }

    fn register_peers(&mut self, peers: Arc<dyn PeerPicker>) {
        self.peers = Some(peers);
    }

    fn get(&self, key: &str) -> Answer {
        if key.is_empty() {
            return Err("a key is required".into());
        }
        let cached = self.main_cache.lock().unwrap().get(key);
        if let Some(value) = cached {
            info!("[GeeCache] hit {key}");
            return Ok(value);
        }
        self.flight.run(key, || self.load(key))
    }

    fn load(&self, key: &str) -> Answer {
        let owner = self.peers.as_ref().and_then(|peers| peers.pick_peer(key));
        if let Some(peer) = owner {
            match self.get_from_peer(&*peer, key) {
                Ok(value) => return Ok(value),
                Err(why) => warn!("[GeeCache] no answer from the owner of {key}: {why}"),
            }
        }
        self.get_locally(key)
    }

    fn get_from_peer(&self, peer: &dyn PeerGetter, key: &str) -> Answer {
        peer.get(&self.name, key)
    }

    fn get_locally(&self, key: &str) -> Answer {
        let value = (self.getter)(key)?;
        self.main_cache.lock().unwrap().add(key, value.clone());
        Ok(value)
    }
}

// 7. Asking over HTTP (day 5).

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
    fn get(&self, group: &str, key: &str) -> Answer {
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

// 8. Answering over HTTP (day 3): a fixed number of workers, and a bounded queue in front of them.

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

fn reply(answer: Answer) -> Reply {
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

// 9. A node (day 5).

fn search_slow_db(key: &str) -> Answer {
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
    WriteLogger::init(LevelFilter::Info, simplelog::Config::default(), io::stderr())?;

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

// 10. What is wrong with it. Each flaw can be seen with the three nodes of the header and this:
//
//   get() { curl -s -w ' in %{time_total} s\n' "http://localhost:9999/api?key=$1"; }
//   alias in_one_file=target/debug/examples/in_one_file
//
// Each is the reason for a part of the library: the last line of a row names the file in src/ that
// cures it, and which of the two readings of `src/lib.rs` has that file.
//
// ONE GET
// An absent key looks like a broken owner, and that it is absent is not kept: four searches.
//   try     get kkk; get kkk
//   cure    Group::load in group/mod.rs, http/wire.rs                              first reading
// No copies are kept of other nodes' keys: each get of Tom is a question to 8001.
//   try     get Tom; get Tom
//   cure    Group::load_from_peer in group/mod.rs                                  first reading
// A caller that misses just before a load ends leads another one: two searches.
//   change  in `Group::get`, `thread::sleep(Duration::from_millis(500));` before the last line
//   try     get Sam & sleep 0.3; get Sam
//   cure    Group::load in group/mod.rs                                            first reading
// When a search panics, the next caller of the key waits for an answer without an end; each such
// caller takes a worker.
//   change  in `search_slow_db`, `assert!(key != "Jim");` as the first line
//   try     get Jim; get Jim
//   cure    Flight::join in flight.rs                                              first reading
// Many keys are many questions.
//   try     curl -s "http://localhost:9999/api?key=k[1-100]"
//   cure    Group::get_many in group/batch.rs; http/client/combine.rs              second reading
// Some keys do not travel: 400.
//   try     get a%20b
//   cure    http/wire.rs                                                           first reading
//
// THE CACHE
// Values neither expire nor can be removed.
//   change  the last line of `search_slow_db` to
//           `Ok(format!("{:?}", std::time::SystemTime::now()).into_bytes().into())`
//   try     get Tom; sleep 60; get Tom
//   cure    cache/record.rs; Group::remove in group/remove.rs                      first; second
// A value larger than the budget evicts all others, and then itself.
//   change  the last line of `search_slow_db` to `Ok(score.repeat(1000).into_bytes().into())`
//   try     get Sam; get Sam
//   cure    cache/mod.rs                                                           first reading
// Keys that are asked for once push out those that are asked for all the time.
//   change  in `main` `2 << 10` to `64`; in `search_slow_db` the two lines after `scores` to
//           `let (_, score) = scores[2];`
//   try     get Sam; get Sam; curl -s "http://localhost:9999/api?key=k[1-60]"; get Sam
//   cure    cache/order.rs                                                         second reading
// One lock: threads that find what they look for take turns.
//   try     nothing here shows it, since a request takes a hundred times as long as the lock is held
//   cure    cache/shard.rs                                                         first reading
//
// PEERS THAT FAIL
// A mute owner costs 3 s for each of its keys; eight such gets, and hits on 8003 wait as well.
//   try     kill -STOP %1; get a; get b; get f             (kill -CONT %1 ends it)
//   cure    http/client/cooldown.rs; http/server/mod.rs                            first reading
// Whatever answers 200 is taken for the owner: here its page of the score 0.
//   try     kill %1; mkdir -p _geecache/scores; echo 0 >_geecache/scores/Tom
//           python3 -m http.server 8001 & sleep 1; get Tom
//   cure    http/client/exchange.rs                                                first reading
// Two nodes that each take the other for the owner wait for each other: 3 s.
//   try     in_one_file --port 8001 --peers http://localhost:8002 &
//           in_one_file --port 8002 --peers http://localhost:8001 --api 9999 & sleep 1; get Tom
//   cure    Group::load in group/mod.rs; HttpPool::replace in http/pool.rs         first reading
// The list of nodes never changes, and a new owner of a key loads it anew.
//   try     in_one_file --port 8004: nobody asks it
//   cure    http/discovery.rs, group/handover.rs                                   second reading
// Each question looks the name up on a new thread.
//   try     strace -f -e clone3 -p "$(pgrep -f 'port 8003')" & get Tom
//   cure    http/client/addresses.rs                                               second reading
//
// CALLERS THAT ARE MANY, OR UNKIND
// A hit needs a worker, too: while loads have them all it waits, or is refused with 503.
//   try     curl -sZ --parallel-max 200 "http://localhost:9999/api?key=[1-200]" & get Sam
//   cure    http/server/mod.rs                                                     first reading
// A body that is announced and does not come holds a worker; after eight nobody is answered.
//   try     for i in 1 2 3 4 5 6 7 8; do (exec 3<>/dev/tcp/localhost/9999
//             printf 'GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n' >&3; sleep 9) &
//           done; sleep 1; get Tom
//   cure    http/server/service.rs                                                 first reading
// Of 16 connections that come at once some get no answer: tiny_http has no thread for them.
//   try     curl -sZ --parallel-immediate --parallel-max 16 "http://localhost:9999/api?key=Tom[1-16]"
//           (at the first time it was 4 answers of 16, and curl waited)
//   cure    http/server/listener.rs                                                second reading
// More connections than there may be files, and the front refuses everybody from then on.
//   try     (ulimit -n 30; in_one_file --port 8003 --api 9999) & sleep 1
//           curl -sZ --parallel-immediate --parallel-max 60 "http://localhost:9999/api?key=[1-60]"
//   cure    http/server/listener.rs                                                second reading
// A node that ends leaves its callers without an answer.
//   try     get Bob & sleep 0.05; kill %3
//   cure    HttpServer::shutdown in http/server/mod.rs                             first reading
//
// THOSE WHO RUN IT
// Everybody on the network reads all values: no token, no TLS.
//   try     curl http://localhost:8001/_geecache/scores/Tom
//   cure    http/server/routes.rs; http/client/transport.rs                        first; second
// Nothing is counted, and there is only the log.
//   try     to find out the hit ratio
//   cure    stats.rs, metrics.rs                                                   second reading
