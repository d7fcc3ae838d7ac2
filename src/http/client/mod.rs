//! `HttpGetter`: asks one peer, blocking, with a deadline.
//!
//! What may a question to a peer cost at the worst? [`PoolOptions::timeout`], once; for
//! [`get_many`](PeerGetter::get_many) once for each batch.
//!
//! ```text
//!  get(group, key)                      the deadline begins
//!   └─ cooldown      the peer failed a moment ago? ─ yes ─▶ CoolingDown
//!       └─ combine       has one just left for the same peer? ─ yes ─▶ the next one, together
//!           └─ exchange      one request, one answer, in what is left of the time
//!               ├─ addresses     where the peer's name leads
//!               └─ transport     ureq, and the connection: an idle one, or a new one
//!                   └─ idle          connections that are kept
//! ```

mod addresses;
mod combine;
mod cooldown;
mod exchange;
mod idle;
mod transport;

use std::collections::HashMap;
use std::iter::zip;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::{info, warn};

use self::combine::{Brought, Combine};
use self::cooldown::Cooldown;
use self::exchange::{Exchange, Wanted};
pub(super) use self::transport::check;
use super::frame::{self, Answer};
use crate::clock::Clock;
use crate::{Loaded, PeerError, PeerGetter, PoolOptions};

/// Asks the peer at one base URL.
#[doc(alias = "httpGetter")]
pub(crate) struct HttpGetter {
    exchange: Exchange,
    cooldown: Cooldown,
    /// When the peer last gave a whole answer, to anybody: in nanoseconds of the clock.
    answered: AtomicU64,
    // Guards the table alone. As many as this process has groups.
    groups: Mutex<HashMap<String, Arc<OfGroup>>>,
    // Guards when the peer last turned out not to support batches (a Go node).
    no_batches: Mutex<Option<Duration>>,
    /// So it is no Go node.
    has_answered_batches: AtomicBool,
    /// Questions for what it owned before have less time than others, and one that was too slow for
    /// them is not down.
    handover_cooldown: Cooldown,
    /// How many questions for what it owned before there were since it last gave something.
    in_vain: AtomicU32,
    clock: Clock,
    options: Arc<PoolOptions>,
}

/// After this time a peer that knew no batches is tried again: it may have been replaced.
const TRY_BATCHES_AGAIN: Duration = Duration::from_secs(60);
/// An earlier owner that gave nothing so many times in a row is asked only each so-many-th time.
const OFTEN_IN_VAIN: u32 = 16;
/// How long a removal waits for a peer that failed before and may still be down.
const REMOVAL_WHILE_DOWN: Duration = Duration::from_millis(500);

/// The gets of one group.
struct OfGroup {
    combine: Combine<Answer>,
    /// The part of the keys that the peer did not have in its caches: a moving mean, as the bits of
    /// an `f32`. Two at once may note only one of them.
    missing: AtomicU32,
}

impl OfGroup {
    /// Above this, gets are not combined: a key that a batch does not bring is asked for once more,
    /// and would take a second round trip.
    const MANY: f32 = 0.04;

    fn note(&self, was_cached: bool) {
        let mean = f32::from_bits(self.missing.load(Ordering::Relaxed));
        let now = if was_cached { 0.0 } else { 1.0 };
        self.missing.store((mean + (now - mean) / 128.0).to_bits(), Ordering::Relaxed);
    }

    fn misses_many(&self) -> bool {
        f32::from_bits(self.missing.load(Ordering::Relaxed)) > Self::MANY
    }
}

