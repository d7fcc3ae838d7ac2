//! `Refresh`: values renewed before they expire, and kept for when the origin fails.
//!
//! When the life of a popular value ends, its next caller waits for the origin; and while the origin
//! is down, every key fails as its life ends. Two options of a group help:
//! [`refresh_ahead`](crate::GroupBuilder::refresh_ahead) and
//! [`stale_if_error`](crate::GroupBuilder::stale_if_error). Both begin in the cache, see
//! [`Record`]: some time before the end of a value a hit also says that it is due, and a value that has
//! expired is found for the grace.
//!
//! ```text
//!  a hit that is due ── an attempt under way, or less than a second ago? ─ no ─▶ a renewing thread
//!
//!  a miss ── a load failed less than a second ago, or is being tried again? ── yes ─▶ old value
//!              │ no
//!              ▼
//!            load ── failed? ── yes ─▶ old value, if there is one
//! ```
//!
//! Both go by the [`Attempts`], so that a failing origin is asked once a second for each key.
//!
//! What waits for a renewing thread is renewed together where that makes nobody wait: copies, and all
//! other keys if the getter [batches](crate::Getter::batches). A getter that loads one key after the
//! other is asked for one at a time, since gets whose value expires during a call wait for its end.
//!
//! A removal beats a renewal as it beats a load: by the lease, which is taken before the getter is
//! called. It also takes out what has expired, so that nothing removed comes back.
//!
//! # A renewal that fails as the value expires
//!
//! 1. A renewing thread leads the flight of the key, and its load fails. The value has not expired
//!    yet, so the answer of the flight is the error.
//! 2. The value expires. A get misses it, and joins the flight before it ends.
//!
//! The get takes the old value instead of the error ([`Group::follow`]). Another get comes when the
//! flight has ended, and must not try again: so the failure is noted before the end.

use std::collections::{HashMap, VecDeque};
use std::fmt::Display;
use std::iter::zip;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::Duration;

use log::{debug, warn};

use super::batch::complete;
use super::fallback_log::Shown;
use super::{Answer, Group, Tier, Trace};
use crate::cache::{Key, Record};
use crate::flight::Seat;
use crate::{Error, PeerGetter};

/// After a failed load of a key, the next one is this much later at the earliest.
const REST: Duration = Duration::from_secs(1);
/// How long a failure is remembered, so that one caller tries again and the others need not wait.
const REMEMBERED: Duration = Duration::from_secs(60);

pub(super) struct Refresh {
    /// Whether values are renewed.
    pub(super) is_ahead: bool,
    /// How long values are kept after they have expired; zero: not at all.
    pub(super) grace: Duration,
    // Guards what is known of failed loads and of renewals, by the hash of the key.
    attempts: Mutex<Attempts>,
    crew: Arc<Crew>,
}

impl Refresh {
    pub(super) fn new(is_ahead: bool, grace: Duration) -> Self {
        Self { is_ahead, grace, attempts: Mutex::default(), crew: Arc::default() }
    }

    fn is_off(&self) -> bool {
        !self.is_ahead && self.grace.is_zero()
    }
}

impl Drop for Refresh {
    fn drop(&mut self) {
        self.crew.close();
    }
}

/// Which keys are being tried, and which are left alone for a moment.
#[derive(Default)]
struct Attempts {
    // By the hash of the key. If two keys have the same, one is renewed or tried a little later.
    by_key: HashMap<u64, Attempt>,
    // At this number of attempts those that are over are forgotten.
    sweep_at: usize,
}

#[derive(Default)]
struct Attempt {
    /// Why the last load failed; `None` if it did not.
    failure: Option<String>,
    is_under_way: bool,
    /// When the next one may begin.
    next: Duration,
}

impl Attempt {
    fn rests(&self, now: Duration) -> bool {
        !self.is_under_way && now < self.next
    }
}

impl Attempts {
    /// Begins a renewal; `false` if it is not the time for one.
    fn begin(&mut self, key: u64, now: Duration, patience: Duration) -> bool {
        let attempt = self.of(key, now);
        if now < attempt.next {
            return false;
        }
        (attempt.is_under_way, attempt.next) = (true, now.saturating_add(patience));
        true
    }

