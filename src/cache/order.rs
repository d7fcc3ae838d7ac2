//! `Order`: which entry of a shard is evicted next.
//!
//! S3-FIFO: plain FIFO queues, after Yang et al., *FIFO Queues Are All You Need for Cache Eviction*, SOSP
//! 2023; with a small queue that finds its own size. An LRU is the main queue alone, in which each hit
//! makes its entry the newest.
//!
//! Why not LRU? A hit there moves an entry to the front, which is five writes under the lock;
//! and one scan pushes out the popular entries. Here a hit sets a counter of two bits and relinks
//! nothing:
//!
//! - A new entry goes into the *small* queue. At its end, if it was hit at least twice there, it
//!   moves to the *main* queue; else it is evicted and leaves a ghost.
//! - At the end of the main queue an entry that was hit goes round again, with its counter one
//!   lower; else it is evicted. One that has expired is evicted from either queue, whatever its hits.
//! - A key that comes back while it is a ghost of the small queue goes straight to main.
//!
//! In the paper the small queue has a tenth of the space. If popularity drifts, that is too
//! little: keys are gone before they are asked for again. So a tenth is only the start, and each
//! queue shows that it is too small: a key that comes back shortly after
//! it left the small queue is a sign that this queue is too small, and one that left main, that main
//! is (the shadow queues of Cidon et al., *Cliffhanger*, NSDI 2016). In a loop over more keys than
//! fit, every key comes back, and the small queue would take all the space and hit nothing; so it
//! has to earn its growth: each hit in the small queue buys one step.

use super::ghosts::Ghosts;
use super::record::Record;
use super::slab::{Entry, List, NONE, Slab};

/// Which entries are evicted when the budget is used up: [`GroupBuilder::eviction`].
///
/// [`GroupBuilder::eviction`]: crate::GroupBuilder::eviction
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// S3-FIFO with an adaptive small queue: the default. New entries pass through a small
    /// queue, and only those that are hit twice there get into the main one, so that scans and keys
    /// that are used once push out nothing else. Right for nearly everything.
    ///
    /// Large values that nobody asks for again push out nothing either. A value is large if it takes more
    /// than a tenth of the small queue's room and more than ten average entries: with 64 MiB, two cores and
    /// other values of 200 bytes, more than some 20 KiB. While the cache is full, it is kept only when it is
    /// loaded again soon, before the cache has evicted as many entries as it has. The first time it is
    /// returned, and counted as [rejected](crate::CacheStats::rejected).
    #[default]
    S3Fifo,
    /// The least recently used first, as in groupcache. Right if the keys of the last moments are
    /// the likeliest to be asked for next, and the popular keys change all the time; a scan, or a
    /// loop over more keys than fit, empties the cache.
    Lru,
}

#[repr(C)] // a hit reads and writes the first two
pub(crate) struct Order {
    eviction: Eviction,
    // Hits in the small queue that it has not spent on a step yet.
    credit: u32,
    // `SMALL` and `MAIN`.
    queues: [Queue; 2],
    entries: usize,
    // The part of all bytes that the small queue may take.
    small_share: f32,
    // The slot of the newest entry, or `NONE` if it has left.
    last: u32,
}

struct Queue {
    list: List,
    bytes: usize,
    /// The keys that left it lately.
    ghosts: Ghosts,
}

const SMALL: usize = 0;
const MAIN: usize = 1;

// The flags of an entry: how often it was hit, up to 3, and whether it is in the main queue.
const HITS: u8 = 0b11;
const IN_MAIN: u8 = 0b100;
/// Hits in the small queue that earn promotion to the main one.
const PROMOTED: u8 = 2;

const FIRST_SHARE: f32 = 0.1;
const LEAST_SHARE: f32 = 0.01;
const LARGEST_SHARE: f32 = 0.9;
/// A key comes back shortly if it does so before this part of the number of entries has left its
/// queue: a slightly larger queue would have had a hit.
const SHORTLY: f32 = 0.1;
const MOST_CREDIT: u32 = 100;

