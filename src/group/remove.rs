//! Removal: a key, or all of them, leaves every node.
//!
//! A value has changed at the origin, and after [`Group::remove`] no get that starts may see the old
//! one. To drop entries is not enough. What could bring an old value back:
//!
//! - *A load that began before.* It holds a lease from before the removal, so its value is not
//!   kept (see [`Lease`](crate::cache::Lease)); and the flights forget it, so that no caller joins
//!   it any more. Its own callers may get the old value: they asked before.
//! - *A copy that another node gives meanwhile.* So all nodes are told, and then all once more:
//!
//!   1. node C drops its copy;
//!   2. C is asked for the key, asks the owner, which has not been told yet, and keeps the old value;
//!   3. the owner drops the value;
//!   4. in the second round C drops its copy again, and no owner has an old value to give.
//!
//!   A copy could still give one. So of what a node tells from its hot cache, or of a key that it does not
//!   own, no copy is kept.
//! - *An earlier owner*, for 30 seconds after the list of nodes has changed: the owner, once told, would take
//!   the value [over](super::handover) from it. It may be told later, and the node that removes may not
//!   know it at all. So a node takes no key over that it was told of in the last minute.
//! - *A node that this one does not know.* A node that has left the list may still be asked, and a node
//!   that has come is asked by nodes that know it already, and loads by itself:
//!
//!   1. Node B knows of the new node N, which owns the key now. A get at B asks N, which loads v1.
//!   2. The origin turns to v2, and A, which does not know N yet, removes the key everywhere else.
//!   3. A hears of N. All lists agree, and N has v1.
//!
//! So *a removal reaches every node that is in the list from a minute before it to a minute after it*.
//! Those that have left are told with the others. And each node keeps the removals that it
//! [made](Removals), and repeats them when its list changes. No change is missed: a removal is noted before
//! the list is read, and the list is swapped before the notes are read, so the second of the two sees
//! the work of the first.
//!
//! What remains: between a removal and the next change of the remover's list, a node that it does not
//! know may serve the old value; if the remover ends before that change, nobody repeats its removal; and
//! a node that was out of the lists for longer than a minute is told nothing. A node that could not be
//! reached serves its copy until that expires, or, if it is the owner, until the value itself expires or
//! is evicted; [`Error::RemoveIncomplete`] names it.

use std::collections::BTreeMap;
use std::mem;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use log::warn;

use super::{Group, at_once};
use crate::cache::Key;
use crate::peer::LATELY;
use crate::{Error, PeerError, PeerGetter};

/// How long a change of the list waits for its removals: it must not wait for a node that is mute.
const A_MOMENT: Duration = Duration::from_millis(100);

/// The peers that were not reached, and why.
type Failed = BTreeMap<String, PeerError>;

type Peer = Arc<dyn PeerGetter>;

impl Group {
    /// Removes `key` from all nodes: here and at all others, 16 at a time, and then once more.
    /// A get that starts after this has returned sees no value from before, on any node reached.
    ///
    /// Told are all nodes that are in this node's list, and those that have left it in the last minute. A
    /// node that comes into it in the next minute is told then. Until then a get there may see an old value,
    /// so list a node everywhere before it takes traffic. A node whose
    /// [`HttpServer`](crate::HttpServer) does not have this group counts as reached.
    ///
    /// # Errors
    /// [`Error::RemoveIncomplete`] with the peers that were not reached, after all others were. One that
    /// has left the list and does not answer is named for a minute, too: it may still serve gets.
    pub fn remove(&self, key: &str) -> Result<(), Error> {
        let key = self.key(key)?;
        self.made.note(Some(key.text.into()));
        self.complete(self.remove_everywhere(&[key]))
    }

    /// Removes all keys of the group from all nodes, as [`remove`](Self::remove) does with one.
    ///
    /// # Errors
    /// [`Error::RemoveIncomplete`] with the peers that were not reached, after all others were.
    pub fn clear(&self) -> Result<(), Error> {
        self.made.note(None);
        self.complete(self.clear_everywhere())
    }

    /// The list of nodes has changed: makes the removals of the last minute again, on a thread of its own,
    /// and waits for that for [`A_MOMENT`] at the most.
    pub(super) fn repeat_removals(&self) {
        let lately = self.made.lately();
        if lately.is_empty() {
            return;
        }
        let waiting = Arc::new((Mutex::new(true), Condvar::new()));
        let done = waiting.clone();
        let repeated = self.threads.run(self.job(move |group| {
            group.make_again(&lately);
            *done.0.lock().unwrap() = false;
            done.1.notify_all();
        }));
        let (waiting, done) = &*waiting;
        match repeated {
            Err(without_a_thread) => without_a_thread(),
            Ok(()) => {
                let waiting = waiting.lock().unwrap();
                drop(done.wait_timeout_while(waiting, A_MOMENT, |waiting| *waiting));
            }
        }
    }

