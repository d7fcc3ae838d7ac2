//! Long random sequences against a plain model: what a cache may hold, and what an LRU must.

use std::collections::HashMap;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// How long before its end a value is due for renewal.
const AHEAD: Duration = Duration::from_secs(5);

/// What is done to the cache.
#[derive(Clone, Debug)]
enum Step {
    Get(usize),
    Put {
        key: usize,
        /// In thousandths of the budget: some are too large.
        size: usize,
        absent: bool,
        ttl: Option<u64>,
    },
    /// A put whose key is removed between the lease and the insertion.
    PutLate(usize),
    Remove(usize),
    Clear,
    Advance(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..KEYS.len();
    let ttl = proptest::option::weighted(0.3, 0..20_u64);
    // Most are small enough for many to fit in.
    let size = prop_oneof![8 => 0..150_usize, 1 => 0..1_200_usize];
    let put = (key(), size, prop::bool::weighted(0.1), ttl);
    prop_oneof![
        40 => key().prop_map(Step::Get),
        40 => put.prop_map(|(key, size, absent, ttl)| Step::Put { key, size, absent, ttl }),
        3 => key().prop_map(Step::PutLate),
        8 => key().prop_map(Step::Remove),
        1 => Just(Step::Clear),
        6 => (0..10_u64).prop_map(Step::Advance),
    ]
}

/// The hashes of the keys, by which they meet: in a shard, in a chain of its table, in a lease, and
/// some in all 64 bits.
const KEYS: [u64; 24] = {
    let mut hashes = [0; 24];
    let mut i = 0;
    while i < hashes.len() {
        let i_ = i as u64;
        hashes[i] = (i_ % 3) | (i_ % 2) << 20 | (i_ % 4) << 24 | (i_ % 5) << 40;
        i += 1;
    }
    hashes
};

/// What is known of an entry: its value (`None`: the key is absent), its cost, and its end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    value: Option<Vec<u8>>,
    cost: usize,
    expires: Option<Duration>,
}

/// A cache and a model of it, which does everything the slow and plain way.
struct Pair {
    cache: Cache,
    clock: Clock,
    eviction: Eviction,
    grace: Duration,
    texts: Vec<String>,
    /// By key, the entry put in last; it may have been evicted, unless this is an LRU.
    model: HashMap<usize, Entry>,
    /// The keys of the model from the least to the most recently used.
    uses: Vec<usize>,
    counts: CacheStats,
    steps: usize,
}

impl Pair {
    fn new(max_bytes: usize, eviction: Eviction, grace: Duration) -> Self {
        let clock = Clock::by_hand();
        Self {
            cache: Cache::new(max_bytes, eviction, AHEAD, clock.clone()),
            clock,
            eviction,
            grace,
            texts: (0..KEYS.len()).map(|key| format!("key {key}")).collect(),
            model: HashMap::new(),
            uses: Vec::new(),
            counts: CacheStats { max_bytes, ..CacheStats::default() },
            steps: 0,
        }
    }

