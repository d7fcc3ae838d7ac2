//! What does it cost to get a key that another process holds?
//!
//! The other process is this program, started once more. It serves the group as a node would, and
//! beside it the least that can be asked of a network: a thread for each TCP connection that
//! reads a key and writes a value. Callers ask for keys of the other process only, and keep no
//! copies.

use std::collections::HashSet;
use std::convert::Infallible;
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use geecache::tiny_http::Response;
use geecache::{Group, HttpPool, HttpServer, ServerOptions};
use hdrhistogram::Histogram;

use crate::measure::{interleave, wall};
use crate::table::{Cell, Report, Table};
use crate::workload::{rng, uniform};
use crate::{Settings, progress};

const KEYS: usize = 1_000;
const KEY_BYTES: usize = 13;
/// The groups, named by their values' bytes.
const VALUE_BYTES: [usize; 2] = [3, 4 << 10];

pub(crate) fn run(settings: &Settings) -> Report {
    let (rounds, time) =
        settings.pick((5, Duration::from_millis(200)), (15, Duration::from_millis(300)));
    let callers = [1, 16, 64];
    let bar = progress("fetch", VALUE_BYTES.len() * callers.len() * rounds * 3);
    let mut table = Table::new(
        "1,000 keys of another process, asked for by blocking callers",
        &[
            "value bytes",
            "callers",
            "system",
            "requests/s",
            "p50 µs",
            "p99 µs",
            "of bare TCP",
            "new connections",
        ],
    );
    let owner = Owner::start();
    for value_bytes in VALUE_BYTES {
        let asking = Asking::new(&owner, value_bytes);
        let front = front(asking.group.clone());
        for callers in callers {
            let mut systems: [Vec<Box<dyn Caller + '_>>; 3] = [
                each(callers, || Box::new(Bare::connect(owner.tcp, value_bytes))),
                each(callers, || Box::new(&asking)),
                each(callers, || Box::new(Browser::connect(front.local_addr(), value_bytes))),
            ];
            // A round that does not count, for connections to be there.
            systems.iter_mut().for_each(|callers| drop(ask_for(callers, &asking, time)));
            let mut latencies = [(); 3].map(|()| histogram());
            let mut opened = [0; 3];
            let samples = interleave(rounds, systems.len(), &bar, |system, _round| {
                let before = connections_to(owner.http);
                let (rate, histogram) = ask_for(&mut systems[system], &asking, time);
                opened[system] += connections_to(owner.http).difference(&before).count();
                latencies[system].add(histogram).expect("one range");
                rate
            });
            let names = ["bare TCP", "Group::get", "HTTP in, get, HTTP out"];
            for (i, name) in names.into_iter().enumerate() {
                let microseconds = |q| latencies[i].value_at_quantile(q) as f64 / 1e3;
                table.row([
                    value_bytes.into(),
                    callers.into(),
                    name.into(),
                    Cell::Number(samples.median(i), 0),
                    Cell::Number(microseconds(0.5), 0),
                    Cell::Number(microseconds(0.99), 0),
                    Cell::Number(samples.ratio(i, 0), 2),
                    opened[i].into(),
                ]);
            }
        }
        let stats = asking.group.stats();
        assert_eq!((stats.fallbacks, stats.main.hits, stats.hot.hits), (0, 0, 0));
    }
    Report { topic: "fetch", tables: vec![table] }
}

/// One who asks and waits.
trait Caller: Send {
    fn get(&mut self, key: &str);
}

fn each<'c>(callers: usize, new: impl Fn() -> Box<dyn Caller + 'c>) -> Vec<Box<dyn Caller + 'c>> {
    (0..callers).map(|_| new()).collect()
}

/// Lets all callers ask for so long: answers per second, and the time each took in nanoseconds.
fn ask_for(
    callers: &mut [Box<dyn Caller + '_>],
    asking: &Asking,
    time: Duration,
) -> (f64, Histogram<u64>) {
    let callers: Vec<_> = callers.iter_mut().map(|c| Mutex::new((c, histogram()))).collect();
    let took = wall(callers.len(), |i| {
        let (caller, latencies) = &mut *callers[i].lock().unwrap();
        let sequence = uniform(&mut rng(i as u64), KEYS, KEYS);
        let end = Instant::now() + time;
        for &key in sequence.iter().cycle() {
            let start = Instant::now();
            if start >= end {
                break;
            }
            caller.get(&asking.keys[key as usize]);
            latencies.saturating_record(start.elapsed().as_nanos() as u64);
        }
    });
    let mut all = histogram();
    for caller in callers {
        all.add(caller.into_inner().unwrap().1).expect("one range");
    }
    (all.len() as f64 / took.as_secs_f64(), all)
}

/// Up to ten seconds in nanoseconds, to 1 %.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 10_000_000_000, 2).expect("valid bounds")
}

