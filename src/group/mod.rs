//! `Group`: one get, from the question to the answer.
//!
//! ```text
//!  get(key) ── main cache? ── hot cache? ── hit ───────────────────────────▶ value
//!                  │ miss
//!                  ▼
//!       who owns the key? (ring, under the Mutex)
//!         │ a remote node                             │ this node, or no peers
//!         ▼                                           │
//!    ask the owner over HTTP ── answered? ─ yes ─▶ value, or "no such key"
//!         │ no (refused, timed out, overloaded, …)    │
//!         └───────────── fall back ──────────────────▶│
//!                                                     ▼
//!                                   load from the origin ─▶ keep ─▶ value
//! ```
//!
//! [`Group::get`] and `Group::load` below are this picture. Two flights, not one, keep the
//! threads apart: `asking` wraps "ask the owner, else fall back", and `loading` wraps "call the
//! getter". With one flight for both, two nodes whose lists of peers differ for a moment could wait
//! for each other until a deadline ends it:
//!
//! 1. node A believes that B owns the key, and its thread asks B, leading the flight;
//! 2. node B believes that A owns it, and its thread asks A, leading a flight of its own;
//! 3. B's question arrives at A and joins A's flight, which waits for B;
//! 4. A's question arrives at B and joins B's flight, which waits for A.
//!
//! Here a peer's question ([`Group::answer_peer`]) only ever joins `loading`, and a leader there
//! calls the getter; peers it asks only for what earlier owners have in their caches, which waits for
//! nobody (see [`handover`]). So no question goes round, and a full worker pool on one node never
//! waits for a full worker pool on another.

mod batch;
mod builder;
mod disowned;
mod doorkeeper;
mod fallback_log;
mod handover;
mod refresh;
mod remove;
mod trace;

use log::{Level, debug, max_level, warn};
use std::any::Any;
use std::fmt;
use std::hash::BuildHasher;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Hasher, Key, Lease, Record};
use crate::clock::Clock;
use crate::flight::{Call, Flight, Seat, Unanswered};
use crate::stats::{Counters, PeerCounters, Stats};
use crate::{ByteView, Error, Getter, Loaded, MAX_KEY_BYTES, PeerError, PeerGetter, PeerPicker};
pub use builder::GroupBuilder;
use doorkeeper::Doorkeeper;
use fallback_log::{FallbackLog, Shown};
use handover::Removed;
use refresh::Refresh;
pub use trace::{Asked, Tier, Trace};

/// The longest name of a group in bytes. Also, it has at least one.
pub const MAX_GROUP_BYTES: usize = 1 << 10;

/// A namespace of keys with the getter that loads them and the caches that keep them.
///
/// Groups of the same name in several processes are one cache: see [`HttpPool`](crate::HttpPool)
/// and [`HttpServer`](crate::HttpServer). A group is used from many threads at once.
///
/// ```
/// use geecache::Group;
///
/// let scores = Group::builder("scores", |key: &str| {
///     Ok::<_, std::io::Error>((key == "Tom").then_some("630"))
/// })
/// .build()?;
/// assert_eq!(scores.get("Tom")?.unwrap(), "630"); // asks the closure
/// assert_eq!(scores.get("Tom")?.unwrap(), "630"); // does not
/// assert_eq!(scores.get("kkk")?, None);
/// assert_eq!(scores.stats().main.hits, 1);
/// # Ok::<(), geecache::Error>(())
/// ```
pub struct Group {
    name: String,
    getter: Box<dyn Getter>,
    peers: Box<dyn PeerPicker>,
    hasher: Hasher,
    // The keys that this node owns.
    main: Cache,
    // Other nodes' keys: copies of values that were fetched repeatedly, and values that were loaded
    // in place of an owner that did not answer.
    hot: Cache,
    doorkeeper: Doorkeeper,
    // `None` without peers.
    removed: Option<Removed>,
    asking: Flight<Answer>,
    loading: Flight<Answer>,
    ttl: Option<Duration>,
    ttl_jitter: f64,
    negative_ttl: Option<Duration>,
    hot_ttl: Duration,
    load_timeout: Duration,
    retry_failed_loads: bool,
    refresh: Refresh,
    clock: Clock,
    counters: Counters,
    fallback_log: FallbackLog,
}

