//! The network: everything that names `tiny_http` or `ureq`.
//!
//! | file | what |
//! |---|---|
//! | `wire` | paths, escapes and headers, for both ends |
//! | `pool` | [`HttpPool`]: the ring, and a getter for each other node |
//! | `client` | `HttpGetter`: asks one peer |
//! | `connection` | ureq's connections with fewer system calls |
//! | `tls` | whom a node believes behind `https://`, with the feature `tls` |
//! | `cooldown` | dead peers cost once |
//! | `combine` | gets that go to the same peer share a request |
//! | `frame` | how a batch is written as bytes |
//! | `listener` | tiny_http's accepting side, with its flaws cured |
//! | `receiver` | takes one request after the other, and answers what is at hand |
//! | `workers` | the pool of threads and its bounded queue |
//! | `talkers` | threads that wait for slow clients |
//! | `routes` | which question gets which answer |
//! | `server` | [`HttpServer`]: these together, and their end |

mod client;
mod combine;
mod connection;
mod cooldown;
mod frame;
mod listener;
mod pool;
mod receiver;
mod routes;
mod server;
mod talkers;
#[cfg(feature = "tls")]
mod tls;
mod wire;
mod workers;

pub use pool::{HttpPool, PoolOptions};
pub use server::{HttpServer, ServerOptions};