/// A group of this process, none of whose keys are its own.
struct Asking {
    group: Arc<Group>,
    keys: Vec<String>,
}

impl Asking {
    fn new(owner: &Owner, value_bytes: usize) -> Self {
        let (me, peer) = ("http://127.0.0.1:1".to_string(), format!("http://{}", owner.http));
        let pool = HttpPool::new(&me).expect("a valid URL");
        pool.set_peers([&me, &peer]).expect("a list with this node");
        let numbers = (0..).map(|i| format!("{i:0KEY_BYTES$}"));
        let keys = numbers.filter(|key| pool.owner(key) == peer).take(KEYS).collect();
        let getter = |_: &str| Err::<Option<&str>, _>("the owner should have answered");
        let group = Group::builder(value_bytes.to_string(), getter).peers(pool).hot_bytes(0);
        Self { group: group.build().expect("a group"), keys }
    }
}

impl Caller for &Asking {
    fn get(&mut self, key: &str) {
        let value = self.group.get(key).expect("an answer").expect("a value");
        assert_eq!(value.len().to_string(), self.group.name());
    }
}

/// An HTTP server in front of the asking group: the path is the key.
fn front(group: Arc<Group>) -> HttpServer {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let answer = move |key: &str| match group.get(key) {
        Ok(Some(value)) => {
            let length = value.len();
            Response::new(200.into(), vec![], Cursor::new(value), Some(length), None).boxed()
        }
        other => Response::from_string(format!("{other:?}")).with_status_code(500).boxed(),
    };
    HttpServer::serve(listener, ServerOptions::default(), move |request| {
        answer(request.url().trim_start_matches('/'))
    })
    .expect("a server")
}

/// A client of the front, with a connection that it keeps.
struct Browser {
    stream: BufReader<TcpStream>,
    value: Vec<u8>,
}

impl Browser {
    fn connect(address: SocketAddr, value_bytes: usize) -> Self {
        Self { stream: BufReader::new(connect(address)), value: vec![0; value_bytes] }
    }

    fn try_get(&mut self, key: &str) -> io::Result<()> {
        let request = format!("GET /{key} HTTP/1.1\r\nHost: bench\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        assert!(line.starts_with("HTTP/1.1 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            self.stream.read_line(&mut line)?;
        }
        self.stream.read_exact(&mut self.value)
    }
}

impl Caller for Browser {
    fn get(&mut self, key: &str) {
        self.try_get(key).expect("an answer of the front");
    }
}

/// A client of the bare TCP server.
struct Bare {
    stream: TcpStream,
    value: Vec<u8>,
}

impl Bare {
    fn connect(address: SocketAddr, value_bytes: usize) -> Self {
        let mut stream = connect(address);
        stream.write_all(&(value_bytes as u32).to_le_bytes()).expect("a connection");
        Self { stream, value: vec![0; value_bytes] }
    }
}

impl Caller for Bare {
    fn get(&mut self, key: &str) {
        self.stream.write_all(key.as_bytes()).expect("a connection");
        self.stream.read_exact(&mut self.value).expect("a value");
    }
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the server listens");
    stream.set_nodelay(true).expect("a socket option");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket option");
    stream
}

/// The process that owns the keys.
struct Owner {
    child: Child,
    http: SocketAddr,
    tcp: SocketAddr,
}

impl Owner {
    fn start() -> Self {
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
    let groups = VALUE_BYTES.map(|bytes| {
        let getter = move |_: &str| Ok::<_, Infallible>(Some(vec![b'v'; bytes]));
        Group::builder(bytes.to_string(), getter).build().expect("a group")
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

/// Answers keys with values, whose length the client says first, until it leaves.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let value = vec![b'v'; u32::from_le_bytes(length) as usize];
    let mut key = [0; KEY_BYTES];
    loop {
        stream.read_exact(&mut key)?;
        stream.write_all(&value)?;
    }
}

/// The connections that this process has to an address, as the kernel numbers them.
fn connections_to(address: SocketAddr) -> HashSet<String> {
    let ours: HashSet<String> = fs::read_dir("/proc/self/fd")
        .expect("Linux")
        .flatten()
        .filter_map(|file| fs::read_link(file.path()).ok())
        .filter_map(|link| {
            Some(link.to_str()?.strip_prefix("socket:[")?.trim_end_matches(']').to_string())
        })
        .collect();
    let port = format!(":{:04X}", address.port());
    let table = fs::read_to_string("/proc/self/net/tcp").expect("Linux");
    let connections = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (remote, inode) = (fields.get(2)?, fields.get(9)?);
        remote.ends_with(&port).then(|| inode.to_string())
    });
    connections.filter(|inode| ours.contains(inode)).collect()
}
