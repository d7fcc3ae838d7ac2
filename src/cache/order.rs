//! `Order`: which entry of a shard goes first. Knows places, costs and hashes, not entries.

use super::list::{Links, List};
use super::s3fifo::S3Fifo;

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
    Lru(Lru),
}

impl Order {
    pub(crate) fn new(eviction: Eviction) -> Self {
        match eviction {
            Eviction::S3Fifo => Self::S3Fifo(S3Fifo::new()),
            Eviction::Lru => Self::Lru(Lru { links: Links::default(), list: List::new() }),
        }
    }

    /// A new entry.
    pub(crate) fn push(&mut self, place: u32, cost: usize, hash: u32) {
        match self {
            Self::S3Fifo(order) => order.push(place, cost, hash),
            Self::Lru(order) => {
                order.links.reach(place);
                order.list.push(&mut order.links, place);
            }
        }
    }

    /// A hit.
    #[inline]
    pub(crate) fn touch(&mut self, place: u32) {
        match self {
            Self::S3Fifo(order) => order.touch(place),
            Self::Lru(order) => {
                order.list.remove(&mut order.links, place);
                order.list.push(&mut order.links, place);
            }
        }
    }

    /// The entry leaves, for whatever reason.
    pub(crate) fn remove(&mut self, place: u32, cost: usize) {
        match self {
            Self::S3Fifo(order) => order.remove(place, cost),
            Self::Lru(order) => order.list.remove(&mut order.links, place),
        }
    }

    /// The entry that is to be evicted; not the one pushed last, unless it is alone, or in an
    /// LRU all others were hit since. It is still in the order.
    pub(crate) fn victim(
        &mut self,
        cost: impl Fn(u32) -> usize,
        hash: impl Fn(u32) -> u32,
    ) -> Option<u32> {
        match self {
            Self::S3Fifo(order) => order.victim(cost, hash),
            Self::Lru(order) => order.list.oldest(),
        }
    }

    /// All places in the order.
    #[cfg(test)]
    pub(crate) fn places(&self, cost: impl Fn(u32) -> usize) -> Vec<u32> {
        match self {
            Self::S3Fifo(order) => order.places(cost),
            Self::Lru(order) => order.list.places(&order.links),
        }
    }
}

pub(crate) struct Lru {
    links: Links,
    list: List,
}
