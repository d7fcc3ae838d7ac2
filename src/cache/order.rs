//! `Order`: which entry of a shard is evicted next.

use super::record::Record;
use super::s3fifo::S3Fifo;
use super::slab::{List, Slab};

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
    /// While the cache is full, a value that takes more than a hundredth of the room (a tenth of the
    /// small queue's), and that of ten others, is *large*: it is kept only when it is loaded for the second
    /// time within as many evictions as there are entries. The first time it is returned, and counted as
    /// [rejected](crate::CacheStats::rejected).
    #[default]
    S3Fifo,
    /// The least recently used first, as in groupcache. Right if the keys of the last moments are
    /// the likeliest to be asked for next, and the popular keys change all the time; a scan, or a
    /// loop over more keys than fit, empties the cache.
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

    /// Whether a new entry is kept while the cache is full.
    pub(crate) fn admits(&mut self, hash: u32, cost: usize) -> bool {
        match self {
            Self::S3Fifo(order) => order.admits(hash, cost),
            Self::Lru(_) => true,
        }
    }

    /// A new entry.
    pub(crate) fn push(&mut self, slab: &mut Slab, slot: u32) {
        match self {
            Self::S3Fifo(order) => order.push(slab, slot),
            Self::Lru(list) => list.push(slab, slot),
        }
    }

    /// A hit.
    #[inline(always)] // in the two places where there are hits, and one of them is hot
    pub(crate) fn touch(&mut self, slab: &mut Slab, slot: u32) {
        match self {
            Self::S3Fifo(order) => order.touch(&mut slab[slot]),
            Self::Lru(list) => {
                list.remove(slab, slot);
                list.push(slab, slot);
            }
        }
    }

    /// A new record for an entry, which becomes the newest; returns the old one.
    pub(crate) fn replace(&mut self, slab: &mut Slab, slot: u32, record: Record) -> Record {
        match self {
            Self::S3Fifo(order) => order.replace(slab, slot, record),
            Self::Lru(_) => {
                self.touch(slab, slot);
                slab.replace(slot, record)
            }
        }
    }

    /// An entry that leaves, for whatever reason.
    pub(crate) fn remove(&mut self, slab: &mut Slab, slot: u32) {
        match self {
            Self::S3Fifo(order) => order.remove(slab, slot),
            Self::Lru(list) => list.remove(slab, slot),
        }
    }

    /// An entry that has moved from one slot to another.
    pub(crate) fn relink(&mut self, slab: &mut Slab, from: u32, to: u32) {
        match self {
            Self::S3Fifo(order) => order.relink(slab, from, to),
            Self::Lru(list) => list.relink(slab, to),
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
        match self {
            Self::S3Fifo(order) => order.victim(slab, has_expired),
            Self::Lru(list) => list.oldest(),
        }
    }

    /// All slots in the order; checks that its parts agree.
    #[cfg(test)]
    pub(crate) fn slots(&self, slab: &Slab) -> Vec<u32> {
        match self {
            Self::S3Fifo(order) => order.slots(slab),
            Self::Lru(list) => list.slots(slab),
        }
    }
}
