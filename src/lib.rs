//! A read-through cache in front of a slow source of data, shared by processes.
mod byte_view;
mod cache;
mod clock;
mod error;
mod flight;
mod getter;
mod group;
mod http;
mod peer;
mod ring;
mod stats;

pub use byte_view::ByteView;
pub use cache::{CacheStats, Eviction};
pub use clock::Clock;
pub use error::{Error, PeerError};
pub use getter::{BoxError, Getter, Loaded};
pub use group::{Group, GroupBuilder, MAX_KEY_BYTES};
pub use http::{HttpPool, HttpServer, PoolOptions, ServerOptions};
pub use peer::{PeerGetter, PeerPicker};
pub use ring::{Ring, RingHash};
pub use stats::{Stats, prometheus};
pub use tiny_http;