/// Shows the name and what is in the caches, but no key and no value.
impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name)
            .field("main", &self.main.stats())
            .field("hot", &self.hot.stats())
            .finish_non_exhaustive()
    }
}

type Answer = Result<Record, Error>;
type SharedError = Arc<dyn std::error::Error + Send + Sync>;

/// What this node tells a peer about a key.
pub(crate) enum Told {
    /// The value and its remaining time to live.
    Value(ByteView, Option<Duration>),
    /// A value past its time, since the load failed.
    Stale(ByteView),
    /// The origin has no such key.
    Absent,
    /// Only the caches were asked, and they do not know.
    NotCached,
}

impl Group {
    /// The value of `key`; `Ok(None)` if the origin has no such key.
    ///
    /// # Errors
    /// [`Error::KeyLength`] for a key that is empty or too long, or the error of the load. A peer
    /// that does not answer is no error: this process then loads by itself.
    pub fn get(&self, key: &str) -> Result<Option<ByteView>, Error> {
        let key = self.key(key)?;
        let record = match self.look_up(&key) {
            Some((record, _)) => record,
            None => self.load_logged(&key).0?,
        };
        Ok(record.into_value())
    }

    /// What the caches of this process have, as [`get`](Self::get) would return it; `None` if they do
    /// not have the key.
    ///
    /// Loads nothing, asks nobody and waits for nothing, so an async program can call it on the spot,
    /// and only if it returns `None` call `get` on a thread that may block. Counted as a get if it
    /// finds something, else not at all. A value in the last part of its life is
    /// [renewed](GroupBuilder::refresh_ahead) in the background, as by `get`. One past its time is
    /// found while a caller of `get` [would not try to load it](GroupBuilder::stale_if_error). That a
    /// key of another process does not exist is known to that process alone: `None`.
    ///
    /// ```
    /// # use geecache::Group;
    /// # let load = |key: &str| Ok::<_, std::io::Error>((key == "Tom").then_some("630"));
    /// let scores = Group::builder("scores", load).build()?;
    /// assert_eq!(scores.get_cached("Tom")?, None);
    /// scores.get("Tom")?;
    /// let score = match scores.get_cached("Tom")? {
    ///     Some(score) => score,
    ///     None => scores.get("Tom")?, // by `spawn_blocking`
    /// };
    /// assert_eq!(score.unwrap(), "630");
    /// # Ok::<(), geecache::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::KeyLength`] for a key that is empty or too long.
    pub fn get_cached(&self, key: &str) -> Result<Option<Option<ByteView>>, Error> {
        let key = self.key(key)?;
        let found = self.look_up(&key).map(|(record, _)| record);
        Ok(found.or_else(|| self.stale_meanwhile(&key)).map(Record::into_value))
    }

    /// As [`get`](Self::get), and how the answer came about.
    pub fn get_traced(&self, key: &str) -> (Result<Option<ByteView>, Error>, Trace) {
        let key = match self.key(key) {
            Ok(key) => key,
            Err(error) => return (Err(error), Trace::default()),
        };
        let (answer, trace) = match self.look_up(&key) {
            Some((record, tier)) => {
                let renews = self.is_renewed(&key, &record);
                (Ok(record), Trace { hit: Some(tier), renews, ..Trace::default() })
            }
            None => self.load_logged(&key),
        };
        (answer.map(Record::into_value), trace)
    }

    // Cold and apart, so that a hit does not pay for its stack frame.
    #[cold]
    fn load_logged(&self, key: &Key<'_>) -> (Answer, Trace) {
        self.counters.misses.add_one();
        let mut trace = Trace::default();
        let answer = self.unless_resting(key, &mut trace, |trace| self.load(key, trace));
        debug!("[{}] {}: {trace}", self.name, Shown(key.text));
        (answer, trace)
    }

