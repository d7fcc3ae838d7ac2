//! `Ghosts`: which keys left a queue lately. Knows nothing of entries.
//!
//! A ghost is a mark of 32 bits in a table. Two keys that meet at a place overwrite each other,
//! so now and then a ghost is forgotten early; that costs a fraction of a percent of hits, and
//! saves a list and a map.

use super::slab::HASH_BITS;

pub(crate) struct Ghosts {
    // 16 bits of hash, of which the highest marks the place as filled, and 16 of time.
    marks: Vec<u32>,
    // How many have left: the clock by which ghosts age.
    left: usize,
}

/// The time is kept in units of this part of the table's length.
const UNITS: usize = 64;

impl Ghosts {
    pub(crate) fn new() -> Self {
        Self { marks: Vec::new(), left: 0 }
    }

    /// Notes that the key of this hash leaves, in a table of `places` at the least.
    pub(crate) fn remember(&mut self, hash: u32, places: usize) {
        if self.marks.len() < places.max(1) {
            self.marks = vec![0; places.next_power_of_two()];
        }
        self.left += 1;
        let place = self.place(hash);
        self.marks[place] = u32::from(Self::mark(hash)) << 16 | u32::from(self.now());
    }

    /// Forgets the key of this hash; if it had left, tells about how many others did since.
    pub(crate) fn recall(&mut self, hash: u32) -> Option<usize> {
        let place = self.place(hash);
        let mark = *self.marks.get(place)?;
        if mark >> 16 != Self::mark(hash).into() {
            return None;
        }
        self.marks[place] = 0;
        Some(usize::from(self.now().wrapping_sub(mark as u16)) * self.unit())
    }

    fn mark(hash: u32) -> u16 {
        (hash >> (HASH_BITS - 16)) as u16 | 1 << 15
    }

    fn now(&self) -> u16 {
        (self.left / self.unit()) as u16
    }

    fn unit(&self) -> usize {
        (self.marks.len() / UNITS).max(1)
    }

    fn place(&self, hash: u32) -> usize {
        hash as usize & self.marks.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_knows_its_age_and_is_recalled_once() {
        let mut ghosts = Ghosts::new();
        assert_eq!(ghosts.recall(7), None);
        ghosts.remember(7, 64);
        (100..110).for_each(|hash| ghosts.remember(hash, 64));
        assert_eq!(ghosts.recall(7), Some(10));
        assert_eq!(ghosts.recall(7), None);
        assert_eq!(ghosts.recall(109), Some(0));
    }

    #[test]
    fn keys_that_meet_at_a_place_are_told_apart() {
        let mut ghosts = Ghosts::new();
        let (key, other) = (5, 5 | 1 << 20);
        ghosts.remember(key, 64);
        assert_eq!(ghosts.recall(other), None);
        ghosts.remember(other, 64);
        assert_eq!(ghosts.recall(key), None, "overwritten");
        assert_eq!(ghosts.recall(other), Some(0));
    }
}
