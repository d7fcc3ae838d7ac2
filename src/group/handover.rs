//! Hand-over: what the list of nodes gives to another owner is fetched from the earlier one.
//!
//! When three nodes become four, a quarter of all keys has a new owner, which has none of them; and a
//! node that is replaced takes its share along. The origin would have to give all that once more. But
//! for 30 seconds the earlier owners are asked before the getter is: the last one first, for what they
//! have in their main caches and for no longer than [`PATIENCE`] in all. A node that is asked so asks
//! nobody, so there are no loops. A value keeps the life that it had. "No such key" is not handed over.
//!
//! [`Group::source`] is the getter with this in front of it. It also serves two callers that must not
//! wait for another node's worker, although a key is not this node's own: a peer that takes this node
//! for the owner, and a get inside a getter. They ask the owner in the same way.
//!
//! # What another node owns now
//!
//! The main cache keeps those values, for they may be handed over, and their keys may come home. But a
//! removal may not reach this node any more. So they are served for
//! [`hot_ttl`](crate::GroupBuilder::hot_ttl) after the change and no longer: then a look-up drops them,
//! and so does one sweep, after which no look-up needs to ask. A value can also come too late:
//!
//! 1. Thread A wants a key that this node owns, and loads it for longer than `hot_ttl`.
//! 2. Thread B changes the list. Another node owns the key; `hot_ttl` later the main cache is swept.
//! 3. A keeps its value in the main cache, asks once more who owns the key, and takes it out again.

use std::collections::VecDeque;
use std::iter::zip;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::{Asked, Group, Owner, Told, Trace, at_once, by_peer, tell, timed};
use crate::cache::{Key, Record};
use crate::{ByteView, Error, Loaded, PeerGetter};

/// How long other nodes are asked for what they have of a key, or of a batch, all together.
const PATIENCE: Duration = Duration::from_millis(100);

/// A value from another node's cache, and how that was asked.
type TakenOver = (Loaded, Asked);

/// The nodes to ask for a key, one after the other.
type Others = VecDeque<Arc<dyn PeerGetter>>;

impl Group {
    /// What another node has in its cache, or else what the getter gives. `owner` is the key's, unless
    /// that is this node.
    pub(super) fn source(
        &self,
        key: &Key<'_>,
        owner: &Owner,
        trace: &mut Trace,
    ) -> Result<Option<Loaded>, Error> {
        let others = self.who_may_have(key, owner);
        // As nearly always.
        if others.is_empty() {
            return self.ask_getter(key, trace);
        }
        match self.take_over(&[key], vec![others]).pop().flatten() {
            Some((loaded, asked)) => {
                trace.handed_over = Some(asked);
                Ok(Some(loaded))
            }
            None => self.ask_getter(key, trace),
        }
    }