impl HttpGetter {
    pub(crate) fn new(base_url: String, options: Arc<PoolOptions>) -> Self {
        let clock = Clock::real();
        Self {
            exchange: Exchange::new(base_url, options.clone(), clock.clone()),
            cooldown: Cooldown::default(),
            answered: AtomicU64::new(0),
            groups: Mutex::default(),
            no_batches: Mutex::default(),
            has_answered_batches: AtomicBool::new(false),
            handover_cooldown: Cooldown::default(),
            in_vain: AtomicU32::new(0),
            clock,
            options,
        }
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn sweep(&self) {
        self.exchange.sweep();
    }

    /// The list of nodes has changed, and the peer may have owned keys that it can hand over.
    pub(super) fn may_hand_over(&self) {
        self.in_vain.store(0, Ordering::Relaxed);
    }

    fn of_group(&self, name: &str) -> Arc<OfGroup> {
        let mut groups = self.groups.lock().unwrap();
        if let Some(group) = groups.get(name) {
            return group.clone();
        }
        let combine = Combine::new(combine::FEW, combine::PAUSE, self.clock.clone());
        let group = Arc::new(OfGroup { combine, missing: AtomicU32::new(0) });
        groups.insert(name.into(), group.clone());
        group
    }

    /// Asks for one key by a request of its own.
    fn ask(&self, group: &str, key: &str, end: Duration) -> Answer {
        let answer = self.within(end, |left| self.exchange.get(group, key, Wanted::All, left));
        match &answer {
            Ok((_, was_cached)) => self.of_group(group).note(*was_cached),
            Err(PeerError::LoadFailed(_)) => self.of_group(group).note(false),
            Err(_) => {}
        }
        answer.map(|(found, _)| found)
    }

    /// Asks for several keys by one request. `None` for those that are not in the answer: all of
    /// them, if the peer knows no batches.
    fn ask_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        wanted: Wanted,
        end: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        match self.within(end, |left| self.exchange.get_batch(group, keys, wanted, left)) {
            Err(PeerError::Unsupported) => {
                *self.no_batches.lock().unwrap() = Some(self.clock.now());
                Ok(vec![None; keys.len()])
            }
            Ok(answers) => {
                self.has_answered_batches.store(true, Ordering::Relaxed);
                Ok(answers)
            }
            answers => answers,
        }
    }

    /// Asks for those of several keys that the peer has in its caches.
    fn ask_cached(&self, group: &str, keys: &[String], end: Duration) -> Brought<Answer> {
        match self.ask_batch(group, keys, Wanted::Cached, end) {
            Ok(answers) => {
                let group = self.of_group(group);
                answers.iter().for_each(|answer| group.note(answer.is_some()));
                Brought::Each(answers)
            }
            // The others may have more time left than the leader: each asks plainly.
            Err(PeerError::OutOfTime) => Brought::Each(Vec::new()),
            Err(error) => Brought::All(Err(error)),
        }
    }

    /// Asks for as many keys as fit into one batch. `None` for those that are not in the answer.
    fn ask_many(
        &self,
        group: &str,
        keys: &[&str],
        end: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        let reserve = self.options.timeout / 8;
        match self.ask_batch(group, keys, Wanted::All, end.saturating_sub(reserve)) {
            // A key or two wait for the owner's origin, or its workers do. What it has in its caches
            // it gives at once.
            Err(error @ (PeerError::Timeout | PeerError::Status { code: 503, .. })) => {
                let cached =
                    self.ask_batch(group, keys, Wanted::Cached, end).map_err(|_| error.clone())?;
                let or_error = |answer: Option<_>| answer.or_else(|| Some(Err(error.clone())));
                Ok(cached.into_iter().map(or_error).collect())
            }
            answers => answers,
        }
    }

    /// Asks for keys that the peer owned before. `None` for those that it does not give.
    fn ask_former(
        &self,
        group: &str,
        keys: &[&str],
        end: Duration,
    ) -> Result<Vec<Option<Loaded>>, PeerError> {
        match keys {
            // A Go node would load it. Without a batch, only the new owner asks for what is cached.
            [key] if self.has_answered_batches.load(Ordering::Relaxed) => {
                let ask = |left| self.exchange.get(group, key, Wanted::Cached, left);
                let (found, _) = self.within(end, ask)?;
                Ok(vec![found])
            }
            keys => {
                let answers = self.ask_batch(group, keys, Wanted::HandedOver, end)?;
                Ok(answers.into_iter().map(|answer| answer?.ok().flatten()).collect())
            }
        }
    }

    fn knows_batches(&self) -> bool {
        let since = *self.no_batches.lock().unwrap();
        since.is_none_or(|since| self.clock.now() >= since + TRY_BATCHES_AGAIN)
    }

