//! `PoolOptions` and `ServerOptions`: how a node asks and answers; their limits and checks.

use std::fmt;
use std::time::Duration;

use ureq::http::Uri;

use crate::peer::LATELY;
use crate::ring::MAX_POINTS;
use crate::{Error, MAX_GROUP_BYTES, MAX_KEY_BYTES, RingHash};

/// How an [`HttpPool`](crate::HttpPool) places and asks its peers.
///
/// ```
/// # use geecache::PoolOptions;
/// # use std::time::Duration;
/// let options = PoolOptions { timeout: Duration::from_secs(1), ..PoolOptions::default() };
/// ```
#[derive(Clone)]
pub struct PoolOptions {
    /// The hash of the ring. All nodes must use the same. Default: [`RingHash::Crc32`], as Go.
    pub hash: RingHash,
    /// How many points each node has on the ring, up to 10,000. All nodes must use the same.
    /// Default: `None`, the [hash's own number](RingHash::default_points): 50.
    #[doc(alias = "replicas")]
    pub points_per_peer: Option<usize>,
    /// How long a question to a peer may take from beginning to end; then this node loads by
    /// itself. It should be longer than a load from the origin takes. A sixth of it is for connecting,
    /// TLS included. Default: 3 s.
    pub timeout: Duration,
    /// The largest value that is taken from a peer, in bytes; above it this node loads by
    /// itself. Default: 16 MiB.
    pub max_value_bytes: u64,
    /// For how long after a change of the list of nodes this node, when it misses a key that it owns
    /// now, asks those that owned it before, from their caches and for 100 ms at the most, before
    /// it loads from the origin. Up to 30 seconds; zero turns it off. A node keeps the values of keys that
    /// it no longer owns for [`hot_ttl`](crate::GroupBuilder::hot_ttl) at the most. Default: 30 s.
    pub handover: Duration,
    /// Whether gets of a group that go to the same peer at the same time share requests, if there are more
    /// than four. Default: `true`.
    pub combine: bool,
    /// The secret that peers require, sent as `Authorization: Bearer`: up to 4,096 visible ASCII
    /// characters. Default: none.
    pub token: Option<String>,
    /// The root certificates, in PEM, by which peers behind `https://` are trusted. Only with the
    /// feature `tls`. Default: `None`, the Mozilla roots.
    #[cfg(feature = "tls")]
    pub root_certificates: Option<Vec<u8>>,
}

const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_TOKEN_BYTES: usize = 4 << 10;
/// Neither a node's URL nor the base path is longer.
const MAX_URL_BYTES: usize = 1 << 10;
// So ureq can ask for the longest key: no `Uri` is longer than 65,534 bytes.
const _: () = assert!(2 * MAX_URL_BYTES + 3 * (MAX_GROUP_BYTES + MAX_KEY_BYTES) < 65_534);

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            hash: RingHash::Crc32,
            points_per_peer: None,
            timeout: Duration::from_secs(3),
            max_value_bytes: 16 << 20,
            handover: Duration::from_secs(30),
            combine: true,
            token: None,
            #[cfg(feature = "tls")]
            root_certificates: None,
        }
    }
}

impl PoolOptions {
    /// Refuses options that cannot work.
    pub(super) fn check(&self) -> Result<(), Error> {
        check_token(self.token.as_deref())?;
        #[cfg(feature = "tls")]
        super::client::trust(self.root_certificates.as_deref())?;
        if self.points_per_peer.is_some_and(|points| !(1..=MAX_POINTS).contains(&points)) {
            return Err(Error::Config(format!("a node has 1 to {MAX_POINTS} points on the ring")));
        }
        if self.handover > LATELY / 2 {
            return Err(Error::Config(format!("a hand-over lasts up to {:?}", LATELY / 2)));
        }
        if self.timeout.is_zero() || self.timeout > LONGEST_TIMEOUT {
            return Err(Error::Config("a timeout is more than zero and a day at the most".into()));
        }
        Ok(())
    }
}

