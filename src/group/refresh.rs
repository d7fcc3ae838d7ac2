//! Values renewed before they expire, and kept for when the origin fails.
//!
//! When the life of a popular value ends, its next caller waits for the origin; and while the origin
//! is down, every key fails as its life ends. Two options of a group help:
//! [`refresh_ahead`](crate::GroupBuilder::refresh_ahead) and
//! [`stale_if_error`](crate::GroupBuilder::stale_if_error). Both begin in the cache: some time before
//! the end of a value a hit also says that it is due, and a value that has expired is found for a grace.
//!
//! ```text
//!  a hit that is due ── an attempt under way, or less than a second ago? ─ no ─▶ a thread renews it
//!
//!  a miss ── a load failed less than a second ago, or is being tried again? ── yes ─▶ old value
//!              │ no
//!              ▼
//!            load ── failed? ── yes ─▶ old value, if there is one
//! ```
//!
//! Both go by the [`Attempts`], so that a failing origin is asked once a second for each key.
//!
//! A renewal is a load that does not look into the cache first. A removal beats it as it beats a load: by
//! the lease, which is taken before the getter is called.
//!
//! # A renewal that fails as the value expires
//!
//! 1. A thread that renews leads the flight of the key, and its load fails. The value has not expired
//!    yet, so the answer of the flight is the error.
//! 2. The value expires. A get misses it, and joins the flight before it ends.
//!
//! The get takes the old value instead of the error ([`Group::follow`]). Another get comes when the
//! flight has ended, and must not try again: so the failure is noted before the end.

use std::collections::HashMap;
use std::fmt::Display;
use std::iter::zip;
use std::sync::{Mutex, Weak};
use std::time::Duration;

use log::{debug, warn};

use super::batch::complete;
use super::fallback_log::Shown;
use super::{Answer, Group, Tier, Trace, timed, was_attempted};
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
}

impl Refresh {
    pub(super) fn new(is_ahead: bool, grace: Duration) -> Self {
        Self { is_ahead, grace, attempts: Mutex::default() }
    }

    fn is_off(&self) -> bool {
        !self.is_ahead && self.grace.is_zero()
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
    /// Whether nobody tries, and nobody may yet.
    fn rests(&self, now: Duration) -> bool {
        !self.is_under_way && now < self.next
    }
}

impl Attempts {
    /// Begins an attempt, which lasts for `patience` at the most; `false` if it is not the time for one.
    fn begin(&mut self, key: u64, now: Duration, patience: Duration) -> bool {
        let attempt = self.of(key, now);
        if now < attempt.next {
            return false;
        }
        (attempt.is_under_way, attempt.next) = (true, now.saturating_add(patience));
        true
    }

    /// Ends an attempt. The next one may begin after a rest.
    fn end(&mut self, key: u64, now: Duration) -> &mut Attempt {
        let attempt = self.of(key, now);
        (attempt.is_under_way, attempt.next) = (false, now + REST);
        attempt
    }

    /// Ends an attempt that loaded nothing. The next one may begin at once, unless an earlier one failed.
    fn give_up(&mut self, key: u64, now: Duration) {
        if self.end(key, now).failure.is_none() {
            self.by_key.remove(&key);
        }
    }

