//! `Following`: the list of nodes comes from a name, and changes with its addresses.
//!
//! How does a node learn which others there are? Kubernetes' headless services, Consul and every cloud have
//! a name that leads to the addresses of all instances of a service. So a thread looks that name up again
//! and again, and gives the pool the addresses.
//!
//! The system's resolver blocks for as long as it likes. So nothing waits for that thread: a drop of the
//! handle returns at once, and a look-up that returns after that changes nothing.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{io, mem, thread};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use log::{info, warn};

use super::pool::HttpPool;
use crate::Error;

const MOST_SELDOM: Duration = Duration::from_secs(24 * 60 * 60);
/// An address leaves the list when so many look-ups in a row lack it.
const MISSED: usize = 20;
/// And while one is missing, the next look-up comes after this part of the time.
const SOONER: u32 = 4;

/// A pool's list of nodes follows a name, until this is dropped or the pool is:
/// see [`HttpPool::follow`].
#[derive(Debug)]
#[must_use = "the name is followed for as long as this lives"]
pub struct Following {
    /// Never sent to: the thread ends when it is dropped.
    _ends: Sender<Infallible>,
    /// Is disconnected after the first look-up.
    looked_up: Receiver<Infallible>,
}

impl Following {
    /// How often a name is looked up unless there is a reason for another time: every 5 seconds.
    pub const EVERY: Duration = Duration::from_secs(5);

    /// Waits until the name was looked up for the first time, found or not, for this long at the most;
    /// `false` if it was not. A node that is asked before that takes itself for the only one.
    pub fn wait(&self, patience: Duration) -> bool {
        self.looked_up.recv_timeout(patience) == Err(RecvTimeoutError::Disconnected)
    }

    /// Follows the addresses that `look_up` finds, all with the port of `name`.
    fn start(
        pool: &Arc<HttpPool>,
        name: &str,
        every: Duration,
        look_up: impl Fn() -> io::Result<Vec<IpAddr>> + Send + 'static,
    ) -> Result<Self, Error> {
        if every.is_zero() || every > MOST_SELDOM {
            let wrong = "a name is looked up again after more than no time, and within a day";
            return Err(Error::Config(wrong.into()));
        }
        let port = port_of(name)?;
        let (scheme, own) = own_address(pool.self_url())?;
        if own.port() != port {
            return Err(Error::Config(format!(
                "nodes that are found by {name} have the port {port}, and this node's is {}",
                own.port()
            )));
        }
        let ((ends, ended), (looks, looked_up)) = (bounded(0), bounded(0));
        let follower = Follower {
            pool: Arc::downgrade(pool),
            name: name.into(),
            url_of: Box::new(move |ip| format!("{scheme}://{}", SocketAddr::new(ip, port))),
            ended,
            looks: Some(looks),
            has_failed: false,
            missed: BTreeMap::new(),
        };
        thread::Builder::new()
            .name("geecache-discovery".into())
            .spawn(move || follower.run(look_up, every))?;
        Ok(Self { _ends: ends, looked_up })
    }
}

