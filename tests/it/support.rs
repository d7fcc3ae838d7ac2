//! Nodes, stand-ins for nodes, a client that writes HTTP by hand, and ways to wait.

use std::array;
use std::collections::HashMap;
use std::env;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, unbounded};
use geecache::{
    BoxError, Getter, Group, GroupBuilder, HttpPool, HttpServer, Loaded, PoolOptions,
    ServerOptions, Stats,
};
use percent_encoding::percent_decode_str;

mod hop;
mod relay;

pub(crate) use hop::hop;
pub(crate) use relay::{CutBy, Relay, Treatment};

/// No wait in a test is longer; what is not there by then does not come.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Looks again and again until `condition` holds.
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "waited in vain: {what}");
        thread::yield_now();
    }
}

/// How often a test may try to meet a bound that holds where the machine has time for it.
pub(crate) const ATTEMPTS: usize = 5;

/// Runs `work` on `n` threads that start at once, and collects what they return.
pub(crate) fn together<T: Send>(n: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(n);
    let run = |i| {
        start.wait();
        work(i)
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..n).map(|i| scope.spawn(move || run(i))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Holds those who come until it is opened.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<(Mutex<GateState>, Condvar)>);

#[derive(Default)]
struct GateState {
    open: bool,
    waiting: usize,
}

impl Gate {
    pub(crate) fn wait(&self) {
        let (state, opened) = &*self.0;
        let mut state = state.lock().unwrap();
        state.waiting += 1;
        let (mut state, _) = opened.wait_timeout_while(state, LONG, |state| !state.open).unwrap();
        state.waiting -= 1;
        assert!(state.open, "the gate was never opened");
    }

    pub(crate) fn open(&self) {
        self.0.0.lock().unwrap().open = true;
        self.0.1.notify_all();
    }

    pub(crate) fn waiting(&self) -> usize {
        self.0.0.lock().unwrap().waiting
    }
}

type Answering = dyn Fn(&str) -> Result<Option<Loaded>, BoxError> + Send + Sync;

/// The source of data that the nodes share, and how often it was asked.
#[derive(Clone)]
pub(crate) struct Origin {
    answer: Arc<Answering>,
    loads: Arc<AtomicUsize>,
    batches: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Origin {
    pub(crate) fn new<G: Getter + 'static>(getter: G) -> Self {
        Self {
            answer: Arc::new(move |key| getter.get(key)),
            loads: Arc::default(),
            batches: Arc::default(),
        }
    }

    /// Holds every load until the gate is open.
    pub(crate) fn gated() -> (Self, Gate) {
        Self::gated_for(|_| true)
    }

    /// Holds the loads of some keys until the gate is open.
    pub(crate) fn gated_for(
        is_gated: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> (Self, Gate) {
        let gate = Gate::default();
        let origin = Self::new({
            let gate = gate.clone();
            move |key: &str| {
                if is_gated(key) {
                    gate.wait();
                }
                Ok::<_, BoxError>(Some(value_of(key)))
            }
        });
        (origin, gate)
    }

    /// Has the value [`value_of`] for every key.
    pub(crate) fn of_all() -> Self {
        Self::new(|key: &str| Ok::<_, BoxError>(Some(value_of(key))))
    }

    pub(crate) fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    /// The keys of each call for many.
    pub(crate) fn batches(&self) -> Vec<Vec<String>> {
        self.batches.lock().unwrap().clone()
    }
}

impl Getter for Origin {
    fn get(&self, key: &str) -> Result<Option<Loaded>, BoxError> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        (self.answer)(key)
    }

    fn get_many(&self, keys: &[&str]) -> Result<Vec<Result<Option<Loaded>, BoxError>>, BoxError> {
        self.batches.lock().unwrap().push(keys.iter().map(|&key| key.into()).collect());
        Ok(keys.iter().map(|key| self.get(key)).collect())
    }
}

pub(crate) fn value_of(key: &str) -> String {
    format!("the value of {key}")
}

/// Nodes to be: what they have in common.
pub(crate) struct Cluster {
    origin: Origin,
    host: &'static str,
    pool: PoolOptions,
    server: ServerOptions,
    groups: Vec<String>,
    strangers: Vec<String>,
    settings: Box<dyn Fn(usize, GroupBuilder) -> GroupBuilder>,
}

impl Cluster {
    /// The group `scores` over `origin`. Peers have so long to answer that even a busy machine
    /// makes none seem dead. Nothing is handed over: tests count what nodes ask each other.
    pub(crate) fn over(origin: &Origin) -> Self {
        Self {
            origin: origin.clone(),
            host: "127.0.0.1",
            pool: PoolOptions { timeout: LONG, handover: Duration::ZERO, ..PoolOptions::default() },
            server: ServerOptions::default(),
            groups: vec!["scores".into()],
            strangers: Vec::new(),
            settings: Box::new(|_, builder| builder),
        }
    }

    /// Peers have `timeout` to answer.
    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.pool.timeout = timeout;
        self
    }

    /// The largest value that is taken from a peer.
    pub(crate) fn max_value_bytes(mut self, bytes: u64) -> Self {
        self.pool.max_value_bytes = bytes;
        self
    }

    /// Each get goes out by itself.
    pub(crate) fn without_combining(mut self) -> Self {
        self.pool.combine = false;
        self
    }

    /// After a change of the list, those that owned a key before are asked.
    pub(crate) fn with_handover(mut self) -> Self {
        self.pool.handover = PoolOptions::default().handover;
        self
    }

    /// The secret that all nodes share.
    pub(crate) fn token(mut self, token: &str) -> Self {
        self.pool.token = Some(token.into());
        self.server.tokens = vec![token.into()];
        self
    }

    /// The certificates by which peers behind `https://` are believed.
    #[cfg(feature = "tls")]
    pub(crate) fn root_certificates(mut self, pem: &str) -> Self {
        self.pool.root_certificates = Some(pem.into());
        self
    }

    pub(crate) fn workers(mut self, workers: usize, queue: usize) -> Self {
        (self.server.workers, self.server.queue) = (workers, queue);
        self
    }

    pub(crate) fn groups<'g>(mut self, names: impl IntoIterator<Item = &'g str>) -> Self {
        self.groups = names.into_iter().map(String::from).collect();
        self
    }

    /// A member that is not started here.
    pub(crate) fn peer(mut self, url: &str) -> Self {
        self.strangers.push(url.into());
        self
    }

    /// Another address of the loopback network. A port that is given up there is still free
    /// when it is wanted again, since nobody else uses that address.
    pub(crate) fn host(self, host: &'static str) -> Self {
        Self { host, ..self }
    }

    /// The groups' settings, by the place of their node.
    pub(crate) fn settings(
        self,
        settings: impl Fn(usize, GroupBuilder) -> GroupBuilder + 'static,
    ) -> Self {
        Self { settings: Box::new(settings), ..self }
    }

    pub(crate) fn start<const N: usize>(self) -> [Node; N] {
        let listeners = self.listen();
        let urls = listeners.each_ref().map(|l| url_of(l.local_addr().unwrap()));
        self.start_as(listeners, urls)
    }

    /// The same, with a relay in front of each node: that is where the others ask it, and what its
    /// URL names.
    pub(crate) fn behind_relays<const N: usize>(self) -> ([Node; N], [Relay; N]) {
        let listeners: [_; N] = self.listen();
        let relays = listeners.each_ref().map(|l| Relay::to(l.local_addr().unwrap()).unwrap());
        let urls = relays.each_ref().map(|relay| url_of(relay.address()));
        (self.start_as(listeners, urls), relays)
    }

    /// The same, with a [`hop`] in front of each node.
    pub(crate) fn behind_hops<const N: usize>(
        self,
        treat: impl Fn(&Question, &dyn Fn(&Question) -> Answer) -> Vec<u8>
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> ([Node; N], [Stub; N]) {
        let listeners: [_; N] = self.listen();
        let hops = listeners.each_ref().map(|l| hop(l.local_addr().unwrap(), treat.clone()));
        let urls = hops.each_ref().map(|hop| hop.url.clone());
        (self.start_as(listeners, urls), hops)
    }

    fn listen<const N: usize>(&self) -> [TcpListener; N] {
        [(); N].map(|()| TcpListener::bind((self.host, 0)).unwrap())
    }

    fn start_as<const N: usize>(self, listeners: [TcpListener; N], urls: [String; N]) -> [Node; N] {
        let mut listeners = listeners.into_iter();
        let members: Vec<_> = urls.iter().chain(&self.strangers).cloned().collect();
        array::from_fn(|i| {
            let pool = HttpPool::with_options(&urls[i], self.pool.clone()).unwrap();
            pool.set_peers(&members).unwrap();
            let groups = self.groups.iter().map(|name| {
                let builder = Group::builder(name, self.origin.clone()).peers(pool.clone());
                (self.settings)(i, builder).build().unwrap()
            });
            let groups = groups.collect();
            let listener = listeners.next().unwrap();
            let mut node = Node {
                url: urls[i].clone(),
                address: listener.local_addr().unwrap(),
                pool,
                groups,
                options: self.server.clone(),
                server: None,
            };
            node.serve(listener);
            node
        })
    }
}

