//! Three replicas over a slow database, as a service developer would try it: this service, beside moka in
//! each replica and beside a Redis that they share.
//!
//! How long do callers wait, what is the database asked for, and who reads an old value? In a steady
//! state, and while the database hangs. Skip it at the first reading.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::iter::zip;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use futures_util::future::try_join_all;
use geecache::BoxError;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::GRACE;
use crate::origin::Origin;
use crate::replicas::{KEYS, REPLICAS, SYSTEMS, System, id, start, user};

const ZIPF: f64 = 1.0;
const BATCHES: f64 = 10.0;
const BATCH: usize = 50;
const UPDATES: f64 = 4.0;
/// To each replica; a request that finds none free waits, and that counts.
const CONNECTIONS: usize = 400;
const PATIENCE: Duration = Duration::from_secs(10);

/// How long each part of a turn takes, and how long values live: not as long as the database hangs.
#[derive(Clone, Copy)]
struct Times {
    warm_up: Duration,
    measured: Duration,
    hang: Duration,
    ttl: Duration,
}

pub(crate) fn run(quick: bool) -> Result<(), BoxError> {
    let seconds = if quick { [1.0, 4.8, 2.5, 1.0] } else { [5.0, 20.0, 7.0, 5.0] };
    let [warm_up, measured, hang, ttl] = seconds.map(Duration::from_secs_f64);
    let times = Times { warm_up, measured, hang, ttl };
    let load = || {
        let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        loads.split(' ').take(1).collect::<String>()
    };
    let before = load();
    let mut rows = Vec::new();
    for (what, gets, hangs) in [("steady", 400.0, false), ("the database hangs", 600.0, true)] {
        for (system, name) in SYSTEMS {
            eprintln!("{what}: {name}");
            match turn(system, &times, gets, hangs)? {
                Some(row) => {
                    rows.push(format!("| {what}, {gets} gets/s | {name} {row} {} |", load()))
                }
                None => eprintln!("left out: there is no redis-server on this machine"),
            }
        }
    }
    println!("load average {before} before and {} after", load());
    println!(
        "{REPLICAS} replicas, a database of 20 ms, {KEYS} keys by Zipf {ZIPF}, values of 1 KiB and each \
         hundredth of 200 KiB that live for {ttl:?};"
    );
    println!(
        "{BATCHES} batches of {BATCH} keys and {UPDATES} updates a second, for {measured:?}; if it hangs, \
         it hangs for {hang:?}; times in ms"
    );
    println!(
        "| | | get p50 | p99 | failed % | batch p99 | failed % | queries/s | stale reads | load after |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    println!(
        "options: refresh_ahead of a fifth of the life, stale_if_error of an hour, retry_failed_loads(false)"
    );
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Get,
    Batch,
    Update,
}

#[derive(Clone)]
struct Request {
    due: Duration,
    replica: usize,
    kind: Kind,
    keys: Vec<usize>,
}

/// The same for each system.
fn schedule(length: Duration, gets: f64) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(7);
    let zipf = Zipf::new(KEYS as f64, ZIPF).expect("a population and an exponent");
    let mut requests = Vec::new();
    for (kind, a_second, keys) in
        [(Kind::Get, gets, 1), (Kind::Batch, BATCHES, BATCH), (Kind::Update, UPDATES, 1)]
    {
        for _ in 0..(a_second * length.as_secs_f64()) as usize {
            let mut distinct = BTreeSet::new();
            while distinct.len() < keys {
                distinct.insert(zipf.sample(&mut rng) as usize - 1);
            }
            let due = length.mul_f64(rng.random());
            let replica = rng.random_range(0..REPLICAS);
            requests.push(Request { due, replica, kind, keys: distinct.into_iter().collect() });
        }
    }
    requests.sort_by_key(|request| request.due);
    requests
}

/// Who asks, and knows how old an answer may be.
struct Client {
    fronts: Vec<(Origin, Semaphore)>,
    /// The version of each key that the last update of it has sent. One update at a time.
    sent: Mutex<Vec<u32>>,
    /// The last one whose update was acknowledged.
    acknowledged: Vec<AtomicU32>,
}

/// How long a request took in ms from when it was due, and how many of its values were older than they
/// may be, if it was answered.
type Outcome = (Request, f64, Option<usize>);

impl Client {
    fn new(fronts: Vec<Origin>) -> Self {
        let fronts = fronts.into_iter().map(|front| (front, Semaphore::new(CONNECTIONS)));
        let acknowledged = (0..KEYS).map(|_| AtomicU32::new(0)).collect();
        Self { fronts: fronts.collect(), sent: Mutex::new(vec![0; KEYS]), acknowledged }
    }

