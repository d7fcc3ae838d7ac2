//! Keys that another process holds, and the callers that ask for them.
//!
//! The other process is this program, started once more. It serves its groups as a node would,
//! and beside them the least that can be asked of a network: a thread for each TCP connection
//! that reads a question of so many bytes and writes an answer of so many. Read on in `fetch`,
//! `combine`, `batch` and `network`, which ask it.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use geecache::{Group, HttpPool, HttpServer, PoolOptions, ServerOptions};
use hdrhistogram::Histogram;
use indicatif::ProgressBar;

use crate::measure::{Samples, interleave, wall};
use crate::network;
use crate::workload::{rng, uniform};

pub(crate) const KEYS: usize = 1_000;
pub(crate) const KEY_BYTES: usize = 13;
/// The groups, named by their values' bytes.
const VALUE_BYTES: [usize; 3] = [3, 100, 4 << 10];
/// How long the origin looks for a slow key. It does not find it, so nobody ever holds it.
pub(crate) const SLOW: Duration = Duration::from_millis(50);
/// The same for keys that begin with [`MISS_PREFIX`].
const MISS: Duration = Duration::from_millis(5);

/// One who asks and waits.
pub(crate) trait Caller: Send {
    fn get(&mut self, key: &str);
}

/// Callers, and the keys that each asks for.
pub(crate) type Callers<'c> = Vec<(Box<dyn Caller + 'c>, &'c [String])>;

pub(crate) fn callers<'c>(
    count: usize,
    keys: &'c [String],
    new: impl Fn() -> Box<dyn Caller + 'c>,
) -> Callers<'c> {
    (0..count).map(|_| (new(), keys)).collect()
}

/// What [`take_turns`] gives, for each system. Slow keys do not count.
pub(crate) struct Answered {
    /// Per second.
    pub(crate) rates: Samples,
    /// In nanoseconds, of all rounds.
    pub(crate) latencies: Vec<Histogram<u64>>,
    /// How many connections to the owner it opened.
    pub(crate) opened: Vec<usize>,
}

impl Answered {
    pub(crate) fn microseconds(&self, system: usize, quantile: f64) -> f64 {
        self.latencies[system].value_at_quantile(quantile) as f64 / 1e3
    }
}

/// Lets the callers of one system after the other ask for so long.
pub(crate) fn take_turns(
    systems: &mut [Callers<'_>],
    owner: &Owner,
    (rounds, time): (usize, Duration),
    bar: &ProgressBar,
) -> Answered {
    // A round that does not count, for connections to be there.
    systems.iter_mut().for_each(|callers| drop(ask_for(callers, time)));
    let mut latencies = vec![histogram(); systems.len()];
    let mut opened = vec![0; systems.len()];
    let rates = interleave(rounds, systems.len(), bar, |system, _round| {
        let before = owner.connections();
        let (rate, histogram) = ask_for(&mut systems[system], time);
        opened[system] += owner.connections().difference(&before).count();
        latencies[system].add(histogram).expect("one range");
        rate
    });
    Answered { rates, latencies, opened }
}

/// Lets all callers ask for so long: answers per second, and the time each took in nanoseconds.
fn ask_for(callers: &mut Callers<'_>, time: Duration) -> (f64, Histogram<u64>) {
    let callers: Vec<_> =
        callers.iter_mut().map(|caller| Mutex::new((caller, histogram()))).collect();
    let took = wall(callers.len(), |i| {
        let ((caller, keys), latencies) = &mut *callers[i].lock().unwrap();
        let sequence = uniform(&mut rng(i as u64), keys.len(), KEYS);
        let end = Instant::now() + time;
        for &key in sequence.iter().cycle() {
            let start = Instant::now();
            if start >= end {
                break;
            }
            let key = &keys[key as usize];
            caller.get(key);
            if !is_slow(key) {
                latencies.saturating_record(start.elapsed().as_nanos() as u64);
            }
        }
    });
    let mut all = histogram();
    for caller in callers {
        all.add(caller.into_inner().unwrap().1).expect("one range");
    }
    (all.len() as f64 / took.as_secs_f64(), all)
}

/// Up to ten seconds in nanoseconds, to 1 %.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("valid bounds")
}

/// A group of this process, none of whose keys are its own and that keeps no copies.
pub(crate) struct Asking {
    pub(crate) group: Arc<Group>,
    /// Keys that the owner holds once they were asked for.
    pub(crate) keys: Vec<String>,
    pub(crate) slow_keys: Vec<String>,
}

impl Asking {
    pub(crate) fn new(owner: &Owner, value_bytes: usize, combine: bool) -> Self {
        let (me, peer) = ("http://127.0.0.1:1".to_string(), format!("http://{}", owner.http));
        let options = PoolOptions { combine, ..PoolOptions::default() };
        let pool = HttpPool::with_options(&me, options).expect("a valid URL");
        pool.set_peers([&me, &peer]).expect("a list with this node");
        let keys = |prefix: &str| {
            let width = KEY_BYTES - prefix.len();
            let numbered = (0..).map(|i| format!("{prefix}{i:0width$}"));
            numbered.filter(|key| pool.owner(key) == peer).take(KEYS).collect()
        };
        let (keys, slow_keys) = (keys(""), keys(SLOW_PREFIX));
        let getter = |_: &str| Err::<Option<&str>, _>("the owner should have answered");
        let group = Group::builder(value_bytes.to_string(), getter).peers(pool).hot_bytes(0);
        Self { group: group.build().expect("a group"), keys, slow_keys }
    }

