//! `S3Fifo`: eviction by plain FIFO queues, after Yang et al., *FIFO Queues Are All You Need for
//! Cache Eviction*, SOSP 2023; with a small queue that finds its own size.
//!
//! Why not LRU? A hit there moves an entry to the front, which is five writes under the lock;
//! and one scan pushes out what is popular. Here a hit sets a counter of two bits and relinks
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
//! queue shows what a little more space would have brought it: a key that comes back shortly after
//! it left the small queue is a sign that this queue is too small, and one that left main, that main
//! is (the shadow queues of Cidon et al., *Cliffhanger*, NSDI 2016). In a loop over more keys than
//! fit, every key comes back, and the small queue would take all the space and hit nothing; so it
//! has to earn its growth: each hit in the small queue buys one step.

use super::ghosts::Ghosts;
use super::record::Record;
use super::slab::{Entry, List, NONE, Slab};

pub(crate) struct S3Fifo {
    small: Fifo,
    main: Fifo,
    entries: usize,
    // For each queue, the keys that left it lately.
    ghosts: [Ghosts; 2],
    // The part of all bytes that the small queue may take.
    small_share: f32,
    // Hits in the small queue that it has not spent on a step yet.
    credit: u32,
    // The slot of the newest entry, or `NONE` if it has left.
    last: u32,
}

#[derive(Clone, Copy)]
enum Queue {
    Small,
    Main,
}

struct Fifo {
    list: List,
    bytes: usize,
}

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

impl S3Fifo {
    pub(crate) fn new() -> Self {
        let fifo = || Fifo { list: List::new(), bytes: 0 };
        Self {
            small: fifo(),
            main: fifo(),
            entries: 0,
            ghosts: [Ghosts::new(), Ghosts::new()],
            small_share: FIRST_SHARE,
            credit: 0,
            last: NONE,
        }
    }

    /// Whether a new entry is kept while the cache is full. A large one would push out many small ones,
    /// and most likely nobody asks for it again: it is kept if it comes back soon, and else leaves a
    /// ghost at once.
    pub(crate) fn admits(&mut self, hash: u32, cost: usize) -> bool {
        let age = self.ghosts[Queue::Small as usize].age(hash);
        let is_back = age.is_some_and(|age| age <= self.entries);
        if !is_back && self.is_large(cost) {
            self.leave_ghost(Queue::Small, hash);
            return false;
        }
        true
    }

    /// Whether an entry takes a tenth of the small queue's room, and the room of ten others.
    fn is_large(&self, cost: usize) -> bool {
        let bytes = self.small.bytes + self.main.bytes;
        cost as f32 > 0.1 * self.small_share * bytes as f32
            && cost.saturating_mul(self.entries) > bytes.saturating_mul(10)
    }

    pub(crate) fn push(&mut self, slab: &mut Slab, slot: u32) {
        let (cost, hash) = (slab.record(slot).cost(), slab[slot].hash());
        let step = cost as f32 / (self.small.bytes + self.main.bytes + 1) as f32;
        let is_short = |age: usize| age as f32 <= SHORTLY * self.entries as f32;
        let mut queue = Queue::Small;
        if let Some(age) = self.ghosts[Queue::Small as usize].recall(hash) {
            if is_short(age) && self.credit > 0 {
                self.credit -= 1;
                self.small_share = (self.small_share + step).min(LARGEST_SHARE);
            }
            if age <= self.entries {
                queue = Queue::Main;
            }
        } else if self.ghosts[Queue::Main as usize].recall(hash).is_some_and(is_short) {
            self.small_share = (self.small_share - step).max(LEAST_SHARE);
        }
        self.enqueue(slab, queue, slot);
        self.entries += 1;
        self.last = slot;
    }

    #[inline(always)]
    pub(crate) fn touch(&mut self, entry: &mut Entry) {
        let flags = entry.flags();
        if flags & IN_MAIN == 0 && self.credit < MOST_CREDIT {
            self.credit += 1;
        }
        if flags & HITS < HITS {
            entry.set_flags(flags + 1);
        }
    }

    /// The entry keeps its place and its hits.
    pub(crate) fn replace(&mut self, slab: &mut Slab, slot: u32, record: Record) -> Record {
        let fifo = self.fifo_of(&slab[slot]);
        fifo.bytes += record.cost();
        let replaced = slab.replace(slot, record);
        fifo.bytes -= replaced.cost();
        self.last = slot;
        replaced
    }