/// Shows no token.
impl fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolOptions")
            .field("hash", &self.hash)
            .field("points_per_peer", &self.points_per_peer)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// How an [`HttpServer`](crate::HttpServer) works.
#[derive(Clone)]
pub struct ServerOptions {
    /// How many requests are answered at the same time; each may wait for the origin. Hits are
    /// answered beside them. Up to 4,096. Default: 16.
    pub workers: usize,
    /// How many requests may wait for a worker at the most, up to 65,536. Default: 256. If as many wait
    /// as there are workers, and the oldest of them for 20 ms, others get `503` at once; and so does a
    /// peer's question that no worker has taken after 50 ms.
    pub queue: usize,
    /// How long a connection may be silent before it is closed: a second to a day, and longer than
    /// the 15 s for which peers keep theirs. Default: 60 s.
    pub idle_timeout: Duration,
    /// The secrets of which peers must present one, see
    /// [`PoolOptions::token`](crate::PoolOptions::token). None are asked for if there are none.
    /// Default: none.
    ///
    /// To change the token of a cluster without a fallback, let all nodes accept the old one and
    /// the new one first, then let all present the new one, then let all accept only that.
    pub tokens: Vec<String>,
}

/// More threads than a process can usually have: starting them could abort it.
const MOST_WORKERS: usize = 4096;
/// A connection that is closed sooner than a busy machine reads from it cannot be used.
const SHORTEST_IDLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Each request that waits holds a connection.
const LONGEST_QUEUE: usize = 1 << 16;

impl Default for ServerOptions {
    fn default() -> Self {
        Self { workers: 16, queue: 256, idle_timeout: Duration::from_secs(60), tokens: Vec::new() }
    }
}

impl ServerOptions {
    /// Refuses options that cannot work.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.tokens.iter().try_for_each(|token| check_token(Some(token)))?;
        if !(1..=MOST_WORKERS).contains(&self.workers) {
            return Err(Error::Config(format!("a server has 1 to {MOST_WORKERS} workers")));
        }
        if self.queue > LONGEST_QUEUE {
            return Err(Error::Config(format!("up to {LONGEST_QUEUE} requests wait in the queue")));
        }
        if !(SHORTEST_IDLE_TIMEOUT..=LONGEST_TIMEOUT).contains(&self.idle_timeout) {
            return Err(Error::Config("an idle timeout is a second to a day".into()));
        }
        Ok(())
    }
}

/// Shows no token.
impl fmt::Debug for ServerOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerOptions")
            .field("workers", &self.workers)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// Refuses a URL that another node would write differently, or that nobody could ask.
pub(super) fn check_url(url: &str) -> Result<(), Error> {
    let wrong = |what: &str| {
        Err(Error::Config(format!("node URL {url:?}: {what}; write it like http://10.0.0.1:8001")))
    };
    let uri: Uri = url.parse().unwrap_or_default();
    let (scheme, host) = (uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default());
    let port = uri.port_u16().map(|port| format!(":{port}")).unwrap_or_default();
    if url.len() > MAX_URL_BYTES || url != format!("{scheme}://{host}{port}") {
        return wrong(&format!("it is http://, a host and a port, of up to {MAX_URL_BYTES} bytes"));
    }
    match (scheme, host) {
        ("http" | "https", "" | "*" | "0.0.0.0" | "[::]") => wrong("others cannot ask this host"),
        ("http" | "https", _) if port == ":0" => wrong("others cannot ask this port"),
        ("https", _) if !cfg!(feature = "tls") => {
            wrong("https needs the feature `tls` of geecache")
        }
        ("http" | "https", _) => Ok(()),
        _ => wrong("peers speak http"),
    }
}