/// A node of its own in this process.
pub(crate) struct Node {
    pub(crate) url: String,
    /// Where it listens: behind a relay that is not where its URL points.
    address: SocketAddr,
    pub(crate) pool: Arc<HttpPool>,
    groups: Vec<Arc<Group>>,
    options: ServerOptions,
    server: Option<HttpServer>,
}

impl Node {
    /// The value of `key` as text, asked of this node. Panics if that is an error.
    pub(crate) fn get(&self, key: &str) -> Option<String> {
        self.group().get(key).unwrap().map(|value| value.to_string())
    }

    /// The same for many keys.
    pub(crate) fn get_many(&self, keys: &[impl AsRef<str>]) -> Vec<Option<String>> {
        let keys: Vec<_> = keys.iter().map(AsRef::as_ref).collect();
        let values = self.group().get_many(&keys).into_iter();
        values.map(|value| value.unwrap().map(|value| value.to_string())).collect()
    }

    pub(crate) fn group(&self) -> &Group {
        &self.groups[0]
    }

    pub(crate) fn groups(&self) -> &[Arc<Group>] {
        &self.groups
    }

    pub(crate) fn stats(&self) -> Stats {
        self.group().stats()
    }

    /// The keys that `owner` owns, as this node sees it.
    pub(crate) fn keys_of(&self, owner: &str) -> impl Iterator<Item = String> {
        (0..).map(|i| format!("key {i}")).filter(move |key| self.pool.owner(key) == owner)
    }

