//! `HttpPool`: the ring of all nodes and a getter for each of the others.
//!
//! How does a list of nodes change while a thousand gets are under way? The new ring is built
//! outside of the lock and swapped inside; getters of peers that stay are kept, with their
//! connections and cool-downs. Ring and getters are behind the same mutex. With a mutex for each, this
//! could happen:
//!
//! 1. A get looks into the old ring: node C owns the key.
//! 2. `set_peers` swaps the ring and then the getters; C is gone.
//! 3. The get finds no getter for C and takes the key for its own, though another node owns it:
//!    two loads, and a value in the wrong cache.
//!
//! A get that has C's getter in hand when C leaves asks it once more, which does no harm.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use log::warn;

use super::client::HttpGetter;
use super::options::{PoolOptions, check_url};
use crate::peer::LATELY;
use crate::{Error, PeerGetter, PeerPicker, Ring};

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
    /// Whether earlier owners may have to be asked: read without the lock, so that a list that does not
    /// change costs a miss nothing.
    is_young: AtomicBool,
    // Guards the list of functions to be called after a change; they are called without it.
    on_change: Mutex<Vec<Weak<OnChange>>>,
}

type OnChange = dyn Fn() + Send + Sync;

struct Nodes {
    list: Arc<List>,
    /// The lists before this one, each with the time of its replacement, the newest first. Those that were
    /// replaced in the last minute, and older ones until the next change.
    earlier: VecDeque<(Arc<List>, Instant)>,
}

/// A list of nodes, which is replaced as a whole.
struct List {
    ring: Arc<Ring>,
    /// All nodes but this one.
    #[doc(alias = "httpGetters")]
    getters: HashMap<String, Arc<HttpGetter>>,
}

/// So many lists are remembered at the most. A cluster of hundreds of nodes may change as often in a minute.
const EARLIER_LISTS: usize = 256;
/// So many earlier owners of a key are asked at the most.
const EARLIER_OWNERS: usize = 3;

