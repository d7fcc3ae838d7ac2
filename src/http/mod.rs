//! The network: everything that names `tiny_http` or `ureq`.
//!
//! | file | what |
//! |---|---|
//! | `wire` | paths, escapes and headers, for both ends |
//! | `frame` | how a batch is written as bytes |
//! | `options` | [`PoolOptions`], [`ServerOptions`], their limits and checks |
//! | `pool` | [`HttpPool`]: the ring, and a getter for each other node |
//! | `discovery` | [`Following`]: the list of nodes, from a name |
//! | `client/` | `HttpGetter`: asks one peer |
//! | `server/` | [`HttpServer`]: answers |

mod client;
mod discovery;
mod frame;
mod options;
mod pool;
mod server;
mod wire;

pub use discovery::Following;
pub use options::{PoolOptions, ServerOptions};
pub use pool::HttpPool;
pub use server::HttpServer;
