//! Keys are removed while lists of nodes change and differ: nothing removed comes back.

use std::collections::HashMap;
use std::env;
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use geecache::{
    BoxError, Clock, Error, Group, GroupBuilder, HttpPool, HttpServer, PoolOptions, Ring, RingHash,
    ServerOptions,
};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::support::*;

/// All values are a version, which the test raises.
fn versions() -> (Origin, Arc<AtomicUsize>) {
    let version = Arc::new(AtomicUsize::new(1));
    let origin = Origin::new({
        let version = version.clone();
        move |_: &str| Ok::<_, BoxError>(Some(version.load(Ordering::SeqCst).to_string()))
    });
    (origin, version)
}

fn set(nodes: &[&Node], list: &[&Node]) {
    let urls: Vec<_> = list.iter().map(|node| &node.url).collect();
    nodes.iter().for_each(|node| node.pool.set_peers(urls.clone()).unwrap());
}

/// A key that `before` and `after` own, in a list without the one and with it.
fn key_that_goes(list: &[&Node], before: &Node, after: &Node) -> String {
    let ring = |nodes: Vec<&&Node>| Ring::new(nodes.iter().map(|n| &*n.url), 50, RingHash::Crc32);
    let all = ring(list.iter().collect());
    let without = ring(list.iter().filter(|node| node.url != after.url).collect());
    let goes = |key: &String| {
        all.owner(key) == Some(&*after.url) && without.owner(key) == Some(&*before.url)
    };
    (0..).map(|i| format!("key {i}")).find(goes).unwrap()
}

fn all_have(nodes: &[&Node], key: &str, value: &str) {
    for (i, node) in nodes.iter().enumerate() {
        assert_eq!(node.get(key).as_deref(), Some(value), "node {i}");
        assert_eq!(node.get_many(&[key]), [Some(value.to_string())], "node {i}, in a batch");
    }
}

fn remove(node: &Node, key: Option<&str>) -> Result<(), Error> {
    match key {
        Some(key) => node.group().remove(key),
        None => node.group().clear(),
    }
}

/// From now on nobody reaches what is behind the relay.
fn refuse(relay: &Relay) {
    relay.refuse_new();
    relay.treat_existing(Treatment::Reset);
}

#[test]
fn a_node_that_starts_takes_nothing_over_that_is_removed_before_the_others_know_it() {
    for clears in [false, true] {
        let (origin, version) = versions();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        set(&[&a, &b], &[&a, &b]);
        let key = key_that_goes(&[&a, &b, &c], &b, &c);
        a.get(&key);
        set(&[&c], &[&a, &b, &c]);
        version.store(2, Ordering::SeqCst);
        remove(&a, Some(&*key).filter(|_| !clears)).unwrap();
        set(&[&a, &b], &[&a, &b, &c]);
        all_have(&[&a, &b, &c], &key, "2");
    }
}

#[test]
fn a_node_that_loads_before_the_remover_knows_it_is_told_when_it_does() {
    for (clears, is_copied) in [(false, false), (false, true), (true, false), (true, true)] {
        let (origin, version) = versions();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        set(&[&a, &b], &[&a, &b]);
        let key = key_that_goes(&[&a, &b, &c], &b, &c);
        set(&[&b, &c], &[&a, &b, &c]);
        // By itself, or with copies at a node that knows it.
        let asked = if is_copied { &b } else { &c };
        (0..3).for_each(|_| assert_eq!(asked.get(&key).unwrap(), "1"));
        version.store(2, Ordering::SeqCst);
        remove(&a, Some(&*key).filter(|_| !clears)).unwrap();
        set(&[&a], &[&a, &b, &c]);
        all_have(&[&a, &b, &c], &key, "2");
    }
}

#[test]
fn a_list_that_changes_while_a_removal_runs_leaves_nothing_old() {
    for clears in [false, true] {
        let (origin, version) = versions();
        let ([a, b, c], relays) = Cluster::over(&origin).with_handover().behind_relays();
        set(&[&a, &b], &[&a, &b]);
        let key = key_that_goes(&[&a, &b, &c], &b, &c);
        assert_eq!(a.get(&key).unwrap(), "1");
        version.store(2, Ordering::SeqCst);
        // What goes to b is under way for a while.
        relays[1].set_delays(Duration::from_millis(150), Duration::ZERO);
        thread::scope(|scope| {
            let removing = scope.spawn(|| remove(&a, Some(&*key).filter(|_| !clears)));
            let began = Instant::now();
            eventually("it is under way", || began.elapsed() > Duration::from_millis(50));
            set(&[&c, &a, &b], &[&a, &b, &c]);
            c.get(&key);
            removing.join().unwrap().unwrap();
        });
        all_have(&[&a, &b, &c], &key, "2");
    }
}

