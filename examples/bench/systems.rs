//! The systems that are compared, each as a read-through cache: ask for a key, and load it if
//! it is not there.
//!
//! All have the same keys (text) and values (bytes that are shared, not copied, on a hit), and
//! load by copying the same prepared bytes. Each hashes as it does by default.

use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use geecache::{Eviction, Group, GroupBuilder};
use lru::LruCache;
use quick_cache::Weighter;

use crate::workload::Keys;

pub(crate) type Key = Box<str>;
pub(crate) type Value = Arc<[u8]>;

pub(crate) trait System: Send + Sync {
    fn name(&self) -> &'static str;

    /// Asks for each key of the sequence, and loads those that are not there.
    fn replay(&self, keys: &Keys, sequence: &[u32]);

    /// How many times a key was loaded.
    fn loads(&self) -> u64;

    /// How many entries it holds.
    fn entries(&self) -> usize;
}

/// How large a cache is: room for so many entries of one size.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) entries: usize,
    pub(crate) key_bytes: usize,
    pub(crate) value_bytes: usize,
}

/// By what a cache is bounded that knows both. A [`Group`] counts bytes, `lru` counts entries.
#[derive(Clone, Copy)]
pub(crate) enum Bound {
    Entries,
    Bytes,
}

/// geecache and the crates that people would use instead, geecache first.
pub(crate) fn all(size: Size, bound: Bound) -> Vec<Box<dyn System>> {
    vec![geecache(size), quick_cache(size, bound), moka(size, bound), lru(size)]
}

/// geecache, and those of the others that promise the same: all who ask for a key that is not there
/// wait for one load.
pub(crate) fn all_that_load_once(size: Size) -> Vec<Box<dyn System>> {
    let quick = quick_cache::sync::Cache::with_weighter(size.entries, size.bytes(), Length);
    let moka = moka::sync::Cache::builder()
        .max_capacity(size.bytes())
        .weigher(|key: &String, value: &Value| (key.len() + value.len()) as u32);
    vec![
        geecache(size),
        Box::new(QuickOnce { cache: quick, origin: Origin::new(size) }),
        Box::new(MokaOnce { cache: moka.build(), origin: Origin::new(size) }),
    ]
}

/// geecache, as LRU too, and others with a budget of bytes. All charge an entry for its key, its value
/// and 80 bytes, as geecache does. The values of the keys from `first` on are large.
pub(crate) fn all_with_large(
    max_bytes: usize,
    size: Size,
    large: impl Fn() -> Large,
) -> Vec<Box<dyn System>> {
    let origin = || Origin { large: Some(large()), ..Origin::new(size) };
    let settings = |group: GroupBuilder| group.max_bytes(max_bytes);
    let weight = Charged;
    let moka = moka::sync::Cache::builder().max_capacity(max_bytes as u64);
    let moka = moka.weigher(|key: &Key, value: &Value| Charged.weight(key, value) as u32);
    vec![
        Box::new(Geecache::over(origin(), settings)),
        Box::new(Geecache::over(origin(), |group| settings(group).eviction(Eviction::Lru))),
        Box::new(Quick {
            cache: quick_cache::sync::Cache::with_weighter(size.entries, max_bytes as u64, weight),
            origin: origin(),
        }),
        Box::new(Moka { cache: moka.build(), prompt: true, origin: origin() }),
    ]
}

/// The keys that have large values: those from `first` on.
pub(crate) struct Large {
    pub(crate) first: String,
    pub(crate) value: Vec<u8>,
}

/// The names of [`all`].
pub(crate) const NAMES: [&str; 4] = ["geecache", "quick_cache", "moka", "Mutex<lru>"];

/// A group with default settings.
pub(crate) fn geecache(size: Size) -> Box<dyn System> {
    geecache_of(size.max_bytes(), size)
}

