//! Which share of the gets does a node answer without asking a peer?

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use geecache::{Group, GroupBuilder, Loaded, PeerError, PeerGetter, PeerPicker};
use lru::LruCache;
use rand::RngExt;

use crate::systems::Size;
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, zipf};
use crate::{Settings, progress};

const NODES: u32 = 3;
const SIZE: Size = Size { entries: 100_000, key_bytes: 13, value_bytes: 100 };
const GETS: usize = 100_000;

pub(crate) fn run(_settings: &Settings) -> Report {
    let bar = progress("hot", 3);
    let keys = Keys::new(SIZE.entries, SIZE.key_bytes);
    let sequence = zipf(&mut rng(1), SIZE.entries, 0.99, GETS);
    let (budget, hot_entries) = (SIZE.max_bytes() / 10, SIZE.entries / 10 / 8);
    let geecache = peer_calls_of(&keys, &sequence, |group| group.max_bytes(budget));
    bar.inc(1);
    let coin = peer_calls_of_a_coin(&keys, &sequence, hot_entries);
    bar.inc(1);
    let none = peer_calls_of(&keys, &sequence, |group| group.max_bytes(budget).hot_bytes(0));
    bar.inc(1);

    let mut table = Table::new(
        "100,000 gets, Zipf 0.99 over 100,000 keys, at a node that owns a third of them; \
         the budget holds a tenth of the keys",
        &["hot cache", "answered in process", "peers asked", "times geecache's"],
    );
    for (name, calls) in [
        ("geecache: S3-FIFO of 1/8 of the budget", geecache),
        ("groupcache: a coin of 10 %, LRU of the same size", coin),
        ("none", none),
    ] {
        table.row([
            name.into(),
            Cell::Percent(1.0 - calls as f64 / GETS as f64),
            calls.into(),
            Cell::Number(calls as f64 / geecache as f64, 2),
        ]);
    }
    Report { topic: "hot", tables: vec![table] }
}

fn peer_calls_of(
    keys: &Keys,
    sequence: &[u32],
    settings: impl FnOnce(GroupBuilder) -> GroupBuilder,
) -> usize {
    let peer = Arc::new(Peer { calls: AtomicUsize::new(0) });
    let getter = |_: &str| Ok::<_, Infallible>(Some(value()));
    let group = Group::builder("hot", getter).peers(Arc::new(Peers(peer.clone())));
    let group = settings(group).build().expect("a group");
    for &key in sequence {
        group.get(keys.get(key)).expect("an answer");
    }
    peer.calls.load(Ordering::Relaxed)
}

/// As groupcache does it: of the values that a peer gave, one in ten is kept.
fn peer_calls_of_a_coin(keys: &Keys, sequence: &[u32], entries: usize) -> usize {
    let mut hot = LruCache::new(entries.try_into().expect("room for an entry"));
    let mut rng = rng(2);
    let mut calls = 0;
    for &key in sequence {
        let key = keys.get(key);
        if is_own(key) || hot.get(key).is_some() {
            continue;
        }
        calls += 1;
        if rng.random_range(0..10) == 0 {
            hot.put(key, ());
        }
    }
    calls
}

/// Whether the node that is asked owns the key.
fn is_own(key: &str) -> bool {
    crc32fast::hash(key.as_bytes()).is_multiple_of(NODES)
}

fn value() -> Vec<u8> {
    vec![b'v'; SIZE.value_bytes]
}

/// All the other nodes, as one that counts.
struct Peer {
    calls: AtomicUsize,
}

impl PeerGetter for Peer {
    fn name(&self) -> &str {
        "peer"
    }

    fn get(&self, _group: &str, _key: &str) -> Result<Option<Loaded>, PeerError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(Some(value().into()))
    }
}

struct Peers(Arc<Peer>);

impl PeerPicker for Peers {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        (!is_own(key)).then(|| self.0.clone() as _)
    }
}
