//! `Table`: records by their key. A hash table with chains, over [`Slots`].
//!
//! Why our own? A look-up in memory that no processor cache holds costs what its misses cost,
//! one after the other. Here there are three: the head of a chain, the slot, the record. A slot
//! keeps the hash, so that a chain is walked, the table grows and an entry is evicted without a
//! look at the records of others.

use std::mem;

use super::Record;
use super::slab::{NONE, Slots};

pub(crate) struct Table {
    // The first place of each chain; a power of two, and no fewer than there are records.
    heads: Vec<u32>,
    pub(crate) slots: Slots,
    len: usize,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { heads: vec![NONE; 16], slots: Slots::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The place of `key`, and its record.
    #[inline]
    pub(crate) fn find(&self, hash: u32, key: &[u8]) -> Option<(u32, &Record)> {
        let mut place = self.heads[self.chain(hash)];
        while let Some(slot) = self.slots.get(place) {
            if slot.hash() == hash
                && let Some(record) = &slot.record
                && record.has_key(key)
            {
                return Some((place, record));
            }
            place = slot.next;
        }
        None
    }

    /// Puts a record in whose key is not in the table; returns its place.
    pub(crate) fn insert(&mut self, hash: u32, record: Record) -> u32 {
        if self.len == self.heads.len() {
            self.double_heads();
        }
        let chain = self.chain(hash);
        let place = self.slots.fill(hash, record, self.heads[chain]);
        self.heads[chain] = place;
        self.len += 1;
        place
    }

    /// Takes the record out of a filled place.
    pub(crate) fn take(&mut self, place: u32) -> Record {
        let next = self.slots[place].next;
        let chain = self.chain(self.slots[place].hash());
        if self.heads[chain] == place {
            self.heads[chain] = next;
        } else {
            let mut before = self.heads[chain];
            while self.slots[before].next != place {
                before = self.slots[before].next;
            }
            self.slots[before].next = next;
        }
        self.len -= 1;
        self.slots.vacate(place)
    }

    /// The filled places, after a look at whether each is in its chain, and no other place in any.
    #[cfg(test)]
    pub(crate) fn places(&self) -> Vec<u32> {
        let walk = |&head: &u32| self.slots.walk(head, |slot| slot.next);
        let chains: Vec<_> = self.heads.iter().map(walk).collect();
        for (chain, places) in chains.iter().enumerate() {
            assert!(places.iter().all(|&place| self.chain(self.slots[place].hash()) == chain));
        }
        let mut places = chains.concat();
        places.sort_unstable();
        assert_eq!(places, self.slots.places());
        assert_eq!(self.len, places.len());
        assert!(self.len <= self.heads.len() && self.heads.len().is_power_of_two());
        places
    }

    #[inline]
    fn chain(&self, hash: u32) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    fn double_heads(&mut self) {
        self.heads = vec![NONE; 2 * self.heads.len()];
        let mask = self.heads.len() - 1;
        for (place, slot) in self.slots.filled() {
            slot.next = mem::replace(&mut self.heads[slot.hash() as usize & mask], place);
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
        let places: Vec<u32> = (0..1_000).map(|i| put(&mut table, i)).collect();
        let has = |table: &Table, i: u32| {
            let found = table.find(hash(i), key(i).as_bytes());
            found.map(|(place, record)| (place, record.key().to_vec()))
        };
        for i in (0..1_000).step_by(3) {
            assert_eq!(table.take(places[i as usize]).key(), key(i).as_bytes());
        }
        for i in 0..1_000 {
            let expected = (i % 3 != 0).then(|| (places[i as usize], key(i).into_bytes()));
            assert_eq!(has(&table, i), expected);
        }
        assert_eq!(table.len(), 666);
        let again: Vec<u32> = (0..1_000).step_by(3).map(|i| put(&mut table, i)).collect();
        assert!(again.iter().all(|&place| place < 1_000), "vacant places are filled first");
        assert!((0..1_000).all(|i| has(&table, i).is_some()));
        assert_eq!(table.places().len(), 1_000);
    }
}