    /// Asks each when it is due, whatever became of those before.
    async fn run(self: Arc<Self>, requests: Vec<Request>) -> Result<Vec<Outcome>, BoxError> {
        let runtime = Handle::current();
        // By a thread: timers of tokio are as much as a millisecond late.
        let asked = spawn_blocking(move || {
            let start = Instant::now();
            let ask = |request: Request| {
                thread::sleep((start + request.due).saturating_duration_since(Instant::now()));
                let client = self.clone();
                runtime.spawn(async move {
                    let answer = timeout(PATIENCE, client.ask(&request)).await;
                    let late = (start + request.due).elapsed();
                    (request, late.as_secs_f64() * 1e3, answer.ok().and_then(Result::ok))
                })
            };
            requests.into_iter().map(ask).collect::<Vec<_>>()
        });
        Ok(try_join_all(asked.await?).await?)
    }

    /// How many values are older than an update that was acknowledged before this began.
    async fn ask(&self, Request { replica, kind, keys, .. }: &Request) -> Result<usize, BoxError> {
        let path = format!("/users/{}", id(keys[0]));
        if *kind == Kind::Update {
            let mut sent = self.sent.lock().await;
            sent[keys[0]] += 1;
            self.send(*replica, "PUT", &path, user(keys[0], sent[keys[0]]).into()).await?;
            self.acknowledged[keys[0]].store(sent[keys[0]], Relaxed);
            return Ok(0);
        }
        let oldest: Vec<_> = keys.iter().map(|key| self.acknowledged[*key].load(Relaxed)).collect();
        let users: HashMap<String, String> = if *kind == Kind::Batch {
            let ids: Vec<_> = keys.iter().map(|key| format!("id={}", id(*key))).collect();
            let path = format!("/users?{}", ids.join("&"));
            serde_json::from_slice(&self.send(*replica, "GET", &path, Body::empty()).await?)?
        } else {
            let user = self.send(*replica, "GET", &path, Body::empty()).await?;
            [(id(keys[0]), String::from_utf8(user.into())?)].into()
        };
        let mut stale = 0;
        for (key, oldest) in zip(keys, oldest) {
            let user = users.get(&id(*key)).ok_or("an answer without the user")?;
            let version: u32 = user.split(' ').next().unwrap_or_default().parse()?;
            stale += usize::from(version < oldest);
        }
        Ok(stale)
    }

    async fn send(
        &self,
        replica: usize,
        method: &str,
        path: &str,
        body: Body,
    ) -> Result<Bytes, BoxError> {
        let (front, connections) = &self.fronts[replica];
        let _connection = connections.acquire().await?;
        match front.ask(method, path, body).await? {
            (status, body) if status.is_success() => Ok(body),
            (status, _) => Err(status.to_string().into()),
        }
    }
}

/// The rest of a row; `None` if the system is not there.
fn turn(system: System, times: &Times, gets: f64, hangs: bool) -> Result<Option<String>, BoxError> {
    // As many threads that may wait as three processes have.
    let mut builder = Builder::new_multi_thread();
    let runtime = builder.enable_all().max_blocking_threads(REPLICAS * 512).build()?;
    let Some(services) = runtime.block_on(start(system, times.ttl))? else { return Ok(None) };
    let requests = schedule(times.warm_up + times.measured, gets);
    // Of its own, so that it takes no turns from the services' tasks.
    let clients = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let hang = if hangs { times.hang } else { Duration::ZERO };
    let pause = (times.measured - hang) / 2;
    runtime.spawn(services.gate.clone().run(times.warm_up, pause, hang));
    let outcomes = clients.block_on(Arc::new(Client::new(services.fronts)).run(requests));
    let queries = services.gate.queries.load(Relaxed);
    clients.shutdown_timeout(GRACE);
    for node in &services.nodes {
        node.peers.shutdown(GRACE);
    }
    drop(services.redis);
    runtime.shutdown_timeout(GRACE);

    let mut outcomes = outcomes?;
    outcomes.retain(|(request, ..)| request.due >= times.warm_up);
    let of = |wanted: Kind| outcomes.iter().filter(move |(request, ..)| request.kind == wanted);
    let percentile = |kind, share: f64| {
        let mut took: Vec<_> = of(kind).map(|(_, took, _)| *took).collect();
        took.sort_by(f64::total_cmp);
        took[(took.len() as f64 * share) as usize]
    };
    let failed = |kind| {
        let failed = of(kind).filter(|(.., answer)| answer.is_none()).count();
        100.0 * failed as f64 / of(kind).count() as f64
    };
    let stale: usize = outcomes.iter().filter_map(|(.., stale)| *stale).sum();
    Ok(Some(format!(
        "| {:.1} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {stale} |",
        percentile(Kind::Get, 0.5),
        percentile(Kind::Get, 0.99),
        failed(Kind::Get),
        percentile(Kind::Batch, 0.99),
        failed(Kind::Batch),
        queries as f64 / times.measured.as_secs_f64(),
    )))
}