/// A node whose share of the keys is so many times the average one is worth a line of the log.
const UNEVEN: f64 = 1.5;

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
        options.check()?;
        let options = Arc::new(options);
        let ring = Arc::new(ring_of([self_url.clone()], &options));
        let list = Arc::new(List { ring, getters: HashMap::new() });
        let nodes = Mutex::new(Nodes { list, earlier: VecDeque::new() });
        let (is_young, on_change) = (AtomicBool::new(false), Mutex::default());
        Ok(Arc::new(Self { self_url, options, nodes, is_young, on_change }))
    }

    /// Replaces the list of nodes, this one among them. May be called at any time. The nodes that came are
    /// told the [removals](crate::Group::remove) of this process in the last minute; this waits for that
    /// for 100 ms at the most.
    ///
    /// # Errors
    /// [`Error::Config`] if a URL is not like `http://host:port` or this node's own is missing;
    /// then the list stays as it was.
    #[doc(alias = "Set")]
    pub fn set_peers<U: Into<String>>(
        &self,
        urls: impl IntoIterator<Item = U>,
    ) -> Result<(), Error> {
        self.replace(urls.into_iter().map(Into::into).collect(), || true).map(drop)
    }

    /// Replaces the list of nodes, if `holds` is `true` when it is about to be replaced. Returns whether the
    /// nodes are others now.
    pub(super) fn replace(
        &self,
        urls: Vec<String>,
        holds: impl Fn() -> bool,
    ) -> Result<bool, Error> {
        urls.iter().try_for_each(|url| check_url(url))?;
        if !urls.contains(&self.self_url) {
            return Err(Error::Config(format!(
                "the list of peers lacks this node itself, {}; write its URL in the list just so",
                self.self_url
            )));
        }
        let ring = Arc::new(ring_of(urls, &self.options));
        let known = self.list();
        if ring.nodes().eq(known.ring.nodes()) {
            return Ok(false);
        }
        let others = ring.nodes().filter(|&url| *url != self.self_url).map(String::from);
        let others: Vec<_> = others.collect();
        let getter = |url: &String| match known.getters.get(url) {
            Some(kept) => kept.clone(),
            None => Arc::new(HttpGetter::new(url.clone(), self.options.clone())),
        };
        let getters: HashMap<_, _> = others.iter().map(|url| (url.clone(), getter(url))).collect();
        let list = Arc::new(List { ring, getters: getters.clone() });
        // A node that was alone has just been started: the others have owned its keys.
        let without_this =
            Arc::new(List { ring: Arc::new(ring_of(others, &self.options)), getters });
        // Lists are dropped without the lock, since that may close connections.
        let mut nodes = self.nodes.lock().unwrap();
        if !holds() {
            return Ok(false);
        }
        let before = mem::replace(&mut nodes.list, list.clone());
        let before = if before.getters.is_empty() { without_this } else { before };
        let now = Instant::now();
        let recent = nodes.recent(now, LATELY).take(EARLIER_LISTS - 1).count();
        let forgotten = nodes.earlier.split_off(recent);
        nodes.earlier.push_front((before, now));
        self.is_young.store(true, Ordering::Relaxed);
        drop(nodes);
        drop(forgotten);
        let (node, times) = list.ring.largest_share();
        if times > UNEVEN {
            let cure = "RingHash::Crc32Mixed or more points_per_peer, on all nodes, even that";
            warn!("{node} owns {times:.1} times as many keys as a node on average; {cure}");
        }
        let on_change = self.on_change.lock().unwrap().clone();
        on_change.iter().filter_map(Weak::upgrade).for_each(|changed| changed());
        Ok(true)
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
        self.list().ring.clone()
    }

    fn list(&self) -> Arc<List> {
        self.nodes.lock().unwrap().list.clone()
    }

    /// The other nodes and whether each answered when it was last asked, in order of their names.
    /// One that did not is cooling down.
    pub fn peers(&self) -> Vec<(String, bool)> {
        let of = |getter: &Arc<HttpGetter>| (getter.name().to_string(), getter.is_up());
        let mut peers: Vec<_> = self.list().getters.values().map(of).collect();
        peers.sort();
        peers
    }
}

/// Shows the nodes and the options, but no token.
impl fmt::Debug for HttpPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPool")
            .field("self_url", &self.self_url)
            .field("peers", &self.peers())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl PeerPicker for HttpPool {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        Some(self.nodes.lock().unwrap().list.owner(key)?.clone())
    }

    fn on_change(&self, changed: Weak<OnChange>) {
        let mut on_change = self.on_change.lock().unwrap();
        on_change.retain(|changed| changed.strong_count() > 0);
        on_change.push(changed);
    }

    fn former(&self, key: &str) -> Vec<Arc<dyn PeerGetter>> {
        let mut found: Vec<Arc<dyn PeerGetter>> = Vec::new();
        if !self.is_young.load(Ordering::Relaxed) {
            return found;
        }
        let nodes = self.nodes.lock().unwrap();
        let mut earlier = nodes.recent(Instant::now(), self.options.handover).peekable();
        self.is_young.store(earlier.peek().is_some(), Ordering::Relaxed);
        for getter in earlier.filter_map(|list| list.owner(key)) {
            let is_known = found.iter().any(|other| other.name() == getter.name());
            let owns = nodes.list.owner(key).is_some_and(|owner| owner.name() == getter.name());
            if !is_known && !owns && found.len() < EARLIER_OWNERS {
                found.push(getter.clone());
            }
        }
        found
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        let nodes = self.nodes.lock().unwrap();
        let mut lists = vec![nodes.list.clone()];
        lists.extend(nodes.recent(Instant::now(), LATELY).cloned());
        drop(nodes);
        // A node that has come back has a new getter, which is found first.
        let mut others = HashMap::new();
        for (url, getter) in lists.iter().flat_map(|list| &list.getters) {
            others.entry(url).or_insert(getter);
        }
        others.into_values().map(|getter| getter.clone() as Arc<dyn PeerGetter>).collect()
    }
}

