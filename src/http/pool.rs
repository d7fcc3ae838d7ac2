//! `HttpPool`: the ring of all nodes and a getter for each of the others.
//!
//! How does a list of nodes change while a thousand gets are under way? The new ring is built
//! outside of the lock and swapped inside; getters of peers that stay are kept, with their
//! connections and cool-downs. Ring and getters stand behind the same Mutex, for with one each:
//!
//! 1. A get looks into the old ring: node C owns the key.
//! 2. `set_peers` swaps the ring and then the getters; C is gone.
//! 3. The get finds no getter for C and takes the key for its own, though another node owns it:
//!    two loads, and a value in the wrong cache.
//!
//! A get that has C's getter in hand when C leaves asks it once more, which does no harm.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ureq::http::Uri;

use super::client::HttpGetter;
use super::wire::DEFAULT_BASE_PATH;
use crate::{Error, MAX_GROUP_BYTES, MAX_KEY_BYTES, PeerGetter, PeerPicker, Ring, RingHash};

/// How an [`HttpPool`] places and asks its peers.
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
    /// How long connecting to a peer may take, TLS included. Default: 500 ms.
    pub connect_timeout: Duration,
    /// How long a question to a peer may take from beginning to end; then this node loads by
    /// itself. It should be longer than the origin takes. Default: 3 s.
    pub timeout: Duration,
    /// How many idle connections to keep for each peer. Default: 64.
    pub max_idle_connections: usize,
    /// The largest value that is taken from a peer, in bytes; above it this node loads by
    /// itself. Default: 16 MiB.
    pub max_value_bytes: u64,
    /// Whether concurrent gets that go to the same peer share requests. Default: `true`.
    pub combine: bool,
    /// The path under which peers answer, of up to 1,024 bytes. Default: `/_geecache/`.
    pub base_path: String,
    /// The secret that peers ask for, sent as `Authorization: Bearer`: up to 4,096 visible ASCII
    /// characters. Default: none.
    pub token: Option<String>,
    /// The root certificates, in PEM, by which peers behind `https://` are believed. Only with the
    /// feature `tls`. Default: `None`, those that browsers know.
    #[cfg(feature = "tls")]
    pub root_certificates: Option<Vec<u8>>,
}

/// The ring has all nodes' points in memory.
const MAX_POINTS: usize = 10_000;
pub(super) const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
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
            connect_timeout: Duration::from_millis(500),
            timeout: Duration::from_secs(3),
            max_idle_connections: 64,
            max_value_bytes: 16 << 20,
            combine: true,
            base_path: DEFAULT_BASE_PATH.into(),
            token: None,
            #[cfg(feature = "tls")]
            root_certificates: None,
        }
    }
}

/// Shows everything but the token and the certificates.
impl fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolOptions")
            .field("hash", &self.hash)
            .field("points_per_peer", &self.points_per_peer)
            .field("connect_timeout", &self.connect_timeout)
            .field("timeout", &self.timeout)
            .field("max_idle_connections", &self.max_idle_connections)
            .field("max_value_bytes", &self.max_value_bytes)
            .field("combine", &self.combine)
            .field("base_path", &self.base_path)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

/// The nodes of a cluster as one of them sees it: a [`PeerPicker`] over HTTP.
///
/// A node is known by its URL, `http://host:port`, or `https://` with the feature `tls`, and all
/// nodes must write it the same way: it decides who owns which key. Until
/// [`set_peers`](Self::set_peers) the node is alone.
///
/// ```
/// use geecache::HttpPool;
///
/// let pool = HttpPool::new("http://10.0.0.1:8001")?;
/// pool.set_peers(["http://10.0.0.1:8001", "http://10.0.0.2:8001"])?;
/// assert_eq!(pool.owner("Tom"), "http://10.0.0.2:8001");
/// assert!(pool.set_peers(["http://10.0.0.2:8001"]).is_err(), "a list without itself");
/// # Ok::<(), geecache::Error>(())
/// ```
#[doc(alias = "HTTPPool")]
pub struct HttpPool {
    self_url: String,
    options: Arc<PoolOptions>,
    // Guards the ring and the getters together, so that an owner always has its getter.
    nodes: Mutex<Nodes>,
}