    /// The first of them.
    pub(crate) fn key_of(&self, owner: &str) -> String {
        self.keys_of(owner).next().unwrap()
    }

    /// The same place, written with the host's name.
    pub(crate) fn alias(&self) -> String {
        self.url.replace("127.0.0.1", "localhost")
    }

    /// Whether the only peer answered when it was last asked.
    pub(crate) fn believes_in_its_peer(&self) -> bool {
        let [(_, is_well)] = self.pool.peers()[..] else { panic!("one peer expected") };
        is_well
    }

    pub(crate) fn take_server(&mut self) -> HttpServer {
        self.server.take().unwrap()
    }

    /// Listens again where it did before.
    pub(crate) fn restart(&mut self) {
        self.serve(TcpListener::bind(self.address).unwrap());
    }

    fn serve(&mut self, listener: TcpListener) {
        let server = HttpServer::start(listener, self.groups.clone(), self.options.clone());
        self.server = Some(server.unwrap());
    }
}

/// What the counters promise once no get is under way.
pub(crate) fn check_identities<'n>(nodes: impl IntoIterator<Item = &'n Node>) {
    for node in nodes {
        let stats = node.stats();
        assert_eq!(stats.gets, stats.main.hits + stats.hot.hits + stats.misses, "{stats:?}");
        let loads = stats.local_loads + stats.local_load_errors;
        let outcomes = stats.peer_loads + stats.handed_over + loads + stats.shared;
        assert_eq!(stats.misses, outcomes, "{stats:?}");
        assert_eq!(stats.fallbacks, stats.peer_errors, "{stats:?}");
    }
}

pub(crate) fn url_of(address: SocketAddr) -> String {
    format!("http://{address}")
}

pub(crate) fn address_of(url: &str) -> &str {
    url.strip_prefix("http://").unwrap()
}

