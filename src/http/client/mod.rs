//! `HttpGetter`: asks one peer, blocking, with a deadline.
//!
//! What may a question to a peer cost at the worst? [`PoolOptions::timeout`], once, also for
//! [`get_many`](PeerGetter::get_many).
//!
//! ```text
//!  get(group, key)                      the deadline begins
//!   └─ combine       as many gets under way to this peer as there are lanes? ─ yes ─▶ some together, by one request
//!       └─ cooldown      the peer failed a moment ago? ─ yes ─▶ CoolingDown
//!           └─ exchange      one request, one answer, in what is left of the time
//!               ├─ addresses     where the peer's name leads
//!               └─ transport     ureq, and the connections to the peer
//! ```

mod addresses;
mod combine;
mod cooldown;
mod exchange;
mod transport;

use std::collections::HashMap;
use std::iter::zip;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::combine::{Combine, LANES, PAUSE};
use self::cooldown::Cooldown;
use self::exchange::Exchange;
#[cfg(feature = "tls")]
pub(super) use self::transport::trust;
use super::frame::{self, Answer, Wanted};
use crate::clock::Clock;
use crate::{Loaded, PeerError, PeerGetter, PoolOptions};

/// Asks the peer at one base URL.
#[doc(alias = "httpGetter")]
pub(crate) struct HttpGetter {
    exchange: Exchange,
    cooldown: Cooldown,
    /// Of questions for cached values: they have less time than others, and a peer that is too slow for them
    /// is not down.
    cached_cooldown: Cooldown,
    // Guards the table alone, which has one entry for each group.
    groups: Mutex<HashMap<String, Arc<Combine<Answer>>>>,
    clock: Clock,
    options: Arc<PoolOptions>,
}

/// How long a removal waits for a peer that failed before and may still be down.
const REMOVAL_WHILE_DOWN: Duration = Duration::from_millis(500);

impl HttpGetter {
    pub(crate) fn new(base_url: String, options: Arc<PoolOptions>) -> Self {
        let clock = Clock::real();
        let cooldown =
            |of: &str, timeout| Cooldown::new(format!("{of} {base_url}"), timeout, clock.clone());
        Self {
            cooldown: cooldown("peer", options.timeout),
            cached_cooldown: cooldown("cached values of peer", Duration::ZERO),
            exchange: Exchange::new(base_url, options.clone(), clock.clone()),
            groups: Mutex::default(),
            clock,
            options,
        }
    }

    fn combine(&self, group: &str) -> Arc<Combine<Answer>> {
        let mut groups = self.groups.lock().unwrap();
        let combine = groups.entry(group.into());
        combine.or_insert_with(|| Arc::new(Combine::new(LANES, PAUSE))).clone()
    }

    /// Asks for one key by a request of its own. Also tells whether the peer had it in its caches.
    fn ask(&self, group: &str, key: &str, end: Duration) -> (Answer, bool) {
        match self.cooldown.ask(end, false, |left| self.exchange.get(group, key, left)) {
            Ok((found, was_cached)) => (Ok(found), was_cached),
            Err(error @ PeerError::LoadFailed(_)) => (Err(error), false),
            Err(error) => (Err(error), true),
        }
    }

    /// Asks for those of several keys that the peer has in its caches.
    fn ask_cached(&self, group: &str, keys: &[String], end: Duration) -> Vec<Option<Answer>> {
        let ask = |left| self.exchange.get_batch(group, keys, Wanted::Cached, left);
        let error = match self.cooldown.ask(end, false, ask) {
            Ok(answers) => return answers,
            Err(PeerError::Unsupported) => return Vec::new(),
            // No key of it waited for the peer's origin.
            Err(PeerError::Slow) => PeerError::Timeout,
            Err(error) => error,
        };
        vec![Some(Err(error)); keys.len()]
    }

