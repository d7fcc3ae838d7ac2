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
use std::sync::Mutex;
use std::time::Duration;

use log::{debug, warn};

use super::{Answer, Group, GroupBuilder, Miss, Misses, Tier};
use crate::Error;
use crate::cache::{Key, Record};
use crate::warnings::Shown;

/// After a failed load of a key, the next one is this much later at the earliest.
const REST: Duration = Duration::from_secs(1);
/// How long a failure is remembered, so that one caller tries again and the others need not wait.
const REMEMBERED: Duration = Duration::from_secs(60);

/// When keys may be renewed, or loaded again after a failure.
#[derive(Default)]
pub(super) struct Attempts {
    // Guards the attempts and the size at which they are swept, held for a look into the table.
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    // By the hash of the key. If two keys have the same, one is renewed or tried a little later.
    by_key: HashMap<u64, Attempt>,
    // At this number of attempts those that are over are forgotten.
    sweep_at: usize,
}

#[derive(Default)]
struct Attempt {
    /// Why the last load failed; `None` if it did not.
    failure: Option<String>,
    /// When the next one may begin. Until then one is under way, or has ended just now.
    next: Duration,
}

impl Attempts {
    /// Begins an attempt, which lasts for `patience` at the most; `false` if it is not the time for one.
    fn begin(&self, key: &Key<'_>, now: Duration, patience: Duration) -> bool {
        self.of(key, now, |attempt| {
            let may_begin = now >= attempt.next;
            if may_begin {
                attempt.next = now.saturating_add(patience);
            }
            may_begin
        })
    }

    /// Ends an attempt. The next one may begin after a rest.
    fn end(&self, key: &Key<'_>, now: Duration, failure: Option<String>) {
        self.of(key, now, |attempt| {
            attempt.next = now + REST;
            attempt.failure = failure.or(attempt.failure.take());
        });
    }

    /// Changes the last attempt for the key, or a new one, which may begin.
    fn of<R>(&self, key: &Key<'_>, now: Duration, change: impl FnOnce(&mut Attempt) -> R) -> R {
        let mut table = self.table.lock().unwrap();
        if table.by_key.len() > table.sweep_at {
            table.by_key.retain(|_, attempt| now < attempt.next.saturating_add(REMEMBERED));
            table.sweep_at = (2 * table.by_key.len()).max(1024);
        }
        change(table.by_key.entry(key.hash).or_default())
    }

    /// Why the last load of the key failed, and when the next one may begin.
    fn failure(&self, key: &Key<'_>) -> Option<(String, Duration)> {
        let table = self.table.lock().unwrap();
        let attempt = table.by_key.get(&key.hash)?;
        Some((attempt.failure.clone()?, attempt.next))
    }

    fn forget(&self, key: &Key<'_>) {
        self.table.lock().unwrap().by_key.remove(&key.hash);
    }
}

// Renewed ahead.
impl Group {
    /// Starts the renewal of a value that is due, unless one is under way, was tried a moment ago, or
    /// too many others wait. Never waits.
    #[cold]
    pub(super) fn renew(&self, key: &Key<'_>, tier: Tier) {
        if self.attempts.begin(key, self.now(), self.settings.load_timeout) {
            let text = key.text.to_string();
            if self.renewals.run(self.job(move |group| group.renew_now(&text, tier))).is_err() {
                self.attempts.forget(key); // the next hit may try
            }
        }
    }

    /// A load that does not look into the cache first.
    fn renew_now(&self, text: &str, tier: Tier) {
        let mut miss = Miss { is_renewal: true, ..self.miss(Key::new(text, &self.hasher)) };
        let found = self.cache(tier).peek(&miss.key);
        // Else it waited until it expired, was removed, or was loaded anew.
        if found.is_some_and(|record| self.cache(tier).is_due(&record)) {
            match (tier, miss.owner.clone()) {
                (Tier::Main, None) => self.load_locally(&mut [&mut miss], Self::ask_getter),
                (Tier::Hot, Some(owner)) => self.ask_owner(&*owner, &mut [&mut miss]),
                // The key has a new owner. The value ends soon.
                _ => {}
            }
        }
        self.note_renewal(&miss);
    }

