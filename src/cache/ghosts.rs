//! `Ghosts`: which keys were evicted lately. Knows nothing of entries.
//!
//! A ghost is a mark of 32 bits in a table that has a place for each entry of the shard. Two
//! keys that meet at a place overwrite each other, so now and then a ghost is forgotten early;
//! that costs a fraction of a percent of hits, and saves a list and a map.

/// From where a key was evicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Queue {
    Small,
    Main,
}

pub(crate) struct Ghosts {
    // 15 bits of hash and the bit that marks it as filled, 1 bit of queue, 15 bits of age.
    marks: Vec<u32>,
    // How many were evicted from each queue: the clock by which ghosts age.
    evicted: [usize; 2],
}

/// The age is kept in units of this part of the table's length.
const UNITS: usize = 64;
const AGE_BITS: u32 = 15;
const AGE_MASK: u32 = (1 << AGE_BITS) - 1;

impl Ghosts {
    pub(crate) fn new() -> Self {
        Self { marks: Vec::new(), evicted: [0; 2] }
    }

    /// Notes that the key of this hash was evicted from a shard of `entries` entries.
    pub(crate) fn remember(&mut self, hash: u64, queue: Queue, entries: usize) {
        if self.marks.len() < entries {
            self.marks = vec![0; entries.next_power_of_two()];
        }
        self.evicted[queue as usize] += 1;
        let place = self.place(hash);
        self.marks[place] = Self::mark(hash, queue) | self.now(queue);
    }

    /// Forgets the key of this hash; returns where it was evicted from, and about how many
    /// others were evicted from there since.
    pub(crate) fn recall(&mut self, hash: u64) -> Option<(Queue, usize)> {
        let place = self.place(hash);
        let mark = *self.marks.get(place)?;
        let queue = [Queue::Small, Queue::Main]
            .into_iter()
            .find(|&queue| mark & !AGE_MASK == Self::mark(hash, queue))?;
        self.marks[place] = 0;
        let age = self.now(queue).wrapping_sub(mark) & AGE_MASK;
        Some((queue, age as usize * self.unit()))
    }

    fn mark(hash: u64, queue: Queue) -> u32 {
        (1 << 31) | ((hash >> 48) as u32) << (AGE_BITS + 1) | (queue as u32) << AGE_BITS
    }

    fn now(&self, queue: Queue) -> u32 {
        (self.evicted[queue as usize] / self.unit()) as u32 & AGE_MASK
    }

    fn unit(&self) -> usize {
        (self.marks.len() / UNITS).max(1)
    }

    fn place(&self, hash: u64) -> usize {
        hash as usize & self.marks.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ghost_knows_its_queue_and_its_age_and_is_recalled_once() {
        let mut ghosts = Ghosts::new();
        assert_eq!(ghosts.recall(7), None);
        ghosts.remember(7, Queue::Main, 64);
        (100..110).for_each(|hash| ghosts.remember(hash, Queue::Main, 64));
        (120..125).for_each(|hash| ghosts.remember(hash, Queue::Small, 64));
        assert_eq!(ghosts.recall(7), Some((Queue::Main, 10)));
        assert_eq!(ghosts.recall(7), None);
        assert_eq!(ghosts.recall(120), Some((Queue::Small, 4)));
    }

    #[test]
    fn keys_that_meet_at_a_place_are_told_apart() {
        let mut ghosts = Ghosts::new();
        let (key, other) = (5, 5 | 1 << 50);
        ghosts.remember(key, Queue::Small, 64);
        assert_eq!(ghosts.recall(other), None);
        ghosts.remember(other, Queue::Small, 64);
        assert_eq!(ghosts.recall(key), None, "overwritten");
        assert_eq!(ghosts.recall(other), Some((Queue::Small, 0)));
    }
}