/// A group that evicts the least recently used.
pub(crate) fn geecache_lru(size: Size) -> Box<dyn System> {
    let settings = |group: GroupBuilder| group.max_bytes(size.max_bytes()).eviction(Eviction::Lru);
    Box::new(Geecache::new(size, settings))
}

/// A group with this budget.
pub(crate) fn geecache_of(max_bytes: usize, size: Size) -> Box<dyn System> {
    Box::new(Geecache::new(size, |group| group.max_bytes(max_bytes)))
}

pub(crate) fn quick_cache(size: Size, bound: Bound) -> Box<dyn System> {
    let origin = Origin::new(size);
    match bound {
        Bound::Entries => {
            Box::new(Quick { cache: quick_cache::sync::Cache::new(size.entries), origin })
        }
        Bound::Bytes => Box::new(Quick {
            cache: quick_cache::sync::Cache::with_weighter(size.entries, size.bytes(), Length),
            origin,
        }),
    }
}

pub(crate) fn moka(size: Size, bound: Bound) -> Box<dyn System> {
    Box::new(Moka::new(size, bound, false))
}

/// A moka that tidies up after each insertion, and so never holds more than it has room for.
/// By default it does so now and then, which in a small cache flatters its hit ratio.
pub(crate) fn prompt_moka(size: Size) -> Box<dyn System> {
    Box::new(Moka::new(size, Bound::Entries, true))
}

pub(crate) fn lru(size: Size) -> Box<dyn System> {
    let entries = size.entries.try_into().expect("room for an entry");
    Box::new(Lru { cache: Mutex::new(LruCache::new(entries)), origin: Origin::new(size) })
}

impl Size {
    /// The bytes of all keys and values.
    pub(crate) fn bytes(self) -> u64 {
        (self.entries * (self.key_bytes + self.value_bytes)) as u64
    }

    /// The budget of a group with room for just these entries: what one is charged for, read
    /// off a group that holds one.
    pub(crate) fn max_bytes(self) -> usize {
        let value = vec![0; self.value_bytes];
        let probe =
            Group::builder("probe", move |_: &str| Ok::<_, Infallible>(Some(value.clone())));
        let probe = probe.build().expect("a group");
        probe.get(&"k".repeat(self.key_bytes)).expect("a value");
        self.entries * probe.stats().main.bytes
    }
}

/// What every system loads from.
struct Origin {
    value: Vec<u8>,
    large: Option<Large>,
    loads: AtomicU64,
}

impl Origin {
    fn new(size: Size) -> Self {
        Self { value: vec![b'v'; size.value_bytes], large: None, loads: AtomicU64::new(0) }
    }

    fn load<'o, V: From<&'o [u8]>>(&'o self, key: &str) -> V {
        self.loads.fetch_add(1, Ordering::Relaxed);
        let large = self.large.as_ref().filter(|large| key >= &*large.first);
        V::from(large.map_or(&self.value, |large| &large.value))
    }

    fn loads(&self) -> u64 {
        self.loads.load(Ordering::Relaxed)
    }
}

struct Geecache {
    group: Arc<Group>,
    origin: Arc<Origin>,
}

impl Geecache {
    fn new(size: Size, settings: impl FnOnce(GroupBuilder) -> GroupBuilder) -> Self {
        Self::over(Origin::new(size), settings)
    }

    fn over(origin: Origin, settings: impl FnOnce(GroupBuilder) -> GroupBuilder) -> Self {
        let origin = Arc::new(origin);
        let getter = {
            let origin = origin.clone();
            move |key: &str| Ok::<_, Infallible>(Some(origin.load::<Vec<u8>>(key)))
        };
        let group = settings(Group::builder("bench", getter)).build().expect("a group");
        Self { group, origin }
    }
}

impl System for Geecache {
    fn name(&self) -> &'static str {
        "geecache"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let value = self.group.get(keys.get(key)).expect("the getter does not fail");
            black_box(value);
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.group.stats().main.entries
    }
}

struct Quick<W: Weighter<Key, Value>> {
    cache: quick_cache::sync::Cache<Key, Value, W>,
    origin: Origin,
}

