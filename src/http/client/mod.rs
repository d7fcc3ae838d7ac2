//! `HttpGetter`: asks one peer, blocking, with a deadline.
//!
//! What may a question to a peer cost at the worst? [`PoolOptions::timeout`], once: the whole
//! exchange has one deadline, connections are kept between questions, and a peer that failed
//! is left alone for a while.
//!
//! ```text
//!  get(group, key)                     the deadline begins
//!   └─ cooldown     the peer failed a moment ago? ─ yes ─▶ CoolingDown
//!       └─ combine      others are asking the same peer? ─ yes ─▶ along with them, in a batch
//!           └─ exchange     one request, one answer, in what is left of the time
//!               └─ transport    the connection: kept from the last question, or a new one
//! ```

mod combine;
mod cooldown;
mod exchange;
mod transport;

use std::iter::zip;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use log::{info, warn};

use self::combine::Combine;
use self::cooldown::Cooldown;
use self::exchange::{Answer, Exchange};
pub(super) use self::transport::check;
use super::frame;
use crate::clock::Clock;
use crate::{PeerError, PeerGetter, PoolOptions};

/// Asks the peer at one base URL.
#[doc(alias = "httpGetter")]
pub(crate) struct HttpGetter {
    exchange: Exchange,
    cooldown: Cooldown,
    combine: Combine<Answer>,
    // Guards when the peer last turned out not to support batches (a Go node).
    no_batches: Mutex<Option<Duration>>,
    clock: Clock,
    options: Arc<PoolOptions>,
}

/// After this time a peer that knew no batches is tried again: it may have been replaced.
const TRY_BATCHES_AGAIN: Duration = Duration::from_secs(60);

impl HttpGetter {
    pub(crate) fn new(base_url: String, options: Arc<PoolOptions>) -> Self {
        Self {
            exchange: Exchange::new(base_url, options.clone()),
            cooldown: Cooldown::default(),
            combine: Combine::new(),
            no_batches: Mutex::default(),
            clock: Clock::real(),
            options,
        }
    }

    /// Asks for one key by a request of its own.
    fn ask(&self, group: &str, key: &str, end: Duration) -> Answer {
        self.within(end, |left| self.exchange.get(group, key, left))
    }

    /// Asks for several keys by one request. `None` for those that are to be asked for singly:
    /// all of them, where the peer knows no batches.
    fn ask_batch(
        &self,
        group: &str,
        keys: &[impl AsRef<str>],
        only_cached: bool,
        end: Duration,
    ) -> Result<Vec<Option<Answer>>, PeerError> {
        match self.within(end, |left| self.exchange.get_batch(group, keys, only_cached, left)) {
            Err(PeerError::Unsupported) => {
                *self.no_batches.lock().unwrap() = Some(self.clock.now());
                Ok(keys.iter().map(|_| None).collect())
            }
            answers => answers,
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

    /// Asks with what is left of the caller's time. One that began late and ran out of it says
    /// nothing of the peer: who has waited for others, or asks for one key after the other, may
    /// leave it a moment only.
    fn within<T>(
        &self,
        end: Duration,
        ask: impl FnOnce(Duration) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let left = end.saturating_sub(self.clock.now());
        if left.is_zero() {
            return Err(PeerError::OutOfTime);
        }
        ask(left).map_err(|error| match error {
            PeerError::Timeout if left < self.options.timeout / 2 => PeerError::OutOfTime,
            error => error,
        })
    }

    /// Asks, unless the peer is cooling down, and notes whether it could be reached.
    fn unless_cooling_down<T>(
        &self,
        ask: impl FnOnce() -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let attempt = self.cooldown.attempt(self.clock.now()).ok_or(PeerError::CoolingDown)?;
        let answer = ask();
        match &answer {
            Err(error) if error.is_transport() => {
                self.exchange.forget_addresses();
                if let Some(pause) = attempt.failed(self.clock.now()) {
                    warn!(
                        "peer {}: {error}; not asked again for {pause:?}",
                        self.exchange.base_url()
                    );
                }
            }
            // Nobody asked it, or not for long, so nobody knows; no answer is taken for one.
            Err(PeerError::OutOfTime) => drop(attempt),
            _ => {
                if attempt.succeeded() {
                    info!("peer {}: answers again", self.exchange.base_url());
                }
            }
        }
        answer
    }
}

impl PeerGetter for HttpGetter {
    fn name(&self) -> &str {
        self.exchange.base_url()
    }

    fn get(&self, group: &str, key: &str) -> Answer {
        self.unless_cooling_down(|| {
            let end = self.end();
            let plain = || self.ask(group, key, end);
            if !self.options.combine || !self.knows_batches() {
                return plain();
            }
            let batch = |keys: &[String]| match self.ask_batch(group, keys, true, end) {
                // The others may have more time left than who leads.
                Err(PeerError::OutOfTime) => Ok(keys.iter().map(|_| None).collect()),
                Err(error) if !error.is_transport() => {
                    Ok(keys.iter().map(|_| Some(Err(error.clone()))).collect())
                }
                answers => answers.map_err(Err),
            };
            let answer =
                self.combine.get(group, key, self.options.timeout, frame::fit, batch, plain);
            answer.unwrap_or(Err(PeerError::OutOfTime))
        })
    }

    fn get_many(&self, group: &str, keys: &[&str]) -> Vec<Answer> {
        let mut answers = Vec::with_capacity(keys.len());
        while answers.len() < keys.len() {
            let rest = &keys[answers.len()..];
            let part = &rest[..frame::fitting(rest)];
            // One deadline for the part, also where its keys are asked for singly.
            let end = self.end();
            let asked = match self.knows_batches() {
                true => self.unless_cooling_down(|| self.ask_batch(group, part, false, end)),
                false => Ok(part.iter().map(|_| None).collect()),
            };
            match asked {
                Err(error) => answers.extend(part.iter().map(|_| Err(error.clone()))),
                Ok(asked) => answers.extend(zip(part, asked).map(|(key, answer)| {
                    answer.unwrap_or_else(|| self.unless_cooling_down(|| self.ask(group, key, end)))
                })),
            }
        }
        answers
    }

    fn is_up(&self) -> bool {
        self.cooldown.is_well()
    }

    fn remove(&self, group: &str, key: &str) -> Result<(), PeerError> {
        // Also of a peer that cools down: a removal that is not even tried leaves an old value.
        self.exchange.remove(group, Some(key))
    }

    fn clear(&self, group: &str) -> Result<(), PeerError> {
        self.exchange.remove(group, None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_began_late_says_nothing_of_the_peer() {
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
}
