//! `List`: doubly linked lists over [`Slots`]. Knows nothing of what lies there.
//!
//! Eviction needs an order of entries in which any one can be taken out at once. A slot is in one
//! list at the most.

use super::slots::{NONE, Slots};

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
    use super::super::Record;
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
