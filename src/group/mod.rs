//! `Group`: one get, from the question to the answer.
//!
//! ```text
//!  get(key) ── main cache? ── hot cache? ── hit ───────────────────────────▶ value
//!                  │ miss
//!                  ▼
//!       who owns the key? (looked up in the ring)
//!         │ a remote node                             │ this node, or no peers
//!         ▼                                           │
//!    ask the owner over HTTP ── answered? ─ yes ─▶ value, or "no such key"
//!         │ no (refused, timed out, overloaded, …)    │
//!         └───────────── fall back ──────────────────▶│
//!                                                     ▼
//!                                   load from the origin ─▶ keep ─▶ value
//! ```
//!
//! [`Group::get`] and `Group::load` below are this picture. A key that no cache has is a [`Miss`], and
//! the functions from `load` on take several misses: those of a batch, or one. Each step writes its
//! findings into the miss; at the end its trace says how it was answered, and is counted and logged.
//!
//! Two flights, not one, keep the threads apart: `asking` wraps "ask the owner, else fall back", and
//! `loading` wraps "call the getter". With one flight for both, two nodes whose lists of peers differ
//! for a moment could wait for each other until a deadline ends it:
//!
//! 1. node A believes that B owns the key, and its thread asks B, leading the flight;
//! 2. node B believes that A owns it, and its thread asks A, leading a flight of its own;
//! 3. B's question arrives at A and joins A's flight, which waits for B;
//! 4. A's question arrives at B and joins B's flight, which waits for A.
//!
//! Here a peer's question ([`Group::answer_peer`]) only ever joins `loading`, and a leader there calls the
//! getter; it asks other nodes for their cached values alone, which waits for nobody (see
//! [`handover`]). A get inside a getter does the same, for else this could happen:
//!
//! 1. All workers of A run getters, each of which asks for a key that B owns;
//! 2. all workers of B run getters, each of which asks for a key that A owns;
//! 3. each question waits for a worker, and none is free until a deadline.
//!
//! So no question goes round, and no worker of one node ever waits for a worker of another.

mod batch;
mod builder;
mod handover;
mod refresh;
mod remove;
mod trace;

use log::{Level, debug, max_level, warn};
use std::any::Any;
use std::fmt;
use std::hash::BuildHasher;
use std::iter::zip;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use crate::cache::{Cache, Hasher, Key, Lease, Record};
use crate::elastic::{Elastic, Job};
use crate::flight::{self, Call, Flight, Seat, Unanswered};
use crate::stats::{Counters, Stats};
use crate::warnings::{Shown, Warnings};
use crate::{ByteView, Error, Loaded, MAX_KEY_BYTES, PeerError, PeerGetter, PeerPicker};
use batch::{at_once, by_peer};
pub use builder::GroupBuilder;
use handover::Disowned;
use refresh::Attempts;
use remove::Removals;
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
    settings: GroupBuilder,
    peers: Arc<dyn PeerPicker>,
    hasher: Hasher,
    // The keys that this node owns.
    main: Cache,
    // Other nodes' keys: copies of what they answered, and values that were loaded in place of
    // an owner that did not answer.
    hot: Cache,
    // When values have to go whose keys belong to other nodes now.
    disowned: Disowned,
    // The removals that this node has made, for nodes that come.
    made: Removals,
    // Those that it has made or was told of: such a key is not taken over from an earlier owner.
    told: Removals,
    asking: Flight<Answer>,
    loading: Flight<Answer>,
    // When keys are renewed, or loaded again after a failure.
    attempts: Attempts,
    counters: Counters,
    warnings: Warnings,
    // Threads for renewals, which hang if the origin does.
    renewals: Elastic,
    // Threads for other jobs that take long: removals that are repeated, sweeps, dropping what was cleared.
    threads: Elastic,
    own: Weak<Group>,
    // The list of peers knows this function for as long as the group lives.
    _on_change: Arc<dyn Fn() + Send + Sync>,
}