impl HttpPool {
    /// Lets the list of nodes follow `name`, like `cache.default.svc:8001`: it is looked up now and
    /// then `every` so often ([`Following::EVERY`] is 5 seconds), on a thread of its own, and the
    /// nodes are `http://ADDRESS:PORT` for all addresses that it leads to, IPv4 and IPv6; `https://`
    /// if this node's URL is. This node is always among them, and its URL has to be such an address.
    /// [`peers`](Self::peers) and the log show changes. A look-up that fails, or finds nothing,
    /// changes nothing and is logged once.
    ///
    /// An answer may be a part: over UDP, Consul tells three addresses, drawn by chance, unless its
    /// `dns_config.udp_answer_limit` is larger. So while an address of the list is missing, the name is
    /// looked up four times as often; and an address leaves the list only when twenty look-ups in a row
    /// lack it: a node that is gone, after 25 to 30 seconds by default.
    ///
    /// Ends when the handle is dropped, and at the next look-up after the pool is. A list that is set by
    /// [`set_peers`](Self::set_peers) meanwhile holds until the next look-up.
    ///
    /// It is the system's resolver (`getaddrinfo`) that looks the name up. So `/etc/hosts` and the
    /// search domains of `/etc/resolv.conf` hold, a name with a dot at its end is taken as it is, and
    /// its caches (`nscd`, `systemd-resolved`, the cluster's DNS) delay a change by the time to live of the
    /// record. Each address is a node of its own: a node that has an IPv4 and an
    /// IPv6 address should be found by one of them only.
    ///
    /// ```no_run
    /// use geecache::{Following, HttpPool};
    ///
    /// let pool = HttpPool::new("http://10.0.0.1:8001")?;
    /// let following = pool.follow("cache.default.svc:8001", Following::EVERY)?;
    /// # drop(following);
    /// # Ok::<(), geecache::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Config`] if `name` is not like `host:port`, its port is not this node's, this node's
    /// URL has no address or is not written as others find it, or `every` is zero or more than a
    /// day; [`Error::Io`] if no thread can be started.
    pub fn follow(self: &Arc<Self>, name: &str, every: Duration) -> Result<Following, Error> {
        let to_look_up = name.to_string();
        let look_up = move || {
            let found = to_look_up.to_socket_addrs()?;
            Ok(found.map(|address| address.ip()).collect())
        };
        Following::start(self, name, every, look_up)
    }
}

struct Follower {
    pool: Weak<HttpPool>,
    name: String,
    url_of: Box<dyn Fn(IpAddr) -> String + Send>,
    /// Is disconnected when the handle is dropped.
    ended: Receiver<Infallible>,
    /// Dropped after the first look-up.
    looks: Option<Sender<Infallible>>,
    /// Whether the last look-up did.
    has_failed: bool,
    /// The addresses in the list, and how many look-ups in a row lacked each.
    missed: BTreeMap<IpAddr, usize>,
}

impl Follower {
    fn run(mut self, look_up: impl Fn() -> io::Result<Vec<IpAddr>>, every: Duration) {
        loop {
            let found = look_up();
            let Some(pool) = self.pool.upgrade() else { return };
            self.take(&pool, found);
            drop(pool);
            self.looks = None;
            let is_complete = self.missed.values().all(|&times| times == 0);
            let pause = if is_complete { every } else { every / SOONER };
            if self.ended.recv_timeout(pause) == Err(RecvTimeoutError::Disconnected) {
                return;
            }
        }
    }

    /// The addresses that were found, and those that have not been missing for long.
    fn note(&mut self, found: Vec<IpAddr>) -> Vec<IpAddr> {
        self.missed.retain(|address, times| {
            *times = if found.contains(address) { 0 } else { *times + 1 };
            *times < MISSED
        });
        self.missed.extend(found.into_iter().map(|address| (address, 0)));
        self.missed.keys().copied().collect()
    }

    fn take(&mut self, pool: &HttpPool, found: io::Result<Vec<IpAddr>>) {
        let found = match found {
            Ok(found) if found.is_empty() => Err(io::Error::other("no address")),
            found => found,
        };
        let set = found.map_err(Error::from).and_then(|found| {
            let found = self.note(found);
            let own = pool.self_url().to_string();
            let urls = found.into_iter().map(&self.url_of).chain([own]).collect();
            pool.replace(urls, || self.ended.try_recv() == Err(TryRecvError::Empty))
        });
        let has_failed = mem::replace(&mut self.has_failed, set.is_err());
        match set {
            Err(error) if !has_failed => {
                warn!("looking up {}: {error}; the list of nodes stays as it is", self.name);
            }
            Ok(false) if has_failed => info!("{} is found again", self.name),
            Ok(true) => {
                let ring = pool.ring();
                let nodes: Vec<_> = ring.nodes().collect();
                info!("{}: {} nodes now: {}", self.name, nodes.len(), nodes.join(" "));
            }
            _ => {}
        }
    }
}

fn port_of(name: &str) -> Result<u16, Error> {
    let port = name.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    let port = port.and_then(|(_, port)| port.parse().ok()).filter(|&port| port > 0);
    port.ok_or_else(|| Error::Config(format!("{name:?}: write a name and a port, like cache:8001")))
}