    /// As many callers that ask for keys that the owner holds.
    pub(crate) fn callers(&self, count: usize) -> Callers<'_> {
        callers(count, &self.keys, || Box::new(self))
    }

    pub(crate) fn assert_that_the_owner_answered(&self) {
        let stats = self.group.stats();
        assert_eq!((stats.fallbacks, stats.main.hits, stats.hot.hits), (0, 0, 0));
    }
}

impl Caller for &Asking {
    fn get(&mut self, key: &str) {
        match self.group.get(key).expect("an answer") {
            Some(value) => assert_eq!(value.len().to_string(), self.group.name()),
            None => assert!(is_slow(key)),
        }
    }
}

const SLOW_PREFIX: &str = "slow";
pub(crate) const MISS_PREFIX: &str = "miss";

fn is_slow(key: &str) -> bool {
    key.starts_with(SLOW_PREFIX)
}

/// A client of the bare TCP server.
pub(crate) struct Bare {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Bare {
    /// A connection for questions and answers of so many bytes.
    pub(crate) fn connect(server: SocketAddr, question_bytes: usize, answer_bytes: usize) -> Self {
        let mut stream = connect(server);
        for length in [question_bytes, answer_bytes] {
            stream.write_all(&(length as u32).to_le_bytes()).expect("a connection");
        }
        Self { stream, answer: vec![0; answer_bytes] }
    }

    /// As many connections that ask for a key each time.
    pub(crate) fn callers<'c>(
        count: usize,
        owner: &Owner,
        keys: &'c [String],
        value_bytes: usize,
    ) -> Callers<'c> {
        callers(count, keys, || Box::new(Self::connect(owner.tcp, KEY_BYTES, value_bytes)))
    }
}

impl Caller for Bare {
    fn get(&mut self, key: &str) {
        self.stream.write_all(key.as_bytes()).expect("a connection");
        self.stream.read_exact(&mut self.answer).expect("an answer");
    }
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
    stream
}

/// The process that owns the keys.
pub(crate) struct Owner {
    child: Child,
    pub(crate) http: SocketAddr,
    pub(crate) tcp: SocketAddr,
}

impl Owner {
    pub(crate) fn start() -> Self {
        let bench = env::current_exe().expect("the path of this program");
        let mut command = Command::new(bench);
        command.arg("own").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a child");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut address = || {
            let line = lines.next().expect("two lines").expect("text");
            line.parse().expect("an address")
        };
        Self { http: address(), tcp: address(), child }
    }

    /// The connections that this process has to its HTTP server, as the kernel numbers them.
    pub(crate) fn connections(&self) -> HashSet<String> {
        let ours: HashSet<String> = fs::read_dir("/proc/self/fd")
            .expect("Linux")
            .flatten()
            .filter_map(|file| fs::read_link(file.path()).ok())
            .filter_map(|link| {
                Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_string())
            })
            .collect();
        let port = format!(":{:04X}", self.http.port());
        let table = fs::read_to_string("/proc/self/net/tcp").expect("Linux");
        let connections = table.lines().skip(1).filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (remote, inode) = (fields.get(2)?, fields.get(9)?);
            remote.ends_with(&port).then(|| inode.to_string())
        });
        connections.filter(|inode| ours.contains(inode)).collect()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        // It serves until its input ends.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// In the child: serves all groups and bare TCP, prints both addresses, and ends with its input.
pub(crate) fn own() {
    let small = network::SMALL.map(|name| (name.to_string(), network::SMALL_BYTES));
    let by_bytes = VALUE_BYTES.map(|bytes| (bytes.to_string(), bytes));
    let large = (network::LARGE.to_string(), network::LARGE_BYTES);
    let groups = by_bytes.into_iter().chain(small).chain([large]).map(|(name, bytes)| {
        let getter = move |key: &str| {
            if is_slow(key) || key.starts_with(MISS_PREFIX) {
                thread::sleep(if is_slow(key) { SLOW } else { MISS });
                return Ok::<_, Infallible>(None);
            }
            Ok(Some(vec![b'v'; bytes]))
        };
        Group::builder(name, getter).build().expect("a group")
    });
    let [http, tcp] =
        [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"));
    let address = tcp.local_addr().expect("an address");
    thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            thread::spawn(move || answer(stream));
        }
    });
    let server = HttpServer::start(http, groups, ServerOptions::default()).expect("a server");
    println!("{}\n{address}", server.local_addr());
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
}

/// Answers questions, whose length and whose answers' length the client says first, until it
/// leaves.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut length = || {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        io::Result::Ok(u32::from_le_bytes(length) as usize)
    };
    let (mut question, answer) = (vec![0; length()?], vec![b'v'; length()?]);
    loop {
        stream.read_exact(&mut question)?;
        stream.write_all(&answer)?;
    }
}
