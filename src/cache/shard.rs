//! `Shard`: the map, the entries, their bytes and their order; one thread at a time.
//!
//! The cache is cut into shards so that threads seldom meet at the same lock. A shard never
//! drops a record by itself: what leaves is returned, and dropped outside of the lock.

use hashbrown::HashTable;
use std::collections::BTreeSet;
use std::hash::BuildHasher;
use std::time::Duration;

use super::order::{Eviction, Order};
use super::{Hasher, Key, Record};

pub(crate) struct Shard {
    hasher: Hasher,
    // Places of records, found by the hash of their key.
    table: HashTable<u32>,
    // The slab. An emptied place is listed in `vacant` until it is used again.
    records: Vec<Option<Record>>,
    vacant: Vec<u32>,
    order: Order,
    // When the entries that expire do, soonest first.
    expiries: BTreeSet<(Duration, u32)>,
    // How often keys were removed, counted for some keys together.
    removals: [u32; LEASES],
    pub(crate) bytes: usize,
    pub(crate) counts: Counts,
}

/// Keys are spread over so many counts of removals, lest the removal of one end the leases of all.
const LEASES: usize = 64;

/// The right to put in what is loaded from now on. A removal of the key ends it, and now and then
/// that of another key.
///
/// 1. Thread A misses, takes a lease and asks the origin, which says v1.
/// 2. The origin turns to v2, and thread B removes the key.
/// 3. A comes with v1. Its lease is from before the removal, so v1 is not put in.
#[derive(Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) struct Lease(u32);

/// What a shard counts under its lock, so that threads share no counter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) hits: u64,
    pub(crate) evictions: u64,
    pub(crate) expirations: u64,
}

/// What a look-up finds.
pub(crate) enum Found {
    Hit(Record),
    /// The entry was there but past its time; it has been taken out.
    Expired(Record),
    Nothing,
}

