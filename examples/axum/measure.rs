//! Hits over HTTP: this service beside the same one over moka, in turns, from one client.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Router, routing::get};
use futures_util::future::try_join_all;
use geecache::{BoxError, Group, GroupBuilder, HttpPool, HttpServer, ServerOptions};
use moka::sync::Cache;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Handle, Runtime};

use crate::front::{Failure, Front};
use crate::origin::{self, Origin, OriginGetter};

const KEYS: usize = 1_000;
const VALUE: usize = 1 << 10;
const TTL: Duration = Duration::from_secs(300);
const CONNECTIONS: usize = 16;
/// Short turns, so that what else the machine does meets both alike.
const ROUNDS: usize = 50;
const TURN: Duration = Duration::from_millis(200);

pub(crate) fn run(runtime: &Runtime) -> Result<(), BoxError> {
    let services = runtime.block_on(start())?;
    // On a thread of its own, so that it takes no turns from the services' tasks.
    thread::spawn(move || {
        Builder::new_current_thread().enable_all().build()?.block_on(ask(services))
    })
    .join()
    .expect("the client does not panic")
}

/// Both services over one table, with all rows in their caches.
async fn start() -> Result<[SocketAddr; 2], BoxError> {
    let row = |i| (format!("user {i}"), "x".repeat(VALUE));
    let origin = Origin::at(spawn(origin::table((0..KEYS).map(row).collect())).await?);

    let listener = StdListener::bind("127.0.0.1:0")?;
    let urls = [format!("http://{}", listener.local_addr()?)];
    let front = replica(listener, &urls, 0, &origin, |users| users.ttl(TTL))?;

    let cache =
        Cache::builder().weigher(|id: &String, user: &Bytes| (id.len() + user.len()) as u32);
    let cache = cache.max_capacity(64 << 20).time_to_live(TTL).build();
    let moka = Router::new().route("/users/{id}", get(user_by_moka)).with_state((cache, origin));
    Ok([spawn(front.router()).await?, spawn(moka).await?])
}

/// This service in the process that has the `own` of these URLs.
pub(crate) fn replica(
    listener: StdListener,
    urls: &[String],
    own: usize,
    origin: &Origin,
    set: impl Fn(GroupBuilder) -> GroupBuilder,
) -> Result<Arc<Front>, BoxError> {
    let pool = HttpPool::new(&urls[own])?;
    pool.set_peers(urls)?;
    let getter = OriginGetter { origin: origin.clone(), runtime: Handle::current() };
    let users = set(Group::builder("users.1", getter)).peers(pool).build()?;
    let peers = HttpServer::start(listener, [users.clone()], ServerOptions::default())?;
    Ok(Arc::new(Front::new(users, origin.clone(), peers)))
}

async fn user_by_moka(
    State((cache, origin)): State<(Cache<String, Bytes>, Origin)>,
    Path(id): Path<String>,
) -> Result<Bytes, Failure> {
    if let Some(user) = cache.get(&id) {
        return Ok(user);
    }
    let Ok(Some(user)) = origin.read(&id).await else {
        return Err(Failure(StatusCode::NOT_FOUND, "no such user".into()));
    };
    let user = Bytes::from(user.value);
    cache.insert(id, user.clone());
    Ok(user)
}

pub(crate) async fn spawn(router: Router) -> Result<SocketAddr, BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(axum::serve(listener, router).into_future());
    Ok(address)
}

async fn ask(services: [SocketAddr; 2]) -> Result<(), BoxError> {
    let mut clients = Vec::new();
    for service in services {
        let connect = |_| async move {
            let stream = TcpStream::connect(service).await?;
            stream.set_nodelay(true).map(|()| stream)
        };
        let mut streams = try_join_all((0..CONNECTIONS).map(connect)).await?;
        let misses = streams.iter_mut().enumerate().map(|(n, stream)| fill(stream, n));
        try_join_all(misses).await?;
        clients.push(streams);
    }
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        rounds.push((turn(&mut clients[0]).await?, turn(&mut clients[1]).await?));
    }
    let (geecache, moka) = (median(&rounds, |r| r.0), median(&rounds, |r| r.1));
    let ratio = median(&rounds, |r| r.0 / r.1);
    println!(
        "hits a second over {CONNECTIONS} connections, {VALUE} bytes, medians of {ROUNDS} turns"
    );
    println!("geecache {geecache:.0}, moka {moka:.0}; median of the ratios {ratio:.2}");
    Ok(())
}

fn median(rounds: &[(f64, f64)], of: fn(&(f64, f64)) -> f64) -> f64 {
    let mut values: Vec<_> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Has this connection's part of the keys loaded.
async fn fill(stream: &mut TcpStream, first: usize) -> Result<(), BoxError> {
    for i in (first..KEYS).step_by(CONNECTIONS) {
        get_user(stream, i).await?;
    }
    Ok(())
}

/// Hits a second, over all connections.
async fn turn(streams: &mut [TcpStream]) -> Result<f64, BoxError> {
    let start = Instant::now();
    let clients = streams.iter_mut().enumerate().map(|(n, stream)| hits(stream, n * 61, start));
    let hits: usize = try_join_all(clients).await?.into_iter().sum();
    Ok(hits as f64 / start.elapsed().as_secs_f64())
}

async fn hits(stream: &mut TcpStream, first: usize, start: Instant) -> Result<usize, BoxError> {
    let mut hits = 0;
    while start.elapsed() < TURN {
        get_user(stream, first + hits * 7).await?;
        hits += 1;
    }
    Ok(hits)
}

async fn get_user(stream: &mut TcpStream, i: usize) -> Result<(), BoxError> {
    let path = format!("/users/user%20{}", i % KEYS);
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::with_capacity(2 * VALUE);
    while !is_whole(&answer) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err("the service hung up".into());
        }
    }
    if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err("not a hit".into()) }
}

fn is_whole(answer: &[u8]) -> bool {
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    head.is_some_and(|head| {
        answer.len() >= head + 4 + VALUE || !answer.starts_with(b"HTTP/1.1 200")
    })
}