    /// The same for many keys.
    pub(super) fn source_many(
        &self,
        keys: &[&Key<'_>],
        owners: &[&Owner],
    ) -> Vec<Result<Option<Loaded>, Error>> {
        let others = zip(keys, owners).map(|(key, owner)| self.who_may_have(key, owner));
        let taken = self.take_over(keys, others.collect());
        let open = zip(keys, &taken).filter(|(_, taken)| taken.is_none());
        let open: Vec<_> = open.map(|(&key, _)| key).collect();
        let mut loaded = self.ask_getter_for_many(&open).into_iter();
        let answer = |taken: Option<TakenOver>| match taken {
            Some((loaded, _)) => Ok(Some(loaded)),
            None => loaded.next().expect("one answer for each open key"),
        };
        taken.into_iter().map(answer).collect()
    }

    /// The owner and the earlier owners of `key`.
    fn who_may_have(&self, key: &Key<'_>, owner: &Owner) -> Others {
        owner.iter().cloned().chain(self.peers.former(key.text)).collect()
    }

    /// Asks for each key one node after the other.
    fn take_over(&self, keys: &[&Key<'_>], mut others: Vec<Others>) -> Vec<Option<TakenOver>> {
        let mut taken: Vec<Option<TakenOver>> = vec![None; keys.len()];
        let end = self.clock.now().saturating_add(PATIENCE);
        loop {
            let open = (0..keys.len()).filter(|&i| taken[i].is_none());
            let next = open.filter_map(|i| Some((others[i].pop_front()?, i)));
            let parts = by_peer(next.map(|(peer, i)| (Some(peer), i)));
            let asked_at = self.clock.now();
            let left = end.saturating_sub(asked_at);
            if parts.is_empty() || left.is_zero() {
                return taken;
            }
            let found = at_once(&parts, |(peer, part)| {
                let peer = peer.as_ref().expect("a peer is asked");
                let texts: Vec<_> = part.iter().map(|&i| keys[i].text).collect();
                let (found, took) = timed(|| peer.get_cached(&self.name, &texts, left));
                (found, Asked { peer: peer.name().into(), took, error: None })
            });
            let passed = self.clock.now().saturating_sub(asked_at);
            for ((_, part), (found, asked)) in zip(parts, found) {
                for (i, loaded) in zip(part, found) {
                    taken[i] = loaded.and_then(|loaded| aged(loaded, passed)).map(|loaded| {
                        self.counters.handed_over.add_one();
                        (loaded, asked.clone())
                    });
                }
            }
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
            let Some(record) = fits.then(|| self.main.get(&key)).flatten() else {
                return Ok(Told::NotCached);
            };
            self.counters.peer_requests.add_one();
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

/// What is left of a value after that time; `None` if it has ended.
fn aged(loaded: Loaded, passed: Duration) -> Option<Loaded> {
    let ttl = loaded.ttl.map(|ttl| ttl.saturating_sub(passed));
    (ttl != Some(Duration::ZERO)).then_some(Loaded { ttl, ..loaded })
}

/// When the values of keys that other nodes own now have to go.
pub(super) struct Disowned {
    /// The first of `due` in nanoseconds of the group's clock, or [`NEVER`].
    next: AtomicU64,
    // Guards when to sweep, `hot_ttl` after the first change that has not been swept for and after the last.
    due: Mutex<VecDeque<Duration>>,
    is_sweeping: AtomicBool,
    /// Whether the list has ever changed since the group was built.
    has_changed: AtomicBool,
}

const NEVER: u64 = u64::MAX;

impl Disowned {
    pub(super) fn new() -> Self {
        let (due, is_sweeping, has_changed) = Default::default();
        Self { next: AtomicU64::new(NEVER), due, is_sweeping, has_changed }
    }

    /// Whether a look-up has to ask for the owner of what it finds.
    #[inline]
    pub(super) fn is_pending(&self) -> bool {
        self.next.load(Ordering::Relaxed) != NEVER
    }

    /// When the values go that had to go first.
    fn next(&self) -> Duration {
        Duration::from_nanos(self.next.load(Ordering::Relaxed))
    }

    fn change(&self, due: impl FnOnce(&mut VecDeque<Duration>)) {
        let mut all = self.due.lock().unwrap();
        due(&mut all);
        let nanos = |due: &Duration| u64::try_from(due.as_nanos()).unwrap_or(NEVER);
        self.next.store(all.front().map_or(NEVER, nanos), Ordering::Relaxed);
    }
}

impl Group {
    /// The list of nodes has changed.
    pub(super) fn disown(&self) {
        let due = self.clock.now().saturating_add(self.hot_ttl);
        self.disowned.has_changed.store(true, Ordering::SeqCst);
        self.disowned.change(|all| {
            all.truncate(1);
            all.push_back(due);
        });
    }

    /// Drops the value of `key` if another node owns it and its time here is over. Begins the sweep.
    #[cold]
    pub(super) fn drop_if_overdue(&self, key: &Key<'_>) {
        let now = self.clock.now();
        if now < self.disowned.next() {
            return;
        }
        self.drop_if_disowned(key);
        if !self.disowned.is_sweeping.swap(true, Ordering::SeqCst) {
            let group = self.own.clone();
            let sweep = move || group.upgrade().iter().for_each(|group| group.sweep(now));
            if self.threads.run(Box::new(sweep)).is_err() {
                self.disowned.is_sweeping.store(false, Ordering::SeqCst);
            }
        }
    }

    fn sweep(&self, now: Duration) {
        self.main.visit(|record| self.drop_if_disowned(&Key::new(record.key(), &self.hasher)));
        self.disowned.change(|all| all.retain(|&due| due > now));
        self.disowned.is_sweeping.store(false, Ordering::SeqCst);
    }

    fn drop_if_disowned(&self, key: &Key<'_>) {
        if self.peers.pick(key.text).is_some() {
            self.main.drop_outdated(key);
        }
    }

    /// Called when a value has been put into the main cache: its key may have got another owner since.
    pub(super) fn drop_if_late(&self, key: &Key<'_>) {
        if self.disowned.has_changed.load(Ordering::SeqCst) {
            self.drop_if_disowned(key);
        }
    }

    /// How long a record still lives, for a peer that keeps a copy: no longer than it is served here.
    pub(super) fn life_left_here(&self, record: &Record) -> Option<Duration> {
        let left = self.life_left(record);
        if !self.disowned.is_pending() || self.peers.pick(record.key()).is_none() {
            return left;
        }
        let here = self.disowned.next().saturating_sub(self.clock.now());
        Some(left.map_or(here, |left| left.min(here)))
    }
}