/// Something that listens where a node should be.
pub(crate) struct Stub {
    pub(crate) url: String,
    connections: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

impl Stub {
    /// Gives each connection to `serve`, on a thread of its own.
    pub(crate) fn raw(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = url_of(listener.local_addr().unwrap());
        let (connections, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let serve = Arc::new(serve);
        thread::spawn({
            let (connections, closed) = (connections.clone(), closed.clone());
            move || {
                for stream in listener.incoming().map(Result::unwrap) {
                    if closed.load(Ordering::SeqCst) {
                        break;
                    }
                    connections.fetch_add(1, Ordering::SeqCst);
                    stream.set_read_timeout(Some(LONG)).unwrap();
                    let serve = serve.clone();
                    thread::spawn(move || serve(stream));
                }
            }
        });
        Self { url, connections, closed }
    }

    /// Answers each request with the bytes that `answer` has for its path.
    pub(crate) fn http(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::asked(move |question| answer(question.path()))
    }

    /// Answers each request with the bytes that `answer` has for it.
    pub(crate) fn asked(answer: impl Fn(&Question) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::raw(move |mut stream| {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            while let Ok(Some(question)) = Question::read(&mut reader) {
                if stream.write_all(&answer(&question)).is_err() {
                    break;
                }
            }
        })
    }

    /// Answers everything with this status and text, and marks nothing.
    pub(crate) fn answering(status: u16, text: &'static str) -> Self {
        Self::http(move |_| response(status, "text/plain", text))
    }

    /// Takes what is sent and says nothing.
    pub(crate) fn mute() -> Self {
        Self::raw(|mut stream| drop(io::copy(&mut stream, &mut io::sink())))
    }

    /// Sends `at_once`, and then one byte a second for ever.
    pub(crate) fn dripping(at_once: &'static str) -> Self {
        Self::raw(move |mut stream| {
            let mut sent = stream.write_all(at_once.as_bytes());
            // What the question has left over is no more than one read; the next ones time out.
            stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
            while sent.is_ok() {
                let _ = stream.read(&mut [0; 1024]);
                sent = stream.write_all(b"H");
            }
        })
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// A server of a few lines that starts a thread for each connection: what the machine can do.
pub(crate) fn plain_server() -> Stub {
    Stub::raw(|mut stream| {
        while stream.read(&mut [0; 1024]).is_ok_and(|length| length > 0) {
            let _ = stream.write_all(&response(200, "text/plain", "ok\n"));
        }
    })
}

/// A request as a stand-in receives it.
#[derive(Clone, Default)]
pub(crate) struct Question {
    head: String,
    pub(crate) body: Vec<u8>,
}

impl Question {
    fn read(reader: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut question = Self::default();
        while !question.head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut question.head)? == 0 {
                return Ok(None);
            }
        }
        let length = question.header("content-length").map_or(0, |length| length.parse().unwrap());
        question.body = vec![0; length];
        reader.read_exact(&mut question.body)?;
        Ok(Some(question))
    }

    pub(crate) fn is_batch(&self) -> bool {
        self.head.starts_with("POST ")
    }

    /// Method and path.
    pub(crate) fn target(&self) -> &str {
        let line = self.head.lines().next().unwrap_or_default();
        line.rsplit_once(' ').map_or(line, |(target, _)| target)
    }

    /// The same question with another path.
    pub(crate) fn with_path(&self, path: &str) -> Self {
        Self { head: self.head.replacen(self.path(), path, 1), body: self.body.clone() }
    }

    /// The lines of the header.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &str> {
        self.head.lines().skip(1).take_while(|line| !line.is_empty())
    }

    /// The same question without the headers of which that is so.
    pub(crate) fn without(&self, is_dropped: impl Fn(&str) -> bool) -> Self {
        let name = |line: &str| line.split(':').next().unwrap().to_lowercase();
        let kept = self.headers().filter(|line| !is_dropped(&name(line)));
        let kept: String = kept.map(|line| format!("{line}\r\n")).collect();
        let first = self.head.lines().next().unwrap_or_default();
        Self { head: format!("{first}\r\n{kept}\r\n"), body: self.body.clone() }
    }

    pub(crate) fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// The keys of a batch, or else the one of the path.
    pub(crate) fn keys(&self) -> Vec<String> {
        if !self.is_batch() {
            let key = self.path().rsplit('/').next().unwrap();
            return vec![percent_decode_str(key).decode_utf8().unwrap().into()];
        }
        let (count, mut rest) = self.body.split_first_chunk::<4>().unwrap();
        let mut take = || {
            let (length, after) = rest.split_first_chunk::<2>().unwrap();
            let (key, after) = after.split_at(u16::from_be_bytes(*length).into());
            rest = after;
            String::from_utf8(key.into()).unwrap()
        };
        (0..u32::from_be_bytes(*count) & !ONLY_CACHED).map(|_| take()).collect()
    }