    /// `true` if the load of the key has failed and this caller must not try it: it is too early, or
    /// another caller tries. If this caller may try, others may not until `patience` has passed.
    fn is_left_alone(&mut self, key: u64, now: Duration, patience: Duration) -> bool {
        if self.leaves_alone(key, now) {
            return true;
        }
        let failed = self.by_key.get_mut(&key).filter(|attempt| attempt.failure.is_some());
        if let Some(attempt) = failed {
            (attempt.is_under_way, attempt.next) = (true, now.saturating_add(patience));
        }
        false
    }

    /// Whether the load of the key has failed, and a caller that comes now must not try it.
    fn leaves_alone(&self, key: u64, now: Duration) -> bool {
        self.by_key.get(&key).is_some_and(|attempt| attempt.failure.is_some() && now < attempt.next)
    }

    /// Whether the load of the key has failed just now.
    fn has_just_failed(&self, key: u64, now: Duration) -> bool {
        self.by_key.get(&key).is_some_and(|attempt| attempt.failure.is_some() && attempt.rests(now))
    }

    /// Whether no renewal of the key begins at this time, and none is under way.
    fn is_resting(&self, key: u64, now: Duration) -> bool {
        self.by_key.get(&key).is_some_and(|attempt| attempt.rests(now))
    }

    /// Ends an attempt that loaded nothing. The next may begin at once, unless an earlier one failed.
    fn give_up(&mut self, key: u64, now: Duration) {
        if self.rest(key, now).failure.is_none() {
            self.by_key.remove(&key);
        }
    }

    fn failed(&mut self, key: u64, now: Duration, failure: String) {
        self.rest(key, now).failure = Some(failure);
    }

    /// No renewal of the key begins for a while.
    fn rest(&mut self, key: u64, now: Duration) -> &mut Attempt {
        let attempt = self.of(key, now);
        (attempt.is_under_way, attempt.next) = (false, now + REST);
        attempt
    }

    /// The last attempt for the key, or a new one, which may begin.
    fn of(&mut self, key: u64, now: Duration) -> &mut Attempt {
        if self.by_key.len() > self.sweep_at {
            self.by_key.retain(|_, attempt| now < attempt.next.saturating_add(REMEMBERED));
            self.sweep_at = (2 * self.by_key.len()).max(1024);
        }
        self.by_key.entry(key).or_default()
    }
}

/// What a cache of the group does at a hit that is due.
pub(super) fn on_due(group: &Weak<Group>, tier: Tier) -> impl Fn(&Key<'_>) + use<> {
    let group = group.clone();
    move |key| group.upgrade().iter().for_each(|group| group.renew(key, tier))
}

// Renewed ahead.
impl Group {
    /// Starts the renewal of a value that is due, unless one is under way, was tried a moment ago, or
    /// too many others wait. Never waits.
    fn renew(self: &Arc<Self>, key: &Key<'_>, tier: Tier) {
        let Refresh { attempts, crew, .. } = &self.refresh;
        if !attempts.lock().unwrap().begin(key.hash, self.clock.now(), self.load_timeout) {
            return;
        }
        // Copies are asked for together: nobody waits for that.
        let job =
            Job { key: key.text.into(), tier, joins: tier == Tier::Hot || self.getter.batches() };
        if !crew.take_on(job, self) {
            self.leave(key);
        }
    }

    /// Whether a hit was due, and its renewal was not tried just before.
    pub(super) fn is_renewed(&self, key: &Key<'_>, tier: Tier, hit: &Record) -> bool {
        let is_resting = || {
            let attempts = self.refresh.attempts.lock().unwrap();
            attempts.is_resting(key.hash, self.clock.now())
        };
        self.cache(tier).is_due(hit) && !is_resting()
    }