impl Nodes {
    /// The lists that were replaced within this time before `now`, the newest first.
    fn recent(&self, now: Instant, within: Duration) -> impl Iterator<Item = &Arc<List>> {
        let is_recent = move |(_, replaced): &&(_, Instant)| now - *replaced < within;
        self.earlier.iter().take_while(is_recent).map(|(list, _)| list)
    }
}

impl List {
    /// The node that owns `key`; `None` if it is this one.
    fn owner(&self, key: &str) -> Option<&Arc<HttpGetter>> {
        self.getters.get(self.ring.owner(key)?)
    }
}

fn ring_of(urls: impl IntoIterator<Item = String>, options: &PoolOptions) -> Ring {
    let points = options.points_per_peer.unwrap_or(options.hash.default_points());
    Ring::new(urls, points, options.hash)
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
    fn the_debug_text_has_the_nodes_but_no_token() {
        let options = PoolOptions { token: Some("se-cret".into()), ..PoolOptions::default() };
        let pool = HttpPool::with_options(URLS[0], options).unwrap();
        pool.set_peers(URLS).unwrap();
        let text = format!("{pool:?}");
        assert!(URLS.iter().all(|url| text.contains(url)) && !text.contains("cret"), "{text}");
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
    fn a_list_may_repeat_a_node() {
        let pool = pool();
        pool.set_peers([URLS[0], URLS[1], URLS[1], URLS[0]]).unwrap();
        assert_eq!((pool.ring().nodes().len(), pool.peers().len()), (2, 1));
    }

    fn former(pool: &HttpPool, key: &str) -> Vec<String> {
        pool.former(key).iter().map(|peer| peer.name().to_string()).collect()
    }

    #[test]
    fn the_earlier_owners_of_a_key_are_remembered_the_newest_first_up_to_three() {
        let all = ["http://a:1", "http://b:1", "http://c:1", "http://d:1", "http://e:1"];
        let pool = HttpPool::new(all[0]).unwrap();
        pool.set_peers(all).unwrap();
        // The key goes to the next one whenever its owner leaves, and to this node in the end.
        let mut left = all.to_vec();
        let key = (0..).map(|i| i.to_string()).find(|key| {
            left = all.to_vec();
            loop {
                let ring = ring_of(left.iter().map(|s| s.to_string()), &pool.options);
                let owner = ring.owner(key).unwrap();
                if owner == all[0] {
                    break;
                }
                left.retain(|url| *url != owner);
            }
            left.len() == 1
        });
        let key = key.unwrap();
        let mut owners = Vec::new();
        let mut left = all.to_vec();
        while left.len() > 1 {
            owners.insert(0, pool.owner(&key));
            left.retain(|url| *url != owners[0]);
            pool.set_peers(left.clone()).unwrap();
        }
        assert_eq!(owners.len(), 4);
        assert_eq!(former(&pool, &key), owners[..3]);
    }

    #[test]
    fn a_node_that_was_alone_asks_those_who_would_own_its_keys_without_it() {
        let pool = pool();
        let others = ring_of(URLS[1..].iter().map(|url| url.to_string()), &pool.options);
        for key in (0..100).map(|i| i.to_string()).filter(|key| pool.owner(key) == URLS[0]) {
            assert_eq!(former(&pool, &key), [others.owner(&key).unwrap()]);
        }
    }

    #[test]
    fn earlier_owners_are_forgotten_in_time_or_at_once() {
        for handover in [Duration::ZERO, Duration::from_millis(1)] {
            let options = PoolOptions { handover, ..PoolOptions::default() };
            let pool = HttpPool::with_options(URLS[0], options).unwrap();
            pool.set_peers(URLS).unwrap();
            let key = key_of(&pool, URLS[0]);
            let start = Instant::now();
            while !former(&pool, &key).is_empty() {
                assert!(start.elapsed() < Duration::from_secs(30));
            }
            assert!(!pool.is_young.load(Ordering::Relaxed));
        }
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
}