    /// Whether it is a batch that asks for what is cached alone.
    pub(crate) fn wants_only_cached(&self) -> bool {
        let flags = self.body.first_chunk::<4>().map_or(0, |count| u32::from_be_bytes(*count));
        self.is_batch() && flags & ONLY_CACHED != 0
    }
}

/// The type of the body of a batch and of its answer.
pub(crate) const BATCH_TYPE: &str = "application/x-geecache-batch";

/// In the number of keys of a batch: only what is cached is asked for.
const ONLY_CACHED: u32 = 1 << 31;

/// The body of a batch that asks for `keys`.
pub(crate) fn batch_of(keys: &[&str]) -> Vec<u8> {
    let frame = |key: &&str| [&(key.len() as u16).to_be_bytes(), key.as_bytes()].concat();
    let frames = keys.iter().flat_map(frame);
    (keys.len() as u32).to_be_bytes().into_iter().chain(frames).collect()
}

/// The same, for those of `keys` that are cached.
pub(crate) fn cached_batch_of(keys: &[&str]) -> Vec<u8> {
    let mut body = batch_of(keys);
    body[..4].copy_from_slice(&(keys.len() as u32 | ONLY_CACHED).to_be_bytes());
    body
}

/// A value that does not expire, as the answer to a batch has it.
pub(crate) fn value_frame(value: impl AsRef<[u8]>) -> Vec<u8> {
    let value = value.as_ref();
    [&[0][..], &[0xff; 8], &(value.len() as u32).to_be_bytes(), value].concat()
}

/// An owner that has the value [`value_of`] for every key, and what it was asked.
pub(crate) fn owner_of_all() -> (Stub, Arc<Mutex<Vec<Question>>>) {
    recording(|question| {
        let keys = question.keys();
        if question.is_batch() {
            let frames: Vec<_> = keys.iter().map(|key| value_frame(value_of(key))).collect();
            return response(200, BATCH_TYPE, frames.concat());
        }
        response(200, "application/octet-stream", value_of(&keys[0]))
    })
}

/// A stand-in that answers so, and what it was asked.
pub(crate) fn recording(
    answer: impl Fn(&Question) -> Vec<u8> + Send + Sync + 'static,
) -> (Stub, Arc<Mutex<Vec<Question>>>) {
    let questions = Arc::<Mutex<Vec<Question>>>::default();
    let stub = Stub::asked({
        let questions = questions.clone();
        move |question| {
            questions.lock().unwrap().push(question.clone());
            answer(question)
        }
    });
    (stub, questions)
}

/// How many of them are batches.
pub(crate) fn batches(questions: &Mutex<Vec<Question>>) -> usize {
    questions.lock().unwrap().iter().filter(|question| question.is_batch()).count()
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(address_of(&self.url)); // wakes the acceptor
    }
}

/// The URL of a node that is not there: nobody listens, and nobody else will.
pub(crate) fn dead_url() -> String {
    url_of(TcpListener::bind("127.0.0.2:0").unwrap().local_addr().unwrap())
}

/// An HTTP response with a length.
pub(crate) fn response(status: u16, content_type: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    let head = format!(
        "HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// A connection on which HTTP is written by hand.
pub(crate) struct Client(BufReader<TcpStream>);

impl From<TcpStream> for Client {
    fn from(stream: TcpStream) -> Self {
        Self(BufReader::new(stream))
    }
}

impl Client {
    pub(crate) fn connect(url: &str) -> Self {
        let stream = TcpStream::connect(address_of(url)).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a request without a body: `GET /path`, and header lines.
    pub(crate) fn send(&mut self, request: &str, headers: &[&str]) {
        self.send_with(request, headers, &[]);
    }

    pub(crate) fn send_with(&mut self, request: &str, headers: &[&str], body: &[u8]) {
        let host = headers.iter().any(|header| header.starts_with("Host:"));
        let host = (!host).then_some("Host: localhost");
        let headers = host.iter().chain(headers).map(|header| format!("{header}\r\n"));
        let text = format!("{request} HTTP/1.1\r\n{}\r\n", headers.collect::<String>());
        self.0.get_mut().write_all(&[text.as_bytes(), body].concat()).unwrap();
    }

    /// Sends a body, or what else follows.
    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn answer(&mut self) -> Answer {
        self.try_answer().unwrap()
    }

    pub(crate) fn try_answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.try_head()?;
        if answer.header("Transfer-Encoding") == Some("chunked") {
            loop {
                let length = usize::from_str_radix(&self.line()?, 16).unwrap();
                let mut chunk = vec![0; length + 2];
                self.0.read_exact(&mut chunk)?;
                answer.body.extend_from_slice(&chunk[..length]);
                if length == 0 {
                    return Ok(answer);
                }
            }
        }
        // A 204 has no length.
        let length = answer.header("Content-Length").map_or(0, |length| length.parse().unwrap());
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    /// An answer to `HEAD`, which has no body.
    pub(crate) fn head(&mut self) -> Answer {
        self.try_head().unwrap()
    }

    fn try_head(&mut self) -> io::Result<Answer> {
        let first = self.line()?;
        let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
        let mut headers = HashMap::new();
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_string());
        }
        let status = status.unwrap_or_else(|| panic!("{first}"));
        Ok(Answer { status, headers, body: Vec::new() })
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().into()),
        }
    }
}