#[test]
fn a_node_that_a_look_up_misses_while_all_is_removed_is_told() {
    for clears in [false, true] {
        let (origin, version) = versions();
        let [a, b, c] = Cluster::over(&origin).with_handover().start();
        let key = a.key_of(&c.url);
        assert_eq!(a.get(&key).unwrap(), "1");
        set(&[&a, &b], &[&a, &b]);
        version.store(2, Ordering::SeqCst);
        remove(&a, Some(&*key).filter(|_| !clears)).unwrap();
        set(&[&a, &b], &[&a, &b, &c]);
        all_have(&[&a, &b, &c], &key, "2");
    }
}

#[test]
fn a_node_that_has_left_with_a_copy_is_told_also_where_it_failed_before() {
    for (clears, has_failed) in [(false, false), (false, true), (true, false), (true, true)] {
        let (origin, version) = versions();
        let ([a, b, c], relays) = Cluster::over(&origin).with_handover().behind_relays();
        let key = a.key_of(&b.url);
        (0..3).for_each(|_| assert_eq!(c.get(&key).unwrap(), "1"));
        if has_failed {
            refuse(&relays[2]);
            let of_c = a.key_of(&c.url);
            a.get(&of_c);
            assert!(a.pool.peers().contains(&(c.url.clone(), false)));
            relays[2].treat_new(Treatment::Carry);
        }
        set(&[&a, &b], &[&a, &b]);
        version.store(2, Ordering::SeqCst);
        remove(&a, Some(&*key).filter(|_| !clears)).unwrap();
        all_have(&[&a, &b, &c], &key, "2");
    }
}

#[test]
fn a_node_that_has_left_and_does_not_answer_is_named() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let dead = dead_url();
    node.pool.set_peers([&node.url, &dead]).unwrap();
    node.pool.set_peers([&node.url]).unwrap();
    for removed in [node.group().remove("Tom"), node.group().clear()] {
        let Err(Error::RemoveIncomplete { failed }) = removed else { panic!("{removed:?}") };
        let names: Vec<_> = failed.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [&dead]);
    }
}

#[test]
fn keys_that_come_home_live_on() {
    let (origin, clock) = (Origin::of_all(), Clock::by_hand());
    let settings = {
        let clock = clock.clone();
        move |_, builder: GroupBuilder| builder.clock(clock.clone())
    };
    let [a, b] = Cluster::over(&origin).with_handover().settings(settings).start();
    let keys: Vec<_> = (0..500).map(|i| i.to_string()).collect();
    let ask_owners = || {
        for node in [&a, &b] {
            let own: Vec<_> = keys.iter().filter(|key| node.pool.owner(key) == node.url).collect();
            node.get_many(&own);
        }
    };
    ask_owners();
    for node in [&a, &b] {
        node.pool.set_peers([&a.url, &b.url, &dead_url()]).unwrap();
        node.pool.set_peers([&a.url, &b.url]).unwrap();
    }
    clock.advance(Duration::from_secs(31));
    ask_owners();
    assert_eq!(origin.loads(), keys.len());
}

/// A value that no removal reached is no answer for longer than twice the `hot_ttl`.
#[test]
fn a_copy_that_no_removal_reached_does_not_come_back_when_the_origin_fails() {
    let (version, clock) = (Arc::new(AtomicUsize::new(1)), Clock::by_hand());
    let origin = Origin::new({
        let version = version.clone();
        move |_: &str| match version.load(Ordering::SeqCst) {
            0 => Err(BoxError::from("down")),
            version => Ok(Some(version.to_string())),
        }
    });
    let settings = {
        let clock = clock.clone();
        move |_, builder: GroupBuilder| {
            builder.clock(clock.clone()).stale_if_error(Duration::from_secs(3_600))
        }
    };
    let ([a, b, c], relays) = Cluster::over(&origin).settings(settings).behind_relays();
    let key = a.key_of(&b.url);
    (0..3).for_each(|_| assert_eq!(c.get(&key).unwrap(), "1"));
    refuse(&relays[2]);
    version.store(2, Ordering::SeqCst);
    a.group().remove(&key).unwrap_err();
    version.store(0, Ordering::SeqCst);
    clock.advance(Duration::from_secs(61));
    assert!(c.group().get(&key).is_err());
}

/// A node whose process may end and begin anew at the same address.
struct Member {
    url: String,
    node: Mutex<Option<Live>>,
}

struct Live {
    pool: Arc<HttpPool>,
    group: Arc<Group>,
    server: HttpServer,
}

type Versions = Arc<Mutex<HashMap<String, usize>>>;

impl Member {
    fn begin(&self, listener: TcpListener, origin: &Versions, list: &[String]) -> Live {
        let options = PoolOptions { timeout: Duration::from_secs(2), ..PoolOptions::default() };
        let pool = HttpPool::with_options(&*self.url, options).unwrap();
        pool.set_peers(list.iter().cloned().chain([self.url.clone()])).unwrap();
        let origin = origin.clone();
        let load = move |key: &str| {
            let version = origin.lock().unwrap().get(key).copied().unwrap_or(1);
            thread::yield_now();
            Ok::<_, BoxError>(Some(version.to_string()))
        };
        let group = Group::builder("scores", load).peers(pool.clone()).build().unwrap();
        let options = ServerOptions::default();
        let server = HttpServer::start(listener, [group.clone()], options).unwrap();
        Live { pool, group, server }
    }

