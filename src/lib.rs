//! A read-through cache in front of a slow source of data, spread over several processes.
//!
//! A program asks a [`Group`] for a key. If the value is not in memory, the process that *owns*
//! the key is asked over HTTP; consistent hashing tells which one that is. The owner loads the
//! value from the *origin* (a database, a service, a computation) by the closure that the
//! program gave, and when the owner cannot answer, the asking process does that itself. There
//! is no further server to run, no async runtime, and no `unsafe`: threads, `Mutex` and
//! blocking calls. The design is that of Go's GeeCache and groupcache.
//!
//! ```
//! use geecache::Group;
//!
//! let scores = Group::builder("scores", |key: &str| {
//!     println!("[SlowDB] search key {key}");
//!     Ok::<_, std::io::Error>((key == "Tom").then_some("630"))
//! })
//! .build()?;
//!
//! assert_eq!(scores.get("Tom")?.unwrap(), "630"); // searches
//! assert_eq!(scores.get("Tom")?.unwrap(), "630"); // does not
//! # Ok::<(), geecache::Error>(())
//! ```
//!
//! # One get
//!
//! ```text
//!  get(key) ── main cache? ── hot cache? ── hit ───────────────────────────▶ value
//!                  │ miss
//!                  ▼
//!       who owns the key? (ring, under the Mutex)
//!         │ a remote node                             │ this node, or no peers
//!         ▼                                           │
//!    ask the owner over HTTP ── answered? ─ yes ─▶ value, or "no such key"
//!         │ no (refused, timed out, overloaded, …)    │
//!         └───────────── fall back ──────────────────▶│
//!                                                     ▼
//!                                   load from the origin ─▶ keep ─▶ value
//! ```
//!
//! - "No such key" is an answer, `Ok(None)`, not a failure.
//! - Of many callers that miss the same key one loads; the others wait for it. One load for the
//!   whole cluster, as long as the owner answers.
//! - A peer's question never causes another question, so there are no loops.
//! - The *main* cache holds the keys that this process owns, the *hot* cache copies of others'
//!   keys that were asked for again, and what was loaded in place of an owner. Copies live for
//!   [30 seconds](GroupBuilder::hot_ttl) at the most.
//!
//! # A cluster
//!
//! Each process knows the URLs of all, its own among them, and serves its groups to the others:
//!
//! ```no_run
//! use geecache::{Group, HttpPool, HttpServer, ServerOptions};
//! use std::{net::TcpListener, time::Duration};
//!
//! let pool = HttpPool::new("http://10.0.0.1:8001")?;
//! pool.set_peers(["http://10.0.0.1:8001", "http://10.0.0.2:8001", "http://10.0.0.3:8001"])?;
//!
//! let scores = Group::builder("scores", |key: &str| std::fs::read(key).map(Some))
//!     .max_bytes(64 << 20)
//!     .ttl(Duration::from_secs(300))
//!     .peers(pool.clone())
//!     .build()?;
//!
//! let listener = TcpListener::bind("10.0.0.1:8001")?;
//! let server = HttpServer::start(listener, [scores.clone()], ServerOptions::default())?;
//! let value = scores.get("Tom")?;
//! server.shutdown(Duration::from_secs(5));
//! # Ok::<(), geecache::Error>(())
//! ```
//!
//! The peer port belongs on a private network: whoever reaches it can read and remove every key, and
//! nothing bounds the connections or the header of a request in memory. See the README.
//!
//! # Reading order
//!
//! Leaves first. Each file opens with the question that it answers.
//!
//! | file | what |
//! |---|---|
//! | `byte_view.rs` | [`ByteView`]: immutable bytes, cheap to clone |
//! | `getter.rs` | [`Getter`]: the origin; [`Loaded`]: a value and its time to live |
//! | `ring.rs` | [`Ring`]: who owns which key |
//! | `flight.rs` | `Flight`: one runner per key, the others wait |
//! | `cache/` | `Cache`: shards, records in one allocation, [`Eviction`] |
//! | `peer.rs` | [`PeerPicker`], [`PeerGetter`]: the seam between the story and the network |
//! | `group/` | [`Group`]: one get, top to bottom |
//! | `http/` | [`HttpPool`] asks, [`HttpServer`] answers |
//! | `error.rs`, `clock.rs`, `stats.rs`, `metrics.rs` | [`Error`], [`Clock`], [`Stats`], [`prometheus`] |
//!
//! Arrows go down only: `http` → `group` → `cache`, `flight`, `peer`, `getter` → `byte_view`,
//! `error`, `clock`, `stats`, `ring`. `group` does not know of HTTP; `ring` and `flight` know of
//! nothing.
//!
//! # Locks
//!
//! `Mutex` everywhere. A comment on each names what it guards. No two are held at once, and no
//! getter, no I/O, no log line and no drop of a value happens under one.
//!
//! # Between nodes
//!
//! The base path is `/_geecache/`; `{group}` and `{key}` are percent-encoded, every byte but
//! RFC 3986's unreserved ones. A bare `+` is read as a space, since Go's GeeCache sends that.
//! With the default ring, Rust nodes and Go GeeCache nodes (the version that sends raw bytes)
//! agree on every owner and can stand in one cluster.
//!
//! | Request | Answer | The asking node |
//! |---|---|---|
//! | `GET {base}{group}/{key}` | `200`, the bytes; `Geecache-Ttl-Ms: n` where the value expires in n ms | has the value |
//! | | `404` with `Geecache-Result: absent` | "no such key", final |
//! | | `404` without it: no such group there (`Geecache-Error: no-group`), or a stranger | falls back |
//! | | `502` with the error's text: the owner's own load failed | falls back, logs the text |
//! | | `503` with `Retry-After`: overloaded or shutting down | falls back |
//! | | `400`, `401`, `405`, `500`, anything else, a timeout, too large a value | falls back |
//! | `POST {base}{group}` | `200`, `application/x-geecache-batch`: an answer for each key of the question | has them; asks singly for those marked "not here" |
//! | | with `Cache-Control: only-if-cached`: no key waits for the origin | |
//! | | `400` malformed, `413` over a MiB; from one that knows no batches `404`, `405`, `500`, … | asks singly, and for a minute sends no more batches |
//! | `DELETE {base}{group}/{key}`, `DELETE {base}{group}` | `204`: this node's own copies of the key, or of the group, are gone | |
//! | `GET /healthz` | `200`, `ok` | |
//! | `GET /metrics` | `200`, the counters in the Prometheus text format | |
//!
//! A batch is a question of up to 1,024 keys, and its answer one frame for each:
//!
//! | bytes of the question | what |
//! |---|---|
//! | 4, big-endian | the number of keys |
//! | 2, big-endian, and as many | the length of the first key, and the key; and so on |
//!
//! | first byte of a frame | then |
//! |---|---|
//! | 0: a value | 8: the milliseconds it still lives, all ones for ever; 4: its length; the value |
//! | 1: absent | |
//! | 2: the owner's load failed | 2: the length of the text; the text |
//! | 3: not here, ask singly | |
//!
//! Where a token is set, peers send `Authorization: Bearer …`, and the server answers `401`
//! without it.

mod byte_view;
mod cache;
mod clock;
mod error;
mod flight;
mod getter;
mod group;
mod http;
mod metrics;
mod peer;
mod ring;
mod stats;

pub use byte_view::ByteView;
pub use cache::{CacheStats, Eviction};
pub use clock::Clock;
pub use error::{Error, PeerError};
pub use getter::{BoxError, Getter, Loaded};
pub use group::{Asked, Group, GroupBuilder, MAX_KEY_BYTES, Tier, Trace};
pub use http::{HttpPool, HttpServer, PoolOptions, ServerOptions};
pub use metrics::prometheus;
pub use peer::{PeerGetter, PeerPicker};
pub use ring::{Ring, RingHash};
pub use stats::{Histogram, PeerStats, Stats};
pub use tiny_http;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
