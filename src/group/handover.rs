//! Hand-over: what the list of nodes gives to another owner is fetched from the earlier one.
//!
//! When three nodes become four, a quarter of all keys has a new owner, which has none of them; and a
//! node that is replaced takes its share along. The origin would have to give all that once more. But
//! for a while the earlier owner still has the values. So before the leader of a miss calls the
//! getter, it asks the earlier owners, the last one first, from their caches alone and for no longer
//! than [`PATIENCE`] in all. Whoever is asked so asks nobody, so there are no loops.
//!
//! A value keeps the life that it had at its earlier owner, which itself may keep it for
//! [`hot_ttl`](crate::GroupBuilder::hot_ttl) only. "No such key" is not handed over.
//!
//! # A removal wins
//!
//! 1. Node N owns the key now, F owned it before and has v1. The origin turns to v2.
//! 2. [`Group::remove`](super::Group::remove) tells N, and then cannot reach F: it is not in the list
//!    any more.
//! 3. N is asked for the key, asks F, and has v1 again, which no later removal of v1 will come for.
//!
//! So each node remembers what was removed ([`Removed`]), and asks no earlier owner for it. And a
//! removal that falls between that look and the answer ends the lease, which is taken before:
//!
//! 1. N takes its lease, finds that the key was not removed, and asks F.
//! 2. A removal is noted at N, and ends the lease.
//! 3. F's v1 arrives. It answers those who asked before the removal, and is not kept.
//!
//! A node that restarts forgets what was removed. So a removal tells the earlier owners first, as far
//! as the one who removes knows them, then the owner, then all others.

use std::collections::HashMap;
use std::iter::zip;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Asked, Group, Tier, at_once, timed};
use crate::cache::{Key, Lease, Record};
use crate::peer::LONGEST_HANDOVER;
use crate::{ByteView, Error, Loaded, PeerGetter};

/// How long the earlier owners of a key, or of a batch, are asked, all together.
const PATIENCE: Duration = Duration::from_millis(100);

/// A value from an earlier owner, and how that was asked.
pub(super) type TakenOver = (Record, Asked);

impl Group {
    /// The value of `key` from an earlier owner, kept if the lease holds.
    pub(super) fn take_over(&self, key: &Key<'_>, lease: Lease) -> Option<TakenOver> {
        // As nearly always.
        if self.former(key).is_empty() {
            return None;
        }
        self.take_over_missed(&[key], &[lease]).pop().flatten()
    }

    /// The values of those keys that earlier owners have, kept if their leases hold.
    pub(super) fn take_over_missed(
        &self,
        keys: &[&Key<'_>],
        leases: &[Lease],
    ) -> Vec<Option<TakenOver>> {
        let start = self.clock.now();
        let end = start.saturating_add(PATIENCE);
        let mut former: Vec<_> = keys.iter().map(|key| self.former(key).into_iter()).collect();
        let mut taken: Vec<Option<TakenOver>> = vec![None; keys.len()];
        loop {
            let mut by_peer: HashMap<String, (Arc<dyn PeerGetter>, Vec<usize>)> = HashMap::new();
            for (i, former) in former.iter_mut().enumerate().filter(|&(i, _)| taken[i].is_none()) {
                if let Some(peer) = former.next() {
                    by_peer.entry(peer.name().into()).or_insert((peer, Vec::new())).1.push(i);
                }
            }
            let left = end.saturating_sub(self.clock.now());
            if by_peer.is_empty() || left.is_zero() {
                return taken;
            }
            let parts: Vec<_> = by_peer.into_values().collect();
            let brought = at_once(&parts, |(peer, part)| {
                let texts: Vec<_> = part.iter().map(|&i| keys[i].text).collect();
                timed(|| peer.get_cached(&self.name, &texts, left))
            });
            for ((peer, part), (found, took)) in zip(parts, brought) {
                for (i, loaded) in zip(part, found) {
                    let has_life = |loaded: &Loaded| loaded.ttl != Some(Duration::ZERO);
                    let Some(loaded) = loaded.filter(has_life) else { continue };
                    let (key, ttl) = (keys[i], loaded.ttl);
                    let record = self.record(Tier::Main, key, Some(&loaded), ttl, || start);
                    self.main.insert(key, record.clone(), leases[i]);
                    self.limit_if_disowned(key);
                    self.counters.handed_over.add_one();
                    let asked = Asked { peer: peer.name().into(), took, error: None };
                    taken[i] = Some((record, asked));
                }
            }
        }
    }

    /// The nodes that may still have the value of `key`.
    fn former(&self, key: &Key<'_>) -> Vec<Arc<dyn PeerGetter>> {
        match &self.removed {
            Some(removed) if !removed.contains(key.hash, self.clock.now()) => {
                self.peers.former(key.text)
            }
            _ => Vec::new(),
        }
    }

    /// Answers a peer that owns `key` now: the value, if it is in this node's caches, and how long it
    /// would still live if this node still owned the key. Asks nobody, and does not count as a get.
    ///
    /// [`HttpServer`](crate::HttpServer) calls this; a transport of your own would.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn answer_handover(
        &self,
        key: &str,
    ) -> Result<Option<(ByteView, Option<Duration>)>, Error> {
        let Some((record, _)) = self.peek(&self.key(key)?) else { return Ok(None) };
        let remaining = record.would_expire().map(|at| at.saturating_sub(self.clock.now()));
        Ok(record.into_value().map(|value| (value, remaining)))
    }
}

