//! `Table`: records by their key. A hash table with chains, over a slab.
//!
//! Why our own? A look-up in memory that no processor cache holds costs what its misses cost,
//! one after the other. Here there are three: the head of a chain, the slot, the record. A slot
//! keeps the hash, so that a chain is walked, the table grows and an entry is evicted without a
//! look at the records of others; and a slot's place in the slab never changes, so that lists
//! can link places.

use super::Record;

const NONE: u32 = u32::MAX;

pub(crate) struct Table {
    // The first place of each chain; a power of two, and no fewer than there are records.
    heads: Vec<u32>,
    slots: Vec<Slot>,
    // The first of the chain of vacant places.
    vacant: u32,
    len: usize,
}

struct Slot {
    // `None` in a vacant place.
    record: Option<Record>,
    hash: u32,
    // The next place of the chain.
    next: u32,
}

impl Table {
    pub(crate) fn new() -> Self {
        Self { heads: vec![NONE; 16], slots: Vec::new(), vacant: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The place of `key`, and its record.
    #[inline]
    pub(crate) fn find(&self, hash: u32, key: &[u8]) -> Option<(u32, &Record)> {
        let mut place = self.heads[self.chain(hash)];
        // No slot has the place NONE, so the chain ends there.
        while let Some(slot) = self.slots.get(place as usize) {
            if slot.hash == hash
                && let Some(record) = &slot.record
                && record.has_key(key)
            {
                return Some((place, record));
            }
            place = slot.next;
        }
        None
    }

    pub(crate) fn record(&self, place: u32) -> &Record {
        self.slots[place as usize].record.as_ref().expect("a filled place")
    }

    pub(crate) fn hash(&self, place: u32) -> u32 {
        self.slots[place as usize].hash
    }

    /// Puts a record in whose key is not in the table; returns its place.
    pub(crate) fn insert(&mut self, hash: u32, record: Record) -> u32 {
        if self.len == self.heads.len() {
            self.double_heads();
        }
        let place = if self.vacant == NONE { self.add_slot() } else { self.vacant };
        let chain = self.chain(hash);
        let slot = &mut self.slots[place as usize];
        self.vacant = slot.next;
        *slot = Slot { record: Some(record), hash, next: self.heads[chain] };
        self.heads[chain] = place;
        self.len += 1;
        place
    }

    /// Takes the record out of a filled place.
    pub(crate) fn take(&mut self, place: u32) -> Record {
        let (record, next) = {
            let slot = &mut self.slots[place as usize];
            (slot.record.take().expect("a filled place"), slot.next)
        };
        let chain = self.chain(self.hash(place));
        if self.heads[chain] == place {
            self.heads[chain] = next;
        } else {
            let mut before = self.heads[chain];
            while self.slots[before as usize].next != place {
                before = self.slots[before as usize].next;
            }
            self.slots[before as usize].next = next;
        }
        self.slots[place as usize].next = self.vacant;
        self.vacant = place;
        self.len -= 1;
        record
    }

    /// The filled places, after a look at whether each is in its chain, and no other place in any.
    #[cfg(test)]
    pub(crate) fn places(&self) -> Vec<u32> {
        let walk = |head: &u32| -> Vec<u32> {
            let next = |&place: &u32| Some(self.slots[place as usize].next).filter(|&p| p != NONE);
            let first = Some(*head).filter(|&place| place != NONE);
            std::iter::successors(first, next).take(self.slots.len() + 1).collect()
        };
        let chains: Vec<_> = self.heads.iter().map(walk).collect();
        for (chain, places) in chains.iter().enumerate() {
            assert!(places.iter().all(|&place| self.chain(self.hash(place)) == chain));
        }
        let of_kind = |filled| {
            let is_filled = |place: u32| self.slots[place as usize].record.is_some();
            (0..self.slots.len() as u32).filter(move |&p| is_filled(p) == filled).collect()
        };
        let sorted = |mut places: Vec<u32>| {
            places.sort_unstable();
            places
        };
        let (filled, vacant): (Vec<u32>, Vec<u32>) = (of_kind(true), of_kind(false));
        assert_eq!(sorted(chains.concat()), filled);
        assert_eq!(sorted(walk(&self.vacant)), vacant);
        assert_eq!(self.len, filled.len());
        assert!(self.len <= self.heads.len() && self.heads.len().is_power_of_two());
        filled
    }

    #[inline]
    fn chain(&self, hash: u32) -> usize {
        hash as usize & (self.heads.len() - 1)
    }

    fn add_slot(&mut self) -> u32 {
        // By an eighth, not to twice the size: `max_bytes` is to mean what it says.
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(self.slots.len() / 8 + 16);
        }
        let place = u32::try_from(self.slots.len()).ok().filter(|&place| place < NONE);
        self.slots.push(Slot { record: None, hash: 0, next: NONE });
        place.expect("fewer than 2^32 entries a shard")
    }

    fn double_heads(&mut self) {
        self.heads = vec![NONE; 2 * self.heads.len()];
        for place in 0..self.slots.len() {
            if self.slots[place].record.is_some() {
                let chain = self.chain(self.slots[place].hash);
                self.slots[place].next = self.heads[chain];
                self.heads[chain] = place as u32;
            }
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