    fn get(&self, key: u64, is: impl Fn(&Attempt) -> bool) -> bool {
        self.by_key.get(&key).is_some_and(is)
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
    fn renew(&self, key: &Key<'_>, tier: Tier) {
        let now = self.clock.now();
        if !self.refresh.attempts.lock().unwrap().begin(key.hash, now, self.load_timeout) {
            return;
        }
        let (group, text) = (self.own.clone(), key.text.to_string());
        let renew = move || group.upgrade().iter().for_each(|group| group.renew_now(&text, tier));
        if self.threads.run(Box::new(renew)).is_err() {
            self.give_up(key);
        }
    }

    /// Whether a hit was due, and its renewal was not tried just before.
    pub(super) fn is_renewed(&self, key: &Key<'_>, tier: Tier, hit: &Record) -> bool {
        let now = self.clock.now();
        let rests = || self.refresh.attempts.lock().unwrap().get(key.hash, |a| a.rests(now));
        self.cache(tier).is_due(hit) && !rests()
    }

    fn renew_now(&self, text: &str, tier: Tier) {
        let key = Key::new(text, &self.hasher);
        let is_due = |record: Record| self.cache(tier).is_due(&record);
        match (tier, self.peers.pick(key.text)) {
            // It waited until it expired, was removed, or was loaded anew.
            _ if !self.cache(tier).peek(&key).is_some_and(is_due) => self.give_up(&key),
            (Tier::Main, None) => self.renew_by_getter(&key),
            (Tier::Hot, Some(owner)) => self.renew_by_asking(&*owner, &key),
            // The key has a new owner. The value ends soon.
            _ => self.let_rest(&key),
        }
    }

    fn renew_by_getter(&self, key: &Key<'_>) {
        // Another thread loads it.
        let Seat::Leader(guard) = self.loading.join(key.text) else { return self.let_rest(key) };
        let lease = self.main.lease(key);
        // Another load has ended just now.
        if let Some(fresh) = self.main.peek(key).filter(|record| !self.main.is_due(record)) {
            guard.finish(&Ok(fresh));
            return self.give_up(key);
        }
        // Gets that found the value expired meanwhile wait for the answer.
        match self.call_getter(key) {
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

    /// Leads no flight: a get that finds the copy expired meanwhile asks the owner itself.
    fn renew_by_asking(&self, owner: &dyn PeerGetter, key: &Key<'_>) {
        let (lease, asked_at) = (self.hot.lease(key), self.clock.now());
        let (answer, took) = timed(|| owner.get(&self.name, key.text));
        if was_attempted(&answer) {
            self.counters.of_peer(owner.name()).times.record(took);
        }
        match answer {
            Err(error) => self.note_failed(key, format!("peer {}: {error}", owner.name())),
            Ok(Some(loaded)) if loaded.stale => {
                self.note_failed(key, format!("peer {}: its value is stale", owner.name()))
            }
            Ok(loaded) => {
                let record = self.copy(key, loaded, asked_at, Some(lease));
                self.note_renewed(key, Tier::Hot, &record);
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
        self.note_failure(key, why);
        self.counters.refresh_errors.add_one();
        self.counters.refreshes.add_one();
    }

    /// The value is not renewed this time. The next get may try.
    fn give_up(&self, key: &Key<'_>) {
        self.refresh.attempts.lock().unwrap().give_up(key.hash, self.clock.now());
    }

    /// The value is not renewed in the next second.
    fn let_rest(&self, key: &Key<'_>) {
        self.refresh.attempts.lock().unwrap().end(key.hash, self.clock.now());
    }

    fn note_failure(&self, key: &Key<'_>, why: String) {
        self.refresh.attempts.lock().unwrap().end(key.hash, self.clock.now()).failure = Some(why);
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

    /// The value past its time, if the load of the key has failed and this caller must not try it: it is
    /// too early, or another caller tries. If this caller may try, others may not until that has ended.
    fn left_alone(&self, key: &Key<'_>) -> Option<Record> {
        let stale = self.past_if(key, |attempts, now| {
            attempts.get(key.hash, |attempt| attempt.failure.is_some())
                && !attempts.begin(key.hash, now, self.load_timeout)
        })?;
        self.counters.shared.add_one();
        Some(stale)
    }

    /// As [`left_alone`](Self::left_alone), for a caller that loads nothing in any case. Counted as a get,
    /// unless it is `None`.
    #[cold]
    pub(super) fn stale_meanwhile(&self, key: &Key<'_>) -> Option<Record> {
        let stale = self.past_if(key, |attempts, now| {
            attempts.get(key.hash, |attempt| attempt.failure.is_some() && now < attempt.next)
        })?;
        for counter in [&self.counters.misses, &self.counters.shared, &self.counters.stale] {
            counter.add_one();
        }
        Some(stale)
    }

    /// The value past its time, if a load of the key has failed just now: for a leader that joined when
    /// that load's flight had ended.
    pub(super) fn resting(&self, key: &Key<'_>) -> Option<Record> {
        self.past_if(key, |attempts, now| {
            attempts.get(key.hash, |attempt| attempt.failure.is_some() && attempt.rests(now))
        })
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
        let why = error.to_string();
        self.warn_seldom(key, "is stale", &why);
        self.note_failure(key, why);
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

    /// The value past its time, marked as such. A copy of another node's key is kept for no more than another
    /// `hot_ttl`: a removal, or the news that there is no such key, may not have reached this node.
    fn past(&self, key: &Key<'_>) -> Option<Record> {
        let grace = self.refresh.grace;
        if grace.is_zero() {
            return None;
        }
        let past = [self.main.past(key, grace), self.hot.past(key, grace.min(self.hot_ttl))];
        let past = past.into_iter().flatten().filter(|record| !record.is_absent());
        past.max_by_key(Record::expires).map(|record| record.stale())
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

#[cfg(test)]
mod tests;