#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(&name.to_ascii_lowercase()).map(String::as_str)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }
}

/// This test binary, told to run one ignored test in a process of its own.
pub(crate) fn this_binary(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args([test, "--exact", "--ignored", "--nocapture"]);
    command
}

/// The program of that example, which is also a target of this package: cargo has built it with
/// these tests.
pub(crate) fn example(name: &str) -> Command {
    Command::new(match name {
        "hello" => env!("CARGO_BIN_EXE_hello-under-test"),
        "in_one_file" => env!("CARGO_BIN_EXE_in_one_file-under-test"),
        "node" => env!("CARGO_BIN_EXE_node-under-test"),
        "three" => env!("CARGO_BIN_EXE_three-under-test"),
        "typed" => env!("CARGO_BIN_EXE_typed-under-test"),
        _ => panic!("{name} is not a target in tests/Cargo.toml"),
    })
}

/// Waits for the end of a process.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    let mut status = None;
    eventually("the process ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// What a process prints.
pub(crate) struct Lines {
    coming: Receiver<String>,
    seen: Mutex<Vec<String>>,
}

impl Lines {
    pub(crate) fn of(output: impl Read + Send + 'static) -> Self {
        let (sender, lines) = unbounded();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            // To its end, even if nobody listens any more: a process must not choke on a full pipe.
            lines.for_each(|line| drop(sender.send(line)));
        });
        Self { coming: lines, seen: Mutex::default() }
    }

    fn next(&self, within: Duration) -> Option<String> {
        let line = self.coming.recv_timeout(within).ok()?;
        self.seen.lock().unwrap().push(line.clone());
        Some(line)
    }

    /// Waits for the next line that contains `text`.
    pub(crate) fn line_with(&self, text: &str) -> String {
        self.line_within(LONG, text)
    }

    /// The same, for a process that may take so long.
    pub(crate) fn line_within(&self, time: Duration, text: &str) -> String {
        let end = Instant::now() + time;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.next(left);
            let line = line.unwrap_or_else(|| panic!("the process does not say {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    /// The URL at the end of the next line that has one.
    pub(crate) fn url(&self) -> String {
        let line = self.line_with("http://");
        line[line.find("http://").unwrap()..].into()
    }

    /// What it has printed by now and nobody has read.
    pub(crate) fn so_far(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next(Duration::ZERO)).collect()
    }

    /// All that is left, once the process has ended.
    pub(crate) fn rest(&self) -> Vec<String> {
        std::iter::from_fn(|| self.next(LONG)).collect()
    }

    /// All that it ever printed, once the process has ended.
    pub(crate) fn all(&self) -> Vec<String> {
        self.rest();
        self.seen.lock().unwrap().clone()
    }
}

/// Asks once, on a connection of its own.
pub(crate) fn ask(url: &str, request: &str, headers: &[&str]) -> Answer {
    let mut client = Client::connect(url);
    client.send(request, headers);
    client.answer()
}

/// Whether a new connection is answered, soon.
pub(crate) fn is_answered(url: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect(address_of(url)) else { return false };
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let asked = stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n");
    asked.is_ok() && stream.read(&mut [0; 1]).is_ok_and(|n| n > 0)
}

/// Sends a body, once, on a connection of its own.
pub(crate) fn post(url: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
    let length = format!("Content-Length: {}", body.len());
    let mut client = Client::connect(url);
    client.send_with(&format!("POST {path}"), &[&[&*length], headers].concat(), body);
    client.answer()
}