impl Shard {
    pub(crate) fn new(eviction: Eviction, hasher: Hasher) -> Self {
        Self {
            hasher,
            table: HashTable::new(),
            records: Vec::new(),
            vacant: Vec::new(),
            order: Order::new(eviction),
            expiries: BTreeSet::new(),
            removals: [0; LEASES],
            bytes: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    /// Looks `key` up; `now` is asked only where the entry can expire.
    pub(crate) fn get(&mut self, key: &Key<'_>, now: impl FnOnce() -> Duration) -> Found {
        let Some(&place) = self.table.find(key.hash, |&place| self.is_at(place, key)) else {
            return Found::Nothing;
        };
        let record = self.record(place);
        if record.expires().is_some_and(|at| at <= now()) {
            self.counts.expirations += 1;
            return Found::Expired(self.take(place, key.hash));
        }
        let hit = record.clone();
        self.counts.hits += 1;
        self.order.touch(place);
        Found::Hit(hit)
    }

    /// What [`get`](Self::get) would find, without counting or touching it.
    pub(crate) fn peek(&self, key: &Key<'_>, now: impl FnOnce() -> Duration) -> Option<Record> {
        let &place = self.table.find(key.hash, |&place| self.is_at(place, key))?;
        let record = self.record(place);
        record.expires().is_none_or(|at| at > now()).then(|| record.clone())
    }

    /// A lease on `key`, to be taken before the origin is asked.
    pub(crate) fn lease(&self, key: &Key<'_>) -> Lease {
        Lease(self.removals[Self::leased_as(key)])
    }

    /// Puts `record` in as the newest, and returns the one of the same key that it replaces; or
    /// gives it back, if the lease has ended.
    pub(crate) fn insert(
        &mut self,
        key: &Key<'_>,
        record: Record,
        lease: Lease,
    ) -> Result<Option<Record>, Record> {
        if self.lease(key) != lease {
            return Err(record);
        }
        let replaced = self.take_key(key);
        let place = self.vacant.pop().unwrap_or_else(|| self.grow());
        self.bytes += record.cost();
        self.order.push(place, record.cost(), key.hash);
        self.expiries.extend(record.expires().map(|at| (at, place)));
        self.records[place as usize] = Some(record);
        let (records, hasher) = (&self.records, &self.hasher);
        self.table.insert_unique(key.hash, place, |&place| {
            hasher.hash_one(records[place as usize].as_ref().expect("listed").key())
        });
        Ok(replaced)
    }

    /// Takes the entry out and ends the leases on its key.
    pub(crate) fn remove(&mut self, key: &Key<'_>) -> Option<Record> {
        let removals = &mut self.removals[Self::leased_as(key)];
        *removals = removals.wrapping_add(1);
        self.take_key(key)
    }

    /// Takes all entries out and ends all leases. What is returned is to be dropped.
    pub(crate) fn clear(&mut self, eviction: Eviction) -> Self {
        let mut empty = Self::new(eviction, self.hasher.clone());
        empty.removals = self.removals.map(|removals| removals.wrapping_add(1));
        empty.counts = self.counts;
        std::mem::replace(self, empty)
    }

    fn take_key(&mut self, key: &Key<'_>) -> Option<Record> {
        let place = *self.table.find(key.hash, |&place| self.is_at(place, key))?;
        Some(self.take(place, key.hash))
    }

    fn leased_as(key: &Key<'_>) -> usize {
        (key.hash >> 24) as usize % LEASES
    }

    /// Takes out the entry that is first in the order of eviction; but before a live one, one
    /// that has expired.
    #[doc(alias = "RemoveOldest")]
    pub(crate) fn evict(&mut self, now: impl FnOnce() -> Duration) -> Option<Record> {
        if let Some(&(at, place)) = self.expiries.first()
            && at <= now()
        {
            self.counts.expirations += 1;
            let hash = self.hasher.hash_one(self.record(place).key());
            return Some(self.take(place, hash));
        }
        let record = |place: u32| self.records[place as usize].as_ref().expect("listed");
        let (place, hash) =
            self.order.victim(|p| record(p).cost(), |p| self.hasher.hash_one(record(p).key()))?;
        self.counts.evictions += 1;
        Some(self.take(place, hash))
    }

    fn take(&mut self, place: u32, hash: u64) -> Record {
        let listed = self.table.find_entry(hash, |&other| other == place);
        listed.expect("every record is in the table").remove();
        let record = self.records[place as usize].take().expect("listed");
        self.order.remove(place, record.cost());
        if let Some(at) = record.expires() {
            self.expiries.remove(&(at, place));
        }
        self.vacant.push(place);
        self.bytes -= record.cost();
        record
    }

    fn record(&self, place: u32) -> &Record {
        self.records[place as usize].as_ref().expect("listed places are filled")
    }

    fn is_at(&self, place: u32, key: &Key<'_>) -> bool {
        self.record(place).key() == key.text.as_bytes()
    }

    fn grow(&mut self) -> u32 {
        // By an eighth, not to twice the size: `max_bytes` is to mean what it says.
        if self.records.len() == self.records.capacity() {
            self.records.reserve_exact(self.records.len() / 8 + 16);
        }
        let place = u32::try_from(self.records.len()).expect("fewer than 2^32 entries a shard");
        self.records.push(None);
        place
    }

    /// Walks the whole structure and checks that its parts agree.
    #[cfg(test)]
    pub(crate) fn validate(&self) {
        let filled: Vec<u32> = (0..self.records.len() as u32)
            .filter(|&p| self.records[p as usize].is_some())
            .collect();
        let mut ordered = self.order.places();
        ordered.sort_unstable();
        assert_eq!(ordered, filled, "each record is in the order once");
        assert_eq!(self.table.len(), filled.len());
        assert_eq!(self.vacant.len() + filled.len(), self.records.len());
        assert_eq!(self.bytes, filled.iter().map(|&p| self.record(p).cost()).sum::<usize>());
        let expiring = filled.iter().filter_map(|&p| Some((self.record(p).expires()?, p)));
        assert_eq!(self.expiries, expiring.collect());
        for &place in &filled {
            let hash = self.hasher.hash_one(self.record(place).key());
            assert!(self.table.find(hash, |&other| other == place).is_some());
        }
    }
}
