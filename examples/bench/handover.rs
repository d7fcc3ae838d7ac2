//! What does the origin see when the list of nodes changes?
//!
//! Nodes in one process, with and without hand-over: one joins, one leaves but still answers, and all
//! are replaced one after the other while callers ask. A load is counted where the origin is asked.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use geecache::{Group, HttpPool, HttpServer, PoolOptions, ServerOptions};
use hdrhistogram::Histogram;

use crate::table::{Cell, Report, Table};
use crate::workload::scattered;
use crate::{Settings, progress};

const KEYS: usize = 20_000;
const CALLERS: usize = 32;
const ORIGIN: Duration = Duration::from_millis(1);
/// For how long an old node and its replacement are in the list, and then for how long the old one still
/// answers.
const OVERLAP: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);

pub(crate) fn run(settings: &Settings) -> Report {
    let overlap = settings.pick(OVERLAP / 2, OVERLAP);
    let bar = progress("handover", 8);
    let mut table = Table::new(
        format!("{KEYS} keys, all warm; what the origin is asked for afterwards, in % of the keys"),
        &["change", "with hand-over", "without"],
    );
    let mut times = Table::new(
        format!("{CALLERS} callers meanwhile, an origin of {ORIGIN:?}: times of their gets in µs"),
        &["change", "hand-over", "p50", "p99", "p99.9", "calm: p50", "p99", "p99.9"],
    );
    let mut measure = |change: &str, measure: &dyn Fn(Duration) -> Changed| {
        let mut loads = |name: &str, handover| {
            let changed = measure(handover);
            bar.inc(1);
            let us = |times: &Histogram<u64>, quantile| {
                Cell::Number(times.value_at_quantile(quantile) as f64 / 1e3, 1)
            };
            let mut cells = vec![change.into(), name.into()];
            for of in [&changed.during, &changed.calm] {
                cells.extend([0.5, 0.99, 0.999].map(|quantile| us(of, quantile)));
            }
            times.row(cells);
            Cell::Percent(changed.loads)
        };
        let with = loads("yes", PoolOptions::default().handover);
        table.row([change.into(), with, loads("no", Duration::ZERO)]);
    };
    measure("a fourth node joins", &|handover| joins(handover, overlap));
    measure("one of four leaves, and still answers", &|handover| leaves(handover, overlap));
    let all = "all four are replaced, one after the other";
    measure(&format!("{all}, each {overlap:?} after its replacement has come"), &|handover| {
        replaced(handover, overlap, true)
    });
    measure(&format!("{all}, each at once, and still answers for {overlap:?}"), &|handover| {
        replaced(handover, overlap, false)
    });
    Report { topic: "handover", tables: vec![table, times] }
}

/// The nodes that are in the list, and what the origin was asked for.
struct Cluster {
    loads: Arc<AtomicUsize>,
    keys: Vec<String>,
    handover: Duration,
    nodes: RwLock<Vec<Arc<Node>>>,
}

struct Node {
    url: String,
    pool: Arc<HttpPool>,
    group: Arc<Group>,
    server: HttpServer,
}

impl Cluster {
    /// So many nodes that have all keys.
    fn warm(nodes: usize, keys: usize, handover: Duration) -> Self {
        let keys = scattered(keys).into_iter().map(|i| format!("key {i}")).collect();
        let (loads, nodes_of_it) = (Arc::default(), RwLock::default());
        let cluster = Self { loads, keys, handover, nodes: nodes_of_it };
        let first = (0..nodes).map(|_| cluster.start()).collect();
        cluster.set(first);
        cluster.ask_for_all();
        cluster
    }

    fn start(&self) -> Arc<Node> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let options = PoolOptions { handover: self.handover, ..PoolOptions::default() };
        let pool = HttpPool::with_options(&url, options).expect("a valid URL");
        let loads = self.loads.clone();
        let getter = move |key: &str| {
            loads.fetch_add(1, Ordering::SeqCst);
            thread::sleep(ORIGIN);
            Ok::<_, Infallible>(Some(key.to_string()))
        };
        let group = Group::builder("handover", getter).peers(pool.clone()).build();
        let group = group.expect("a group");
        let server = HttpServer::start(listener, [group.clone()], ServerOptions::default());
        Arc::new(Node { url, pool, group, server: server.expect("a server") })
    }

    /// Gives these nodes a list of just them. A node that is not in it learns nothing.
    fn set(&self, nodes: Vec<Arc<Node>>) {
        let urls: Vec<_> = nodes.iter().map(|node| &node.url).collect();
        // The newest first, so that nobody asks a node that takes itself for the only one.
        for node in nodes.iter().rev() {
            node.pool.set_peers(urls.iter().copied()).expect("a list with this node");
        }
        *self.nodes.write().unwrap() = nodes;
    }

    /// Callers ask for all keys once, of all nodes.
    fn ask_for_all(&self) {
        let nodes = self.nodes.read().unwrap().clone();
        thread::scope(|scope| {
            for caller in 0..CALLERS {
                let nodes = &nodes;
                scope.spawn(move || {
                    for (i, key) in self.keys.iter().enumerate().skip(caller).step_by(CALLERS) {
                        get(&nodes[i % nodes.len()], key);
                    }
                });
            }
        });
    }

    /// The part of the keys that the origin is asked for during `work`.
    fn loads_of(&self, work: impl FnOnce()) -> f64 {
        let before = self.loads.load(Ordering::SeqCst);
        work();
        (self.loads.load(Ordering::SeqCst) - before) as f64 / self.keys.len() as f64
    }
}

