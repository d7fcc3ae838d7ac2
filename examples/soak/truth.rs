//! What a get may answer: the data behind the cache, every version they had, and when.
//!
//! How can an answer be checked while values change, removals fail half-way and nodes come and
//! go? A value names its key and its version. A version is never too new: it is one that the
//! origin had before the answer came. It is too old if it was there before
//!
//! - the last removal that returned `Ok` while all nodes had the same list, and that had returned
//!   when the get began: no node can have anything older, and nobody can load it any more; or
//! - the version that was the newest so long ago that everything older has expired.
//!
//! So where the newest version was removed completely, only that one will do, or one that came
//! while the get was under way. Where its removal is under way, or did not reach a node, or fell
//! into a change of the lists, the versions before it will do as well: [`Rule`] tells them apart.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use geecache::tiny_http::{Request, Response, ResponseBox};

/// The keys that are asked for at random. Those above them are for the end.
pub(crate) const KEYS: usize = 2_000;

/// For how long a node keeps a value.
pub(crate) const TTL: Duration = Duration::from_secs(10);

/// For how much longer, to answer where a load fails.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// One in so many loads fails.
const FAILS: u64 = 16;
/// What the origin says then.
pub(crate) const DOWN: &str = "the origin answers 503";

/// So long ago a value was changed that nobody has it any more: it has expired, also where loads
/// fail, and what was under way then has ended.
const LONG_AGO: Duration = TTL.saturating_add(GRACE).saturating_add(crate::TIMEOUT);

/// How long a load takes at the least, so that others fall into it.
const LOAD: Duration = Duration::from_millis(5);

pub(crate) struct Truth {
    keys: Vec<Mutex<History>>,
    loads: Vec<AtomicU64>,
    /// Odd while the lists of the nodes may differ.
    lists: AtomicU64,
    /// Read by each who asks.
    asking: RwLock<()>,
}

struct History {
    /// When each version came.
    versions: Vec<Instant>,
    /// The newest one when a complete removal began.
    removed: u64,
    /// The same of any other removal.
    half_removed: u64,
}

/// Which answers would have been right.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The newest version, its predecessors were removed.
    Newest,
    /// One since the last removal; the one after the last change has not returned.
    Changing,
    /// One since the last removal that reached all nodes, or that has not expired.
    HalfRemoved,
}

/// A key that is about to be asked for.
pub(crate) struct Question<'t> {
    truth: &'t Truth,
    key: usize,
    oldest: u64,
    pub(crate) rule: Rule,
}

/// A removal that is about to begin.
pub(crate) struct Removal<'t> {
    truth: &'t Truth,
    keys: Range<usize>,
    newest: Vec<u64>,
    lists: u64,
}

impl Truth {
    pub(crate) fn new(keys: usize) -> Self {
        let history = || History { versions: vec![Instant::now()], removed: 0, half_removed: 0 };
        Self {
            keys: (0..keys).map(|_| Mutex::new(history())).collect(),
            loads: (0..keys).map(|_| AtomicU64::new(0)).collect(),
            lists: AtomicU64::new(0),
            asking: RwLock::new(()),
        }
    }

    /// The value of the key in the path, as the nodes load it.
    pub(crate) fn answer(&self, request: &Request) -> ResponseBox {
        let key: usize = request.url()[1..].parse().expect("nodes ask for keys");
        self.loads[key].fetch_add(1, Ordering::SeqCst);
        // Not of the keys that are for the end.
        if key < KEYS && rand::random_range(0..FAILS) == 0 {
            return Response::from_string("down").with_status_code(503).boxed();
        }
        let version = self.keys[key].lock().unwrap().newest();
        thread::sleep(LOAD);
        match value(key, version) {
            Some(value) => Response::from_string(value).boxed(),
            None => Response::empty(404).boxed(),
        }
    }

    /// How often the key was loaded.
    pub(crate) fn loads(&self, key: usize) -> u64 {
        self.loads[key].load(Ordering::SeqCst)
    }

    /// To be held by who asks, from before the first question until the last check.
    pub(crate) fn asking(&self) -> RwLockReadGuard<'_, ()> {
        self.asking.read().unwrap()
    }

    pub(crate) fn question(&self, key: usize) -> Question<'_> {
        let history = self.keys[key].lock().unwrap();
        let long_ago = Instant::now().checked_sub(LONG_AGO);
        let expired = history.versions.partition_point(|&came| Some(came) <= long_ago) as u64;
        let oldest = history.removed.max(expired.saturating_sub(1));
        let rule = match () {
            () if oldest == history.newest() => Rule::Newest,
            () if history.half_removed > oldest => Rule::HalfRemoved,
            () => Rule::Changing,
        };
        Question { truth: self, key, oldest, rule }
    }

    /// Gives the key a new version.
    pub(crate) fn change(&self, key: usize) {
        self.keys[key].lock().unwrap().versions.push(Instant::now());
    }

    pub(crate) fn removal(&self, keys: Range<usize>) -> Removal<'_> {
        let lists = self.lists.load(Ordering::SeqCst);
        let newest = self.keys[keys.clone()].iter().map(|key| key.lock().unwrap().newest());
        Removal { truth: self, newest: newest.collect(), keys, lists }
    }

    /// From now on the lists of the nodes may differ.
    pub(crate) fn lists_differ(&self) {
        self.lists.fetch_add(1, Ordering::SeqCst);
    }

    /// All nodes have been given the same list.
    pub(crate) fn lists_agree(&self) {
        // Who began before may still act on the old list. Waits until they are through.
        drop(self.asking.write().unwrap());
        self.lists.fetch_add(1, Ordering::SeqCst);
    }
}

impl History {
    fn newest(&self) -> u64 {
        self.versions.len() as u64 - 1
    }
}

impl Question<'_> {
    /// What is wrong with the answer to a get that began after the question was made.
    pub(crate) fn check(&self, answer: Option<&str>) -> Result<(), String> {
        let newest = self.truth.keys[self.key].lock().unwrap().newest();
        let mut allowed = (self.oldest..=newest).map(|version| value(self.key, version));
        if allowed.any(|allowed| allowed.as_deref() == answer) {
            return Ok(());
        }
        let answer = answer.map_or("no such key", |answer| &answer[..answer.len().min(40)]);
        let Self { key, oldest, .. } = self;
        Err(format!("key {key}, versions {oldest} to {newest}: {answer:?}"))
    }
}

impl Removal<'_> {
    /// Whether nothing older is left anywhere.
    pub(crate) fn ended(self, is_complete: bool) -> bool {
        let agreed =
            self.lists.is_multiple_of(2) && self.lists == self.truth.lists.load(Ordering::SeqCst);
        for (key, newest) in self.keys.zip(self.newest) {
            let mut history = self.truth.keys[key].lock().unwrap();
            let removed = match is_complete && agreed {
                true => &mut history.removed,
                false => &mut history.half_removed,
            };
            *removed = newest.max(*removed);
        }
        is_complete && agreed
    }
}

/// The value of a version: its key, its number, and letters of which both say how many. Every
/// seventh version is that there is no such key.
fn value(key: usize, version: u64) -> Option<String> {
    if version % 7 == 6 {
        return None;
    }
    let mixed = (key as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ version.wrapping_mul(0xd1b5_4a32_d192_ed03);
    let letters = (mixed >> 32) % 64;
    Some(format!("{key} {version} {}", "x".repeat((letters * letters) as usize)))
}