/// The keys that were removed in the last minutes, by bits of their hashes. Another key with the same
/// bits is taken for removed, too, and loaded from the origin: 3 % of the keys after 30,000 removals.
#[derive(Default)]
pub(super) struct Removed(Mutex<State>);

#[derive(Default)]
struct State {
    began: Duration,
    /// Since it began, for as long as an earlier owner may be asked.
    now: Bits,
    /// In the same time before.
    before: Bits,
}

/// Empty until the first removal: most groups never have one.
#[derive(Default)]
struct Bits(Vec<u64>);

impl Removed {
    pub(super) fn note(&self, hash: u64, now: Duration) {
        self.with(now, |state| state.now.insert(hash));
    }

    /// Notes all keys.
    pub(super) fn note_all(&self, now: Duration) {
        self.with(now, |state| state.now = Bits::all());
    }

    fn contains(&self, hash: u64, now: Duration) -> bool {
        self.with(now, |state| state.now.contains(hash) || state.before.contains(hash))
    }

    fn with<T>(&self, now: Duration, work: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.0.lock().unwrap();
        let age = now.saturating_sub(state.began);
        if age >= LONGEST_HANDOVER {
            let was_now = std::mem::take(&mut state.now);
            state.before = if age < 2 * LONGEST_HANDOVER { was_now } else { Bits::default() };
            state.began = now;
        }
        work(&mut state)
    }
}

impl Bits {
    /// 128 KiB.
    const BITS: usize = 1 << 20;

    fn all() -> Self {
        Self(vec![u64::MAX; Self::BITS / 64])
    }

    fn index(hash: u64) -> (usize, u64) {
        let bit = (hash >> 32) as usize % Self::BITS;
        (bit / 64, 1 << (bit % 64))
    }

    fn insert(&mut self, hash: u64) {
        let (word, bit) = Self::index(hash);
        self.0.resize(Self::BITS / 64, 0);
        self.0[word] |= bit;
    }

    fn contains(&self, hash: u64) -> bool {
        let (word, bit) = Self::index(hash);
        self.0.get(word).is_some_and(|word| word & bit != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removal_is_remembered_for_the_longest_hand_over_and_at_most_twice_as_long() {
        let (removed, hash) = (Removed::default(), 7 << 40);
        let (begin, step) = (LONGEST_HANDOVER - Duration::from_millis(1), LONGEST_HANDOVER);
        assert!(!removed.contains(hash, begin));
        removed.note(hash, begin);
        assert!(removed.contains(hash, begin) && !removed.contains(8 << 40, begin));
        assert!(removed.contains(hash, begin + step), "in the next part");
        assert!(!removed.contains(hash, begin + 2 * step));
        removed.note_all(begin + 2 * step);
        assert!(removed.contains(hash, begin + 2 * step) && removed.contains(0, begin + 3 * step));
        assert!(!removed.contains(hash, begin + 5 * step), "also if nobody has asked meanwhile");
    }
}