    fn load(&self, key: &Key<'_>, trace: &mut Trace) -> Answer {
        let Some(owner) = self.peers.pick(key.text) else {
            return self.load_locally(key, Tier::Main, trace);
        };
        self.fly(&self.asking, key, trace, |trace| match self.load_from_peer(&*owner, key, trace) {
            Ok(record) => Ok(record),
            Err(PeerError::LoadFailed(text)) if !self.retry_failed_loads => {
                self.stand_in(key, of_owner(&*owner, key, text))
            }
            Err(error) => {
                self.note_fallback(&*owner, key, &error);
                self.load_locally(key, Tier::Hot, trace)
            }
        })
    }

    #[doc(alias = "getFromPeer")]
    fn load_from_peer(
        &self,
        owner: &dyn PeerGetter,
        key: &Key<'_>,
        trace: &mut Trace,
    ) -> Result<Record, PeerError> {
        let (lease, asked_at) = (self.hot.lease(key), self.clock.now());
        let (answer, took) = timed(|| owner.get(&self.name, key.text));
        let counters = self.counters.of_peer(owner.name());
        if was_attempted(&answer) {
            counters.times.record(took);
        }
        let answer = self.keep_copy(key, answer, lease, asked_at, &counters);
        let error = answer.as_ref().err().cloned();
        trace.asked = Some(Asked { peer: owner.name().into(), took, error });
        answer
    }

    /// Takes an owner's answer, and keeps a copy of the value if it was fetched before.
    fn keep_copy(
        &self,
        key: &Key<'_>,
        answer: Result<Option<Loaded>, PeerError>,
        lease: Lease,
        asked_at: Duration,
        owner: &PeerCounters,
    ) -> Result<Record, PeerError> {
        let answer = answer.inspect_err(|error| {
            self.counters.peer_errors.add_one();
            owner.add_error(error.kind());
        })?;
        self.counters.peer_loads.add_one();
        owner.loads.add_one();
        let is_wanted = answer.is_some() && self.doorkeeper.note_and_was_seen(key.hash);
        Ok(self.copy(key, answer, asked_at, is_wanted.then_some(lease)))
    }

    /// The owner's answer; kept, if there is a lease and it is not over. Its life is counted from when
    /// the owner was asked: the answer may have been on its way for all that time.
    fn copy(
        &self,
        key: &Key<'_>,
        answer: Option<Loaded>,
        asked_at: Duration,
        lease: Option<Lease>,
    ) -> Record {
        self.note_load(key);
        let ttl = answer.as_ref().and_then(|loaded| loaded.ttl);
        let record = self.record(Tier::Hot, key, answer.as_ref(), ttl, || asked_at);
        match (answer, lease) {
            (None, _) => self.drop_outdated(key),
            (Some(loaded), _) if loaded.stale => return record.stale(),
            (Some(_), Some(lease)) if ttl != Some(Duration::ZERO) => {
                self.hot.insert(key, record.clone(), lease)
            }
            (Some(_), _) => {}
        }
        record
    }

    /// Loads from the origin, and keeps the value in the cache of that tier.
    #[doc(alias = "getLocally")]
    fn load_locally(&self, key: &Key<'_>, tier: Tier, trace: &mut Trace) -> Answer {
        self.fly(&self.loading, key, trace, |trace| {
            let lease = self.cache(tier).lease(key);
            if tier == Tier::Main {
                if let Some((record, asked)) = self.take_over(key, lease) {
                    trace.handed_over = Some(asked);
                    return Ok(record);
                }
            }
            let (loaded, took) = self.ask_getter(key);
            trace.loaded = Some(took);
            self.fill(tier, key, loaded, lease)
        })
    }