    fn make_again(&self, lately: &[Removal]) {
        let keys = lately.iter().map(|key| self.key(key.as_deref()?).ok());
        let failed = match keys.collect::<Option<Vec<_>>>() {
            Some(keys) => self.remove_everywhere(&keys),
            None => self.clear_everywhere(),
        };
        for (peer, error) in failed {
            warn!("[{}] {peer} was not told of the last minute's removals: {error}", self.name());
        }
    }

    fn remove_everywhere(&self, keys: &[Key<'_>]) -> Failed {
        let here = || keys.iter().for_each(|key| self.remove_here(key));
        self.tell_all_twice(here, |peer| {
            keys.iter().try_for_each(|key| peer.remove(self.name(), key.text))
        })
    }

    fn clear_everywhere(&self) -> Failed {
        self.tell_all_twice(|| self.answer_clear(), |peer| peer.clear(self.name()))
    }

    /// Removes here and at all peers, many at the same time, and then once more. Those that fail are not
    /// told again.
    fn tell_all_twice(
        &self,
        here: impl Fn(),
        tell: impl Fn(&Peer) -> Result<(), PeerError> + Sync,
    ) -> Failed {
        let (peers, failed) = (self.peers.others(), Mutex::new(Failed::new()));
        for _ in 0..2 {
            here();
            let is_open = |peer: &&Peer| !failed.lock().unwrap().contains_key(peer.name());
            at_once(peers.iter().filter(is_open).collect(), |peer| {
                if let Err(error) = tell(peer) {
                    failed.lock().unwrap().insert(peer.name().into(), error);
                }
            });
        }
        mem::take(&mut *failed.lock().unwrap())
    }

    fn complete(&self, failed: Failed) -> Result<(), Error> {
        if failed.is_empty() {
            return Ok(());
        }
        self.counters.add(|stats| stats.removals_incomplete += 1);
        Err(Error::RemoveIncomplete { failed: failed.into_iter().collect() })
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
        self.told.note(None);
        let cleared = (self.main.clear(), self.hot.clear());
        self.asking.forget_all();
        self.loading.forget_all();
        // Elsewhere, since the thread that called may have hits to answer. If there is no thread to be
        // had, it is dropped here.
        let _ = self.threads.run(Box::new(move || drop(cleared)));
    }

    fn remove_here(&self, key: &Key<'_>) {
        self.told.note(Some(key.text.into()));
        // The caches first: a get that misses them and then leads anew takes a new lease.
        self.main.remove(key);
        self.hot.remove(key);
        self.asking.forget(key.text);
        self.loading.forget(key.text);
    }
}

/// Removals of the last minute. Older ones are forgotten when there are many.
#[derive(Default)]
pub(super) struct Removals {
    // Guards the removals and when each began, of a key that was removed again the last time.
    removals: Mutex<BTreeMap<Removal, Instant>>,
}

/// A key, or all of them.
type Removal = Option<Box<str>>;

impl Removals {
    /// More keys than that count as all.
    const MOST: usize = 10_000;

    fn note(&self, removal: Removal) {
        let mut removals = self.removals.lock().unwrap();
        if removals.len() >= Self::MOST {
            removals.retain(|_, at| at.elapsed() <= LATELY);
        }
        let removal = removal.filter(|_| removals.len() < Self::MOST);
        let outdated = if removal.is_none() { mem::take(&mut *removals) } else { BTreeMap::new() };
        removals.insert(removal, Instant::now());
        drop(removals);
        drop(outdated);
    }

    /// Whether the key was removed, or all were.
    pub(super) fn have(&self, key: &str) -> bool {
        let removals = self.removals.lock().unwrap();
        let began = |removal: Removal| removals.get(&removal).copied();
        let found = [began(Some(key.into())), began(None)].into_iter().flatten();
        found.max().is_some_and(|at| at.elapsed() <= LATELY)
    }

    fn lately(&self) -> Vec<Removal> {
        let removals = self.removals.lock().unwrap();
        let lately = removals.iter().filter(|(_, at)| at.elapsed() <= LATELY);
        lately.map(|(removal, _)| removal.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn very_many_keys_are_all_and_what_was_removed_before_all_is_among_it() {
        let made = Removals::default();
        let keys = || made.lately().iter().filter(|r| r.is_some()).count();
        (0..Removals::MOST).for_each(|i| made.note(Some(i.to_string().into())));
        assert_eq!((keys(), made.lately().len()), (Removals::MOST, Removals::MOST));
        made.note(Some("one more".into()));
        assert_eq!((keys(), made.lately().len()), (0, 1));
        assert!(made.have("any other"));
        made.note(Some("Tom".into()));
        made.note(Some("Tom".into()));
        assert_eq!((keys(), made.lately().len()), (1, 2), "once, however often it was removed");
        made.note(None);
        assert_eq!((keys(), made.lately().len()), (0, 1));
    }
}
