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
/// So few that each is asked for while its earlier owner still answers, also on a slow machine. What is
/// not asked for by then is lost.
const REPLACED_KEYS: usize = 2_000;
const CALLERS: usize = 32;
const ORIGIN: Duration = Duration::from_millis(1);
/// For how long a node that has left still answers.
const OVERLAP: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(1);

pub(crate) fn run(settings: &Settings) -> Report {
    let overlap = settings.pick(OVERLAP / 2, OVERLAP);
    let bar = progress("handover", 6);
    let mut table = Table::new(
        "all keys are warm; what the origin is asked for afterwards, in % of the keys",
        &["change", "with hand-over", "without"],
    );
    let measure = |change: &dyn Fn(Duration) -> f64| {
        let with = change(PoolOptions::default().handover);
        bar.inc(1);
        let without = change(Duration::ZERO);
        bar.inc(1);
        [Cell::Percent(with), Cell::Percent(without)]
    };
    let [with, without] = measure(&joins);
    table.row([format!("a fourth node joins, {KEYS} keys").into(), with, without]);
    let [with, without] = measure(&leaves);
    table.row([
        format!("one of four leaves, and still answers, {KEYS} keys").into(),
        with,
        without,
    ]);
    let (with, without) = (replaced(PoolOptions::default().handover, overlap), {
        bar.inc(1);
        replaced(Duration::ZERO, overlap)
    });
    bar.inc(1);
    let name =
        format!("all four are replaced, each answers for {overlap:?} more, {REPLACED_KEYS} keys");
    table.row([name.into(), Cell::Percent(with.loads), Cell::Percent(without.loads)]);
    let mut times = Table::new(
        format!("{CALLERS} callers meanwhile, an origin of {ORIGIN:?}: times of their gets in ms"),
        &["all four are replaced", "p50", "p99", "calm before: p50", "p99"],
    );
    for (name, replaced) in [("with hand-over", with), ("without", without)] {
        let ms = |times: &Histogram<u64>, quantile| {
            Cell::Number(times.value_at_quantile(quantile) as f64 / 1e3, 2)
        };
        let (calm, during) = (&replaced.calm, &replaced.during);
        let cells = [ms(during, 0.5), ms(during, 0.99), ms(calm, 0.5), ms(calm, 0.99)];
        table_row(&mut times, name, cells);
    }
    Report { topic: "handover", tables: vec![table, times] }
}

fn table_row(table: &mut Table, name: &str, [a, b, c, d]: [Cell; 4]) {
    table.row([name.into(), a, b, c, d]);
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
        cluster.ask_for_all(|_| {});
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
        for node in &nodes {
            node.pool.set_peers(urls.iter().copied()).expect("a list with this node");
        }
        *self.nodes.write().unwrap() = nodes;
    }

    /// Callers ask for all keys once, of all nodes, and say how long each get took.
    fn ask_for_all(&self, took: impl Fn(Duration) + Sync) {
        let nodes = self.nodes.read().unwrap().clone();
        thread::scope(|scope| {
            for caller in 0..CALLERS {
                let (nodes, took) = (&nodes, &took);
                scope.spawn(move || {
                    for (i, key) in self.keys.iter().enumerate().skip(caller).step_by(CALLERS) {
                        took(get(&nodes[i % nodes.len()], key));
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

fn joins(handover: Duration) -> f64 {
    let cluster = Cluster::warm(3, KEYS, handover);
    let mut nodes = cluster.nodes.read().unwrap().clone();
    cluster.loads_of(|| {
        nodes.push(cluster.start());
        cluster.set(nodes);
        // Until a copy has answered for it, the new owner may not have been asked.
        cluster.ask_for_all(|_| {});
        ask_owners(&cluster);
    })
}

fn leaves(handover: Duration) -> f64 {
    let cluster = Cluster::warm(4, KEYS, handover);
    let mut nodes = cluster.nodes.read().unwrap().clone();
    let leaver = nodes.pop();
    let loads = cluster.loads_of(|| {
        cluster.set(nodes);
        cluster.ask_for_all(|_| {});
        ask_owners(&cluster);
    });
    drop(leaver);
    loads
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

struct Replaced {
    loads: f64,
    calm: Histogram<u64>,
    during: Histogram<u64>,
}

fn replaced(handover: Duration, overlap: Duration) -> Replaced {
    let cluster = Cluster::warm(4, REPLACED_KEYS, handover);
    let calm = ask_until(&cluster, || thread::sleep(overlap));
    let mut during = None;
    let loads = cluster.loads_of(|| {
        during = Some(ask_until(&cluster, || {
            for _ in 0..4 {
                let mut nodes = cluster.nodes.read().unwrap().clone();
                let leaver = nodes.remove(0);
                nodes.push(cluster.start());
                cluster.set(nodes);
                thread::sleep(overlap);
                // Nobody has been told to ask it for a while. What has been asked is answered.
                let leaver = wait_for_the_last(leaver);
                leaver.server.shutdown(GRACE);
            }
        }));
        cluster.ask_for_all(|_| {});
    });
    Replaced { loads, calm, during: during.expect("it was asked") }
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

/// Callers ask for all keys again and again until `work` has ended: the times in microseconds.
fn ask_until(cluster: &Cluster, work: impl FnOnce()) -> Histogram<u64> {
    let is_over = AtomicBool::new(false);
    let new = || Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).expect("valid bounds");
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
                times.saturating_record(get(&node, key).as_micros() as u64);
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
