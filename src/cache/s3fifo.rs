//! `S3Fifo`: eviction by plain FIFO queues, after Yang et al., *FIFO Queues Are All You Need for
//! Cache Eviction*, SOSP 2023; with a small queue that finds its own size.
//!
//! Why not LRU? A hit there moves an entry to the front, which is five writes under the lock;
//! and one scan flushes what was popular. Here a hit sets a counter of two bits and relinks
//! nothing:
//!
//! - A new entry goes into the *small* queue. At its end, if it was asked for at least twice
//!   there, it moves to the *main* queue; else it is evicted and leaves a ghost.
//! - At the end of the main queue an entry that was asked for goes round again, with one less on
//!   its counter; else it is evicted.
//! - A key that comes back while it is a ghost of the small queue goes to main at once.
//!
//! In the paper the small queue has a tenth of the space. Where popularity drifts that is too
//! little: keys are gone before they are asked for again. So the tenth is where it begins, and
//! from there each queue shows what a little more space would have brought it: a key that comes
//! back shortly after it left the small queue says that this one is too small, and one that left
//! main says the same of main (the shadow queues of Cidon et al., *Cliffhanger*, NSDI 2016). In a
//! loop over more keys than there is room for, every key comes back, and the small queue would
//! swallow all and hit nothing; therefore it must earn its growth: a hit in the small queue
//! buys one step.

use super::ghosts::Ghosts;
use super::slab::{List, Slot, Slots};

pub(crate) struct S3Fifo {
    small: Fifo,
    main: Fifo,
    entries: usize,
    // By queue: what left it lately.
    ghosts: [Ghosts; 2],
    // The part of all bytes that the small queue may have.
    small_share: f32,
    // Hits in the small queue that have not bought it a step yet.
    credit: u32,
    // The place pushed last.
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

// What the mark of a slot says: how often it was hit, up to 3, and whether it is in the main queue.
const HITS: u8 = 0b11;
const IN_MAIN: u8 = 0b100;
/// So many hits take an entry from the small queue to the main one.
const PROMOTED: u8 = 2;

const FIRST_SHARE: f32 = 0.1;
const LEAST_SHARE: f32 = 0.01;
const LARGEST_SHARE: f32 = 0.9;
/// A key that comes back within this part of the entries' number would have been hit in a queue
/// a little larger.
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
            last: 0,
        }
    }

    pub(crate) fn push(&mut self, slots: &mut Slots, place: u32) {
        let (cost, hash) = (slots.record(place).cost(), slots[place].hash());
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
        self.enqueue(slots, queue, place);
        self.entries += 1;
        self.last = place;
    }

    #[inline]
    pub(crate) fn touch(&mut self, slot: &mut Slot) {
        let mark = slot.mark();
        if mark & IN_MAIN == 0 && self.credit < MOST_CREDIT {
            self.credit += 1;
        }
        if mark & HITS < HITS {
            slot.set_mark(mark + 1);
        }
    }

    pub(crate) fn remove(&mut self, slots: &mut Slots, place: u32) {
        self.dequeue(slots, place);
        self.entries -= 1;
    }

    pub(crate) fn victim(&mut self, slots: &mut Slots) -> Option<u32> {
        loop {
            let queue = self.queue_to_take_from()?;
            let place = match queue {
                Queue::Small => self.small.list.oldest()?,
                Queue::Main => self.main.list.oldest()?,
            };
            let hits = slots[place].mark() & HITS;
            let is_spared = place == self.last && self.entries > 1;
            match queue {
                Queue::Small if hits >= PROMOTED => self.requeue(slots, place, Queue::Main, 0),
                Queue::Main if hits > 0 => self.requeue(slots, place, Queue::Main, hits - 1),
                queue if is_spared => self.requeue(slots, place, queue, hits),
                queue => {
                    // Ghosts of main are looked at only while they are young: half suffice.
                    let places = match queue {
                        Queue::Small => self.entries,
                        Queue::Main => self.entries / 2,
                    };
                    self.ghosts[queue as usize].remember(slots[place].hash(), places);
                    return Some(place);
                }
            }
        }
    }

    /// The small queue where it has more than its share, else main; but not one in which there
    /// is nothing, or nothing but what was pushed last.
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

    fn requeue(&mut self, slots: &mut Slots, place: u32, queue: Queue, hits: u8) {
        self.dequeue(slots, place);
        self.enqueue(slots, queue, place);
        let mark = slots[place].mark();
        slots[place].set_mark(mark | hits);
    }

    fn enqueue(&mut self, slots: &mut Slots, queue: Queue, place: u32) {
        let (fifo, mark) = match queue {
            Queue::Small => (&mut self.small, 0),
            Queue::Main => (&mut self.main, IN_MAIN),
        };
        fifo.list.push(slots, place);
        fifo.bytes += slots.record(place).cost();
        slots[place].set_mark(mark);
    }

    fn dequeue(&mut self, slots: &mut Slots, place: u32) {
        let is_in_main = slots[place].mark() & IN_MAIN != 0;
        let fifo = if is_in_main { &mut self.main } else { &mut self.small };
        fifo.list.remove(slots, place);
        fifo.bytes -= slots.record(place).cost();
    }

    /// All places, after a look at whether what is known of them agrees.
    #[cfg(test)]
    pub(crate) fn places(&self, slots: &Slots) -> Vec<u32> {
        let cost = |&place: &u32| slots.record(place).cost();
        let queues = [(&self.small, 0), (&self.main, IN_MAIN)].map(|(fifo, mark)| {
            let places = fifo.list.places(slots);
            assert!(places.iter().all(|&place| slots[place].mark() & IN_MAIN == mark));
            assert_eq!(fifo.bytes, places.iter().map(cost).sum::<usize>());
            places
        });
        let places = queues.concat();
        assert_eq!(places.len(), self.entries);
        assert!((LEAST_SHARE..=LARGEST_SHARE).contains(&self.small_share));
        assert!(self.credit <= MOST_CREDIT);
        places
    }
}
