//! What does the origin see of many callers that want one cold key at the same time?

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use geecache::{Group, HttpPool, HttpServer, ServerOptions};

use crate::measure::median;
use crate::table::{Cell, Report, Table};
use crate::{Settings, progress};

const NODES: usize = 3;
const CALLERS: usize = 64;
const ORIGIN: Duration = Duration::from_millis(50);

pub(crate) fn run(settings: &Settings) -> Report {
    let rounds = settings.pick(5, 20);
    let bar = progress("stampede", rounds);
    let loads = Arc::new(AtomicUsize::new(0));
    let nodes = cluster(&loads);
    let (mut loads_of_key, mut slowest) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let before = loads.load(Ordering::SeqCst);
        slowest.push(slowest_of_all(&nodes, &format!("key {round}")).as_secs_f64() * 1e3);
        loads_of_key.push((loads.load(Ordering::SeqCst) - before) as f64);
        bar.inc(1);
    }
    let worst = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
    let mut table = Table::new(
        format!("{CALLERS} callers of a cold key through {NODES} nodes, an origin of 50 ms"),
        &["", "median of the rounds", "worst round"],
    );
    table.row([
        "loads of the key".into(),
        Cell::Number(median(loads_of_key.clone()), 0),
        Cell::Number(worst(&loads_of_key), 0),
    ]);
    table.row([
        "ms until all are answered".into(),
        Cell::Number(median(slowest.clone()), 1),
        Cell::Number(worst(&slowest), 1),
    ]);
    let origin = ORIGIN.as_secs_f64() * 1e3;
    table.row([
        "the same over the origin's".into(),
        Cell::Number(median(slowest.clone()) / origin, 2),
        Cell::Number(worst(&slowest) / origin, 2),
    ]);
    Report { topic: "stampede", tables: vec![table] }
}

struct Node {
    group: Arc<Group>,
    _server: HttpServer,
}

/// Nodes that know each other; each get of the origin adds one to `loads`.
fn cluster(loads: &Arc<AtomicUsize>) -> Vec<Node> {
    let listeners: Vec<TcpListener> =
        (0..NODES).map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port")).collect();
    let urls: Vec<String> = listeners
        .iter()
        .map(|listener| format!("http://{}", listener.local_addr().expect("an address")))
        .collect();
    let node = |(listener, url): (TcpListener, &String)| {
        let pool = HttpPool::new(url).expect("a valid URL");
        pool.set_peers(&urls).expect("a list with this node");
        let loads = loads.clone();
        let getter = move |_: &str| {
            loads.fetch_add(1, Ordering::SeqCst);
            thread::sleep(ORIGIN);
            Ok::<_, Infallible>(Some("value"))
        };
        let group = Group::builder("stampede", getter).peers(pool).build().expect("a group");
        let server = HttpServer::start(listener, [group.clone()], ServerOptions::default());
        Node { group, _server: server.expect("a server") }
    };
    listeners.into_iter().zip(&urls).map(node).collect()
}

/// The time of the caller that waits longest when all ask at once.
fn slowest_of_all(nodes: &[Node], key: &str) -> Duration {
    let barrier = &Barrier::new(CALLERS);
    thread::scope(|scope| {
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    let value = nodes[caller % NODES].group.get(key).expect("an answer");
                    assert_eq!(value.expect("a value"), "value");
                    start.elapsed()
                })
            })
            .collect();
        callers.into_iter().map(|caller| caller.join().expect("no panic")).max().expect("callers")
    })
}