    fn ask_getter(&self, key: &Key<'_>) -> (Result<Option<Loaded>, Error>, Duration) {
        let get = AssertUnwindSafe(|| self.getter.get(key.text));
        let (loaded, took) = timed(|| catch_unwind(get));
        self.counters.getter_times.record(took);
        let loaded = match loaded {
            Ok(loaded) => loaded.map_err(|error| failed(key, error.into())),
            Err(panic) => Err(panicked(key, &*panic)),
        };
        (loaded, took)
    }

    /// Takes the answer of the getter, and keeps the value.
    #[doc(alias = "populateCache")]
    fn fill(
        &self,
        tier: Tier,
        key: &Key<'_>,
        loaded: Result<Option<Loaded>, Error>,
        lease: Lease,
    ) -> Answer {
        match loaded {
            Ok(loaded) => {
                self.counters.local_loads.add_one();
                Ok(self.keep(tier, key, loaded, lease))
            }
            Err(error) => {
                self.counters.local_load_errors.add_one();
                self.stand_in(key, error)
            }
        }
    }

    fn keep(&self, tier: Tier, key: &Key<'_>, loaded: Option<Loaded>, lease: Lease) -> Record {
        self.note_load(key);
        let ttl = match &loaded {
            Some(loaded) => loaded.ttl.or(self.ttl).map(|ttl| self.jittered(ttl, key)),
            None => self.negative_ttl,
        };
        let record = self.record(tier, key, loaded.as_ref(), ttl, || self.clock.now());
        if loaded.is_none() {
            self.drop_outdated(key);
        }
        if loaded.is_some() || self.negative_ttl.is_some() {
            self.cache(tier).insert(key, record.clone(), lease);
            if tier == Tier::Main {
                self.limit_if_disowned(key);
            }
        }
        record
    }

    /// Answers a peer that takes this node for the key's owner: the value and its remaining time
    /// to live, or `None` if the origin has no such key. Asks no other peer but for what it has in its
    /// caches, and only after the list of peers has changed. A value that is
    /// [past its time](GroupBuilder::stale_if_error) has none left.
    ///
    /// [`HttpServer`](crate::HttpServer) calls this; a transport of your own would.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "ServeHTTP")]
    pub fn answer_peer(&self, key: &str) -> Result<Option<(ByteView, Option<Duration>)>, Error> {
        Ok(match self.answer_peer_traced(key)?.0 {
            Told::Value(value, remaining) => Some((value, remaining)),
            Told::Stale(value) => Some((value, Some(Duration::ZERO))),
            Told::Absent | Told::NotCached => None,
        })
    }

    /// As [`answer_peer`](Self::answer_peer), and whether the answer was cached.
    pub(crate) fn answer_peer_traced(&self, key: &str) -> Result<(Told, bool), Error> {
        let key = self.key(key)?;
        self.counters.peer_requests.add_one();
        let (record, was_cached) = match self.look_up(&key) {
            Some((record, _)) => (record, true),
            None => (self.load_for_peer(&key)?, false),
        };
        Ok((self.tell(record), was_cached))
    }

    fn load_for_peer(&self, key: &Key<'_>) -> Answer {
        self.counters.misses.add_one();
        let mut trace = Trace::default();
        let load = |trace: &mut Trace| self.load_locally(key, Tier::Main, trace);
        let answer = self.unless_resting(key, &mut trace, load);
        debug!("[{}] {}: {trace}, for a peer", self.name, Shown(key.text));
        answer
    }

    /// As [`answer_peer`](Self::answer_peer), from the caches alone.
    ///
    /// [`HttpServer`](crate::HttpServer) asks this where it receives, so that a hit waits for no
    /// worker. A miss is looked up twice more: when a worker gets to it, since what was loaded
    /// meanwhile is a hit then, and by the leader of its flight (see [`fly`](Self::fly)).
    pub(crate) fn answer_peer_cached(&self, key: &str) -> Result<Told, Error> {
        let Some((record, _)) = self.look_up(&self.key(key)?) else { return Ok(Told::NotCached) };
        self.counters.peer_requests.add_one();
        Ok(self.tell(record))
    }