    fn key(&self, key: usize) -> Key<'_> {
        Key { text: &self.texts[key], hash: KEYS[key] }
    }

    /// With many shards, which of them gives way depends on their parts of the budget.
    fn is_exact(&self) -> bool {
        self.eviction == Eviction::Lru && self.cache.shards.len() == 1
    }

    fn has_expired(&self, entry: &Entry) -> bool {
        entry.expires.is_some_and(|at| at <= self.clock.now())
    }

    fn do_step(&mut self, step: &Step) {
        self.steps += 1;
        match *step {
            Step::Get(key) => self.get(key),
            Step::Put { key, size, absent, ttl } => self.put(key, size, absent, ttl),
            Step::PutLate(key) => {
                let lease = self.cache.lease(&self.key(key));
                self.remove(key);
                let late = Record::new(&self.texts[key], Some(b"from before"), None);
                self.counts.rejected += u64::from(late.cost() > self.counts.max_bytes);
                self.cache.insert(&self.key(key), late, lease);
            }
            Step::Remove(key) => self.remove(key),
            Step::Clear => {
                self.cache.clear();
                self.model.clear();
                self.uses.clear();
            }
            Step::Advance(seconds) => self.clock.advance(Duration::from_secs(seconds)),
        }
    }

    fn get(&mut self, key: usize) {
        let mut is_due = false;
        let found = self.cache.get(&self.key(key), || is_due = true).is_some();
        self.counts.hits += u64::from(found);
        let Some(entry) = self.model.get(&key) else {
            return; // `check` sees that nothing is there
        };
        let now = self.clock.now();
        let has_expired = self.has_expired(entry);
        let is_near = entry.expires.is_some_and(|at| at <= now + AHEAD);
        assert_eq!(is_due, found && entry.value.is_some() && is_near);
        if !has_expired {
            self.use_now(key);
        }
        if self.is_exact() {
            assert_eq!(found, self.model.contains_key(&key) && !has_expired);
        }
    }

    fn put(&mut self, key: usize, size: usize, absent: bool, ttl: Option<u64>) {
        let length = self.counts.max_bytes * size / 1_000;
        // The number of the step, so that no value is like another.
        let value = [&self.steps.to_le_bytes()[..], &vec![0; length][..]].concat();
        let value = (!absent).then_some(value);
        let expires = ttl.map(|ttl| self.clock.now() + Duration::from_secs(ttl));
        let record = Record::new(&self.texts[key], value.as_deref(), expires);
        let entry = Entry { value, cost: record.cost(), expires };
        let room = self.counts.max_bytes - self.cache.bytes.0.load(Ordering::Relaxed);
        let is_kept = self.cache.peek(&self.key(key)).is_some() || entry.cost <= room;
        let lease = self.cache.lease(&self.key(key));
        self.cache.insert(&self.key(key), record, lease);
        if self.cache.stats().rejected > self.counts.rejected {
            let may_be_large = self.eviction == Eviction::S3Fifo && !is_kept;
            assert!(entry.cost > self.counts.max_bytes || may_be_large);
            self.counts.rejected += 1;
            self.forget(key);
            return;
        }
        assert!(entry.cost <= self.counts.max_bytes);
        let held = self.cache.peek(&self.key(key));
        assert!(held.is_some() || self.has_expired(&entry), "what fits is kept");
        let replaced = self.model.insert(key, entry);
        self.counts.expirations += u64::from(replaced.is_some_and(|old| self.has_expired(&old)));
        self.use_now(key);
        if self.is_exact() {
            self.make_room();
        }
    }

    fn make_room(&mut self) {
        while self.bytes() > self.counts.max_bytes {
            let oldest = self.uses[0];
            match self.has_expired(&self.model[&oldest]) {
                true => self.counts.expirations += 1,
                false => self.counts.evictions += 1,
            }
            self.forget(oldest);
        }
    }

    fn bytes(&self) -> usize {
        self.model.values().map(|entry| entry.cost).sum()
    }

    fn use_now(&mut self, key: usize) {
        self.uses.retain(|&used| used != key);
        self.uses.push(key);
    }

    fn forget(&mut self, key: usize) {
        self.model.remove(&key);
        self.uses.retain(|&used| used != key);
    }

    fn remove(&mut self, key: usize) {
        self.cache.remove(&self.key(key));
        self.forget(key);
    }

    fn check(&self) {
        for Padded(shard) in &self.cache.shards {
            shard.lock().unwrap().validate();
        }
        let stats = self.cache.stats();
        assert_eq!(self.cache.bytes.0.load(Ordering::Relaxed), stats.bytes);
        assert!(stats.bytes <= stats.max_bytes, "{stats:?}");
        assert_eq!((stats.hits, stats.rejected), (self.counts.hits, self.counts.rejected));
        for key in 0..KEYS.len() {
            let held = self.cache.peek(&self.key(key));
            let expected = self.model.get(&key).filter(|entry| !self.has_expired(entry));
            if let Some(record) = &held {
                let entry = expected.expect("nothing removed or expired is held");
                assert_eq!((record.cost(), record.expires()), (entry.cost, entry.expires));
                assert_eq!(record.clone().into_value().as_deref(), entry.value.as_deref());
            }
            let past = self.cache.past(&self.key(key), self.grace);
            let is_past =
                |at: Duration| at <= self.clock.now() && self.clock.now() < at + self.grace;
            let expected_past =
                self.model.get(&key).filter(|entry| entry.expires.is_some_and(is_past));
            if let Some(past) = &past {
                let entry = expected_past.expect("nothing removed, alive or over is past its time");
                assert_eq!(past.clone().into_value().as_deref(), entry.value.as_deref());
            }
            if self.is_exact() {
                assert_eq!(held.is_some(), expected.is_some(), "key {key}");
                assert_eq!(past.is_some(), expected_past.is_some(), "key {key}");
            }
        }
        if self.is_exact() {
            let (entries, bytes) = (self.model.len(), self.bytes());
            assert_eq!(stats, CacheStats { entries, bytes, ..self.counts });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_cache_agrees_with_its_model_after_each_step(
        // One shard, in which a few or all keys fit, or several.
        max_bytes in prop_oneof![0..3_000_usize, 3_000..20_000_usize, 200_000..600_000_usize],
        eviction in prop_oneof![Just(Eviction::Lru), Just(Eviction::S3Fifo)],
        grace in prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(7))],
        steps in vec(step(), 1..200),
    ) {
        let mut pair = Pair::new(max_bytes, eviction, grace);
        for step in &steps {
            pair.do_step(step);
            pair.check();
        }
    }
}
