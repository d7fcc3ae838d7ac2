//! Hand-over: after a change of the list of nodes, a key's new owner fetches the value from the earlier one.
//!
//! When three nodes become four, a quarter of all keys has a new owner, which has none of them; and a
//! node that is replaced takes its share along. The origin would have to give all that once more. But
//! for 30 seconds the earlier owners are asked before the getter is: the last one first, for the
//! values in their main caches and for no longer than [`PATIENCE`] in all. A node that is asked so asks
//! nobody, so there are no loops. A value keeps the life that it had. "No such key" is not handed over.
//!
//! [`Group::source`] is the getter with this in front of it. It also serves two callers that must not
//! wait for another node's worker, although a key is not this node's own: a peer that takes this node
//! for the owner, and a get inside a getter. They ask the owner in the same way.
//!
//! A copy in the hot cache must not hide that value: its life is shorter, and at its end the earlier owner
//! may be gone. So it is dropped where an earlier owner can be asked.
//!
//! # Values that another node owns now
//!
//! The main cache keeps those values, for they may be handed over, and their keys may come home. But a
//! removal may not reach this node any more. So they are served for
//! [`hot_ttl`](crate::GroupBuilder::hot_ttl) after the change: then one sweep drops them, begun by the
//! first look-up that comes. A value can also come too late:
//!
//! 1. Thread A wants a key that this node owns, and loads it for longer than `hot_ttl`.
//! 2. Thread B changes the list. Another node owns the key; `hot_ttl` later the main cache is swept.
//! 3. A keeps its value in the main cache, asks once more who owns the key, and takes it out again.

use std::iter::zip;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Asked, Group, Miss, Misses, Tier, Told, at_once, by_peer, tell, timed};
use crate::cache::{Key, Record};
use crate::{ByteView, Error, Loaded, PeerGetter};

/// How long other nodes are asked for their cached values of a key, or of a batch, all together.
const PATIENCE: Duration = Duration::from_millis(100);

impl Group {
    /// The getter, with other nodes' caches in front of it.
    pub(super) fn source(&self, misses: &mut Misses<'_, '_>) {
        if misses.iter().any(|miss| self.may_have(miss, 0).is_some()) {
            self.take_over(misses);
        }
        self.ask_getter(misses);
    }

    /// Asks for each key one node after the other.
    #[cold]
    fn take_over(&self, misses: &mut Misses<'_, '_>) {
        let start = Instant::now();
        for turn in 0.. {
            let open = misses.iter_mut().filter(|miss| miss.loaded.is_none());
            let next = open.map(|miss| (self.may_have(miss, turn), miss));
            let parts = by_peer(next.filter(|(peer, _)| peer.is_some()));
            let left = PATIENCE.saturating_sub(start.elapsed());
            if parts.is_empty() || left.is_zero() {
                return;
            }
            at_once(parts, |(peer, misses)| {
                let peer = peer.expect("a peer is asked");
                let keys: Vec<_> = misses.iter().map(|miss| miss.key.text).collect();
                let asked_at = self.now();
                let (found, took) = timed(|| peer.get_cached(self.name(), &keys, left));
                let passed = self.now().saturating_sub(asked_at);
                for (miss, loaded) in zip(misses, found) {
                    if let Some(loaded) = loaded.and_then(|loaded| aged(loaded, passed)) {
                        miss.loaded = Some(Ok(Some(loaded)));
                        let asked = Asked { peer: peer.name().into(), took, error: None };
                        miss.trace.handed_over = Some(asked);
                    }
                }
            });
        }
    }

    /// The node to ask for a key when its turn comes: the owner, then the earlier owners.
    fn may_have(&self, miss: &Miss<'_>, turn: usize) -> Option<Arc<dyn PeerGetter>> {
        match &miss.owner {
            Some(owner) if turn == 0 => Some(owner.clone()),
            owner => self
                .peers
                .former(miss.key.text)
                .into_iter()
                .nth(turn - usize::from(owner.is_some()))
                .filter(|_| !self.told.have(miss.key.text)),
        }
    }

    /// Answers a peer from the cache of this node's own keys: the value, and how long it still lives. Loads
    /// nothing, asks nobody, and counts as a get only if it finds something.
    ///
    /// [`HttpServer`](crate::HttpServer) calls this; a transport of your own would.
    ///
    /// # Errors
    /// [`Error::KeyLength`].
    pub fn answer_cached(&self, key: &str) -> Result<Option<(ByteView, Option<Duration>)>, Error> {
        Ok(match self.answer_batch_cached(&[key], |_| true).pop() {
            Some(Ok(Told::Value(value, remaining))) => Some((value, remaining)),
            Some(Err(error)) => return Err(error),
            _ => None,
        })
    }

