//! A small service of an async program around a group: users, read far more often than they change.
//!
//! ```text
//! cargo run --release -p axum-service -- origin                     the database, on port 9000
//! cargo run --release -p axum-service -- serve --front 127.0.0.1:8080 \
//!     --self-url http://127.0.0.1:8001 --peer http://127.0.0.1:8002
//! cargo run --release -p axum-service -- serve --front 127.0.0.1:8081 \
//!     --self-url http://127.0.0.1:8002 --peer http://127.0.0.1:8001
//!
//! curl -X PUT -d Tom localhost:8080/users/7        writes, and removes the old value from all nodes
//! curl localhost:8081/users/7                      one
//! curl "localhost:8081/users?id=7&id=8"            several, by one question to each owner
//! curl localhost:8080/metrics; curl -i localhost:8080/readyz
//!
//! cargo run --release -p axum-service -- measure   hits a second, beside the same service over moka
//! cargo run --release -p axum-service -- compare   latency, queries and stale reads of three replicas,
//!                                                  beside moka and Redis; also while the database hangs
//! ```
//!
//! The group is synchronous, the program around it is not. Four rules are enough, and `front.rs` shows
//! them: hits by `get_cached`, on the spot; all else by `spawn_blocking`; a getter that needs the runtime
//! enters it by `Handle::block_on`; and the runtime ends last. Read `serve` below, then `front.rs` and
//! `origin.rs`.

mod aside;
mod compare;
mod front;
mod measure;
mod origin;
mod replicas;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use geecache::{BoxError, Group, HttpPool, HttpServer, ServerOptions};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use front::Front;
use origin::{Origin, OriginGetter};

/// How long each side may take to finish what it has begun.
const GRACE: Duration = Duration::from_secs(5);

/// A small service around a geecache group.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Run the database that all nodes ask.
    Origin {
        #[arg(long, default_value = "127.0.0.1:9000")]
        listen: SocketAddr,
    },
    /// Run a node of the service.
    Serve(Serve),
    /// Measure hits over HTTP, beside the same service over moka.
    Measure,
    /// Measure three replicas over a slow database, beside moka in each and beside Redis.
    Compare {
        /// Less than a minute, instead of four.
        #[arg(long)]
        quick: bool,
    },
}

#[derive(clap::Args)]
struct Serve {
    /// Where clients ask.
    #[arg(long, default_value = "127.0.0.1:8080")]
    front: SocketAddr,
    /// Where the other nodes ask this one.
    #[arg(long, default_value = "http://127.0.0.1:8001")]
    self_url: String,
    /// Where they are asked; once for each.
    #[arg(long = "peer")]
    peers: Vec<String>,
    #[arg(long, default_value = "127.0.0.1:9000")]
    origin: SocketAddr,
    /// For how many seconds /readyz says no before the front closes: as long as the load balancer
    /// takes to notice.
    #[arg(long, default_value_t = 0)]
    drain: u64,
}

fn main() -> Result<(), BoxError> {
    let args = Args::parse();
    log_to_stderr();
    let runtime = Runtime::new()?;
    let ended = match args.what {
        What::Origin { listen } => runtime.block_on(async {
            let listener = TcpListener::bind(listen).await?;
            info!("origin on http://{}", listener.local_addr()?);
            Ok(axum::serve(listener, origin::table(HashMap::new())).await?)
        }),
        What::Serve(args) => runtime.block_on(serve(args)),
        What::Measure => measure::run(&runtime),
        What::Compare { quick } => compare::run(quick),
    };
    // Not by dropping it, which would wait for as long as any blocking thread does.
    runtime.shutdown_timeout(GRACE);
    ended
}

/// What the library logs by `log` arrives here too: `init` sets the bridge up. `tiny_http` logs an
/// error at each clean stop.
fn log_to_stderr() {
    let shown = Targets::new().with_default(LevelFilter::INFO);
    let shown = shown.with_target("tiny_http", LevelFilter::OFF);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    tracing_subscriber::registry().with(lines).with(shown).init();
}

async fn serve(args: Serve) -> Result<(), BoxError> {
    let mut signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let origin = Origin::at(args.origin);
    let pool = HttpPool::new(&args.self_url)?;
    pool.set_peers(args.peers.iter().chain([&args.self_url]))?;

    // The name has the version of the values' format: when a deploy changes it, old and new nodes do
    // not read each other's values, but load by themselves.
    let getter = OriginGetter { origin: origin.clone(), runtime: Handle::current() };
    let users = Group::builder("users.1", getter)
        .ttl(Duration::from_secs(300))
        .negative_ttl(Duration::from_secs(1))
        .stale_if_error(Duration::from_secs(3600))
        // All nodes ask the same origin: where it has failed the owner, it would fail this one.
        .retry_failed_loads(false)
        .peers(pool)
        .build()?;

    // The peers' side first. It has threads of its own, so it answers however busy the runtime is.
    let address = args.self_url.trim_start_matches("http://").trim_end_matches('/');
    let listener = StdListener::bind(address)?;
    let peers = HttpServer::start(listener, [users.clone()], ServerOptions::default())?;
    let front = Arc::new(Front::new(users, origin, peers));
    let listener = TcpListener::bind(args.front).await?;
    info!("front on http://{}", listener.local_addr()?);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = axum::serve(listener, front.clone().router());
    let serving = serving.with_graceful_shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serving.into_future());

    let [terminate, interrupt] = &mut signals;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    info!("ending");
    // 1. The load balancer hears of it, and sends nobody any more.
    front.set_ready(false);
    sleep(Duration::from_secs(args.drain)).await;
    // 2. The front finishes what it has. For that it may need peers, and they may need this node.
    let _ = stop.send(());
    if timeout(GRACE, serving).await.is_err() {
        warn!("some clients were not answered within {GRACE:?}");
    }
    // 3. The peers' side, on a thread that may wait. Its workers call the getter, which needs the
    //    runtime: so that ends after it, in `main`.
    if !spawn_blocking(move || front.peers.shutdown(GRACE)).await? {
        warn!("some peers were not answered within {GRACE:?}");
    }
    Ok(())
}