    fn tell(&self, record: Record) -> Told {
        let expires = record.expires();
        self.tell_until(record, expires)
    }

    fn tell_until(&self, record: Record, expires: Option<Duration>) -> Told {
        let is_stale = record.is_stale();
        let remaining = expires.map(|at| at.saturating_sub(self.clock.now()));
        match record.into_value() {
            Some(value) if is_stale => Told::Stale(value),
            Some(value) => Told::Value(value, remaining),
            None => Told::Absent,
        }
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the group has counted so far.
    pub fn stats(&self) -> Stats {
        let peers = self.peers.others();
        let peers = peers.iter().map(|peer| (peer.name(), peer.is_up()));
        self.counters.snapshot(self.main.stats(), self.hot.stats(), peers, self.clock.now())
    }

    #[inline]
    fn key<'k>(&self, key: &'k str) -> Result<Key<'k>, Error> {
        match key.len() {
            1..=MAX_KEY_BYTES => Ok(Key::new(key, &self.hasher)),
            length => Err(Error::KeyLength(length)),
        }
    }

    fn cache(&self, tier: Tier) -> &Cache {
        match tier {
            Tier::Main => &self.main,
            Tier::Hot => &self.hot,
        }
    }

    #[inline]
    fn look_up(&self, key: &Key<'_>) -> Option<(Record, Tier)> {
        let found = match self.main.get(key) {
            Some(record) => (record, Tier::Main),
            None => (self.hot.get(key)?, Tier::Hot),
        };
        if max_level() >= Level::Debug {
            self.log_hit(key, found.1);
        }
        Some(found)
    }

    #[cold]
    fn log_hit(&self, key: &Key<'_>, tier: Tier) {
        debug!("[{}] {}: {tier} hit", self.name, Shown(key.text));
    }

    /// As [`look_up`](Self::look_up), but not counted as a get, and promotes no entry.
    fn peek(&self, key: &Key<'_>) -> Option<(Record, Tier)> {
        let main = self.main.peek(key).map(|record| (record, Tier::Main));
        main.or_else(|| Some((self.hot.peek(key)?, Tier::Hot)))
    }

    /// Runs `work` in a flight, unless a cache has the answer by now or another thread is
    /// working on it.
    ///
    /// The second look into the caches is needed. Without it a key can be loaded twice:
    ///
    /// 1. thread A misses and leads; thread B misses;
    /// 2. A keeps the value, and its flight ends;
    /// 3. B, which was held up, joins the flight, finds nobody there and leads as well.
    fn fly(
        &self,
        flight: &Flight<Answer>,
        key: &Key<'_>,
        trace: &mut Trace,
        work: impl FnOnce(&mut Trace) -> Answer,
    ) -> Answer {
        match flight.join(key.text) {
            Seat::Leader(guard) => {
                let answer = match self.settled(key) {
                    None => work(trace),
                    Some((record, tier)) => {
                        self.counters.shared.add_one();
                        trace.hit = tier;
                        Ok(record)
                    }
                };
                guard.finish(&answer);
                answer
            }
            Seat::Follower(call) => {
                self.counters.shared.add_one();
                let (answer, took) = timed(|| self.follow(key, &call));
                trace.waited = Some(took);
                answer
            }
        }
    }

    /// What a leader need not load any more: the answer of another one that has ended just now, and
    /// the cache that has it.
    fn settled(&self, key: &Key<'_>) -> Option<(Record, Option<Tier>)> {
        let kept = self.peek(key).map(|(record, tier)| (record, Some(tier)));
        kept.or_else(|| Some((self.resting(key)?, None)))
    }

    /// The answer of the leader, waited for.
    fn follow(&self, key: &Key<'_>, call: &Call<Answer>) -> Answer {
        let text = || key.text.to_string();
        let error = match call.wait(self.load_timeout) {
            Ok(Ok(record)) => return Ok(record),
            // It may have failed to renew a value that was not past its time yet.
            Ok(Err(error)) => error,
            Err(Unanswered::Recursive) => return Err(Error::Recursive { key: text() }),
            Err(Unanswered::TimedOut) => {
                Error::LoadTimeout { key: text(), waited: self.load_timeout }
            }
            Err(Unanswered::LeaderPanicked) => {
                Error::GetterPanicked { key: text(), message: "in another thread".into() }
            }
        };
        self.stand_in(key, error)
    }

    /// What lives for `ttl` from `start` on; other nodes' keys for `hot_ttl` at the most.
    fn record(
        &self,
        tier: Tier,
        key: &Key<'_>,
        loaded: Option<&Loaded>,
        ttl: Option<Duration>,
        start: impl FnOnce() -> Duration,
    ) -> Record {
        let ttl = match tier {
            Tier::Main => ttl,
            Tier::Hot => Some(ttl.map_or(self.hot_ttl, |ttl| ttl.min(self.hot_ttl))),
        };
        let value = loaded.map(|loaded| &*loaded.value);
        let Some(ttl) = ttl else { return Record::new(key.text, value, None) };
        let start = start();
        let expires = start.saturating_add(ttl);
        match (value, self.refresh.due(ttl)) {
            (Some(value), Some(due)) => {
                Record::renewable(key.text, value, start.saturating_add(due), expires)
            }
            (value, _) => Record::new(key.text, value, Some(expires)),
        }
    }

    /// `ttl`, shortened by a random part of it, up to `ttl_jitter`.
    fn jittered(&self, ttl: Duration, key: &Key<'_>) -> Duration {
        let random = self.hasher.hash_one((key.hash, self.clock.now())) as f64 / u64::MAX as f64;
        let part = Duration::try_from_secs_f64(ttl.as_secs_f64() * self.ttl_jitter * random);
        part.map_or(ttl, |part| ttl.saturating_sub(part))
    }

    fn note_fallback(&self, owner: &dyn PeerGetter, key: &Key<'_>, error: &PeerError) {
        self.counters.fallbacks.add_one();
        let (peer, key) = (owner.name(), key.text);
        // While a peer is down or overloaded these come by the thousand.
        if *error == PeerError::CoolingDown || error.is_overload() {
            debug!("[{}] {}: peer {peer}: {error}; falls back", self.name, Shown(key));
        } else if let Some(line) = self.fallback_log.line(peer, key, error, self.clock.now()) {
            warn!("[{}] {line}", self.name);
        }
    }
}