struct Nodes {
    ring: Arc<Ring>,
    // All nodes but this one.
    #[doc(alias = "httpGetters")]
    getters: HashMap<String, Arc<HttpGetter>>,
}

impl HttpPool {
    /// A pool for the node at `self_url`, with default options.
    ///
    /// # Errors
    /// [`Error::Config`] if `self_url` is not like `http://host:port`.
    #[doc(alias = "NewHTTPPool")]
    pub fn new(self_url: impl Into<String>) -> Result<Arc<Self>, Error> {
        Self::with_options(self_url, PoolOptions::default())
    }

    /// A pool for the node at `self_url`.
    ///
    /// # Errors
    /// [`Error::Config`] if `self_url` is not like `http://host:port`, or an option cannot work.
    pub fn with_options(
        self_url: impl Into<String>,
        options: PoolOptions,
    ) -> Result<Arc<Self>, Error> {
        let self_url = self_url.into();
        check_url(&self_url)?;
        check_base_path(&options.base_path)?;
        check_token(options.token.as_deref())?;
        #[cfg(feature = "tls")]
        super::client::tls::config(options.root_certificates.as_deref())?;
        if options.points_per_peer.is_some_and(|points| !(1..=MAX_POINTS).contains(&points)) {
            return Err(Error::Config(format!("a node has 1 to {MAX_POINTS} points on the ring")));
        }
        if [options.timeout, options.connect_timeout]
            .iter()
            .any(|t| t.is_zero() || *t > LONGEST_TIMEOUT)
        {
            return Err(Error::Config("a timeout is more than zero and a day at the most".into()));
        }
        let options = Arc::new(options);
        let ring = ring_of([self_url.clone()], &options);
        let nodes = Mutex::new(Nodes { ring, getters: HashMap::new() });
        Ok(Arc::new(Self { self_url, options, nodes }))
    }

    /// Replaces the list of nodes, this one among them. May be called at any time.
    ///
    /// # Errors
    /// [`Error::Config`] if a URL is not like `http://host:port` or this node's own is missing;
    /// then the list stays as it was.
    #[doc(alias = "Set")]
    pub fn set_peers<U: Into<String>>(
        &self,
        urls: impl IntoIterator<Item = U>,
    ) -> Result<(), Error> {
        let urls: Vec<String> = urls.into_iter().map(Into::into).collect();
        urls.iter().try_for_each(|url| check_url(url))?;
        if !urls.contains(&self.self_url) {
            return Err(Error::Config(format!(
                "the list of peers lacks this node itself, {}; write its URL in the list just so",
                self.self_url
            )));
        }
        let mut getters: HashMap<String, Arc<HttpGetter>> = urls
            .iter()
            .filter(|&url| *url != self.self_url)
            .map(|url| (url.clone(), Arc::new(HttpGetter::new(url.clone(), self.options.clone()))))
            .collect();
        let ring = ring_of(urls, &self.options);
        // What is dropped closes connections, and is not dropped under the lock.
        let mut unused = Vec::new();
        let mut nodes = self.nodes.lock().unwrap();
        for (url, getter) in &mut getters {
            if let Some(kept) = nodes.getters.get(url) {
                unused.push(mem::replace(getter, kept.clone()));
            }
        }
        let before = mem::replace(&mut *nodes, Nodes { ring, getters });
        drop(nodes);
        drop((before, unused));
        Ok(())
    }

    /// The URL of this node.
    pub fn self_url(&self) -> &str {
        &self.self_url
    }

    /// The URL of the node that owns `key`.
    pub fn owner(&self, key: &str) -> String {
        self.ring().owner(key).unwrap_or(&self.self_url).to_string()
    }

    /// The ring as it is now.
    pub fn ring(&self) -> Arc<Ring> {
        self.nodes.lock().unwrap().ring.clone()
    }

