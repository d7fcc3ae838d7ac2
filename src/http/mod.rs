//! The network: everything that names `tiny_http` or `ureq`.
//!
//! | file | what |
//! |---|---|
//! | `wire` | paths, escapes and headers, for both ends |
//! | `frame` | how a batch is written as bytes |
//! | `pool` | [`HttpPool`]: the ring, and a getter for each other node |
//! | `client/` | `HttpGetter`: asks one peer |
//! | `server/` | [`HttpServer`]: answers |

mod client;
mod frame;
mod pool;
mod server;
mod wire;

pub use pool::{HttpPool, PoolOptions};
pub use server::{HttpServer, ServerOptions};
