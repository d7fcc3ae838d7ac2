//! `Slots`: the slab of a shard's entries, with all that is known of each; `List`: doubly linked lists
//! over them.
//!
//! An entry has a record, a place in a chain of the [`Table`](super::table::Table), one in a list
//! of the [`Order`](super::order::Order), and a mark. With a vector for each of these, an eviction
//! would wait for memory once for each; so they lie together, on half a cache line. The place of a
//! slot never changes, so that chains and lists can link places: indices of 32 bits instead of
//! pointers make that safe code, and half as large.
//!
//! Eviction needs an order of entries in which any one can be taken out at once: a [`List`]. A slot is
//! in one list at the most.

use std::ops::{Index, IndexMut};

use super::Record;

/// The place after the last of a chain or list.
pub(crate) const NONE: u32 = u32::MAX;

pub(crate) struct Slots {
    slots: Vec<Slot>,
    // The first of the chain of vacant places.
    vacant: u32,
}

#[repr(align(32))]
pub(crate) struct Slot {
    /// `None` in a vacant place.
    pub(crate) record: Option<Record>,
    // The hash, and in the lowest three bits the mark.
    hash_and_mark: u32,
    /// The next place of the chain.
    pub(crate) next: u32,
    /// The neighbours in the list.
    pub(crate) newer: u32,
    pub(crate) older: u32,
}

/// The bits of a hash that a slot keeps.
pub(crate) const HASH_BITS: u32 = 29;
const MARK: u32 = 0b111;

impl Slot {
    #[inline]
    pub(crate) fn hash(&self) -> u32 {
        self.hash_and_mark >> (u32::BITS - HASH_BITS)
    }

    /// Three bits for the order of eviction; 0 in a new slot.
    #[inline]
    pub(crate) fn mark(&self) -> u8 {
        (self.hash_and_mark & MARK) as u8
    }

    #[inline]
    pub(crate) fn set_mark(&mut self, mark: u8) {
        self.hash_and_mark = self.hash_and_mark & !MARK | u32::from(mark);
    }
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), vacant: NONE }
    }

    /// The slot of a place; none where the place is [`NONE`].
    #[inline]
    pub(crate) fn get(&self, place: u32) -> Option<&Slot> {
        self.slots.get(place as usize)
    }

    pub(crate) fn record(&self, place: u32) -> &Record {
        self[place].record.as_ref().expect("a filled place")
    }

    /// Fills a vacant place, and returns it.
    pub(crate) fn fill(&mut self, hash: u32, record: Record, next: u32) -> u32 {
        let slot = Slot {
            record: Some(record),
            hash_and_mark: hash << (u32::BITS - HASH_BITS),
            next,
            newer: NONE,
            older: NONE,
        };
        if self.vacant != NONE {
            let place = self.vacant;
            self.vacant = self[place].next;
            self[place] = slot;
            return place;
        }
        // By an eighth, not to twice the size: `max_bytes` is to mean what it says.
        if self.slots.len() == self.slots.capacity() {
            self.slots.reserve_exact(self.slots.len() / 8 + 16);
        }
        let place = u32::try_from(self.slots.len()).ok().filter(|&place| place < NONE);
        let place = place.expect("fewer than 2^32 entries a shard");
        self.slots.push(slot);
        place
    }

    /// Takes the record out of a filled place, which is vacant then.
    pub(crate) fn vacate(&mut self, place: u32) -> Record {
        let vacant = self.vacant;
        let slot = &mut self[place];
        let record = slot.record.take().expect("a filled place");
        slot.next = vacant;
        self.vacant = place;
        record
    }

    /// The filled places and their slots.
    pub(crate) fn filled(&mut self) -> impl Iterator<Item = (u32, &mut Slot)> {
        let slots = (0..).zip(&mut self.slots);
        slots.filter(|(_, slot)| slot.record.is_some())
    }

    /// The places from `first` on, as far as `next` leads.
    #[cfg(test)]
    pub(crate) fn walk(&self, first: u32, next: fn(&Slot) -> u32) -> Vec<u32> {
        let some = |place| (place != NONE).then_some(place);
        let places = std::iter::successors(some(first), |&place| some(next(&self[place])));
        places.take(self.slots.len() + 1).collect()
    }

    /// The filled places, after a look at whether each other one is in the chain of vacant places.
    #[cfg(test)]
    pub(crate) fn places(&self) -> Vec<u32> {
        let is_filled = |&place: &u32| self[place].record.is_some();
        let (filled, expected): (Vec<u32>, Vec<u32>) =
            (0..self.slots.len() as u32).partition(is_filled);
        let mut vacant = self.walk(self.vacant, |slot| slot.next);
        vacant.sort_unstable();
        assert_eq!(vacant, expected);
        filled
    }
}

impl Index<u32> for Slots {
    type Output = Slot;

    #[inline]
    fn index(&self, place: u32) -> &Slot {
        &self.slots[place as usize]
    }
}

impl IndexMut<u32> for Slots {
    #[inline]
    fn index_mut(&mut self, place: u32) -> &mut Slot {
        &mut self.slots[place as usize]
    }
}

/// A list from the newest place to the oldest.
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

    /// The place that is alone in the list.
    pub(crate) fn only(&self) -> Option<u32> {
        self.oldest().filter(|_| self.oldest == self.newest)
    }

    /// Adds a place that is in no list, as the newest.
    pub(crate) fn push(&mut self, slots: &mut Slots, place: u32) {
        let slot = &mut slots[place];
        (slot.newer, slot.older) = (NONE, self.newest);
        match self.newest {
            NONE => self.oldest = place,
            newest => slots[newest].newer = place,
        }
        self.newest = place;
    }

    /// Takes a place out of this list, where it must be.
    pub(crate) fn remove(&mut self, slots: &mut Slots, place: u32) {
        let (newer, older) = (slots[place].newer, slots[place].older);
        match newer {
            NONE => self.newest = older,
            newer => slots[newer].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => slots[older].newer = newer,
        }
    }

    /// The places from the oldest to the newest, which must be those from the newest to the
    /// oldest, backwards.
    #[cfg(test)]
    pub(crate) fn places(&self, slots: &Slots) -> Vec<u32> {
        let places = slots.walk(self.oldest, |slot| slot.newer);
        let backwards = slots.walk(self.newest, |slot| slot.older);
        assert!(places.iter().eq(backwards.iter().rev()), "{places:?}, {backwards:?}");
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_leave_from_anywhere() {
        let (mut slots, mut list) = (Slots::new(), List::new());
        for _ in 0..5 {
            let place = slots.fill(0, Record::new("k", None, None), NONE);
            list.push(&mut slots, place);
        }
        assert_eq!(list.places(&slots), [0, 1, 2, 3, 4]);
        for (leaves, rest) in [(2, &[0, 1, 3, 4][..]), (0, &[1, 3, 4]), (4, &[1, 3]), (1, &[3])] {
            list.remove(&mut slots, leaves);
            assert_eq!(list.places(&slots), rest);
        }
        list.remove(&mut slots, 3);
        assert_eq!(list.oldest(), None);
        list.push(&mut slots, 1);
        assert_eq!(list.places(&slots), [1]);
    }
}
