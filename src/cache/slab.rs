//! `Slab`: the entries of a shard; `List`: doubly linked lists over them.
//!
//! An entry has a record, a link of a chain in the [`Table`](super::table::Table), two links of a
//! list in the [`Order`](super::order::Order), and a few bits for that order. With a vector for each
//! of these, an eviction would wait for memory once for each; so they lie together, on half a cache
//! line. An entry stays in its *slot*, a 32-bit index, and chains and lists link slots: safe code,
//! where pointers would not be, and half as large.
//!
//! Eviction needs an order from which any entry can be taken out in constant time: a [`List`]. An
//! entry is in at most one list.

use std::ops::{Index, IndexMut};

use super::key::SHORT_HASH_BITS;
use super::record::Record;

/// No slot: the end of a chain or list.
pub(crate) const NONE: u32 = u32::MAX;

pub(crate) struct Slab {
    entries: Vec<Entry>,
    // The first vacant slot; vacant slots form a chain.
    vacant: u32,
}

#[repr(align(32))]
pub(crate) struct Entry {
    /// `None` in a vacant slot.
    pub(crate) record: Option<Record>,
    // The short hash above three bits of flags.
    hash_and_flags: u32,
    /// The next slot in the chain of the table, or of vacant slots.
    pub(crate) next: u32,
    /// The neighbours in the list of the order.
    pub(crate) newer: u32,
    pub(crate) older: u32,
}

const FLAGS: u32 = 0b111;

impl Entry {
    #[inline]
    pub(crate) fn hash(&self) -> u32 {
        self.hash_and_flags >> (u32::BITS - SHORT_HASH_BITS)
    }

    /// Three bits that belong to the order of eviction; 0 in a new entry.
    #[inline]
    pub(crate) fn flags(&self) -> u8 {
        (self.hash_and_flags & FLAGS) as u8
    }

    #[inline]
    pub(crate) fn set_flags(&mut self, flags: u8) {
        self.hash_and_flags = self.hash_and_flags & !FLAGS | u32::from(flags);
    }
}

impl Slab {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), vacant: NONE }
    }

    /// The entry in `slot`; `None` for [`NONE`].
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)
    }

    pub(crate) fn record(&self, slot: u32) -> &Record {
        self[slot].record.as_ref().expect("a filled slot")
    }

    /// Puts a record into a vacant slot, which is returned; `next` is its link in the chain.
    pub(crate) fn fill(&mut self, hash: u32, record: Record, next: u32) -> u32 {
        let entry = Entry {
            record: Some(record),
            hash_and_flags: hash << (u32::BITS - SHORT_HASH_BITS),
            next,
            newer: NONE,
            older: NONE,
        };
        if self.vacant != NONE {
            let slot = self.vacant;
            self.vacant = self[slot].next;
            self[slot] = entry;
            return slot;
        }
        // Grows by an eighth, not to twice the size: `max_bytes` should mean what it says.
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(self.entries.len() / 8 + 16);
        }
        let slot = u32::try_from(self.entries.len()).ok().filter(|&slot| slot < NONE);
        let slot = slot.expect("fewer than 2^32 entries per shard");
        self.entries.push(entry);
        slot
    }

    /// Takes the record out of a filled slot, which then is vacant.
    pub(crate) fn vacate(&mut self, slot: u32) -> Record {
        let vacant = self.vacant;
        let entry = &mut self[slot];
        let record = entry.record.take().expect("a filled slot");
        entry.next = vacant;
        self.vacant = slot;
        record
    }

    /// The entries of all slots.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The filled slots and their entries.
    pub(crate) fn filled(&mut self) -> impl Iterator<Item = (u32, &mut Entry)> {
        let entries = (0..).zip(&mut self.entries);
        entries.filter(|(_, entry)| entry.record.is_some())
    }

    /// The slots from `first` on along the links `next`.
    #[cfg(test)]
    pub(crate) fn walk(&self, first: u32, next: fn(&Entry) -> u32) -> Vec<u32> {
        let some = |slot| (slot != NONE).then_some(slot);
        let slots = std::iter::successors(some(first), |&slot| some(next(&self[slot])));
        slots.take(self.entries.len() + 1).collect()
    }

    /// The filled slots; checks that all others are in the chain of vacant slots.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> Vec<u32> {
        let is_filled = |&slot: &u32| self[slot].record.is_some();
        let (filled, expected): (Vec<u32>, Vec<u32>) =
            (0..self.entries.len() as u32).partition(is_filled);
        let mut vacant = self.walk(self.vacant, |entry| entry.next);
        vacant.sort_unstable();
        assert_eq!(vacant, expected);
        filled
    }
}

impl Index<u32> for Slab {
    type Output = Entry;

    #[inline]
    fn index(&self, slot: u32) -> &Entry {
        &self.entries[slot as usize]
    }
}

impl IndexMut<u32> for Slab {
    #[inline]
    fn index_mut(&mut self, slot: u32) -> &mut Entry {
        &mut self.entries[slot as usize]
    }
}

/// A list of slots, from the newest to the oldest.
pub(crate) struct List {
    newest: u32,
    oldest: u32,
}

impl List {
    pub(crate) fn new() -> Self {
        Self { newest: NONE, oldest: NONE }
    }

    pub(crate) fn oldest(&self) -> Option<u32> {
        (self.oldest != NONE).then_some(self.oldest)
    }

    /// The slot, if the list has just one.
    pub(crate) fn only(&self) -> Option<u32> {
        self.oldest().filter(|_| self.oldest == self.newest)
    }

    /// Adds `slot`, which is in no list, as the newest.
    pub(crate) fn push(&mut self, slab: &mut Slab, slot: u32) {
        let entry = &mut slab[slot];
        (entry.newer, entry.older) = (NONE, self.newest);
        match self.newest {
            NONE => self.oldest = slot,
            newest => slab[newest].newer = slot,
        }
        self.newest = slot;
    }

    /// Takes out `slot`, which must be in this list.
    pub(crate) fn remove(&mut self, slab: &mut Slab, slot: u32) {
        let (newer, older) = (slab[slot].newer, slab[slot].older);
        match newer {
            NONE => self.newest = older,
            newer => slab[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => slab[older].newer = newer,
        }
    }

    /// The slots from the oldest to the newest; checks that the links of both directions agree.
    #[cfg(test)]
    pub(crate) fn slots(&self, slab: &Slab) -> Vec<u32> {
        let slots = slab.walk(self.oldest, |entry| entry.newer);
        let backwards = slab.walk(self.newest, |entry| entry.older);
        assert!(slots.iter().eq(backwards.iter().rev()), "{slots:?}, {backwards:?}");
        slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_leave_from_anywhere() {
        let (mut slab, mut list) = (Slab::new(), List::new());
        for _ in 0..5 {
            let slot = slab.fill(0, Record::new("k", None, None), NONE);
            list.push(&mut slab, slot);
        }
        assert_eq!(list.slots(&slab), [0, 1, 2, 3, 4]);
        for (leaves, rest) in [(2, &[0, 1, 3, 4][..]), (0, &[1, 3, 4]), (4, &[1, 3]), (1, &[3])] {
            list.remove(&mut slab, leaves);
            assert_eq!(list.slots(&slab), rest);
        }
        list.remove(&mut slab, 3);
        assert_eq!(list.oldest(), None);
        list.push(&mut slab, 1);
        assert_eq!(list.slots(&slab), [1]);
    }
}
