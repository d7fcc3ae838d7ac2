//! `Order`: which entry of a shard goes first.

use super::s3fifo::S3Fifo;
use super::slab::{List, Slots};

/// Which entries give way when the budget is used up: [`GroupBuilder::eviction`].
///
/// [`GroupBuilder::eviction`]: crate::GroupBuilder::eviction
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Eviction {
    /// S3-FIFO with an adaptive small queue: the default. New entries pass through a small
    /// queue, and only those asked for twice get into the main one, so that scans and keys seen
    /// once sweep nothing out. Right for nearly everything.
    #[default]
    S3Fifo,
    /// The least recently used first, as in groupcache. Right where what was asked for a moment
    /// ago is what is asked for next, and the popular keys change all the time; a scan or a loop
    /// larger than the cache empties it.
    Lru,
}

pub(crate) enum Order {
    S3Fifo(S3Fifo),
    Lru(List),
}

impl Order {
    pub(crate) fn new(eviction: Eviction) -> Self {
        match eviction {
            Eviction::S3Fifo => Self::S3Fifo(S3Fifo::new()),
            Eviction::Lru => Self::Lru(List::new()),
        }
    }

    /// A new entry.
    pub(crate) fn push(&mut self, slots: &mut Slots, place: u32) {
        match self {
            Self::S3Fifo(order) => order.push(slots, place),
            Self::Lru(list) => list.push(slots, place),
        }
    }

    /// A hit.
    #[inline]
    pub(crate) fn touch(&mut self, slots: &mut Slots, place: u32) {
        match self {
            Self::S3Fifo(order) => order.touch(&mut slots[place]),
            Self::Lru(list) => {
                list.remove(slots, place);
                list.push(slots, place);
            }
        }
    }

    /// The entry leaves, for whatever reason.
    pub(crate) fn remove(&mut self, slots: &mut Slots, place: u32) {
        match self {
            Self::S3Fifo(order) => order.remove(slots, place),
            Self::Lru(list) => list.remove(slots, place),
        }
    }

    /// The entry that is to be evicted; not the one pushed last, unless it is alone, or in an
    /// LRU all others were hit since. It is still in the order.
    pub(crate) fn victim(&mut self, slots: &mut Slots) -> Option<u32> {
        match self {
            Self::S3Fifo(order) => order.victim(slots),
            Self::Lru(list) => list.oldest(),
        }
    }

    /// All places in the order.
    #[cfg(test)]
    pub(crate) fn places(&self, slots: &Slots) -> Vec<u32> {
        match self {
            Self::S3Fifo(order) => order.places(slots),
            Self::Lru(list) => list.places(slots),
        }
    }
}