    /// The other nodes and whether each answered when it was last asked, in order of their names.
    /// One that did not is cooling down.
    pub fn peers(&self) -> Vec<(String, bool)> {
        let getters: Vec<_> = self.nodes.lock().unwrap().getters.values().cloned().collect();
        let mut peers: Vec<_> =
            getters.iter().map(|getter| (getter.name().to_string(), getter.is_up())).collect();
        peers.sort();
        peers
    }
}

impl PeerPicker for HttpPool {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        let nodes = self.nodes.lock().unwrap();
        let getter = nodes.getters.get(nodes.ring.owner(key)?)?;
        Some(getter.clone())
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        let nodes = self.nodes.lock().unwrap();
        nodes.getters.values().map(|getter| getter.clone() as Arc<dyn PeerGetter>).collect()
    }
}

fn ring_of(urls: impl IntoIterator<Item = String>, options: &PoolOptions) -> Arc<Ring> {
    let points = options.points_per_peer.unwrap_or(options.hash.default_points());
    Arc::new(Ring::new(urls, points, options.hash))
}

/// Refuses what another node would write differently, or ureq could not ask.
fn check_url(url: &str) -> Result<(), Error> {
    let wrong = |what: &str| {
        Error::Config(format!("node URL {url:?}: {what}, write it like http://10.0.0.1:8001"))
    };
    if url.len() > MAX_URL_BYTES {
        return Err(Error::Config(format!("a node URL has up to {MAX_URL_BYTES} bytes")));
    }
    let uri: Uri = url.parse().map_err(|_| wrong("not a URL"))?;
    let Some(authority) = uri.authority() else { return Err(wrong("no host")) };
    let scheme = match uri.scheme_str() {
        Some(scheme @ "http") => scheme,
        Some(scheme @ "https") if cfg!(feature = "tls") => scheme,
        Some("https") => {
            return Err(wrong("https needs the feature `tls` of geecache; without it"));
        }
        _ => return Err(wrong("peers speak http")),
    };
    if url != format!("{scheme}://{authority}") {
        return Err(wrong("something follows the port"));
    }
    if authority.as_str().contains('@') {
        return Err(wrong("peers know no users"));
    }
    Ok(())
}

/// A token travels in a header: what is read from a file often ends in a newline, which cannot.
pub(super) fn check_token(token: Option<&str>) -> Result<(), Error> {
    let Some(token) = token else { return Ok(()) };
    if (1..=MAX_TOKEN_BYTES).contains(&token.len()) && token.bytes().all(|b| b.is_ascii_graphic()) {
        return Ok(());
    }
    Err(Error::Config(format!(
        "a token is 1 to {MAX_TOKEN_BYTES} visible ASCII characters, without spaces"
    )))
}

