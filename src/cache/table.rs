//! `Table`: records by key, a hash table with chains over a [`Slab`].
//!
//! Why our own? In a cache larger than the processor's, a look-up costs as much as the cache lines
//! that it waits for, one after the other. Here these are three: the head of a chain, the entry, the
//! record. An entry keeps the hash, so that a walk along a chain, growing the table and evicting an
//! entry touch no record of another key.

use std::mem;

use super::record::Record;
use super::slab::{NONE, Slab};

#[repr(C)]
pub(crate) struct Table {
    // The first slot of each chain; a power of two of them, and at least as many as records.
    heads: Vec<u32>,
    pub(crate) slab: Slab,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { heads: vec![NONE; 16], slab: Slab::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    /// The slot and the record of `key`.
    #[inline]
    pub(crate) fn find(&self, hash: u32, key: &[u8]) -> Option<(u32, &Record)> {
        let mut slot = self.heads[self.chain(hash)];
        while let Some(entry) = self.slab.get(slot) {
            if let Some(record) = &entry.record {
                if entry.hash() == hash && record.has_key(key) {
                    return Some((slot, record));
                }
            }
            slot = entry.next;
        }
        None
    }

    /// Adds a record whose key is not in the table; returns its slot.
    pub(crate) fn insert(&mut self, hash: u32, record: Record) -> u32 {
        if self.len() == self.heads.len() {
            self.resize_heads(2 * self.heads.len());
        }
        let chain = self.chain(hash);
        let slot = self.slab.fill(hash, record, self.heads[chain]);
        self.heads[chain] = slot;
        slot
    }

    /// Takes the record out of a filled slot, as [`Slab::vacate`] does.
    pub(crate) fn take(&mut self, slot: u32) -> (Record, Option<u32>) {
        self.relink(slot, self.slab[slot].hash(), self.slab[slot].next);
        let (record, moved_from) = self.slab.vacate(slot);
        if let Some(from) = moved_from {
            self.relink(from, self.slab[slot].hash(), slot);
        }
        if self.len() < self.heads.len() / 4 {
            self.resize_heads(self.heads.len() / 2);
        }
        (record, moved_from)
    }

    /// Turns the link that leads to `slot`, in the chain of `hash`, to another slot.
    fn relink(&mut self, slot: u32, hash: u32, to: u32) {
        let chain = self.chain(hash);
        let mut before = self.heads[chain];
        if before == slot {
            self.heads[chain] = to;
            return;
        }
        while self.slab[before].next != slot {
            before = self.slab[before].next;
        }
        self.slab[before].next = to;
    }

    #[cfg(test)]
    pub(crate) fn longest_chain(&self) -> usize {
        let length = |&head: &u32| self.slab.walk(head, |entry| entry.next).len();
        self.heads.iter().map(length).max().unwrap_or(0)
    }

    /// The filled slots; checks that each is in its chain, and that no chain has another.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> Vec<u32> {
        let walk = |&head: &u32| self.slab.walk(head, |entry| entry.next);
        let chains: Vec<_> = self.heads.iter().map(walk).collect();
        for (chain, slots) in chains.iter().enumerate() {
            assert!(slots.iter().all(|&slot| self.chain(self.slab[slot].hash()) == chain));
        }
        let mut slots = chains.concat();
        slots.sort_unstable();
        assert_eq!(slots, self.slab.slots());
        assert_eq!(self.len(), slots.len());
        assert!(self.len() <= self.heads.len() && self.heads.len().is_power_of_two());
        assert!(self.heads.len() <= 4 * self.len().max(4));
        slots
    }

    #[inline]
    fn chain(&self, hash: u32) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    fn resize_heads(&mut self, heads: usize) {
        self.heads = vec![NONE; heads];
        let mask = self.heads.len() - 1;
        for (slot, entry) in self.slab.filled() {
            entry.next = mem::replace(&mut self.heads[entry.hash() as usize & mask], slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_among_others_of_their_chain_and_of_their_hash() {
        let mut table = Table::new();
        let key = |i: u32| i.to_string();
        // Four chains, and in each some keys of the very same hash.
        let hash = |i: u32| i % 12;
        let put = |table: &mut Table, i| table.insert(hash(i), Record::new(&key(i), None, None));
        for i in 0..1_000 {
            put(&mut table, i);
        }
        let find = |table: &Table, i: u32| {
            let found = table.find(hash(i), key(i).as_bytes());
            found.map(|(slot, record)| (slot, record.key().to_string()))
        };
        for i in (0..1_000).step_by(3) {
            let (slot, _) = find(&table, i).unwrap();
            assert_eq!(table.take(slot).0.key(), key(i));
        }
        for i in 0..1_000 {
            assert_eq!(find(&table, i).map(|found| found.1), (i % 3 != 0).then(|| key(i)));
        }
        assert_eq!((table.len(), table.slots().len()), (666, 666));
        for i in (0..1_000).step_by(3) {
            put(&mut table, i);
        }
        assert!((0..1_000).all(|i| find(&table, i).is_some_and(|found| found.1 == key(i))));
        assert_eq!(table.slots().len(), 1_000);
    }

    #[test]
    fn what_is_taken_out_leaves_little_behind() {
        let mut table = Table::new();
        for i in 0..10_000 {
            table.insert(i, Record::new("k", None, None));
        }
        for i in 0..9_997 {
            let hash = i * 7_919 % 10_000; // any order will do
            let (slot, _) = table.find(hash, b"k").unwrap();
            table.take(slot);
            if i % 100 == 0 {
                table.slots(); // checks that no more memory is held than needed
            }
        }
        assert_eq!((table.slots().len(), table.heads.len()), (3, 8));
    }
}