    pub(crate) fn remove(&mut self, slab: &mut Slab, slot: u32) {
        self.dequeue(slab, slot);
        self.entries -= 1;
        if self.last == slot {
            self.last = NONE;
        }
    }

    pub(crate) fn relink(&mut self, slab: &mut Slab, from: u32, to: u32) {
        self.fifo_of(&slab[to]).list.relink(slab, to);
        if self.last == from {
            self.last = to;
        }
    }

    pub(crate) fn victim(
        &mut self,
        slab: &mut Slab,
        has_expired: impl Fn(&Record) -> bool,
    ) -> Option<u32> {
        loop {
            let queue = self.queue_to_take_from()?;
            let slot = match queue {
                Queue::Small => self.small.list.oldest()?,
                Queue::Main => self.main.list.oldest()?,
            };
            if has_expired(slab.record(slot)) {
                return Some(slot);
            }
            let hits = slab[slot].flags() & HITS;
            let is_spared = slot == self.last && self.entries > 1;
            match queue {
                Queue::Small if hits >= PROMOTED => self.requeue(slab, slot, Queue::Main, 0),
                Queue::Main if hits > 0 => self.requeue(slab, slot, Queue::Main, hits - 1),
                queue if is_spared => self.requeue(slab, slot, queue, hits),
                queue => {
                    self.leave_ghost(queue, slab[slot].hash());
                    return Some(slot);
                }
            }
        }
    }

    fn leave_ghost(&mut self, queue: Queue, hash: u32) {
        // Ghosts of main count only while they are young: half as many are enough.
        self.ghosts[Queue::Small as usize].make_room(self.entries);
        self.ghosts[Queue::Main as usize].make_room(self.entries / 2);
        self.ghosts[queue as usize].remember(hash);
    }

    /// The small queue if it has more than its share, else main; but if possible not one that is
    /// empty or has the newest entry only.
    fn queue_to_take_from(&self) -> Option<Queue> {
        let total = self.small.bytes + self.main.bytes;
        let small_is_over = self.small.bytes as f32 > self.small_share * total as f32;
        let can_give =
            |fifo: &Fifo| fifo.list.oldest().is_some() && fifo.list.only() != Some(self.last);
        match (can_give(&self.small), can_give(&self.main)) {
            (true, true) => Some(if small_is_over { Queue::Small } else { Queue::Main }),
            (true, false) => Some(Queue::Small),
            (false, true) => Some(Queue::Main),
            (false, false) if self.small.list.oldest().is_some() => Some(Queue::Small),
            (false, false) => self.main.list.oldest().map(|_| Queue::Main),
        }
    }

    fn requeue(&mut self, slab: &mut Slab, slot: u32, queue: Queue, hits: u8) {
        self.dequeue(slab, slot);
        self.enqueue(slab, queue, slot);
        let flags = slab[slot].flags();
        slab[slot].set_flags(flags | hits);
    }

    fn enqueue(&mut self, slab: &mut Slab, queue: Queue, slot: u32) {
        let (fifo, flags) = match queue {
            Queue::Small => (&mut self.small, 0),
            Queue::Main => (&mut self.main, IN_MAIN),
        };
        fifo.list.push(slab, slot);
        fifo.bytes += slab.record(slot).cost();
        slab[slot].set_flags(flags);
    }

    fn dequeue(&mut self, slab: &mut Slab, slot: u32) {
        let fifo = self.fifo_of(&slab[slot]);
        fifo.list.remove(slab, slot);
        fifo.bytes -= slab.record(slot).cost();
    }

    fn fifo_of(&mut self, entry: &Entry) -> &mut Fifo {
        let is_in_main = entry.flags() & IN_MAIN != 0;
        if is_in_main { &mut self.main } else { &mut self.small }
    }

    /// All slots; checks that queues, flags and sums agree.
    #[cfg(test)]
    pub(crate) fn slots(&self, slab: &Slab) -> Vec<u32> {
        let cost = |&slot: &u32| slab.record(slot).cost();
        let queues = [(&self.small, 0), (&self.main, IN_MAIN)].map(|(fifo, flags)| {
            let slots = fifo.list.slots(slab);
            assert!(slots.iter().all(|&slot| slab[slot].flags() & IN_MAIN == flags));
            assert_eq!(fifo.bytes, slots.iter().map(cost).sum::<usize>());
            slots
        });
        let slots = queues.concat();
        assert_eq!(slots.len(), self.entries);
        assert!((LEAST_SHARE..=LARGEST_SHARE).contains(&self.small_share));
        assert!(self.credit <= MOST_CREDIT);
        slots
    }
}
