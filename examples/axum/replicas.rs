//! What `compare` asks: a database that can hang, and three replicas over it of each system.

use std::io;
use std::net::TcpListener as StdListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use geecache::{BoxError, GroupBuilder};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::aside::{Aside, Redis, Store};
use crate::front::Front;
use crate::measure::{replica, spawn};
use crate::origin::{self, Origin};

pub(crate) const REPLICAS: usize = 3;
pub(crate) const KEYS: usize = 5_000;

/// Each as it is, and with what it has for a database that fails.
pub(crate) const SYSTEMS: [(System, &str); 6] = [
    (System::Geecache { options: false }, "geecache"),
    (System::Geecache { options: true }, "geecache with options"),
    (System::Moka { keeps_last: false }, "moka in each replica"),
    (System::Moka { keeps_last: true }, "moka, last values kept"),
    (System::Redis { keeps_last: false }, "Redis"),
    (System::Redis { keeps_last: true }, "Redis, last values kept"),
];

/// How long values past their time may answer while the database fails.
const GRACE: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum System {
    Geecache { options: bool },
    Moka { keeps_last: bool },
    Redis { keeps_last: bool },
}

/// Counts what the database is asked, and makes it hang.
#[derive(Clone)]
pub(crate) struct Gate {
    pub(crate) queries: Arc<AtomicU64>,
    hangs: watch::Sender<bool>,
}

impl Gate {
    async fn pass(State(gate): State<Self>, query: Request, table: Next) -> Response {
        // All but updates, which are the same with each system.
        if query.method() != Method::PUT {
            gate.queries.fetch_add(1, Relaxed);
        }
        let _ = gate.hangs.subscribe().wait_for(|hangs| !hangs).await;
        table.run(query).await
    }

    /// Counts anew after the first of these times; hangs after the second, for as long as the third.
    pub(crate) async fn run(self, warm_up: Duration, pause: Duration, hang: Duration) {
        sleep(warm_up).await;
        self.queries.store(0, Relaxed);
        sleep(pause).await;
        self.hangs.send_replace(true);
        sleep(hang).await;
        self.hangs.send_replace(false);
    }
}

/// What runs in a turn besides the client.
pub(crate) struct Services {
    pub(crate) gate: Gate,
    pub(crate) fronts: Vec<Origin>,
    /// To be shut down, if it is geecache.
    pub(crate) nodes: Vec<Arc<Front>>,
    pub(crate) redis: Option<Redis>,
}

pub(crate) async fn start(system: System, ttl: Duration) -> Result<Option<Services>, BoxError> {
    let gate = Gate { queries: Arc::default(), hangs: watch::Sender::new(false) };
    let table = origin::table((0..KEYS).map(|key| (id(key), user(key, 0))).collect());
    let table = table.layer(from_fn_with_state(gate.clone(), Gate::pass));
    let origin = Origin::at(spawn(table).await?);
    let mut services = Services { gate, fronts: Vec::new(), nodes: Vec::new(), redis: None };
    if let System::Redis { .. } = system {
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
        System::Geecache { options: true } => {
            users.ttl(ttl).refresh_ahead(ttl / 5).stale_if_error(GRACE).retry_failed_loads(false)
        }
        _ => users.ttl(ttl),
    };
    for (own, listener) in listeners.into_iter().enumerate() {
        let (store, last) = match (system, &services.redis) {
            (System::Redis { keeps_last }, Some(redis)) => {
                let last = if keeps_last { Some(redis.store(GRACE, "last ").await?) } else { None };
                (redis.store(ttl, "").await?, last)
            }
            (System::Moka { keeps_last }, _) => {
                (Store::moka(ttl), keeps_last.then(|| Store::moka(GRACE)))
            }
            _ => {
                let node = replica(listener, &urls, own, &origin, set)?;
                services.fronts.push(Origin::at(spawn(node.clone().router()).await?));
                services.nodes.push(node);
                continue;
            }
        };
        let aside = Aside { store, last, origin: origin.clone() };
        services.fronts.push(Origin::at(spawn(aside.router()).await?));
    }
    Ok(Some(services))
}

pub(crate) fn id(key: usize) -> String {
    format!("user{key}")
}

/// Its version, then what makes it as long as it is.
pub(crate) fn user(key: usize, version: u32) -> String {
    let bytes = if key % 100 == 99 { 200 << 10 } else { 1 << 10 };
    format!("{version} {}", "x".repeat(bytes))
}