pub(super) fn check_base_path(path: &str) -> Result<(), Error> {
    if (2..=MAX_URL_BYTES).contains(&path.len())
        && path.starts_with('/')
        && path.ends_with('/')
        && path.parse::<Uri>().is_ok()
    {
        return Ok(());
    }
    Err(Error::Config(format!(
        "base path {path:?}: it begins and ends with a slash, like {DEFAULT_BASE_PATH}, and has up \
         to {MAX_URL_BYTES} bytes"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URLS: [&str; 3] = ["http://a:8001", "http://b:8001", "http://c:8001"];

    fn pool() -> Arc<HttpPool> {
        let pool = HttpPool::new(URLS[0]).unwrap();
        pool.set_peers(URLS).unwrap();
        pool
    }

    fn key_of(pool: &HttpPool, owner: &str) -> String {
        (0..).map(|i| i.to_string()).find(|key| pool.owner(key) == owner).unwrap()
    }

    #[test]
    fn own_keys_have_no_peer_and_others_have_theirs() {
        let pool = pool();
        assert!(pool.pick(&key_of(&pool, URLS[0])).is_none());
        assert_eq!(pool.pick(&key_of(&pool, URLS[1])).unwrap().name(), URLS[1]);
    }

    #[test]
    fn before_it_knows_peers_a_node_owns_all() {
        let pool = HttpPool::new(URLS[0]).unwrap();
        assert!((0..100).all(|i| pool.pick(&i.to_string()).is_none()));
    }

    #[test]
    fn a_list_without_the_node_itself_is_refused_and_changes_nothing() {
        let pool = pool();
        let error = pool.set_peers([URLS[1], URLS[2]]).unwrap_err();
        assert!(error.to_string().contains("lacks this node itself, http://a:8001"), "{error}");
        assert_eq!(pool.ring().nodes().len(), 3);
    }

    #[test]
    fn urls_that_nodes_could_write_differently_are_refused() {
        for url in [
            "",
            "a:8001",
            "a",
            "ftp://a:8001",
            "http://",
            "http://a:8001/",
            "http://a:8001/x",
            "http://a:8001?q",
            "http://u@a:8001",
            "https://a:8001/",
        ] {
            assert!(HttpPool::new(url).is_err(), "{url}");
        }
        for url in
            ["http://a", "http://10.0.0.1:8001", "http://[::1]:8001", "http://localhost:8001"]
        {
            assert!(HttpPool::new(url).is_ok(), "{url}");
        }
    }

    #[test]
    fn https_needs_the_feature_tls() {
        let pool = HttpPool::new("https://a:8001");
        assert_eq!(pool.is_ok(), cfg!(feature = "tls"));
        assert!(pool.err().is_none_or(|why| why.to_string().contains("the feature `tls`")));
    }

    #[test]
    fn getters_of_peers_that_stay_are_kept() {
        let pool = pool();
        let key = key_of(&pool, URLS[1]);
        let before = pool.pick(&key).unwrap();
        pool.set_peers([URLS[0], URLS[1], "http://d:8001"]).unwrap();
        assert_eq!(
            pool.peers(),
            [(URLS[1].to_string(), true), ("http://d:8001".to_string(), true)]
        );
        let key = key_of(&pool, URLS[1]);
        assert!(Arc::ptr_eq(&before, &pool.pick(&key).unwrap()));
    }

    #[test]
    fn the_defaults_are_those_of_the_docs() {
        let options = PoolOptions::default();
        assert_eq!((options.hash, options.points_per_peer), (RingHash::Crc32, None));
        assert_eq!(options.connect_timeout, Duration::from_millis(500));
        assert_eq!(options.timeout, Duration::from_secs(3));
        assert_eq!((options.max_idle_connections, options.max_value_bytes), (64, 16 << 20));
        assert!(options.combine);
        assert_eq!((&*options.base_path, options.token), ("/_geecache/", None));
    }

    #[test]
    fn options_that_cannot_work_are_refused() {
        let refused = |options| HttpPool::with_options(URLS[0], options).is_err();
        assert!(refused(PoolOptions { points_per_peer: Some(0), ..PoolOptions::default() }));
        assert!(refused(PoolOptions { timeout: Duration::ZERO, ..PoolOptions::default() }));
        assert!(refused(PoolOptions { timeout: Duration::MAX, ..PoolOptions::default() }));
        for token in ["", "from a file\n", "two words", "ключ"] {
            assert!(refused(PoolOptions { token: Some(token.into()), ..PoolOptions::default() }));
        }
        assert!(refused(PoolOptions { base_path: "geecache".into(), ..PoolOptions::default() }));
        #[cfg(feature = "tls")]
        for roots in ["", "no PEM", "-----BEGIN CERTIFICATE-----\n~\n-----END CERTIFICATE-----\n"] {
            let root_certificates = Some(roots.into());
            assert!(refused(PoolOptions { root_certificates, ..PoolOptions::default() }));
        }
    }

    #[test]
    fn the_token_is_not_shown() {
        let options = PoolOptions { token: Some("secret".into()), ..PoolOptions::default() };
        assert!(!format!("{options:?}").contains("secret"));
    }
}