    fn note_renewal(&self, miss: &Miss<'_>) {
        let (key, trace) = (&miss.key, &miss.trace);
        let failure = match &miss.answer {
            Some(answer) => answer.as_ref().err().map(Error::to_string),
            None => miss.peer_error().map(|error| format!("its owner: {error}")),
        };
        if let Some(why) = &failure {
            self.warn_seldom(key, "could not be renewed", why);
        }
        if trace.loaded.is_some() || trace.asked.is_some() {
            debug!("[{}] {}: renewed: {trace}", self.name(), Shown(key.text));
            self.counters.add(|stats| {
                stats.refreshes += 1;
                stats.refresh_errors += u64::from(failure.is_some());
            });
        }
        // If the life of the new value is short, it is due again. That makes no loop.
        self.attempts.end(key, self.now(), failure);
    }
}

// Kept for when the origin fails.
impl Group {
    /// Answers those misses whose load has failed a moment ago, or is being tried again, by their values
    /// past their time. If a miss may be tried, others may not until that has ended.
    pub(super) fn answer_while_failing(&self, misses: &mut Misses<'_, '_>) {
        if self.settings.stale_if_error.is_zero() {
            return;
        }
        for miss in misses {
            if self.attempts.failure(&miss.key).is_some() {
                let patience = self.settings.load_timeout;
                miss.is_trial = self.attempts.begin(&miss.key, self.now(), patience);
                if !miss.is_trial {
                    miss.answer = self.past(&miss.key).map(Ok);
                }
            }
        }
    }

    /// The value past its time, if the load of its key has failed and may not be tried again yet.
    #[cold]
    pub(super) fn stale_while_failing(&self, key: &Key<'_>) -> Option<Record> {
        if self.settings.stale_if_error.is_zero() {
            return None;
        }
        let (_, next) = self.attempts.failure(key)?;
        if self.now() < next { self.past(key) } else { None }
    }

    /// The answer of a load that failed: the value past its time, if there is one.
    pub(super) fn stand_in(&self, key: &Key<'_>, error: Error) -> Answer {
        if self.settings.stale_if_error.is_zero() {
            return Err(error);
        }
        let why = error.to_string();
        let stale = self.past(key);
        if stale.is_some() {
            self.warn_seldom(key, "is stale", &why);
        }
        self.attempts.end(key, self.now(), Some(why));
        stale.ok_or(error)
    }

    /// Called when a load has succeeded: the key may be renewed and loaded again at any time. If the
    /// origin has no such key, an older value must not come back.
    pub(super) fn note_load(&self, key: &Key<'_>, is_absent: bool) {
        let GroupBuilder { refresh_ahead, stale_if_error, .. } = &self.settings;
        if refresh_ahead.is_zero() && stale_if_error.is_zero() {
            return;
        }
        self.attempts.forget(key);
        if is_absent {
            self.main.drop_outdated(key);
            self.hot.drop_outdated(key);
        }
    }

    /// The value past its time. A copy of another node's key is kept for no more than another `hot_ttl`: a
    /// removal, or the news that there is no such key, may not have reached this node.
    fn past(&self, key: &Key<'_>) -> Option<Record> {
        let grace = self.settings.stale_if_error;
        let past =
            [self.main.past(key, grace), self.hot.past(key, grace.min(self.settings.hot_ttl))];
        let past = past.into_iter().flatten().filter(|record| !record.is_absent());
        past.max_by_key(Record::expires)
    }

    /// Why an answer is past its time; `None` if it is not.
    pub(super) fn why_stale(&self, miss: &Miss<'_>) -> Option<String> {
        let may_be_stale = !self.settings.stale_if_error.is_zero();
        let answer = miss.answer.as_ref().filter(|_| may_be_stale)?.as_ref().ok()?;
        let is_past = answer.expires()? <= self.now();
        Some(self.attempts.failure(&miss.key).filter(|_| is_past)?.0)
    }

    fn warn_seldom(&self, key: &Key<'_>, what: &str, why: &str) {
        let line = format!("{} {what}: {why}", Shown(key.text));
        // The origin is no peer.
        if let Some(line) = self.warnings.due("", "origin", self.now(), line) {
            warn!("[{}] {line}", self.name());
        }
    }
}

#[cfg(test)]
mod tests;