    /// When a question that begins now is to end.
    fn end(&self) -> Duration {
        self.clock.now() + self.options.timeout
    }

    /// Asks with what is left of the caller's time. If that was little from the start, a time-out says
    /// nothing of the peer: the caller has waited for others, or asks for one key after the other.
    fn within<T>(
        &self,
        end: Duration,
        ask: impl FnOnce(Duration) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let began = self.clock.now();
        let left = end.saturating_sub(began);
        if left.is_zero() {
            return Err(PeerError::OutOfTime);
        }
        self.note(began, ask(left)).map_err(|error| match error {
            PeerError::Timeout if left < self.options.timeout / 2 => PeerError::OutOfTime,
            error => error,
        })
    }

    /// Notes what a question that began at that time says of the peer and its connections.
    fn note<T>(&self, began: Duration, answer: Result<T, PeerError>) -> Result<T, PeerError> {
        match &answer {
            Err(error) if error.is_transport() => self.exchange.distrust(began),
            _ => self.answered.store(self.clock.now().as_nanos() as u64, Ordering::Relaxed),
        }
        answer
    }

    /// Whether the peer has answered something, to anybody, since that time.
    fn has_answered_since(&self, time: Duration) -> bool {
        u128::from(self.answered.load(Ordering::Relaxed)) > time.as_nanos()
    }

    /// Asks, unless the peer is cooling down, and notes whether it could be reached.
    fn unless_cooling_down<T>(
        &self,
        ask: impl FnOnce() -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let began = self.clock.now();
        let attempt = self.cooldown.attempt(began).ok_or(PeerError::CoolingDown)?;
        let answer = ask();
        match &answer {
            // It was not asked, or not for long, so nothing is known.
            Err(PeerError::OutOfTime) => drop(attempt),
            // It answers others: what takes too long is this key.
            Err(PeerError::Timeout) if self.has_answered_since(began) => drop(attempt),
            Err(error) if error.is_transport() => {
                if let Some(pause) = attempt.failed(self.clock.now()) {
                    warn!("peer {}: {error}; not asked again for {pause:?}", self.name());
                }
            }
            _ => {
                if attempt.succeeded() {
                    self.log_return();
                }
            }
        }
        answer
    }

    /// Asks for something that the peer owned before, unless it was too slow for that a moment ago.
    fn unless_too_slow<T>(
        &self,
        ask: impl FnOnce() -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let attempt = self.handover_cooldown.attempt(self.clock.now());
        let attempt = attempt.ok_or(PeerError::CoolingDown)?;
        let answer = ask();
        let is_slow = |error: &PeerError| error.is_transport() || *error == PeerError::OutOfTime;
        if answer.as_ref().is_err_and(is_slow) {
            attempt.failed(self.clock.now());
        } else {
            attempt.succeeded();
        }
        answer
    }

    /// A removal that is not even tried leaves an old value: after a restart, or behind a network that
    /// was interrupted, the peer may have one. So it is also sent to a peer that cools down.
    fn remove(&self, group: &str, key: Option<&str>) -> Result<(), PeerError> {
        let timeout = self.options.timeout;
        let is_well = self.cooldown.is_well();
        let timeout = if is_well { timeout } else { timeout.min(REMOVAL_WHILE_DOWN) };
        let began = self.clock.now();
        let removed = self.note(began, self.exchange.remove(group, key, timeout));
        match &removed {
            Ok(()) if self.cooldown.answered() => self.log_return(),
            // The next removal has less patience with it. A trial would be too short for gets.
            Err(error) if error.is_transport() && is_well && !self.has_answered_since(began) => {
                let now = self.clock.now();
                if let Some(pause) = self.cooldown.attempt(now).and_then(|a| a.failed(now)) {
                    warn!("peer {}: {error}; not asked again for {pause:?}", self.name());
                }
            }
            _ => {}
        }
        removed
    }

    fn log_return(&self) {
        info!("peer {}: answers again", self.name());
    }
}