    /// Asks for several keys by one request. `None` for those that did not fit into the answer.
    fn ask_many(&self, group: &str, keys: &[&str], end: Duration) -> Vec<Option<Answer>> {
        let asked = self.cooldown.ask(end, false, |left| {
            let left = left.saturating_sub(self.options.timeout / 8);
            let error = match self.exchange.get_batch(group, keys, Wanted::All, left) {
                Err(PeerError::Timeout) => PeerError::Slow,
                Err(error) if error.is_overload() => error,
                answers => return answers,
            };
            // Some keys wait for the owner's origin, or all for its workers. It gives its cached values at
            // once, and an eighth of the time was kept for that.
            let mut failure = None;
            let cached = in_batches(keys, |part| {
                let left = end.saturating_sub(self.clock.now());
                let answers = self.exchange.get_batch(group, part, Wanted::Cached, left);
                answers.map_err(|error| failure = Some(error)).unwrap_or_default()
            });
            let is_mute = cached.iter().all(Option::is_none);
            let or_error = |answer: Option<_>| answer.or_else(|| Some(Err(error.clone())));
            let answers = cached.into_iter().map(or_error).collect();
            failure.filter(|_| is_mute).map_or(Ok(answers), Err)
        });
        asked.unwrap_or_else(|error| match error {
            PeerError::Unsupported => vec![None; keys.len()],
            error => vec![Some(Err(error)); keys.len()],
        })
    }

    /// A removal that is not even tried leaves an old value: after a restart, or behind a network that
    /// was interrupted, the peer may have one. So it is also sent to a peer that is left alone.
    fn remove(&self, group: &str, key: Option<&str>) -> Result<(), PeerError> {
        let timeout = self.options.timeout;
        let timeout = if self.is_up() { timeout } else { timeout.min(REMOVAL_WHILE_DOWN) };
        let remove = |left| self.exchange.remove(group, key, left);
        self.cooldown.ask(self.clock.now() + timeout, true, remove)
    }
}

/// Asks for `keys` by as many batches as they need. Keys that a batch does not bring, though it brings
/// others, are in the next one: the answer may have been full.
fn in_batches<T: Clone>(
    keys: &[&str],
    mut ask: impl FnMut(&[&str]) -> Vec<Option<T>>,
) -> Vec<Option<T>> {
    let mut found = vec![None; keys.len()];
    let mut open: Vec<usize> = (0..keys.len()).collect();
    while !open.is_empty() {
        let texts: Vec<&str> = open.iter().map(|&index| keys[index]).collect();
        let texts = &texts[..frame::fitting(&texts)];
        let brought = ask(texts);
        let part: Vec<usize> = open.drain(..texts.len()).collect();
        let has_brought_something = brought.iter().any(Option::is_some);
        for (index, answer) in zip(part, brought) {
            if answer.is_none() && has_brought_something {
                open.push(index);
            }
            found[index] = answer;
        }
    }
    found
}

impl PeerGetter for HttpGetter {
    fn name(&self) -> &str {
        self.exchange.base_url()
    }

    fn get(&self, group: &str, key: &str) -> Answer {
        let end = self.clock.now() + self.options.timeout;
        let plain = || self.ask(group, key, end);
        if !self.options.combine || !self.exchange.takes_batches() {
            return plain().0;
        }
        let batch = |keys: &[String]| self.ask_cached(group, keys, end);
        let patience = self.options.timeout;
        let answer = self.combine(group).get(key, patience, frame::fit, batch, plain);
        answer.unwrap_or(Err(PeerError::OutOfTime))
    }

    fn get_many(&self, group: &str, keys: &[&str]) -> Vec<Answer> {
        let end = self.clock.now() + self.options.timeout;
        let answers = in_batches(keys, |part| match self.exchange.takes_batches() {
            true => self.ask_many(group, part, end),
            false => vec![None; part.len()],
        });
        // Each that is left is too large for an answer with others, or the peer takes no batches.
        let singly = |(key, answer): (&&str, Option<_>)| {
            answer.unwrap_or_else(|| self.ask(group, key, end).0)
        };
        zip(keys, answers).map(singly).collect()
    }

    fn get_cached(&self, group: &str, keys: &[&str], patience: Duration) -> Vec<Option<Loaded>> {
        let end = self.clock.now() + patience.min(self.options.timeout);
        in_batches(keys, |part| {
            let ask = |left| self.exchange.get_batch(group, part, Wanted::Cached, left);
            let may_ask = self.is_up() && self.exchange.takes_batches();
            let answers = may_ask.then(|| self.cached_cooldown.ask(end, false, ask).ok()).flatten();
            let answers = answers.unwrap_or_else(|| vec![None; part.len()]);
            answers.into_iter().map(|answer| answer?.ok().flatten()).collect()
        })
    }

    fn is_up(&self) -> bool {
        self.cooldown.is_well()
    }

    fn remove(&self, group: &str, key: &str) -> Result<(), PeerError> {
        self.remove(group, Some(key))
    }

    fn clear(&self, group: &str) -> Result<(), PeerError> {
        self.remove(group, None)
    }
}