/// A token travels in a header. One that is read from a file often ends in a newline, which cannot.
fn check_token(token: Option<&str>) -> Result<(), Error> {
    let Some(token) = token else { return Ok(()) };
    if (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "a token is 1 to {MAX_TOKEN_BYTES} visible ASCII characters, without spaces"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_nobody_could_ask_are_refused_with_the_reason() {
        let reason = |url: &str| check_url(url).unwrap_err().to_string();
        const FORM: &str = "a host and a port";
        for (url, what) in [
            ("", FORM),
            ("a:8001", FORM),
            ("a", FORM),
            ("HTTP://a:8001", FORM),
            ("Http://a:8001", FORM),
            ("http://", FORM),
            ("http://a:8001/", FORM),
            ("http://a:8001/x", FORM),
            ("http://a:8001?q", FORM),
            ("http://a:8001#f", FORM),
            ("https://a:8001/", FORM),
            ("http://u@a:8001", FORM),
            ("http://a:", FORM),
            ("http://a:65536", FORM),
            ("http://a:+80", FORM),
            ("http://a:080", FORM),
            ("http://a:-1", FORM),
            ("http://a:http", FORM),
            ("http://[::1]:", FORM),
            ("http://a b:8001", FORM),
            ("http://[::1:8001", FORM),
            ("ftp://a:8001", "peers speak http"),
            ("http://:8001", "cannot ask this host"),
            ("http://*:8001", "cannot ask this host"),
            ("http://0.0.0.0:8001", "cannot ask this host"),
            ("http://[::]:8001", "cannot ask this host"),
            ("http://a:0", "cannot ask this port"),
        ] {
            let reason = reason(url);
            assert!(reason.contains(what) && reason.contains(&format!("{url:?}")), "{reason}");
            assert!(reason.ends_with("write it like http://10.0.0.1:8001"));
            assert_eq!(reason.lines().count(), 1);
        }
        assert!(reason(&format!("http://{}", "a".repeat(MAX_URL_BYTES))).contains("1024 bytes"));
        for url in [
            "http://a",
            "http://10.0.0.1:8001",
            "http://[::1]:8001",
            "http://[::1]",
            "http://localhost:1",
            "http://cache-0.cache.svc:65535",
        ] {
            assert!(check_url(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn https_needs_the_feature_tls() {
        let checked = check_url("https://a:8001");
        assert_eq!(checked.is_ok(), cfg!(feature = "tls"));
        assert!(checked.err().is_none_or(|why| why.to_string().contains("the feature `tls`")));
    }

    #[test]
    fn the_defaults_of_a_pool_are_those_of_the_docs() {
        let options = PoolOptions::default();
        assert_eq!((options.hash, options.points_per_peer), (RingHash::Crc32, None));
        assert_eq!((options.timeout, options.max_value_bytes), (Duration::from_secs(3), 16 << 20));
        assert_eq!(options.handover, Duration::from_secs(30));
        assert!(options.combine);
        assert_eq!(options.token, None);
    }

    #[test]
    fn the_defaults_of_a_server_are_those_of_the_docs() {
        let options = ServerOptions::default();
        assert_eq!((options.workers, options.queue), (16, 256));
        assert_eq!(options.idle_timeout, Duration::from_secs(60));
        assert!(options.tokens.is_empty());
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let refused = |options: PoolOptions| options.check().is_err();
        assert!(refused(PoolOptions { points_per_peer: Some(0), ..PoolOptions::default() }));
        assert!(refused(PoolOptions { timeout: Duration::ZERO, ..PoolOptions::default() }));
        assert!(refused(PoolOptions { timeout: Duration::MAX, ..PoolOptions::default() }));
        assert!(refused(PoolOptions { handover: Duration::MAX, ..PoolOptions::default() }));
        for token in ["", "from a file\n", "two words", "ключ"] {
            assert!(refused(PoolOptions { token: Some(token.into()), ..PoolOptions::default() }));
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let options = PoolOptions { token: Some("secret".into()), ..PoolOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
        let options = ServerOptions { tokens: vec!["secret".into()], ..ServerOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