/// Asks for `keys` by as many batches as they need, until one gives `None`. Keys that a batch does not
/// bring, though it brings others, are in the next one: the answer may have been full.
fn in_batches<T: Clone>(
    keys: &[&str],
    mut ask: impl FnMut(&[&str]) -> Option<Vec<Option<T>>>,
) -> Vec<Option<T>> {
    let mut found = vec![None; keys.len()];
    let mut open: Vec<usize> = (0..keys.len()).collect();
    while !open.is_empty() {
        let texts: Vec<&str> = open.iter().map(|&index| keys[index]).collect();
        let texts = &texts[..frame::fitting(&texts)];
        let Some(brought) = ask(texts) else { break };
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
        self.unless_cooling_down(|| {
            let end = self.end();
            let plain = || self.ask(group, key, end);
            let of_group = self.of_group(group);
            if !self.options.combine || !self.knows_batches() || of_group.misses_many() {
                return plain();
            }
            let batch = |keys: &[String]| self.ask_cached(group, keys, end);
            let answer = of_group.combine.get(key, self.options.timeout, frame::fit, batch, plain);
            answer.unwrap_or(Err(PeerError::OutOfTime))
        })
    }

    fn get_many(&self, group: &str, keys: &[&str]) -> Vec<Answer> {
        let answers = in_batches(keys, |part| {
            // One deadline for the part, also if its keys are asked for singly.
            let end = self.end();
            let asked = if self.knows_batches() {
                self.unless_cooling_down(|| self.ask_many(group, part, end))
            } else {
                Ok(vec![None; part.len()])
            };
            let brought = asked.unwrap_or_else(|error| vec![Some(Err(error)); part.len()]);
            if brought.iter().any(Option::is_some) {
                return Some(brought);
            }
            let ask = |key: &&str| self.unless_cooling_down(|| self.ask(group, key, end));
            Some(part.iter().map(|key| Some(ask(key))).collect())
        });
        answers.into_iter().map(|answer| answer.expect("each part brings something")).collect()
    }

    fn get_cached(&self, group: &str, keys: &[&str], timeout: Duration) -> Vec<Option<Loaded>> {
        let end = self.clock.now() + timeout;
        if !self.is_up() || !self.knows_batches() {
            return vec![None; keys.len()];
        }
        // When all nodes start together, nobody has anything, and each question costs a round trip.
        let in_vain = self.in_vain.fetch_add(1, Ordering::Relaxed);
        if in_vain >= OFTEN_IN_VAIN && in_vain % OFTEN_IN_VAIN != 0 {
            return vec![None; keys.len()];
        }
        in_batches(keys, |part| {
            let brought = self.unless_too_slow(|| self.ask_former(group, part, end)).ok()?;
            if brought.iter().any(Option::is_some) {
                self.may_hand_over();
            }
            Some(brought)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_that_began_late_says_nothing_of_the_peer() {
        let getter = HttpGetter::new("http://localhost:1".into(), Arc::default());
        let getter = HttpGetter { clock: Clock::by_hand(), ..getter };
        let end = getter.end();
        let ask = || getter.within(end, |_| Err::<(), _>(PeerError::Timeout));
        assert_eq!(ask(), Err(PeerError::Timeout));
        getter.clock.advance(getter.options.timeout / 2);
        assert_eq!(ask(), Err(PeerError::Timeout));
        getter.clock.advance(Duration::from_millis(1));
        assert_eq!(ask(), Err(PeerError::OutOfTime));
        let refused = Err::<(), _>(PeerError::Transport("refused".into()));
        assert_eq!(getter.within(end, |_| refused.clone()), refused, "that is found out at once");
    }

    #[test]
    fn many_misses_end_the_combining_and_few_do_not() {
        let group = || OfGroup {
            combine: Combine::new(0, Duration::ZERO, Clock::real()),
            missing: AtomicU32::new(0),
        };
        // Each 50th key, and each 10th, is not cached.
        let combines = |every: u32| {
            let group = group();
            (0..1_000).for_each(|i| group.note(i % every != 0));
            let misses_many = group.misses_many();
            (0..1_000).for_each(|_| group.note(true));
            assert!(!group.misses_many(), "and what is cached later is combined again");
            !misses_many
        };
        assert!(combines(50) && !combines(10));
    }
}
