//! Removal: a key, or all of them, leaves every node.
//!
//! A value has changed at the origin, and after [`Group::remove`] no get that starts may see the old
//! one. To drop entries is not enough. What could bring an old value back:
//!
//! - *A load that began before.* It holds a lease from before the removal, so its value is not
//!   kept (see [`Lease`](crate::cache::Lease)); and the flights forget it, so that no caller joins
//!   it any more. Its own callers may get the old value: they asked before.
//! - *A copy of a copy.* So the owner is told first, and all others after it. If all were told at
//!   the same time:
//!
//!   1. node C drops its copy;
//!   2. C is asked for the key, asks the owner, which has not been told yet, and keeps the old
//!      value;
//!   3. the owner drops the value, `remove` returns, and C still serves the old one.
//!
//! - *An earlier owner*, after the list of nodes has changed: see [`handover`](super::handover).
//!
//! What remains: a node that could not be reached serves its copy until that expires, after
//! [`hot_ttl`](crate::GroupBuilder::hot_ttl) at the latest, or, if it is the owner, until the
//! value itself expires or is evicted. [`Error::RemoveIncomplete`] names it. And while the lists of
//! nodes disagree on the owner, an old copy can be copied between two nodes' removals; it too
//! ends after its `hot_ttl`.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use super::{Group, at_once};
use crate::cache::Key;
use crate::{Error, PeerError, PeerGetter};

impl Group {
    /// Removes `key` from all nodes: here, at its owner, and then at all others, 16 at a time.
    /// A get that starts after this has returned sees no value from before, on any node reached.
    ///
    /// While the lists of nodes differ, a node that is not in this one's list keeps what it has. One
    /// that has left the list a moment ago is told, too, but is not named if it does not answer. So list
    /// a node everywhere before it takes traffic, and take its traffic away before it leaves the list: a
    /// node that is asked and not listed serves old values, though `remove` returns `Ok`. A node whose
    /// [`HttpServer`](crate::HttpServer) does not have this group counts as reached.
    ///
    /// # Errors
    /// [`Error::RemoveIncomplete`] with the peers that were not reached, after all others were.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let (key, start) = (self.key(key)?, Instant::now());
        self.remove_here(&key);
        let owner = self.peers.pick(key.text);
        let is_owner =
            |peer: &Arc<dyn PeerGetter>| owner.as_ref().is_some_and(|o| o.name() == peer.name());
        let mut others = self.peers.others();
        others.retain(|peer| !is_owner(peer));
        // The earlier owners, from which the owner may fetch the value: before it. Those of them that
        // are still in the list are told once more with the others.
        let mut former = self.peers.former(key.text);
        former.retain(|peer| !is_owner(peer) && peer.is_up());
        let remove = |peer: &dyn PeerGetter| peer.remove(&self.name, key.text);
        ask_all(&former, remove);
        let mut failed = ask_all(owner.as_slice(), remove);
        failed.extend(ask_all(&others, remove));
        former.retain(|peer| others.iter().all(|other| other.name() != peer.name()));
        former.retain(|peer| peer.is_up());
        ask_all(&former, remove);
        // A copy may have come from the owner between the first line and its removal there.
        self.remove_here(&key);
        self.complete(start, failed)
    }

    /// Removes all keys of the group from all nodes, as [`remove`](Self::remove) does with one.
    ///
    /// # Errors
    /// [`Error::RemoveIncomplete`] with the peers that were not reached, after all others were.
    pub fn clear(&self) -> Result<(), Error> {
        let (others, start) = (self.peers.others(), Instant::now());
        let clear = |peer: &dyn PeerGetter| peer.clear(&self.name);
        // Each node owns some keys and has copies of others, so none can be first. The second
        // round drops the copies that were made of values which the first had not dropped yet.
        self.answer_clear();
        let failed = ask_all(&others, clear);
        let reached =
            |peer: &Arc<dyn PeerGetter>| failed.iter().all(|(name, _)| name != peer.name());
        let reached: Vec<_> = others.iter().filter(|peer| reached(peer)).cloned().collect();
        self.answer_clear();
        let failed_later = ask_all(&reached, clear);
        self.complete(start, [failed, failed_later].concat())
    }

    fn complete(&self, start: Instant, failed: Vec<(String, PeerError)>) -> Result<(), Error> {
        self.counters.removal_times.record(start.elapsed());
        if failed.is_empty() {
            return Ok(());
        }
        self.counters.removals_incomplete.add_one();
        Err(Error::RemoveIncomplete { failed })
    }

    /// Answers a peer that removes `key`: drops this node's own copies.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn answer_removal(&self, key: &str) -> Result<(), Error> {
        self.remove_here(&self.key(key)?);
        Ok(())
    }

    /// Answers a peer that clears the group: drops everything that this node keeps of it.
    pub fn answer_clear(&self) {
        if let Some(removed) = &self.removed {
            removed.note_all(self.clock.now());
        }
        let cleared = (self.main.clear(), self.hot.clear());
        self.asking.forget_all();
        self.loading.forget_all();
        // Elsewhere, since the thread that called may have hits to answer. If there is no thread to be
        // had, it is dropped here.
        let drop_it = thread::Builder::new().name("geecache-clear".into());
        let _ = drop_it.spawn(move || drop(cleared));
    }

    fn remove_here(&self, key: &Key<'_>) {
        if let Some(removed) = &self.removed {
            removed.note(key.hash, self.clock.now());
        }
        // The caches first: a get that misses them and then leads anew takes a new lease.
        self.main.remove(key);
        self.hot.remove(key);
        self.asking.forget(key.text);
        self.loading.forget(key.text);
    }
}

/// Asks all peers, many at the same time; returns those that failed.
fn ask_all(
    peers: &[Arc<dyn PeerGetter>],
    ask: impl Fn(&dyn PeerGetter) -> Result<(), PeerError> + Sync,
) -> Vec<(String, PeerError)> {
    let failures = at_once(peers, |peer| ask(&**peer).err().map(|e| (peer.name().to_string(), e)));
    failures.into_iter().flatten().collect()
}