    fn begin_anew(&self, origin: &Versions, list: &[String]) {
        let mut node = self.node.lock().unwrap();
        let server = node.take().unwrap().server;
        let address = server.local_addr();
        assert!(server.shutdown(LONG));
        drop(server);
        let listener = TcpListener::bind(address).unwrap();
        *node = Some(self.begin(listener, origin, list));
    }

    fn live(&self) -> (Arc<HttpPool>, Arc<Group>) {
        let node = self.node.lock().unwrap();
        let Live { pool, group, .. } = node.as_ref().unwrap();
        (pool.clone(), group.clone())
    }
}

/// Lists change at some nodes and not at others, nodes begin anew, while others ask and remove. In the end
/// all lists agree, and no node has a value from before a removal that returned `Ok`.
fn episode(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let nodes = random.random_range(3..=5);
    let origin = Versions::default();
    let keys: Vec<String> = (0..12).map(|i| format!("key {i}")).collect();
    let listeners: Vec<_> = (0..nodes).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let urls: Vec<_> = listeners.iter().map(|l| url_of(l.local_addr().unwrap())).collect();
    let members: Vec<_> =
        urls.iter().map(|url| Member { url: url.clone(), node: Mutex::default() }).collect();
    for (member, listener) in members.iter().zip(listeners) {
        let node = member.begin(listener, &origin, &urls);
        *member.node.lock().unwrap() = Some(node);
    }
    let removers = &urls[..2];
    let floors = Mutex::new(HashMap::<String, usize>::new());
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for caller in 0..2 {
            let mut random = StdRng::seed_from_u64(seed ^ caller << 32 ^ 1 << 40);
            let (members, keys, is_over) = (&members, &keys, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    let (_, group) = members[random.random_range(0..nodes)].live();
                    let key = &keys[random.random_range(0..keys.len())];
                    if random.random_bool(0.2) {
                        let all: Vec<_> = keys.iter().map(String::as_str).collect();
                        group.get_many(&all);
                    } else {
                        group.get(key).unwrap();
                    }
                }
            });
        }
        let remover = scope.spawn(|| {
            let mut random = StdRng::seed_from_u64(seed ^ 1 << 41);
            for version in 2..20 {
                let (_, group) = members[random.random_range(0..removers.len())].live();
                let clears = random.random_bool(0.1);
                let written: Vec<_> = match clears {
                    true => keys.clone(),
                    false => vec![keys[random.random_range(0..keys.len())].clone()],
                };
                origin.lock().unwrap().extend(written.iter().map(|key| (key.clone(), version)));
                let removed = if clears { group.clear() } else { group.remove(&written[0]) };
                if removed.is_ok() {
                    floors.lock().unwrap().extend(written.into_iter().map(|key| (key, version)));
                }
            }
        });
        while !remover.is_finished() {
            let member = &members[random.random_range(0..nodes)];
            let list: Vec<_> = urls.iter().filter(|_| random.random_bool(0.6)).cloned().collect();
            // Nobody repeats the removals of a process that has ended, so those that remove stay.
            if !removers.contains(&member.url) && random.random_bool(0.1) {
                member.begin_anew(&origin, &list);
            } else {
                let (pool, _) = member.live();
                pool.set_peers(list.into_iter().chain([member.url.clone()])).unwrap();
            }
        }
        remover.join().unwrap();
        is_over.store(true, Ordering::SeqCst);
    });
    for member in &members {
        member.live().0.set_peers(&urls).unwrap();
    }
    let floors = floors.into_inner().unwrap();
    // The last change of each list waits for its removals for 100 ms only, so they may still be under way.
    // But a value that they do not reach stays for longer than this.
    let start = Instant::now();
    for (i, member) in members.iter().enumerate() {
        for key in &keys {
            let floor = floors.get(key).copied().unwrap_or(1);
            let version = || -> usize {
                member.live().1.get(key).unwrap().unwrap().to_string().parse().unwrap()
            };
            while version() < floor {
                let text = format!("seed {seed}: node {i} of {nodes} has {key:?} {}", version());
                assert!(start.elapsed() < Duration::from_secs(10), "{text} < {floor}");
                thread::yield_now();
            }
        }
    }
    for member in members {
        assert!(member.node.into_inner().unwrap().unwrap().server.shutdown(LONG));
    }
}

/// `GEECACHE_TEST_SEEDS=1000` tries as many orders.
#[test]
fn whatever_happens_to_lists_while_keys_are_removed_nothing_old_is_left() {
    let seeds = env::var("GEECACHE_TEST_SEEDS").map_or(10, |seeds| seeds.parse().unwrap());
    (0..seeds).for_each(episode);
}
