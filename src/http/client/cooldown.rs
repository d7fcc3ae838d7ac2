//! `Cooldown`: a dead peer costs its callers one deadline, not one each.
//!
//! While a peer does not answer, each get that asks it waits for a deadline before it falls
//! back. So a peer that failed is left alone for a while, which doubles with each failure; then
//! one caller tries, and the others fall back at once until it has come back.
//!
//! Callers that asked before the first failure fail after it, and must not count again:
//!
//! 1. Thirty callers ask a peer that seems well; its process is killed.
//! 2. All thirty fail within a millisecond. If each doubled the pause, the peer would be left
//!    alone for the longest time at once, for a restart that takes one second.
//!
//! So only the first failure of a peer that was well counts, and later only the failure of the caller
//! that tries.

use std::sync::Mutex;
use std::time::Duration;

/// How long a peer is left alone after its first failure.
pub(crate) const FIRST: Duration = Duration::from_secs(1);
/// And at the most.
pub(crate) const LONGEST: Duration = Duration::from_secs(30);

/// The state of one peer. Times are handed in.
#[derive(Default)]
pub(crate) struct Cooldown {
    // Guards the state; held for a comparison, never while a peer is asked.
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
enum State {
    /// It answered last time, or was never asked.
    #[default]
    Well,
    /// It failed; nobody asks before `until`. `pause` is how long that was.
    Failed { until: Duration, pause: Duration },
    /// Somebody tries again after a pause this long.
    OnTrial { pause: Duration },
}

/// The permission to ask. Its holder says what came of it; dropped, it leaves the peer as it was.
#[must_use]
pub(crate) struct Attempt<'c> {
    cooldown: &'c Cooldown,
    is_trial: bool,
}

impl Cooldown {
    /// Whether the peer may be asked at the time `now`.
    pub(crate) fn attempt(&self, now: Duration) -> Option<Attempt<'_>> {
        let mut state = self.state.lock().unwrap();
        let is_trial = match *state {
            State::Well => false,
            State::Failed { until, pause } if until <= now => {
                *state = State::OnTrial { pause };
                true
            }
            State::Failed { .. } | State::OnTrial { .. } => return None,
        };
        Some(Attempt { cooldown: self, is_trial })
    }

    /// The peer has answered something; `true` if it had been down.
    pub(crate) fn answered(&self) -> bool {
        let before = std::mem::take(&mut *self.state.lock().unwrap());
        !matches!(before, State::Well)
    }

    /// Whether the peer answered last time, or was never asked.
    pub(crate) fn is_well(&self) -> bool {
        matches!(*self.state.lock().unwrap(), State::Well)
    }
}

impl Attempt<'_> {
    /// The peer answered, be it with an error of its own; `true` if it had been down.
    pub(crate) fn succeeded(self) -> bool {
        self.cooldown.answered()
    }

    /// The peer could not be reached, at the time `now`. Returns for how long it is left alone,
    /// unless another caller has found out before.
    pub(crate) fn failed(self, now: Duration) -> Option<Duration> {
        let mut state = self.cooldown.state.lock().unwrap();
        let pause = match *state {
            State::Well => FIRST,
            State::OnTrial { pause } if self.is_trial => (2 * pause).min(LONGEST),
            // One of many callers that asked while the peer still seemed well.
            State::Failed { .. } | State::OnTrial { .. } => return None,
        };
        *state = State::Failed { until: now + pause, pause };
        Some(pause)
    }
}

impl Drop for Attempt<'_> {
    /// A trial that panics, or that runs out of time before it asks, must not keep the peer on trial
    /// for ever. Any other has ended before.
    fn drop(&mut self) {
        if self.is_trial {
            let mut state = self.cooldown.state.lock().unwrap();
            if let State::OnTrial { pause } = *state {
                *state = State::Failed { until: Duration::ZERO, pause };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_failure_closes_the_door_and_one_caller_tries_after_it() {
        let cooldown = Cooldown::default();
        assert_eq!(cooldown.attempt(seconds(0)).unwrap().failed(seconds(0)), Some(seconds(1)));
        assert!(!cooldown.is_well());
        assert!(cooldown.attempt(Duration::from_millis(999)).is_none());
        let trial = cooldown.attempt(seconds(1)).unwrap();
        assert!(cooldown.attempt(seconds(1)).is_none(), "the others still fall back");
        assert!(trial.succeeded());
        assert!(cooldown.is_well());
        assert!(cooldown.attempt(seconds(1)).is_some());
    }

    #[test]
    fn the_pause_doubles_to_thirty_seconds_and_a_success_resets_it() {
        let cooldown = Cooldown::default();
        let mut now = seconds(0);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            let pause = cooldown.attempt(now).unwrap().failed(now).unwrap();
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 30, 30]);
        assert!(cooldown.attempt(now).unwrap().succeeded());
        assert_eq!(cooldown.attempt(now).unwrap().failed(now), Some(seconds(1)));
    }

    #[test]
    fn many_that_fail_together_count_once() {
        let cooldown = Cooldown::default();
        let together: Vec<_> = (0..3).map(|_| cooldown.attempt(seconds(0)).unwrap()).collect();
        let pauses: Vec<_> =
            together.into_iter().map(|attempt| attempt.failed(seconds(0))).collect();
        assert_eq!(pauses, [Some(seconds(1)), None, None]);
    }

    #[test]
    fn a_trial_that_is_lost_can_be_made_again() {
        let cooldown = Cooldown::default();
        let _ = cooldown.attempt(seconds(0)).unwrap().failed(seconds(0));
        drop(cooldown.attempt(seconds(1)).unwrap());
        assert!(cooldown.attempt(seconds(1)).is_some());
    }
}