/// Weighs an entry by the bytes of its key and value.
#[derive(Clone)]
struct Length;

impl<K: AsRef<str>> Weighter<K, Value> for Length {
    fn weight(&self, key: &K, value: &Value) -> u64 {
        (key.as_ref().len() + value.len()) as u64
    }
}

/// Weighs an entry as geecache does.
#[derive(Clone)]
struct Charged;

impl Weighter<Key, Value> for Charged {
    fn weight(&self, key: &Key, value: &Value) -> u64 {
        Length.weight(key, value) + 80
    }
}

impl<W: Weighter<Key, Value> + Clone + Send + Sync> System for Quick<W> {
    fn name(&self) -> &'static str {
        "quick_cache"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let key = keys.get(key);
            let value = self.cache.get(key).unwrap_or_else(|| {
                let value: Value = self.origin.load(key);
                self.cache.insert(key.into(), value.clone());
                value
            });
            black_box(value);
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.cache.len()
    }
}

struct Moka {
    cache: moka::sync::Cache<Key, Value>,
    prompt: bool,
    origin: Origin,
}

impl Moka {
    fn new(size: Size, bound: Bound, prompt: bool) -> Self {
        let cache = match bound {
            Bound::Entries => moka::sync::Cache::new(size.entries as u64),
            Bound::Bytes => moka::sync::Cache::builder()
                .max_capacity(size.bytes())
                .weigher(|key: &Key, value: &Value| (key.len() + value.len()) as u32)
                .build(),
        };
        Self { cache, prompt, origin: Origin::new(size) }
    }
}

impl System for Moka {
    fn name(&self) -> &'static str {
        "moka"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let key = keys.get(key);
            let value = self.cache.get(key).unwrap_or_else(|| {
                let value: Value = self.origin.load(key);
                self.cache.insert(key.into(), value.clone());
                if self.prompt {
                    self.cache.run_pending_tasks();
                }
                value
            });
            black_box(value);
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.cache.run_pending_tasks();
        self.cache.entry_count() as usize
    }
}

/// Keys are `String`s, since that is what a `&str` can be made into here.
struct QuickOnce {
    cache: quick_cache::sync::Cache<String, Value, Length>,
    origin: Origin,
}

impl System for QuickOnce {
    fn name(&self) -> &'static str {
        "quick_cache, get_or_insert_with"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let key = keys.get(key);
            let load = || Ok::<_, Infallible>(self.origin.load(key));
            let Ok(value) = self.cache.get_or_insert_with(key, load);
            black_box(value);
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.cache.len()
    }
}

struct MokaOnce {
    cache: moka::sync::Cache<String, Value>,
    origin: Origin,
}

impl System for MokaOnce {
    fn name(&self) -> &'static str {
        "moka, get_with_by_ref"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let key = keys.get(key);
            black_box(self.cache.get_with_by_ref(key, || self.origin.load(key)));
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.cache.run_pending_tasks();
        self.cache.entry_count() as usize
    }
}

struct Lru {
    // Guards the whole cache: every get moves its entry to the front.
    cache: Mutex<LruCache<Key, Value>>,
    origin: Origin,
}

impl System for Lru {
    fn name(&self) -> &'static str {
        "Mutex<lru>"
    }

    fn replay(&self, keys: &Keys, sequence: &[u32]) {
        for &key in sequence {
            let key = keys.get(key);
            let held = self.cache.lock().unwrap().get(key).cloned();
            let value = held.unwrap_or_else(|| {
                let value: Value = self.origin.load(key);
                // What is pushed out is dropped outside of the lock.
                let evicted = self.cache.lock().unwrap().push(key.into(), value.clone());
                drop(evicted);
                value
            });
            black_box(value);
        }
    }

    fn loads(&self) -> u64 {
        self.origin.loads()
    }

    fn entries(&self) -> usize {
        self.cache.lock().unwrap().len()
    }
}
