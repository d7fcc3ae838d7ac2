//! Three replicas over a slow database, as a service developer would try it: this service, beside moka in
//! each replica and beside a Redis that they share.
//!
//! How long do callers wait, what is the database asked for, and who reads an old value? In a steady
//! state, and while the database hangs. Skip it at the first reading.

use std::collections::{BTreeSet, HashMap};
use std::iter::zip;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, io};

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use futures_util::future::try_join_all;
use geecache::{BoxError, GroupBuilder};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::GRACE;
use crate::aside::{Aside, Redis, Store};
use crate::front::Front;
use crate::measure::{replica, spawn};
use crate::origin::{self, Origin};

const REPLICAS: usize = 3;
const KEYS: usize = 5_000;
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
    let load = || fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let before = load();
    let mut rows = Vec::new();
    for (what, gets, hangs) in [("steady", 400.0, false), ("the database hangs", 600.0, true)] {
        for system in System::ALL {
            eprintln!("{what}: {}", system.name());
            match turn(system, &times, gets, hangs)? {
                Some(row) => {
                    rows.push(format!("| {what}, {gets} gets/s | {} {row}", system.name()))
                }
                None => eprintln!("left out: there is no redis-server on this machine"),
            }
        }
    }
    println!(
        "{REPLICAS} replicas, {KEYS} keys by Zipf {ZIPF}, values of 1 KiB and each hundredth of 200 KiB \
         that live for {ttl:?}; {BATCHES} batches of {BATCH} keys and {UPDATES} updates a second; \
         {measured:?} each, of which the database hangs for {hang:?}; load average {} before and {} after",
        before.split(' ').next().unwrap_or_default(),
        load().split(' ').next().unwrap_or_default(),
    );
    println!(
        "| | | get p50, ms | p99 | failed, % | batch p99 | failed | queries/s | stale reads |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    rows.iter().for_each(|row| println!("{row}"));
    Ok(())
}

#[derive(Clone, Copy, PartialEq)]
enum System {
    Geecache,
    Options,
    Moka,
    Redis,
}

impl System {
    const ALL: [Self; 4] = [Self::Geecache, Self::Options, Self::Moka, Self::Redis];

    fn name(self) -> &'static str {
        match self {
            Self::Geecache => "geecache",
            Self::Options => "geecache with the three options",
            Self::Moka => "moka in each replica",
            Self::Redis => "Redis for all",
        }
    }
}

/// What counts what the database is asked, and makes it hang.
#[derive(Clone)]
struct Gate {
    queries: Arc<AtomicU64>,
    hangs: watch::Sender<bool>,
}

impl Gate {
    async fn pass(State(gate): State<Self>, query: HttpRequest, table: Next) -> Response {
        // All but updates, which are the same with each system.
        if query.method() != Method::PUT {
            gate.queries.fetch_add(1, Relaxed);
        }
        let _ = gate.hangs.subscribe().wait_for(|hangs| !hangs).await;
        table.run(query).await
    }

    async fn run(self, times: Times, hangs: bool) {
        sleep(times.warm_up).await;
        self.queries.store(0, Relaxed);
        if hangs {
            sleep((times.measured - times.hang) / 2).await;
            self.hangs.send_replace(true);
            sleep(times.hang).await;
            self.hangs.send_replace(false);
        }
    }
}

/// What runs in a turn besides the client.
struct Services {
    gate: Gate,
    fronts: Vec<Origin>,
    /// To be shut down, if it is geecache.
    nodes: Vec<Arc<Front>>,
    redis: Option<Redis>,
}

async fn start(system: System, ttl: Duration) -> Result<Option<Services>, BoxError> {
    let gate = Gate { queries: Arc::default(), hangs: watch::Sender::new(false) };
    let table = origin::table((0..KEYS).map(|key| (id(key), user(key, 0))).collect());
    let table = table.layer(from_fn_with_state(gate.clone(), Gate::pass));
    let origin = Origin::at(spawn(table).await?);
    let mut services = Services { gate, fronts: Vec::new(), nodes: Vec::new(), redis: None };
    if system == System::Redis {
        services.redis = Redis::start().await?;
        if services.redis.is_none() {
            return Ok(None);
        }
    }
    let listeners: Vec<_> =
        (0..REPLICAS).map(|_| StdListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let url = |listener: &StdListener| Ok(format!("http://{}", listener.local_addr()?));
    let urls: Vec<_> = listeners.iter().map(url).collect::<io::Result<_>>()?;
    let set = |users: GroupBuilder| match system {
        System::Options => users
            .ttl(ttl)
            .refresh_ahead(0.2)
            .stale_if_error(Duration::from_secs(3600))
            .retry_failed_loads(false),
        _ => users.ttl(ttl),
    };
    for (own, listener) in listeners.into_iter().enumerate() {
        let store = match (system, &services.redis) {
            (_, Some(redis)) => redis.store(ttl).await?,
            (System::Moka, _) => Store::moka(ttl),
            _ => {
                let node = replica(listener, &urls, own, &origin, set)?;
                services.fronts.push(Origin::at(spawn(node.clone().router()).await?));
                services.nodes.push(node);
                continue;
            }
        };
        let aside = Aside { store, origin: origin.clone() };
        services.fronts.push(Origin::at(spawn(aside.router()).await?));
    }
    Ok(Some(services))
}

fn id(key: usize) -> String {
    format!("user{key}")
}

/// Its version, then what makes it as long as it is.
fn user(key: usize, version: u32) -> String {
    let bytes = if key % 100 == 99 { 200 << 10 } else { 1 << 10 };
    format!("{version} {}", "x".repeat(bytes))
}

fn version(user: &str) -> Option<u32> {
    user.split(' ').next()?.parse().ok()
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
        let (front, connections) = &self.fronts[*replica];
        let path = format!("/users/{}", id(keys[0]));
        let mut sent = match kind {
            Kind::Update => Some(self.sent.lock().await),
            _ => None,
        };
        let _connection = connections.acquire().await?;
        let oldest = |key: &usize| self.acknowledged[*key].load(Relaxed);
        let oldest: Vec<_> = keys.iter().map(oldest).collect();
        let (status, body) = match (kind, &mut sent) {
            (Kind::Update, Some(sent)) => {
                sent[keys[0]] += 1;
                front.ask("PUT", &path, user(keys[0], sent[keys[0]]).into()).await?
            }
            (Kind::Batch, _) => {
                let ids: Vec<_> = keys.iter().map(|key| format!("id={}", id(*key))).collect();
                front.ask("GET", &format!("/users?{}", ids.join("&")), Body::empty()).await?
            }
            _ => front.ask("GET", &path, Body::empty()).await?,
        };
        if !status.is_success() {
            return Err(status.to_string().into());
        }
        let versions = match (kind, sent) {
            (_, Some(sent)) => {
                self.acknowledged[keys[0]].store(sent[keys[0]], Relaxed);
                return Ok(0);
            }
            (Kind::Batch, _) => {
                let users: HashMap<String, String> = serde_json::from_slice(&body)?;
                keys.iter().map(|key| version(users.get(&id(*key))?)).collect()
            }
            _ => version(str::from_utf8(&body)?).map(|version| vec![version]),
        };
        let versions: Vec<_> = versions.ok_or("a user without a version")?;
        Ok(zip(versions, oldest).filter(|(version, oldest)| version < oldest).count())
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
    runtime.spawn(services.gate.clone().run(*times, hangs));
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