fn get(node: &Node, key: &str) -> Duration {
    let start = Instant::now();
    let value = node.group.get(key).expect("an answer");
    assert_eq!(value.expect("a value"), key);
    start.elapsed()
}

struct Changed {
    loads: f64,
    calm: Histogram<u64>,
    during: Histogram<u64>,
}

/// What happens while `change` does, and what the origin is asked for until each owner has been asked
/// for each of its keys.
fn changed(cluster: &Cluster, calm: Duration, change: impl FnOnce()) -> Changed {
    let calm = ask_until(cluster, || thread::sleep(calm));
    let mut during = None;
    let loads = cluster.loads_of(|| {
        during = Some(ask_until(cluster, change));
        cluster.ask_for_all();
        ask_owners(cluster);
    });
    Changed { loads, calm, during: during.expect("it was asked") }
}

fn joins(handover: Duration, overlap: Duration) -> Changed {
    let cluster = Cluster::warm(3, KEYS, handover);
    let mut nodes = cluster.nodes.read().unwrap().clone();
    changed(&cluster, overlap, || {
        nodes.push(cluster.start());
        cluster.set(nodes);
        thread::sleep(overlap);
    })
}

fn leaves(handover: Duration, overlap: Duration) -> Changed {
    let cluster = Cluster::warm(4, KEYS, handover);
    let mut nodes = cluster.nodes.read().unwrap().clone();
    let leaver = nodes.pop();
    let changed = changed(&cluster, overlap, || {
        cluster.set(nodes);
        thread::sleep(overlap);
    });
    drop(leaver);
    changed
}

/// Asks for each key at its owner.
fn ask_owners(cluster: &Cluster) {
    let nodes = cluster.nodes.read().unwrap().clone();
    thread::scope(|scope| {
        for node in &nodes {
            let own = cluster.keys.iter().filter(|key| node.pool.owner(key) == node.url);
            scope.spawn(move || {
                for key in own {
                    get(node, key);
                }
            });
        }
    });
}

/// Each node and its replacement are in the list together for a while, or never.
fn replaced(handover: Duration, overlap: Duration, together: bool) -> Changed {
    let cluster = Cluster::warm(4, KEYS, handover);
    changed(&cluster, overlap, || {
        for _ in 0..4 {
            let mut nodes = cluster.nodes.read().unwrap().clone();
            nodes.push(cluster.start());
            if together {
                cluster.set(nodes.clone());
                thread::sleep(overlap);
            }
            let leaver = nodes.remove(0);
            cluster.set(nodes);
            thread::sleep(overlap);
            // Nobody has been told to ask it for a while. What has been asked is answered.
            let leaver = wait_for_the_last(leaver);
            leaver.server.shutdown(GRACE);
        }
    })
}

/// The node, once no caller has it any more.
fn wait_for_the_last(mut node: Arc<Node>) -> Node {
    loop {
        match Arc::try_unwrap(node) {
            Ok(node) => return node,
            Err(shared) => node = shared,
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Callers ask for all keys again and again until `work` has ended: the times in nanoseconds.
fn ask_until(cluster: &Cluster, work: impl FnOnce()) -> Histogram<u64> {
    let is_over = AtomicBool::new(false);
    let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3).expect("valid bounds");
    let mut all = new();
    thread::scope(|scope| {
        let ask = |caller: usize| {
            let mut times = new();
            let mut keys = cluster.keys.iter().enumerate().skip(caller).step_by(CALLERS).cycle();
            while !is_over.load(Ordering::Relaxed) {
                let (i, key) = keys.next().expect("it does not end");
                let node = {
                    let nodes = cluster.nodes.read().unwrap();
                    nodes[i % nodes.len()].clone()
                };
                times.saturating_record(get(&node, key).as_nanos() as u64);
            }
            times
        };
        let callers: Vec<_> = (0..CALLERS).map(|caller| scope.spawn(move || ask(caller))).collect();
        work();
        is_over.store(true, Ordering::Relaxed);
        for caller in callers {
            all.add(caller.join().expect("no panic")).expect("the same bounds");
        }
    });
    all
}
