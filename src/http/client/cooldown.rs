//! `Cooldown`: a dead peer costs its callers one deadline, not one each.
//!
//! The promise to the layer above: a question ends in time, and its error tells a peer that is down from one
//! that is slow, and from a caller without time.
//! A peer that failed is left alone for a while, which doubles with each failure; then one caller
//! tries, and the others fall back at once until it has come back.
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

use log::{info, warn};

use crate::PeerError;
use crate::clock::Clock;

/// How long a peer is left alone after its first failure.
const FIRST: Duration = Duration::from_secs(1);
/// And at the most.
const LONGEST: Duration = Duration::from_secs(30);

pub(super) struct Cooldown {
    /// For the log.
    name: String,
    /// The whole time of a question. After less than half of it a time-out says nothing.
    timeout: Duration,
    clock: Clock,
    // Guards the state; held for a few comparisons, never while a peer is asked.
    state: Mutex<State>,
}

/// All times are those of the clock.
#[derive(Default)]
struct State {
    /// For how long the peer is left alone. Zero: it answered last time, or was never asked.
    pause: Duration,
    /// Until then the peer is not asked: the pause lasts, or one caller is trying.
    until: Duration,
    /// When the peer last answered.
    answered: Duration,
}

impl Cooldown {
    pub(super) fn new(name: String, timeout: Duration, clock: Clock) -> Self {
        Self { name, timeout, clock, state: Mutex::default() }
    }

    /// Asks, with the time that is left until `end`, unless the peer is left alone. A question `in_any_case`
    /// is asked even then, and its failure does not prolong the pause.
    pub(super) fn ask<T>(
        &self,
        end: Duration,
        in_any_case: bool,
        ask: impl FnOnce(Duration) -> Result<T, PeerError>,
    ) -> Result<T, PeerError> {
        let began = self.clock.now();
        let mut state = self.state.lock().unwrap();
        let is_trial = !state.pause.is_zero() && !in_any_case;
        if is_trial && began < state.until {
            return Err(PeerError::CoolingDown);
        }
        if is_trial {
            // If the trial panics, the next one begins after this time.
            state.until = end + FIRST;
        }
        drop(state);
        let left = end.saturating_sub(began);
        let answer = if left.is_zero() { Err(PeerError::OutOfTime) } else { ask(left) };
        let now = self.clock.now();
        let mut state = self.state.lock().unwrap();
        let error = match answer {
            Err(PeerError::Timeout) if state.answered > began => return Err(PeerError::Slow),
            Err(PeerError::Timeout) if left < self.timeout / 2 => PeerError::OutOfTime,
            Err(error) if error.is_transport() || error == PeerError::OutOfTime => error,
            answer => {
                let was_down = !state.pause.is_zero();
                (state.pause, state.answered) = (Duration::ZERO, now);
                drop(state);
                if was_down {
                    info!("{}: answers again", self.name);
                }
                return answer;
            }
        };
        if error == PeerError::OutOfTime {
            // Nothing is known, so the next caller may try.
            state.until = if is_trial { now } else { state.until };
        } else if is_trial || state.pause.is_zero() {
            let pause = (2 * state.pause).clamp(FIRST, LONGEST);
            (state.pause, state.until) = (pause, now + pause);
            drop(state);
            warn!("{}: {error}; not asked again for {pause:?}", self.name);
        }
        Err(error)
    }