impl Order {
    pub(crate) fn new(eviction: Eviction) -> Self {
        let queue = || Queue { list: List::new(), bytes: 0, ghosts: Ghosts::new() };
        Self {
            eviction,
            credit: 0,
            queues: [queue(), queue()],
            entries: 0,
            small_share: FIRST_SHARE,
            last: NONE,
        }
    }

    /// Whether a new entry is kept while the cache is full. A large one would push out many small ones,
    /// and most likely nobody asks for it again: it is kept if it comes back soon, and else leaves a
    /// ghost at once.
    pub(crate) fn admits(&mut self, hash: u32, cost: usize) -> bool {
        if self.is_lru() || !self.is_large(cost) {
            return true;
        }
        let age = self.queues[SMALL].ghosts.age(hash);
        let is_back = age.is_some_and(|age| age <= self.entries);
        if !is_back {
            self.leave_ghost(SMALL, hash);
        }
        is_back
    }

    /// Whether an entry takes a tenth of the small queue's room, and the room of ten others.
    fn is_large(&self, cost: usize) -> bool {
        let bytes = self.bytes() as f32;
        let tenth = self.small_share * bytes / 10.0;
        cost as f32 > tenth && cost as f32 * self.entries as f32 > 10.0 * bytes
    }

    /// A new entry.
    pub(crate) fn push(&mut self, slab: &mut Slab, slot: u32) {
        let cost = slab.record(slot).cost();
        let queue = if self.is_lru() { MAIN } else { self.queue_for(slab[slot].hash(), cost) };
        self.queues[queue].list.push(slab, slot);
        self.queues[queue].bytes += cost;
        slab[slot].set_flags(flags(queue, 0));
        self.entries += 1;
        self.last = slot;
    }

    /// The queue for a new entry. If its key has left one of them lately, that one gets a larger share.
    fn queue_for(&mut self, hash: u32, cost: usize) -> usize {
        let step = cost as f32 / (self.bytes() + 1) as f32;
        let is_short = |age: usize| age as f32 <= SHORTLY * self.entries as f32;
        if let Some(age) = self.queues[SMALL].ghosts.recall(hash) {
            if is_short(age) && self.credit > 0 {
                self.credit -= 1;
                self.small_share = (self.small_share + step).min(LARGEST_SHARE);
            }
            return if age <= self.entries { MAIN } else { SMALL };
        }
        if self.queues[MAIN].ghosts.recall(hash).is_some_and(is_short) {
            self.small_share = (self.small_share - step).max(LEAST_SHARE);
        }
        SMALL
    }

    /// A hit.
    #[inline]
    pub(crate) fn touch(&mut self, slab: &mut Slab, slot: u32) {
        if self.is_lru() {
            return self.requeue(slab, slot, MAIN, 0);
        }
        let entry = &mut slab[slot];
        let flags = entry.flags();
        if flags & IN_MAIN == 0 && self.credit < MOST_CREDIT {
            self.credit += 1;
        }
        if flags & HITS < HITS {
            entry.set_flags(flags + 1);
        }
    }

    /// Gives an entry another record, and returns the one before. The entry keeps its place and its hits;
    /// in an LRU that is a use.
    pub(crate) fn replace(&mut self, slab: &mut Slab, slot: u32, record: Record) -> Record {
        if self.is_lru() {
            self.touch(slab, slot);
        }
        let bytes = &mut self.queues[queue_of(&slab[slot])].bytes;
        *bytes += record.cost();
        let replaced = slab.replace(slot, record);
        *bytes -= replaced.cost();
        self.last = slot;
        replaced
    }

    /// An entry that leaves, for whatever reason.
    pub(crate) fn remove(&mut self, slab: &mut Slab, slot: u32) {
        let queue = &mut self.queues[queue_of(&slab[slot])];
        queue.list.remove(slab, slot);
        queue.bytes -= slab.record(slot).cost();
        self.entries -= 1;
        if self.last == slot {
            self.last = NONE;
        }
    }

    /// An entry that has moved from one slot to another.
    pub(crate) fn relink(&mut self, slab: &mut Slab, from: u32, to: u32) {
        self.queues[queue_of(&slab[to])].list.relink(slab, to);
        if self.last == from {
            self.last = to;
        }
    }

