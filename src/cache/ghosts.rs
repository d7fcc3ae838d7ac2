//! `Ghosts`: which keys left a queue lately. Knows nothing of entries.
//!
//! A ghost is 32 bits in a table: a fingerprint of the key, and when it left. Two keys whose hashes
//! lead to the same index overwrite each other, so now and then a ghost is forgotten early; that
//! costs a fraction of a percent of hits, and saves a list and a map.

use super::key::SHORT_HASH_BITS;

pub(crate) struct Ghosts {
    // 16 bits of fingerprint, of which the highest is always set, and 16 of time. 0: no ghost.
    ghosts: Vec<u32>,
    // How many keys have left: the clock by which ghosts age.
    left: usize,
}

/// A unit of time is as many departures as the table has ghosts, divided by this.
const UNITS: usize = 64;

impl Ghosts {
    pub(crate) fn new() -> Self {
        Self { ghosts: Vec::new(), left: 0 }
    }

    /// Makes a table for `ghosts` of them, and forgets all, if the one that is there is smaller or
    /// much larger.
    pub(crate) fn make_room(&mut self, ghosts: usize) {
        let wanted = ghosts.next_power_of_two();
        if !(wanted..=4 * wanted).contains(&self.ghosts.len()) {
            self.ghosts = vec![0; wanted];
        }
    }

    /// Notes that the key of this hash leaves.
    pub(crate) fn remember(&mut self, hash: u32) {
        self.left += 1;
        let index = self.index(hash);
        self.ghosts[index] = u32::from(Self::fingerprint(hash)) << 16 | u32::from(self.now());
    }

    /// Forgets the ghost of this hash; returns its [age](Self::age).
    pub(crate) fn recall(&mut self, hash: u32) -> Option<usize> {
        let age = self.age(hash)?;
        let index = self.index(hash);
        self.ghosts[index] = 0;
        Some(age)
    }

    /// About how many keys have left since the key of this hash did, if it has a ghost.
    pub(crate) fn age(&self, hash: u32) -> Option<usize> {
        let ghost = *self.ghosts.get(self.index(hash))?;
        let is_it = ghost >> 16 == u32::from(Self::fingerprint(hash));
        is_it.then(|| usize::from(self.now().wrapping_sub(ghost as u16)) * self.unit())
    }

    fn fingerprint(hash: u32) -> u16 {
        (hash >> (SHORT_HASH_BITS - 16)) as u16 | 1 << 15
    }

    fn now(&self) -> u16 {
        (self.left / self.unit()) as u16
    }

    fn unit(&self) -> usize {
        (self.ghosts.len() / UNITS).max(1)
    }

    fn index(&self, hash: u32) -> usize {
        hash as usize & self.ghosts.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_knows_its_age_and_is_recalled_once() {
        let mut ghosts = Ghosts::new();
        assert_eq!(ghosts.recall(7), None);
        ghosts.make_room(64);
        ghosts.remember(7);
        (100..110).for_each(|hash| ghosts.remember(hash));
        assert_eq!(ghosts.recall(7), Some(10));
        assert_eq!(ghosts.recall(7), None);
        assert_eq!(ghosts.recall(109), Some(0));
    }

    #[test]
    fn keys_that_meet_at_an_index_are_told_apart() {
        let mut ghosts = Ghosts::new();
        let (key, other) = (5, 5 | 1 << 20);
        ghosts.make_room(64);
        ghosts.remember(key);
        assert_eq!(ghosts.recall(other), None);
        ghosts.remember(other);
        assert_eq!(ghosts.recall(key), None, "overwritten");
        assert_eq!(ghosts.recall(other), Some(0));
    }

    #[test]
    fn the_table_grows_as_needed_and_shrinks_when_it_is_much_too_large() {
        let mut ghosts = Ghosts::new();
        let mut lengths = Vec::new();
        for room in [100, 60, 30, 1_000, 250, 100] {
            ghosts.make_room(room);
            lengths.push(ghosts.ghosts.len());
        }
        assert_eq!(lengths, [128, 128, 128, 1_024, 1_024, 128]);
    }
}