    /// Whether the peer answered last time, or was never asked.
    pub(super) fn is_well(&self) -> bool {
        self.state.lock().unwrap().pause.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    const TIMEOUT: Duration = Duration::from_secs(3);
    const REFUSED: fn(Duration) -> Result<(), PeerError> =
        |_| Err(PeerError::Transport("refused".into()));

    fn cooldown() -> (Cooldown, Clock) {
        let clock = Clock::by_hand();
        (Cooldown::new("peer b".into(), TIMEOUT, clock.clone()), clock)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    impl Cooldown {
        fn end(&self) -> Duration {
            self.clock.now() + TIMEOUT
        }

        fn fails(&self) -> bool {
            matches!(self.ask(self.end(), false, REFUSED), Err(PeerError::Transport(_)))
        }

        fn is_left_alone(&self) -> bool {
            let ask = |_| -> Result<(), _> { unreachable!("it is left alone") };
            self.clock.now() < self.state.lock().unwrap().until
                && self.ask(self.end(), false, ask) == Err(PeerError::CoolingDown)
        }

        fn answers(&self) -> bool {
            self.ask(self.end(), false, |_| Ok(())).is_ok()
        }
    }

    #[test]
    fn after_a_failure_the_peer_is_left_alone_and_then_one_caller_tries() {
        let (cooldown, clock) = cooldown();
        assert!(cooldown.fails() && !cooldown.is_well());
        clock.advance(Duration::from_millis(999));
        assert!(cooldown.is_left_alone());
        clock.advance(Duration::from_millis(1));
        let trial = cooldown.ask(cooldown.end(), false, |_| {
            assert!(cooldown.is_left_alone(), "the others still fall back");
            Err::<(), _>(PeerError::Status { code: 404, text: String::new() })
        });
        assert!(trial.is_err() && cooldown.is_well(), "it answered something");
        assert!(cooldown.answers());
    }

    #[test]
    fn the_pause_doubles_to_thirty_seconds_and_an_answer_resets_it() {
        let (cooldown, clock) = cooldown();
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert!(cooldown.fails());
            clock.advance(seconds(pause) - Duration::from_millis(1));
            assert!(cooldown.is_left_alone());
            clock.advance(Duration::from_millis(1));
        }
        assert!(cooldown.answers() && cooldown.fails());
        clock.advance(seconds(1));
        assert!(cooldown.answers());
    }

    #[test]
    fn many_that_fail_together_count_once() {
        let (cooldown, clock) = cooldown();
        let first = cooldown.ask(cooldown.end(), false, |_| {
            let second = cooldown.ask(cooldown.end(), false, REFUSED);
            assert!(second.is_err() && !cooldown.is_well());
            clock.advance(Duration::from_millis(999));
            REFUSED(TIMEOUT)
        });
        assert!(first.is_err());
        clock.advance(Duration::from_millis(1));
        assert!(!cooldown.is_left_alone(), "the pause began with the first failure");
    }

    #[test]
    fn a_trial_that_finds_nothing_out_is_made_again() {
        let (cooldown, clock) = cooldown();
        assert!(cooldown.fails());
        clock.advance(seconds(1));
        let late = clock.now();
        assert_eq!(cooldown.ask(late, false, |_| Ok(())), Err(PeerError::OutOfTime));
        let panics =
            || cooldown.ask(cooldown.end(), false, |_| -> Result<(), _> { panic!("on purpose") });
        assert!(catch_unwind(AssertUnwindSafe(panics)).is_err());
        assert!(cooldown.is_left_alone());
        clock.advance(TIMEOUT + seconds(1));
        assert!(cooldown.answers());
    }

    #[test]
    fn a_time_out_of_a_peer_that_answers_others_is_told_apart_and_is_no_failure() {
        let (cooldown, clock) = cooldown();
        let silence = |other: fn(&Cooldown) -> bool| {
            cooldown.ask(cooldown.end(), false, |_| {
                clock.advance(seconds(1));
                other(&cooldown);
                clock.advance(seconds(2));
                Err::<(), _>(PeerError::Timeout)
            })
        };
        assert_eq!(silence(Cooldown::answers), Err(PeerError::Slow));
        assert!(cooldown.is_well());
        assert_eq!(silence(|_| true), Err(PeerError::Timeout), "it answered nobody since");
        assert!(!cooldown.is_well());
    }

    #[test]
    fn a_caller_that_began_late_says_nothing_of_the_peer() {
        let (cooldown, clock) = cooldown();
        let end = cooldown.end();
        clock.advance(TIMEOUT / 2 + Duration::from_millis(1));
        let time_out = |_| Err::<(), _>(PeerError::Timeout);
        assert_eq!(cooldown.ask(end, false, time_out), Err(PeerError::OutOfTime));
        assert!(cooldown.is_well());
        let refused = cooldown.ask(end, false, REFUSED);
        assert!(matches!(refused, Err(PeerError::Transport(_))), "that is found out at once");
        assert!(!cooldown.is_well());
    }

    #[test]
    fn what_is_asked_in_any_case_ends_a_pause_and_does_not_prolong_it() {
        let (cooldown, clock) = cooldown();
        assert!(cooldown.fails());
        clock.advance(Duration::from_millis(999));
        assert!(cooldown.ask(cooldown.end(), true, REFUSED).is_err());
        clock.advance(Duration::from_millis(1));
        assert!(cooldown.fails() && cooldown.is_left_alone());
        cooldown.ask(cooldown.end(), true, |_| Ok(())).unwrap();
        assert!(cooldown.is_well());
        assert!(cooldown.ask(cooldown.end(), true, REFUSED).is_err());
        assert!(!cooldown.is_well(), "the failure of a peer that was well counts");
    }
}
