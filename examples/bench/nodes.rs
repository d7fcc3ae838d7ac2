//! What grows with the number of nodes?
//!
//! All nodes are in this process. One of them has asked all others for a key, and all others have asked
//! that one: so it has a connection each way to each other node, with a thread where it is answered and
//! a file at both ends. If each node asked each other one, a hundred would have 9,900 connections here,
//! and ten thousand threads in one process measure little but themselves.

use std::convert::Infallible;
use std::fs;
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use geecache::{Group, HttpPool, HttpServer, PoolOptions, ServerOptions, prometheus};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::measure::median;
use crate::table::{Cell, Report, Table};
use crate::{Settings, progress};

const ROUNDS: usize = 5;
const CALM: Duration = Duration::from_secs(3);
/// Shorter than a connection may be idle.
const LONGEST_WAIT: Duration = Duration::from_secs(12);

pub(crate) fn run(settings: &Settings) -> Report {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let sizes = settings.pick(&[3, 10, 30][..], &[3, 10, 30, 100]);
    let bar = progress("nodes", sizes.len());
    let mut table = Table::new(
        "a node that has asked all others and was asked by them: what it holds, and times",
        &[
            "nodes",
            "threads",
            "files",
            "MiB",
            "removal ms",
            "clear ms",
            "set_peers ms",
            "metrics KiB",
            "metrics ms",
            "largest share",
        ],
    );
    for &nodes in sizes {
        table.row(measure(nodes));
        bar.inc(1);
    }
    Report { topic: "nodes", tables: vec![table] }
}

struct Node {
    url: String,
    pool: Arc<HttpPool>,
    group: Arc<Group>,
    _server: HttpServer,
}

fn start(i: usize) -> Node {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    // A pull would ask all others.
    let options = PoolOptions { handover: Duration::ZERO, ..PoolOptions::default() };
    let pool = HttpPool::with_options(&url, options).expect("a valid URL");
    let getter = move |_: &str| Ok::<_, Infallible>(Some(i.to_string()));
    let group = Group::builder("nodes", getter).peers(pool.clone()).build().expect("a group");
    let server = HttpServer::start(listener, [group.clone()], ServerOptions::default());
    Node { url, pool, group, _server: server.expect("a server") }
}

fn measure(count: usize) -> [Cell; 10] {
    let before = Held::settled();
    let nodes: Vec<_> = (0..count).map(start).collect();
    let urls: Vec<_> = nodes.iter().map(|node| &node.url).collect();
    for node in &nodes {
        node.pool.set_peers(urls.iter().copied()).expect("a list with this node");
    }
    let alone = Held::settled();
    let ask = |node: &Node, other: &str| {
        let mut keys = (0..).map(|i| format!("key {i} of {}", node.url));
        let key = keys.find(|key| node.pool.owner(key) == other).expect("it owns some");
        node.group.get(&key).expect("an answer");
    };
    for other in &nodes[1..] {
        ask(&nodes[0], &other.url);
        ask(other, &nodes[0].url);
    }
    let held = Held::settled();
    let part = |read: fn(&Held) -> f64, ends: f64, digits| {
        let own = (read(&alone) - read(&before)) / count as f64;
        Cell::Number(own + (read(&held) - read(&alone)) / ends, digits)
    };

    let Node { pool, group, .. } = &nodes[0];
    let removal = times(|i| group.remove(&format!("key {i}")).expect("all are there"));
    let clear = times(|_| group.clear().expect("all are there"));
    let set_peers = times(|i| {
        // Once without the last one, once with it.
        let list = urls[..count - (i + 1) % 2].iter().copied();
        pool.set_peers(list).expect("a list with this node");
    });
    pool.set_peers(urls.iter().copied()).expect("a list with this node");
    let mut bytes = 0;
    let metrics = times(|_| bytes = prometheus([(group.name(), group.stats())]).len());
    let ms = |time: f64| Cell::Number(time * 1e3, 1);
    [
        count.into(),
        // The others answer by one of the threads that they have had from the start.
        part(|held| held.threads, 1.0, 0),
        // Of each connection one end is the node's.
        part(|held| held.files, 2.0, 0),
        part(|held| held.mebibytes, 2.0, 1),
        ms(removal),
        ms(clear),
        ms(set_peers),
        Cell::Number(bytes as f64 / 1024.0, 0),
        ms(metrics),
        Cell::Number(pool.ring().largest_share().1, 2),
    ]
}

/// The median in seconds.
fn times(mut work: impl FnMut(usize)) -> f64 {
    let time = |i| {
        let start = Instant::now();
        work(i);
        start.elapsed()
    };
    median((0..ROUNDS).map(time).map(|time: Duration| time.as_secs_f64()).collect())
}

/// What this process holds.
struct Held {
    threads: f64,
    files: f64,
    mebibytes: f64,
}

impl Held {
    /// Once no thread has come or gone for a while: a server keeps idle ones for some seconds.
    fn settled() -> Self {
        let start = Instant::now();
        let (mut last, mut since) = (Self::now(), start);
        while since.elapsed() < CALM && start.elapsed() < LONGEST_WAIT {
            thread::sleep(CALM / 20);
            let now = Self::now();
            if now.threads != last.threads {
                since = Instant::now();
            }
            last = now;
        }
        last
    }

    fn now() -> Self {
        let entries = |path| fs::read_dir(path).map_or(0, Iterator::count) as f64;
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        Self {
            threads: entries("/proc/self/task"),
            files: entries("/proc/self/fd"),
            mebibytes: kibibytes.unwrap_or(f64::NAN) / 1024.0,
        }
    }
}