/// The scheme and the address of this node, whose URL must be as it finds itself among the others.
fn own_address(url: &str) -> Result<(&'static str, SocketAddr), Error> {
    let scheme = if url.starts_with("https://") { "https" } else { "http" };
    let address = url.split_once("://").and_then(|(_, address)| address.parse().ok());
    let right = address.map(|address: SocketAddr| format!("{scheme}://{address}"));
    match address {
        Some(address) if right.as_deref() == Some(url) => Ok((scheme, address)),
        _ => Err(Error::Config(format!(
            "node URL {url:?}: the others find this node by its address; write it like {}",
            right.as_deref().unwrap_or("http://10.0.0.1:8001")
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::unbounded;
    use std::cell::Cell;
    use std::sync::mpsc;

    const LONG: Duration = Duration::from_secs(30);
    const SOON: Duration = Duration::from_millis(1);

    type Found = io::Result<Vec<IpAddr>>;

    /// A pool that finds what it is given, one answer for each look-up. The receiver is disconnected
    /// once the thread has ended.
    struct Fixture {
        pool: Arc<HttpPool>,
        give: Sender<Found>,
        following: Following,
        running: Receiver<()>,
    }

    fn follow(every: Duration) -> Fixture {
        let pool = HttpPool::new("http://10.0.0.1:8001").unwrap();
        let ((give, given), (runs, running)) = (bounded::<Found>(0), unbounded());
        let look_up = move || {
            let _runs = &runs;
            given.recv_timeout(LONG).unwrap_or_else(|_| Err(io::Error::other("the test is over")))
        };
        let following = Following::start(&pool, "cache:8001", every, look_up).unwrap();
        Fixture { pool, give, following, running }
    }

    impl Fixture {
        fn give(&self, found: &[&str]) {
            self.give_result(Ok(found.iter().map(|ip| ip.parse().unwrap()).collect()));
        }

        fn give_result(&self, found: Found) {
            self.give.send_timeout(found, LONG).unwrap();
        }

        fn nodes(&self) -> Vec<String> {
            self.pool.ring().nodes().map(String::from).collect()
        }
    }

    #[test]
    fn the_list_is_what_was_found_and_this_node() {
        let node = follow(SOON);
        assert!(!node.following.wait(Duration::ZERO), "it is still looking");
        node.give(&["10.0.0.2", "::1", "10.0.0.2"]);
        assert!(node.following.wait(LONG));
        let found = ["http://10.0.0.1:8001", "http://10.0.0.2:8001", "http://[::1]:8001"];
        assert_eq!(node.nodes(), found);
        let nodes_after = |look_ups: usize| {
            for _ in 0..look_ups {
                node.give(&["10.0.0.1", "10.0.0.3"]);
            }
            node.nodes().len()
        };
        // The next look-up begins when the list is set.
        assert_eq!(nodes_after(MISSED - 1), 4);
        nodes_after(2);
        assert_eq!(node.nodes(), ["http://10.0.0.1:8001", "http://10.0.0.3:8001"]);
    }

    #[test]
    fn where_each_answer_is_three_of_five_the_list_settles_and_one_that_is_gone_leaves() {
        let address = |i: u8| IpAddr::from([10, 0, 0, i]);
        let mut follower = Follower {
            pool: Weak::new(),
            name: String::new(),
            url_of: Box::new(|_| String::new()),
            ended: bounded(0).1,
            looks: None,
            has_failed: false,
            missed: BTreeMap::new(),
        };
        let (state, alive) = (Cell::new(1_u64), Cell::new(5_u8));
        let three = || {
            let mut all: Vec<_> = (1..=alive.get()).collect();
            while all.len() > 3 {
                // Knuth's MMIX generator; its high bits are the random ones.
                state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
                all.remove((state.get() >> 33) as usize % all.len());
            }
            all.into_iter().map(address).collect::<Vec<_>>()
        };
        let mut look = || follower.note(three()).len();
        let settled = (1..).find(|_| look() == 5).unwrap();
        assert!(settled < 10, "{settled} look-ups");
        // A day's.
        assert!((0..4 * 17_280).all(|_| look() == 5), "a node that lives has left the list");
        alive.set(4);
        let left = (1..).find(|_| look() == 4).unwrap();
        assert_eq!(left, MISSED);
    }

    #[test]
    fn a_look_up_that_fails_or_finds_nothing_changes_nothing() {
        let node = follow(SOON);
        node.give(&["10.0.0.2"]);
        node.give_result(Err(io::Error::other("no such host")));
        node.give(&[]);
        node.give(&[]);
        assert_eq!(node.nodes(), ["http://10.0.0.1:8001", "http://10.0.0.2:8001"]);
    }

    #[test]
    fn hundreds_of_addresses_are_fine() {
        let node = follow(SOON);
        let found: Vec<_> = (0..500).map(|i| format!("10.0.{}.{}", i / 250, i % 250 + 1)).collect();
        node.give(&found.iter().map(String::as_str).collect::<Vec<_>>());
        for _ in 0..MISSED + 1 {
            node.give(&["10.0.0.1"]);
        }
        assert_eq!(node.nodes().len(), 1);
    }

    #[test]
    fn the_thread_ends_with_the_handle_however_seldom_it_looks_and_after_the_pool() {
        for (drops_pool, every) in [(false, MOST_SELDOM), (true, SOON)] {
            let Fixture { pool, give, following, running } = follow(every);
            give.send_timeout(Ok(vec!["10.0.0.2".parse().unwrap()]), LONG).unwrap();
            assert!(following.wait(LONG));
            if drops_pool {
                drop(pool);
                give.send_timeout(Ok(vec![]), LONG).unwrap();
            } else {
                drop(following);
            }
            let ended = running.recv_timeout(LONG);
            assert_eq!(ended, Err(crossbeam_channel::RecvTimeoutError::Disconnected));
        }
    }

    #[test]
    fn nobody_waits_for_a_look_up_and_one_that_returns_too_late_changes_nothing() {
        let Fixture { pool, give, following, running } = follow(SOON);
        // It is looking. If any of these waited for it, nobody could give it an answer.
        let (done, is_done) = mpsc::channel();
        let held = pool.clone();
        thread::spawn(move || {
            held.set_peers(["http://10.0.0.1:8001", "http://10.0.0.9:8001"]).unwrap();
            held.owner("Tom");
            drop(following);
            done.send(()).unwrap();
        });
        is_done.recv_timeout(LONG).unwrap();
        give.send_timeout(Ok(vec!["10.0.0.2".parse().unwrap()]), LONG).unwrap();
        let _ = running.recv_timeout(LONG);
        assert_eq!(pool.peers(), [("http://10.0.0.9:8001".to_string(), true)]);
    }

    #[test]
    fn names_and_nodes_that_nobody_could_find_are_refused_with_the_reason() {
        let reason = |url: &str, name: &str, every| {
            let pool = HttpPool::new(url).unwrap();
            pool.follow(name, every).err().unwrap().to_string()
        };
        let node = "http://10.0.0.1:8001";
        for name in ["cache", "cache:", ":8001", "cache:0", "cache:http"] {
            let reason = reason(node, name, SOON);
            assert!(reason.contains("a name and a port") && reason.contains(name), "{reason}");
        }
        assert!(
            reason(node, "cache:8002", SOON).contains("the port 8002, and this node's is 8001")
        );
        assert!(reason("http://cache-0:8001", "cache:8001", SOON).contains("by its address"));
        assert!(reason("http://10.0.0.1", "cache:80", SOON).contains("by its address"));
        let reason_of_ipv6 = reason("http://[0:0::1]:8001", "cache:8001", SOON);
        assert!(reason_of_ipv6.ends_with("like http://[::1]:8001"), "{reason_of_ipv6}");
        assert!(reason(node, "cache:8001", Duration::ZERO).contains("more than no time"));
        assert_eq!(Following::EVERY, Duration::from_secs(5));
    }
}