    /// Renews values of one cache, on a thread of the crew.
    fn renew_now(&self, jobs: &[Job]) {
        let mut own = Vec::new();
        let mut by_owner: HashMap<String, (Arc<dyn PeerGetter>, Vec<&Key<'_>>)> = HashMap::new();
        let keys: Vec<_> = jobs.iter().map(|job| Key::new(&job.key, &self.hasher)).collect();
        for (key, &Job { tier, .. }) in keys.iter().zip(jobs) {
            let is_due = |record: Record| self.cache(tier).is_due(&record);
            match (tier, self.peers.pick(key.text)) {
                // It waited until it expired, was removed, or was loaded anew.
                _ if !self.cache(tier).peek(key).is_some_and(is_due) => self.leave(key),
                (Tier::Main, None) => own.push(key),
                (Tier::Hot, Some(owner)) => {
                    by_owner.entry(owner.name().into()).or_insert((owner, Vec::new())).1.push(key)
                }
                // The key has a new owner. What is here ends soon.
                _ => self.let_rest(key),
            }
        }
        self.renew_by_getter(&own);
        by_owner.values().for_each(|(owner, keys)| self.renew_by_asking(&**owner, keys));
    }

    fn renew_by_getter(&self, keys: &[&Key<'_>]) {
        let mut led = Vec::new();
        for &key in keys {
            match self.loading.join(key.text) {
                // It is being loaded anyway.
                Seat::Follower(_) => self.let_rest(key),
                Seat::Leader(guard) => {
                    let lease = self.main.lease(key);
                    match self.settled(key) {
                        // Another load has ended just now.
                        Some((record, _)) if !self.main.is_due(&record) => {
                            guard.finish(&Ok(record));
                            self.leave(key);
                        }
                        _ => led.push((key, guard, lease)),
                    }
                }
            }
        }
        let keys: Vec<_> = led.iter().map(|&(key, ..)| key).collect();
        for ((key, guard, lease), loaded) in zip(led, self.call_getter_for_many(&keys)) {
            // Gets that found the value expired meanwhile wait for the answer.
            match loaded {
                Ok(loaded) => {
                    let record = self.keep(Tier::Main, key, loaded, lease);
                    guard.finish(&Ok(record.clone()));
                    self.note_renewed(key, Tier::Main, &record);
                }
                Err(error) => {
                    // Noted before the flight ends, so that later gets do not try again at once.
                    self.note_failed(key, error.to_string());
                    guard.finish(&self.stand_in(key, error));
                }
            }
        }
    }

    /// Leads no flight: a get that finds the copy expired meanwhile asks the owner itself.
    fn renew_by_asking(&self, owner: &dyn PeerGetter, keys: &[&Key<'_>]) {
        let leases: Vec<_> = keys.iter().map(|key| self.hot.lease(key)).collect();
        let asked_at = self.clock.now();
        let failed = |key, why: &dyn Display| {
            self.note_failed(key, format!("peer {}: {why}", owner.name()));
        };
        for ((&key, lease), answer) in zip(zip(keys, leases), self.ask_owner_for_many(owner, keys))
        {
            match answer {
                Err(error) => failed(key, &error),
                Ok(Some(loaded)) if loaded.stale => failed(key, &"its value is stale"),
                Ok(loaded) => {
                    let record = self.copy(key, loaded, asked_at, Some(lease));
                    self.note_renewed(key, Tier::Hot, &record);
                }
            }
        }
    }

    fn note_renewed(&self, key: &Key<'_>, tier: Tier, renewed: &Record) {
        // Its life is short, or the owner of the copy renews it just now. That makes no loop.
        if self.cache(tier).is_due(renewed) {
            self.let_rest(key);
        }
        debug!("[{}] {}: renewed", self.name, Shown(key.text));
        self.counters.refreshes.add_one();
    }

    fn note_failed(&self, key: &Key<'_>, why: String) {
        self.warn_seldom(key, "could not be renewed", &why);
        self.refresh.attempts.lock().unwrap().failed(key.hash, self.clock.now(), why);
        self.counters.refresh_errors.add_one();
        self.counters.refreshes.add_one();
    }

    /// The value is not renewed this time. The next get may try.
    fn leave(&self, key: &Key<'_>) {
        self.refresh.attempts.lock().unwrap().give_up(key.hash, self.clock.now());
    }

    /// The value is not renewed in the next second.
    fn let_rest(&self, key: &Key<'_>) {
        self.refresh.attempts.lock().unwrap().rest(key.hash, self.clock.now());
    }
}

// Kept for when the origin fails.
impl Group {
    /// Loads, unless that has failed a moment ago or is being tried again, and a value past its time
    /// can answer.
    pub(super) fn unless_resting(
        &self,
        key: &Key<'_>,
        trace: &mut Trace,
        load: impl FnOnce(&mut Trace) -> Answer,
    ) -> Answer {
        let answer = match self.left_alone(key) {
            Some(stale) => Ok(stale),
            None => load(trace),
        };
        trace.stale = self.note_stale(key, &answer);
        answer
    }

    /// The same for many keys.
    pub(super) fn unless_resting_many(
        &self,
        keys: &[&Key<'_>],
        load: impl FnOnce(&[&Key<'_>]) -> Vec<Answer>,
    ) -> Vec<Answer> {
        let stale: Vec<_> = keys.iter().map(|key| self.left_alone(key).map(Ok)).collect();
        let open = zip(keys, &stale).filter(|(_, stale)| stale.is_none());
        let loaded = load(&open.map(|(&key, _)| key).collect::<Vec<_>>());
        let answers = complete(stale, loaded);
        zip(keys, &answers).for_each(|(key, answer)| drop(self.note_stale(key, answer)));
        answers
    }

    /// The value past its time, if this caller must not try to load the key.
    fn left_alone(&self, key: &Key<'_>) -> Option<Record> {
        let patience = self.load_timeout;
        let stale =
            self.past_if(key, |attempts, now| attempts.is_left_alone(key.hash, now, patience))?;
        self.counters.shared.add_one();
        Some(stale)
    }

    /// As [`left_alone`](Self::left_alone), for a caller that loads nothing in any case. Counted as a get,
    /// unless it is `None`.
    #[cold]
    pub(super) fn stale_meanwhile(&self, key: &Key<'_>) -> Option<Record> {
        let stale = self.past_if(key, |attempts, now| attempts.leaves_alone(key.hash, now))?;
        for counter in [&self.counters.misses, &self.counters.shared, &self.counters.stale] {
            counter.add_one();
        }
        Some(stale)
    }

    /// The value past its time, if a load of the key has failed just now: for a leader that joined when
    /// that load's flight had ended.
    pub(super) fn resting(&self, key: &Key<'_>) -> Option<Record> {
        self.past_if(key, |attempts, now| attempts.has_just_failed(key.hash, now))
    }

    /// The value past its time, if what is known of the key's loads calls for it.
    fn past_if(
        &self,
        key: &Key<'_>,
        is_called_for: impl FnOnce(&mut Attempts, Duration) -> bool,
    ) -> Option<Record> {
        let Refresh { grace, attempts, .. } = &self.refresh;
        if grace.is_zero() || !is_called_for(&mut attempts.lock().unwrap(), self.clock.now()) {
            return None;
        }
        self.past(key)
    }

    /// The answer of a load that failed: the value past its time, if there is one.
    pub(super) fn stand_in(&self, key: &Key<'_>, error: Error) -> Answer {
        let Some(stale) = self.past(key) else { return Err(error) };
        let (now, why) = (self.clock.now(), error.to_string());
        self.warn_seldom(key, "is stale", &why);
        self.refresh.attempts.lock().unwrap().failed(key.hash, now, why);
        Ok(stale)
    }

    /// Called when a load has succeeded: the key may be renewed and loaded again at any time.
    pub(super) fn note_load(&self, key: &Key<'_>) {
        if !self.refresh.is_off() {
            self.refresh.attempts.lock().unwrap().by_key.remove(&key.hash);
        }
    }

    /// Called when the origin has no such key: what it had before must not come back.
    pub(super) fn drop_outdated(&self, key: &Key<'_>) {
        if !self.refresh.is_off() {
            self.main.drop_outdated(key);
            self.hot.drop_outdated(key);
        }
    }

    /// The value past its time, marked as such.
    fn past(&self, key: &Key<'_>) -> Option<Record> {
        let grace = self.refresh.grace;
        // A copy that no removal has reached must not come back much later.
        let copies = grace.min(self.hot_ttl);
        let past = [self.main.past(key, grace), self.hot.past(key, copies)].into_iter().flatten();
        let newest = past.filter(|record| !record.is_absent()).max_by_key(Record::expires);
        newest.map(|record| record.stale())
    }

    /// Counts an answer that is stale; returns why it is.
    fn note_stale(&self, key: &Key<'_>, answer: &Answer) -> Option<String> {
        if !answer.as_ref().is_ok_and(Record::is_stale) {
            return None;
        }
        self.counters.stale.add_one();
        let attempts = self.refresh.attempts.lock().unwrap();
        let failure = attempts.by_key.get(&key.hash).and_then(|attempt| attempt.failure.clone());
        Some(failure.unwrap_or_else(|| "the owner could not load it".into()))
    }

    fn warn_seldom(&self, key: &Key<'_>, what: &str, why: &dyn Display) {
        // The origin is no peer.
        let Some((silent, _)) = self.fallback_log.due("", "origin", self.clock.now()) else {
            return;
        };
        let key = Shown(key.text);
        match silent {
            0 => warn!("[{}] {key} {what}: {why}", self.name),
            _ => {
                warn!("[{}] {key} {what}, and {silent} more since the last line: {why}", self.name)
            }
        }
    }
}

/// The threads that renew values: as many as there is work for, up to [`Crew::MOST_THREADS`].
struct Crew {
    // Guards the jobs, and how many threads there are.
    work: Mutex<Work>,
    /// Notified for each job, and at the end.
    wake: Condvar,
    /// How long a thread without work stays.
    idle: Duration,
}

#[derive(Default)]
struct Work {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
    is_over: bool,
}

struct Job {
    key: Box<str>,
    tier: Tier,
    /// Whether it is done together with others of its cache.
    joins: bool,
}

impl Default for Crew {
    fn default() -> Self {
        Self { work: Mutex::default(), wake: Condvar::new(), idle: Duration::from_secs(5) }
    }
}

impl Crew {
    const MOST_THREADS: usize = 4;
    const MOST_JOBS: usize = 256;

    /// Leaves a job to a thread, and starts one if all are busy; `false` if there is no room, or no
    /// thread to be had.
    fn take_on(self: &Arc<Self>, job: Job, group: &Arc<Group>) -> bool {
        let mut work = self.work.lock().unwrap();
        if work.jobs.len() >= Self::MOST_JOBS {
            return false;
        }
        work.jobs.push_back(job);
        if work.idle >= work.jobs.len() || work.threads == Self::MOST_THREADS {
            drop(work);
            self.wake.notify_one();
            return true;
        }
        work.threads += 1;
        drop(work);
        let (crew, group) = (self.clone(), Arc::downgrade(group));
        let thread = thread::Builder::new().name("geecache-renew".into());
        let Err(error) = thread.spawn(move || crew.run(&group)) else { return true };
        debug!("no thread to renew values: {error}");
        let mut work = self.work.lock().unwrap();
        work.threads -= 1;
        // Without any thread nobody would come for the job.
        work.threads > 0 || work.jobs.pop_back().is_none()
    }

    fn run(&self, group: &Weak<Group>) {
        while let Some(jobs) = self.next() {
            let Some(group) = group.upgrade() else { return };
            // A getter's panic ends in its load. This is about a peer of the user's.
            let _ = catch_unwind(AssertUnwindSafe(|| group.renew_now(&jobs)));
        }
    }

    /// The next job, with all that are done together with it; `None` if there was none for a while, or
    /// the group is gone: then the thread ends.
    fn next(&self) -> Option<Vec<Job>> {
        let mut work = self.work.lock().unwrap();
        work.idle += 1;
        // A job that comes as the wait ends is not missed: whether there is one is checked under the
        // lock under which this thread stops being idle.
        let is_unwanted = |work: &mut Work| work.jobs.is_empty() && !work.is_over;
        (work, _) = self.wake.wait_timeout_while(work, self.idle, is_unwanted).unwrap();
        work.idle -= 1;
        let Some(&Job { tier, joins, .. }) = work.jobs.front() else {
            work.threads -= 1;
            return None;
        };
        if !joins {
            return work.jobs.pop_front().map(|job| vec![job]);
        }
        let waiting = mem::take(&mut work.jobs).into_iter();
        let (same, others): (VecDeque<_>, _) = waiting.partition(|job| job.tier == tier);
        work.jobs = others;
        Some(same.into())
    }

    fn close(&self) {
        self.work.lock().unwrap().is_over = true;
        self.wake.notify_all();
    }
}

#[cfg(test)]
mod tests;