    /// The entry to evict; it is still in the order. One that has expired is the first that is met at
    /// the end of a queue. Never the newest entry, unless it is the only one, or has expired, or this is
    /// an LRU whose other entries were all hit since.
    pub(crate) fn victim(
        &mut self,
        slab: &mut Slab,
        has_expired: impl Fn(&Record) -> bool,
    ) -> Option<u32> {
        if self.is_lru() {
            return self.queues[MAIN].list.oldest();
        }
        loop {
            let queue = self.queue_to_take_from();
            let slot = self.queues[queue].list.oldest()?;
            if slab[slot].expires() && has_expired(slab.record(slot)) {
                return Some(slot);
            }
            let hits = slab[slot].flags() & HITS;
            let is_spared = slot == self.last && self.entries > 1;
            match queue {
                SMALL if hits >= PROMOTED => self.requeue(slab, slot, MAIN, 0),
                MAIN if hits > 0 => self.requeue(slab, slot, MAIN, hits - 1),
                queue if is_spared => self.requeue(slab, slot, queue, hits),
                queue => {
                    self.leave_ghost(queue, slab[slot].hash());
                    return Some(slot);
                }
            }
        }
    }

    /// The small queue if it has more than its share, else main; but if possible not one that is empty or
    /// would give the newest entry.
    fn queue_to_take_from(&self) -> usize {
        let share = self.small_share * self.bytes() as f32;
        let first = if self.queues[SMALL].bytes as f32 > share { SMALL } else { MAIN };
        let oldest = |queue: usize| self.queues[queue].list.oldest();
        let can_give = |&queue: &usize| oldest(queue).is_some_and(|slot| slot != self.last);
        let giver = [first, MAIN - first].into_iter().find(can_give);
        giver.unwrap_or(if oldest(SMALL).is_some() { SMALL } else { MAIN })
    }

    /// Makes an entry of one queue the newest of the same or the other.
    fn requeue(&mut self, slab: &mut Slab, slot: u32, to: usize, hits: u8) {
        let from = queue_of(&slab[slot]);
        self.queues[from].list.remove(slab, slot);
        self.queues[to].list.push(slab, slot);
        if from != to {
            let cost = slab.record(slot).cost();
            self.queues[from].bytes -= cost;
            self.queues[to].bytes += cost;
        }
        slab[slot].set_flags(flags(to, hits));
    }

    fn leave_ghost(&mut self, queue: usize, hash: u32) {
        // Ghosts of main count only while they are young: half as many are enough.
        self.queues[SMALL].ghosts.make_room(self.entries);
        self.queues[MAIN].ghosts.make_room(self.entries / 2);
        self.queues[queue].ghosts.remember(hash);
    }

    #[inline]
    fn is_lru(&self) -> bool {
        self.eviction == Eviction::Lru
    }

    pub(crate) fn bytes(&self) -> usize {
        self.queues[SMALL].bytes + self.queues[MAIN].bytes
    }

    /// All slots; checks that queues, flags and sums agree.
    #[cfg(test)]
    pub(crate) fn slots(&self, slab: &Slab) -> Vec<u32> {
        let cost = |&slot: &u32| slab.record(slot).cost();
        let queues = [SMALL, MAIN].map(|queue| {
            let slots = self.queues[queue].list.slots(slab);
            assert!(slots.iter().all(|&slot| queue_of(&slab[slot]) == queue));
            assert_eq!(self.queues[queue].bytes, slots.iter().map(cost).sum::<usize>());
            slots
        });
        let slots = queues.concat();
        assert_eq!(slots.len(), self.entries);
        assert!((LEAST_SHARE..=LARGEST_SHARE).contains(&self.small_share));
        assert!(self.credit <= MOST_CREDIT);
        slots
    }
}

fn queue_of(entry: &Entry) -> usize {
    usize::from(entry.flags() & IN_MAIN != 0)
}

fn flags(queue: usize, hits: u8) -> u8 {
    if queue == MAIN { IN_MAIN | hits } else { hits }
}