    /// The same for many keys, and only values that `fit`, which is given their lengths.
    pub(crate) fn answer_batch_cached(
        &self,
        keys: &[&str],
        mut fit: impl FnMut(usize) -> bool,
    ) -> Vec<Result<Told, Error>> {
        let mut answer = |text: &&str| {
            let key = self.key(text)?;
            let value = |record: Record| record.into_value().is_none_or(|value| fit(value.len()));
            let fits = self.main.peek(&key).is_some_and(value);
            let renew = || self.renew(&key, Tier::Main);
            let Some(record) = fits.then(|| self.main.get(&key, renew)).flatten() else {
                return Ok(Told::NotCached);
            };
            self.counters.add(|stats| stats.peer_requests += 1);
            let left = self.life_left(&record);
            Ok(tell(record, left))
        };
        keys.iter().map(&mut answer).collect()
    }

    /// Whether the cache of this node's own keys has all `keys` now. Counts nothing.
    pub(crate) fn has_cached(&self, keys: &[&str]) -> bool {
        let mut has = |text: &&str| self.key(text).is_ok_and(|key| self.main.peek(&key).is_some());
        keys.iter().all(&mut has)
    }
}

/// The value after that time, with the rest of its life; `None` if it has ended.
fn aged(loaded: Loaded, passed: Duration) -> Option<Loaded> {
    let ttl = loaded.ttl.map(|ttl| ttl.saturating_sub(passed));
    (ttl != Some(Duration::ZERO)).then_some(Loaded { ttl, ..loaded })
}

/// When the values of keys that other nodes own now have to go.
pub(super) struct Disowned {
    /// `hot_ttl` after the first change that no sweep has followed, in nanoseconds of the group's clock.
    due: AtomicU64,
}

/// The list has not changed since the group was built.
const NEVER: u64 = u64::MAX;
/// A sweep has followed each change.
const SWEPT: u64 = NEVER - 1;

impl Disowned {
    pub(super) fn new() -> Self {
        Self { due: AtomicU64::new(NEVER) }
    }

    /// Whether a look-up has to ask who owns its key.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        self.due.load(Ordering::Relaxed) < SWEPT
    }
}

impl Group {
    /// The list of nodes has changed.
    pub(super) fn disown(&self) {
        let due = self.now().saturating_add(self.settings.hot_ttl);
        let due = u64::try_from(due.as_nanos()).unwrap_or(SWEPT);
        self.disowned.due.fetch_min(due, Ordering::SeqCst);
    }

    /// Drops the value of `key` if another node owns it and its time here is over. Begins the sweep.
    #[cold]
    pub(super) fn drop_if_overdue(&self, key: &Key<'_>) {
        if self.now() < Duration::from_nanos(self.disowned.due.load(Ordering::Relaxed)) {
            return;
        }
        self.drop_if_disowned(key);
        // Before the sweep: a change of the list from now on is due for another one.
        let due = self.disowned.due.swap(SWEPT, Ordering::SeqCst);
        if self.threads.run(self.job(Self::sweep)).is_err() {
            self.disowned.due.fetch_min(due, Ordering::SeqCst);
        }
    }

    fn sweep(&self) {
        self.main.visit(|record| self.drop_if_disowned(&Key::new(record.key(), &self.hasher)));
    }

    fn drop_if_disowned(&self, key: &Key<'_>) {
        if self.peers.pick(key.text).is_some() {
            self.main.drop_outdated(key);
        }
    }

    /// After a change, drops the copy of a key that this node owns now, if an earlier owner may be asked for
    /// the value: that lives longer than the copy, at whose end the earlier owner may be gone.
    pub(super) fn drop_copy_of_own(&self, key: &Key<'_>) {
        let is_own = || self.peers.pick(key.text).is_none();
        let may_ask = || self.peers.former(key.text).iter().any(|peer| peer.is_up());
        if self.disowned.is_pending() && is_own() && may_ask() {
            self.hot.drop_outdated(key);
        }
    }

    /// Called when a value has been put into the main cache: its key may have got another owner since.
    pub(super) fn drop_if_late(&self, key: &Key<'_>) {
        if self.disowned.due.load(Ordering::SeqCst) != NEVER {
            self.drop_if_disowned(key);
        }
    }
}
