//! `Slab`: the entries of a shard; `List`: doubly linked lists over them.
//!
//! An entry has a record, a link of a chain in the [`Table`](super::table::Table), two links of a
//! list in the [`Order`](super::order::Order), and a few bits for that order. With a vector for each
//! of these, an eviction would wait for memory once for each; so they lie together, in 24 bytes. An
//! entry is in a *slot*, a 32-bit index, and chains and lists link slots: safe code, where
//! pointers would not be, and half as large.
//!
//! A slot that becomes vacant is filled by the next new entry. If a second one becomes vacant, the last
//! entry moves there, and the links to it are set anew. So a cache that held millions of small entries
//! gives their memory back when it turns to large ones.
//!
//! Eviction needs an order from which any entry can be taken out in constant time: a [`List`]. An
//! entry is in at most one list.

use std::mem;
use std::ops::{Index, IndexMut};

use super::key::SHORT_HASH_BITS;
use super::record::Record;

/// No slot: the end of a chain or list.
pub(crate) const NONE: u32 = u32::MAX;

#[repr(C)]
pub(crate) struct Slab {
    entries: Vec<Entry>,
    // The vacant slot; there is at most one.
    vacant: u32,
}

#[repr(C)]
pub(crate) struct Entry {
    /// `None` in the vacant slot.
    pub(crate) record: Option<Record>,
    // The short hash above four bits of flags.
    hash_and_flags: u32,
    /// The next slot in the chain of the table.
    pub(crate) next: u32,
    /// The neighbours in the list of the order.
    pub(crate) newer: u32,
    pub(crate) older: u32,
}

/// The flags of the order of eviction.
const FLAGS: u32 = 0b111;
/// Whether the record expires, so that nobody has to read the record of an entry that does not.
const EXPIRES: u32 = 0b1000;

impl Entry {
    #[inline]
    pub(crate) fn hash(&self) -> u32 {
        self.hash_and_flags >> (u32::BITS - SHORT_HASH_BITS)
    }

    #[inline]
    pub(crate) fn expires(&self) -> bool {
        self.hash_and_flags & EXPIRES != 0
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

/// The flag of an entry with this record.
fn expires(record: &Record) -> u32 {
    if record.expires().is_some() { EXPIRES } else { 0 }
}

impl Slab {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), vacant: NONE }
    }

    /// The number of filled slots.
    pub(crate) fn len(&self) -> usize {
        self.entries.len() - usize::from(self.vacant != NONE)
    }

    /// The entry in `slot`; `None` for [`NONE`].
    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&Entry> {
        self.entries.get(slot as usize)
    }

    pub(crate) fn record(&self, slot: u32) -> &Record {
        self[slot].record.as_ref().expect("a filled slot")
    }

    /// Puts a record into a slot, which is returned; `next` is its link in the chain.
    pub(crate) fn fill(&mut self, hash: u32, record: Record, next: u32) -> u32 {
        let entry = Entry {
            hash_and_flags: hash << (u32::BITS - SHORT_HASH_BITS) | expires(&record),
            record: Some(record),
            next,
            newer: NONE,
            older: NONE,
        };
        if self.vacant != NONE {
            let slot = mem::replace(&mut self.vacant, NONE);
            self[slot] = entry;
            return slot;
        }
        if self.entries.len() == self.entries.capacity() {
            self.entries.reserve_exact(Self::spare(self.entries.len()));
        }
        let slot = u32::try_from(self.entries.len()).ok().filter(|&slot| slot < NONE);
        let slot = slot.expect("fewer than 2^32 entries per shard");
        self.entries.push(entry);
        slot
    }

    /// Puts another record into a filled slot; returns the one before.
    pub(crate) fn replace(&mut self, slot: u32, record: Record) -> Record {
        let entry = &mut self[slot];
        entry.hash_and_flags = entry.hash_and_flags & !EXPIRES | expires(&record);
        entry.record.replace(record).expect("a filled slot")
    }

    /// Takes the record out of a filled slot. If another entry has moved into the slot, the slot where
    /// it was is returned as well: the links to that one are to be set anew.
    pub(crate) fn vacate(&mut self, slot: u32) -> (Record, Option<u32>) {
        let record = self[slot].record.take().expect("a filled slot");
        if self.vacant == NONE {
            self.vacant = slot;
            return (record, None);
        }
        let last = self.entries.pop().expect("two vacant slots");
        let last_slot = self.entries.len() as u32;
        if self.entries.len() < self.entries.capacity() / 2 {
            self.entries.shrink_to(self.entries.len() + Self::spare(self.entries.len()));
        }
        if last_slot == self.vacant {
            self.vacant = slot;
        } else if last_slot != slot {
            self[slot] = last;
            return (record, Some(last_slot));
        }
        (record, None)
    }

    /// Room for so many more entries is made at a time: an eighth, not as many again, since
    /// `max_bytes` should mean what it says.
    fn spare(entries: usize) -> usize {
        entries / 8 + 16
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

    /// The filled slots; checks that at most one other is there, and little memory for more.
    #[cfg(test)]
    pub(crate) fn slots(&self) -> Vec<u32> {
        let is_filled = |&slot: &u32| self[slot].record.is_some();
        let (filled, vacant): (Vec<u32>, Vec<u32>) =
            (0..self.entries.len() as u32).partition(is_filled);
        let expires = |&slot: &u32| self.record(slot).expires().is_some();
        assert!(filled.iter().all(|slot| self[*slot].expires() == expires(slot)));
        assert!(vacant.is_empty() && self.vacant == NONE || vacant == [self.vacant]);
        assert!(self.entries.capacity() <= 2 * (self.entries.len() + Self::spare(0)));
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

    /// Sets the links to an entry of this list that has moved to `slot`.
    pub(crate) fn relink(&mut self, slab: &mut Slab, slot: u32) {
        let (newer, older) = (slab[slot].newer, slab[slot].older);
        match newer {
            NONE => self.newest = slot,
            newer => slab[newer].older = slot,
        }
        match older {
            NONE => self.oldest = slot,
            older => slab[older].newer = slot,
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