/// Shows the name and the counts of the caches, but no key and no value.
impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("name", &self.name())
            .field("main", &self.main.stats())
            .field("hot", &self.hot.stats())
            .finish_non_exhaustive()
    }
}

type Answer = Result<Record, Error>;
/// The owner of a key; `None` if that is this node.
type Owner = Option<Arc<dyn PeerGetter>>;

/// A get that no cache could answer, on the way to its answer.
struct Miss<'k> {
    key: Key<'k>,
    owner: Owner,
    /// Whether it is a renewal of the value, and not a get.
    is_renewal: bool,
    /// Whether it is the one get that tries again after a failure.
    is_trial: bool,
    /// From before the owner or the origin was asked.
    lease: Option<Lease>,
    /// The call of another thread whose answer is waited for.
    call: Option<Arc<Call<Answer>>>,
    /// The answer of the origin, or of another node in its place.
    loaded: Option<Result<Option<Loaded>, Error>>,
    answer: Option<Answer>,
    trace: Trace,
}

impl Miss<'_> {
    /// The cache for its value.
    fn tier(&self) -> Tier {
        if self.owner.is_none() { Tier::Main } else { Tier::Hot }
    }

    /// Why the owner did not answer.
    fn peer_error(&self) -> Option<&PeerError> {
        self.trace.asked.as_ref()?.error.as_ref()
    }

    fn is_open(&self) -> bool {
        self.answer.is_none()
    }
}

/// Some misses, in no order.
type Misses<'m, 'k> = [&'m mut Miss<'k>];
/// A step on their way.
type Step = fn(&Group, &mut Misses<'_, '_>);

/// The misses for which `is` is true, brought to the front in their order; that of the others may change.
fn those<'a, 'm, 'k>(
    misses: &'a mut Misses<'m, 'k>,
    is: impl Fn(&Miss<'k>) -> bool,
) -> &'a mut Misses<'m, 'k> {
    let mut found = 0;
    for i in 0..misses.len() {
        if is(misses[i]) {
            misses.swap(found, i);
            found += 1;
        }
    }
    &mut misses[..found]
}