/// Whether the peer was asked.
fn was_attempted(answer: &Result<Option<Loaded>, PeerError>) -> bool {
    answer.as_ref().map_or_else(PeerError::was_attempted, |_| true)
}

/// Does `work`; returns how long it took as well.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

/// How many peers are asked at the same time, by one removal or one batch.
const AT_ONCE: usize = 16;

/// Does `work` on all items, on this thread and others beside it: [`AT_ONCE`] in all, or fewer if no
/// more can be started. Each takes the next item when it has done one.
fn at_once<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let next = AtomicUsize::new(0);
    let take_items = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else { return done };
            done.push((index, work(item)));
        }
    };
    let mut done = thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, take_items).ok();
        let helpers = items.len().min(AT_ONCE).saturating_sub(1);
        let helpers: Vec<_> = (0..helpers).map_while(start).collect();
        let mut done = take_items();
        for helper in helpers {
            done.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|&(index, _)| index);
    done.into_iter().map(|(_, result)| result).collect()
}

fn failed(key: &Key<'_>, source: SharedError) -> Error {
    Error::Getter { key: key.text.into(), source }
}

fn of_owner(owner: &dyn PeerGetter, key: &Key<'_>, message: String) -> Error {
    Error::Owner { key: key.text.into(), peer: owner.name().into(), message }
}

fn panicked(key: &Key<'_>, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or(panic.downcast_ref::<String>().map(String::as_str));
    Error::GetterPanicked { key: key.text.into(), message: text.unwrap_or("no message").into() }
}

#[cfg(test)]
mod tests;