/// The answer of this node to a peer.
pub(crate) enum Told {
    /// The value and its remaining time to live; zero if it is past its time, since the load failed.
    Value(ByteView, Option<Duration>),
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
            None => self.answer(key, Self::load).0?,
        };
        Ok(record.into_value())
    }

    /// The answer of the caches of this process, as [`get`](Self::get) would return it; `None` if they
    /// do not have the key.
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
        let stale = || {
            let stale = self.stale_while_failing(&key)?;
            self.counters.add(|stats| {
                stats.misses += 1;
                stats.shared += 1;
                stats.stale += 1;
            });
            Some(stale)
        };
        Ok(found.or_else(stale).map(Record::into_value))
    }

    /// As [`get`](Self::get), and how the answer came about.
    pub fn get_traced(&self, key: &str) -> (Result<Option<ByteView>, Error>, Trace) {
        let key = match self.key(key) {
            Ok(key) => key,
            Err(error) => return (Err(error), Trace::default()),
        };
        let (answer, trace) = match self.look_up(&key) {
            Some((record, tier)) => {
                let renews = self.cache(tier).is_due(&record);
                (Ok(record), Trace { hit: Some(tier), renews, ..Trace::default() })
            }
            None => self.answer(key, Self::load),
        };
        (answer.map(Record::into_value), trace)
    }

    /// Answers one miss. Cold and apart, so that a hit does not pay for its stack frame.
    #[cold]
    fn answer(&self, key: Key<'_>, load: Step) -> (Answer, Trace) {
        let mut miss = self.miss(key);
        self.answer_many(&mut [&mut miss], load);
        (miss.answer.expect("each miss is answered"), miss.trace)
    }

    /// Answers misses, by `load` unless a value past its time is the answer for now.
    fn answer_many(&self, misses: &mut Misses<'_, '_>, load: Step) {
        self.counters.add(|stats| stats.misses += misses.len() as u64);
        self.answer_while_failing(misses);
        load(self, those(misses, Miss::is_open));
        self.note(misses);
    }

    /// Loads each key from its owner, or else from the origin.
    fn load(&self, misses: &mut Misses<'_, '_>) {
        if flight::is_leading() {
            return self.load_here(misses); // a get inside a getter
        }
        match misses {
            [miss] => self.load_of(miss.owner.clone(), misses),
            _ => {
                let owners = misses.iter_mut().map(|miss| (miss.owner.clone(), &mut **miss));
                at_once(by_peer(owners), |(owner, mut misses)| self.load_of(owner, &mut misses));
            }
        }
    }

    /// Loads keys of one owner.
    fn load_of(&self, owner: Owner, misses: &mut Misses<'_, '_>) {
        match (owner, misses) {
            (None, misses) => self.load_here(misses),
            (Some(owner), misses @ [_]) => {
                self.fly(&self.asking, misses, |led| self.load_from_peer(&*owner, led));
            }
            // Leads no flight: single gets would wait there for the slowest key of the batch.
            (Some(owner), misses) => self.load_from_peer(&*owner, misses),
        }
    }

    /// Loads without waiting for a load of another node: keys of this node's own, or any for a peer that
    /// takes this node for the owner, or for a getter.
    fn load_here(&self, misses: &mut Misses<'_, '_>) {
        self.load_locally(misses, Self::source);
    }

    #[doc(alias = "getFromPeer")]
    fn load_from_peer(&self, owner: &dyn PeerGetter, misses: &mut Misses<'_, '_>) {
        self.ask_owner(owner, misses);
        for miss in those(misses, Miss::is_open) {
            match miss.peer_error().cloned() {
                Some(error) if self.is_final(&error) => {
                    let (key, peer) = (miss.key.text.into(), owner.name().into());
                    let error = Error::Owner { key, peer, message: error.to_string() };
                    miss.answer = Some(self.stand_in(&miss.key, error));
                }
                Some(error) => self.note_fallback(owner, &miss.key, &error),
                None => {}
            }
        }
        // By the getter alone: the caches that `source` asks have nothing that the owner had not.
        self.load_locally(those(misses, Miss::is_open), Self::ask_getter);
    }

    /// Asks the owner, for all keys in one call. A miss that it does not answer has the error in its trace.
    fn ask_owner(&self, owner: &dyn PeerGetter, misses: &mut Misses<'_, '_>) {
        let asked_at = self.now();
        let keys: Vec<&str> = misses.iter().map(|miss| miss.key.text).collect();
        misses.iter_mut().for_each(|miss| miss.lease = Some(self.hot.lease(&miss.key)));
        let (mut answers, took) = timed(|| match keys[..] {
            [key] => vec![owner.get(self.name(), key)],
            _ => owner.get_many(self.name(), &keys),
        });
        if answers.len() != keys.len() {
            let wrong = format!("get_many gave {} answers for {} keys", answers.len(), keys.len());
            answers = vec![Err(PeerError::Transport(wrong)); keys.len()];
        }
        self.counters.add(|stats| {
            let was_attempted = |error: &PeerError| error.was_attempted();
            if answers.iter().any(|answer| answer.as_ref().err().is_none_or(was_attempted)) {
                stats.peer(owner.name()).times.record(took);
            }
            for (_, answer) in zip(&*misses, &answers).filter(|(miss, _)| !miss.is_renewal) {
                stats.note_peer(owner.name(), answer);
            }
        });
        for (miss, answer) in zip(misses, answers) {
            let error = answer.as_ref().err().cloned();
            miss.trace.asked = Some(Asked { peer: owner.name().into(), took, error });
            let copy = |loaded: Option<Loaded>| Ok(self.fill_copy(miss, loaded.as_ref(), asked_at));
            miss.answer = answer.ok().map(copy);
        }
    }

    /// Whether a get ends with this error of the owner: the origin has failed there, or the owner still
    /// waits for it, and a second load would do no better.
    fn is_final(&self, error: &PeerError) -> bool {
        let waits_for_origin = matches!(error, PeerError::LoadFailed(_) | PeerError::Slow);
        waits_for_origin && !self.settings.retry_failed_loads
    }

    /// Loads by `source`, and keeps the values.
    #[doc(alias = "getLocally")]
    fn load_locally(&self, misses: &mut Misses<'_, '_>, source: Step) {
        self.fly(&self.loading, misses, |led| {
            for miss in led.iter_mut() {
                miss.lease = Some(self.cache(miss.tier()).lease(&miss.key));
            }
            source(self, led);
            for miss in led {
                miss.answer = miss.loaded.take().map(|loaded| match loaded {
                    Ok(loaded) => Ok(self.fill(miss, loaded.as_ref())),
                    Err(error) => self.stand_in(&miss.key, error),
                });
            }
        });
    }

    /// Calls the getter for the misses that no other node has answered.
    fn ask_getter(&self, misses: &mut Misses<'_, '_>) {
        match misses {
            [miss] if miss.loaded.is_some() => {}
            [miss] => {
                let key = miss.key.text;
                let (loaded, took) = self.time_getter(|| self.settings.getter.get(key));
                miss.trace.loaded = Some(took);
                miss.loaded = Some(match loaded {
                    Ok(loaded) => loaded.map_err(|error| failed(key, error.into())),
                    Err(panic) => Err(panicked(key, &*panic)),
                });
            }
            _ => self.ask_getter_for_many(misses),
        }
    }

    fn time_getter<T>(&self, call: impl FnOnce() -> T) -> (thread::Result<T>, Duration) {
        let called = timed(|| catch_unwind(AssertUnwindSafe(call)));
        self.counters.add(|stats| stats.getter_times.record(called.1));
        called
    }

    /// Keeps a value of the origin's, unless the key was removed meanwhile.
    #[doc(alias = "populateCache")]
    fn fill(&self, miss: &Miss<'_>, loaded: Option<&Loaded>) -> Record {
        let settings = &self.settings;
        let ttl = match loaded {
            Some(loaded) => loaded.ttl.or(settings.ttl).map(|ttl| self.jittered(ttl, &miss.key)),
            None => settings.negative_ttl,
        };
        let is_kept = loaded.is_some() || settings.negative_ttl.is_some();
        self.keep(miss.tier(), miss, loaded, ttl, || self.now(), is_kept)
    }

    /// Keeps a copy of an owner's value. Its life is counted from when the owner was asked: the answer may
    /// have been on its way for all that time.
    fn fill_copy(&self, miss: &Miss<'_>, loaded: Option<&Loaded>, asked_at: Duration) -> Record {
        let ttl = loaded.and_then(|loaded| loaded.ttl);
        let has_life = loaded.is_some() && ttl != Some(Duration::ZERO);
        self.keep(Tier::Hot, miss, loaded, ttl, || asked_at, has_life)
    }

    /// Keeps a value for its time to live `since` then; other nodes' for `hot_ttl` at the most.
    fn keep(
        &self,
        tier: Tier,
        miss: &Miss<'_>,
        loaded: Option<&Loaded>,
        ttl: Option<Duration>,
        since: impl FnOnce() -> Duration,
        is_kept: bool,
    ) -> Record {
        let (key, hot_ttl) = (&miss.key, self.settings.hot_ttl);
        let ttl = match tier {
            Tier::Main => ttl,
            Tier::Hot => Some(ttl.map_or(hot_ttl, |ttl| ttl.min(hot_ttl))),
        };
        let expires = ttl.map(|ttl| since().saturating_add(ttl));
        let record = Record::new(key.text, loaded.map(|loaded| &*loaded.value), expires);
        self.note_load(key, loaded.is_none());
        if let Some(lease) = miss.lease.filter(|_| is_kept) {
            self.cache(tier).insert(key, record.clone(), lease);
            if tier == Tier::Main {
                self.drop_if_late(key);
            }
        }
        record
    }

    /// `ttl`, shortened by a random part of it, up to `ttl_jitter`.
    fn jittered(&self, ttl: Duration, key: &Key<'_>) -> Duration {
        let random = self.hasher.hash_one((key.hash, self.now())) as f64 / u64::MAX as f64;
        let part = ttl.as_secs_f64() * self.settings.ttl_jitter * random;
        Duration::try_from_secs_f64(part).map_or(ttl, |part| ttl.saturating_sub(part))
    }

    /// Has `work` answer those misses that neither a cache nor another thread answers by now. `work` must
    /// leave them in their order, in which they are matched with their guards.
    ///
    /// The second look into the caches is needed. Without it a key can be loaded twice:
    ///
    /// 1. thread A misses and leads; thread B misses;
    /// 2. A keeps the value, and its flight ends;
    /// 3. B, which was held up, joins the flight, finds nobody there and leads as well.
    fn fly<'k>(
        &self,
        flight: &Flight<Answer>,
        misses: &mut Misses<'_, 'k>,
        work: impl FnOnce(&mut Misses<'_, 'k>),
    ) {
        // Most often there is one, which needs no memory of its own.
        let (mut first, mut others) = (None, Vec::new());
        for miss in misses.iter_mut() {
            match flight.join(miss.key.text) {
                Seat::Follower(call) => miss.call = Some(call),
                Seat::Leader(guard) => match self.settled(miss) {
                    None if first.is_none() => first = Some(guard),
                    None => others.push(guard),
                    Some((record, tier)) => {
                        miss.trace.hit = tier;
                        guard.finish(miss.answer.insert(Ok(record)));
                    }
                },
            }
        }
        let led = those(misses, |miss| miss.is_open() && miss.call.is_none());
        if !led.is_empty() {
            work(led);
        }
        for (miss, guard) in zip(led, first.into_iter().chain(others)) {
            guard.finish(miss.answer.as_ref().expect("work answers each miss"));
        }
        // In this flight, this thread leads none any more, so two batches cannot wait for each other.
        let mut patience = self.settings.load_timeout;
        for miss in misses {
            if let Some(call) = miss.call.take() {
                let (answer, took) = timed(|| self.follow(&miss.key, &call, patience));
                (miss.answer, miss.trace.waited) = (Some(answer), Some(took));
                patience = patience.saturating_sub(took);
            }
        }
    }

    /// The answer of another leader that has ended just now, and the cache that has it.
    fn settled(&self, miss: &Miss<'_>) -> Option<(Record, Option<Tier>)> {
        let main = self.main.peek(&miss.key).map(|record| (record, Tier::Main));
        match main.or_else(|| Some((self.hot.peek(&miss.key)?, Tier::Hot))) {
            Some((record, tier)) => {
                let is_old = miss.is_renewal && self.cache(tier).is_due(&record);
                (!is_old).then_some((record, Some(tier)))
            }
            None if miss.is_renewal || miss.is_trial => None,
            None => Some((self.stale_while_failing(&miss.key)?, None)),
        }
    }

    /// The answer of the leader, waited for.
    fn follow(&self, key: &Key<'_>, call: &Arc<Call<Answer>>, patience: Duration) -> Answer {
        let (text, waited) = (|| key.text.to_string(), self.settings.load_timeout);
        let error = match call.wait(patience) {
            Ok(Ok(record)) => return Ok(record),
            // It may have been renewing a value that still lived then.
            Ok(Err(error)) => error,
            Err(Unanswered::Recursive) => return Err(Error::Recursive { key: text() }),
            Err(Unanswered::TimedOut) => Error::LoadTimeout { key: text(), waited },
            Err(Unanswered::LeaderPanicked) => {
                Error::GetterPanicked { key: text(), message: "in another thread".into() }
            }
        };
        self.stand_in(key, error)
    }

    /// Counts and logs how misses were answered.
    fn note(&self, misses: &mut Misses<'_, '_>) {
        misses.iter_mut().for_each(|miss| miss.trace.stale = self.why_stale(miss));
        self.counters.add(|stats| misses.iter().for_each(|miss| self.count(miss, stats)));
        for miss in misses {
            debug!("[{}] {}: {}", self.name(), Shown(miss.key.text), miss.trace);
        }
    }

    fn count(&self, miss: &Miss<'_>, stats: &mut Stats) {
        stats.stale += u64::from(miss.trace.stale.is_some());
        let has_failed = miss.trace.stale.is_some() || matches!(miss.answer, Some(Err(_)));
        let ends_get = |error: &Option<PeerError>| error.as_ref().is_none_or(|e| self.is_final(e));
        let counter = match &miss.trace {
            Trace { asked: Some(asked), .. } if ends_get(&asked.error) => return, // counted
            Trace { handed_over: Some(_), .. } => &mut stats.handed_over,
            Trace { loaded: Some(_), .. } if has_failed => &mut stats.local_load_errors,
            Trace { loaded: Some(_), .. } => &mut stats.local_loads,
            _ => &mut stats.shared,
        };
        *counter += 1;
    }

    fn note_fallback(&self, owner: &dyn PeerGetter, key: &Key<'_>, error: &PeerError) {
        self.counters.add(|stats| stats.fallbacks += 1);
        let (group, peer) = (self.name(), owner.name());
        let line = format!("peer {peer}: {error}; {} falls back", Shown(key.text));
        // While a peer is down or overloaded these come by the thousand.
        if *error == PeerError::CoolingDown || error.is_overload() {
            debug!("[{group}] {line}");
        } else if let Some(line) = self.warnings.due(peer, error.kind(), self.now(), line) {
            warn!("[{group}] {line}");
        }
    }

    /// Answers a peer that takes this node for the key's owner: the value and its remaining time
    /// to live, or `None` if the origin has no such key. Asks no other peer but for its cached values,
    /// and only after the list of peers has changed. A value that is
    /// [past its time](GroupBuilder::stale_if_error), or whose key another node owns, has none left: no copy of
    /// it is to be kept.
    ///
    /// [`HttpServer`](crate::HttpServer) calls this; a transport of your own would.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    #[doc(alias = "ServeHTTP")]
    pub fn answer_peer(&self, key: &str) -> Result<Option<(ByteView, Option<Duration>)>, Error> {
        Ok(match self.answer_peer_traced(key)?.0 {
            Told::Value(value, remaining) => Some((value, remaining)),
            Told::Absent | Told::NotCached => None,
        })
    }

    /// As [`answer_peer`](Self::answer_peer), and whether the answer was cached.
    pub(crate) fn answer_peer_traced(&self, key: &str) -> Result<(Told, bool), Error> {
        let key = self.key(key)?;
        self.counters.add(|stats| stats.peer_requests += 1);
        match self.look_up(&key) {
            Some((record, tier)) => Ok((self.tell(record, tier), true)),
            None => Ok((self.tell(self.answer(key, Self::load_here).0?, Tier::Main), false)),
        }
    }

    /// As [`answer_peer`](Self::answer_peer), from the caches alone.
    ///
    /// [`HttpServer`](crate::HttpServer) asks this where it receives, so that a hit waits for no
    /// worker. A miss is looked up twice more: when a worker gets to it, since a value that was loaded
    /// meanwhile is a hit then, and by the leader of its flight (see [`fly`](Self::fly)).
    pub(crate) fn answer_peer_cached(&self, key: &str) -> Result<Told, Error> {
        let Some((record, tier)) = self.look_up(&self.key(key)?) else {
            return Ok(Told::NotCached);
        };
        self.counters.add(|stats| stats.peer_requests += 1);
        Ok(self.tell(record, tier))
    }

    fn tell(&self, record: Record, tier: Tier) -> Told {
        // Of a copy no copy is kept: else one could come from a node that a removal has not reached yet.
        let is_own = tier == Tier::Main && self.peers.pick(record.key()).is_none();
        let left = if is_own { self.life_left(&record) } else { Some(Duration::ZERO) };
        tell(record, left)
    }

    fn life_left(&self, record: &Record) -> Option<Duration> {
        record.expires().map(|at| at.saturating_sub(self.now()))
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.settings.name
    }

    /// The group's counters.
    pub fn stats(&self) -> Stats {
        self.counters.with([self.main.stats(), self.hot.stats()], &self.peers.others())
    }

    /// Drops the counters of peers that have left.
    fn forget_peers(&self) {
        let others = self.peers.others();
        let is_known = |name: &str| others.iter().any(|peer| peer.name() == name);
        self.counters.add(|stats| stats.peers.retain(|name, _| is_known(name)));
    }

    fn now(&self) -> Duration {
        self.settings.clock.now()
    }

    #[inline]
    fn key<'k>(&self, key: &'k str) -> Result<Key<'k>, Error> {
        match key.len() {
            1..=MAX_KEY_BYTES => Ok(Key::new(key, &self.hasher)),
            length => Err(Error::KeyLength(length)),
        }
    }

    fn miss<'k>(&self, key: Key<'k>) -> Miss<'k> {
        let owner = self.peers.pick(key.text);
        let (is_renewal, is_trial, lease, call, loaded, answer, trace) = Default::default();
        Miss { key, owner, is_renewal, is_trial, lease, call, loaded, answer, trace }
    }

    fn cache(&self, tier: Tier) -> &Cache {
        match tier {
            Tier::Main => &self.main,
            Tier::Hot => &self.hot,
        }
    }

    #[inline(always)] // a hit returns in registers
    fn look_up(&self, key: &Key<'_>) -> Option<(Record, Tier)> {
        if self.disowned.is_pending() {
            self.drop_if_overdue(key);
        }
        let found = match self.main.get(key, || self.renew(key, Tier::Main)) {
            Some(record) => (record, Tier::Main),
            None => {
                self.drop_copy_of_own(key);
                (self.hot.get(key, || self.renew(key, Tier::Hot))?, Tier::Hot)
            }
        };
        if max_level() >= Level::Debug {
            self.log_hit(key, found.1);
        }
        Some(found)
    }

    #[cold]
    fn log_hit(&self, key: &Key<'_>, tier: Tier) {
        debug!("[{}] {}: {tier} hit", self.name(), Shown(key.text));
    }

    /// A job for a thread of the group's, which does nothing if the group has ended.
    fn job(&self, job: impl FnOnce(&Self) + Send + 'static) -> Job {
        let group = self.own.clone();
        Box::new(move || {
            if let Some(group) = group.upgrade() {
                job(&group);
            }
        })
    }
}

type SharedError = Arc<dyn std::error::Error + Send + Sync>;

fn tell(record: Record, left: Option<Duration>) -> Told {
    record.into_value().map_or(Told::Absent, |value| Told::Value(value, left))
}

/// Does `work`; returns how long it took as well.
fn timed<T>(work: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed())
}

fn failed(key: &str, source: SharedError) -> Error {
    Error::Getter { key: key.into(), source }
}

fn panicked(key: &str, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or(panic.downcast_ref::<String>().map(String::as_str));
    Error::GetterPanicked { key: key.into(), message: text.unwrap_or("no message").into() }
}

#[cfg(test)]
mod tests;
