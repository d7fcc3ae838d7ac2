//! `Clock`: the time, real or moved by hand in tests.
//!
//! How is a thing tested that expires after an hour? A test that sleeps is slow, and fails on a busy
//! machine. So a group is given its clock. Times are durations since the clock was made.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A monotonic clock. Clones tell the same time.
///
/// ```
/// # use geecache::Clock;
/// # use std::time::Duration;
/// let clock = Clock::by_hand();
/// let before = clock.now();
/// clock.advance(Duration::from_secs(30));
/// assert_eq!(clock.now() - before, Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real(Instant),
    ByHand(Arc<AtomicU64>), // nanoseconds
}

impl Clock {
    /// The real time.
    pub fn real() -> Self {
        Self(Source::Real(Instant::now()))
    }

    /// A clock that stands still until [`advance`](Self::advance) moves it: for tests.
    pub fn by_hand() -> Self {
        Self(Source::ByHand(Arc::default()))
    }

    /// The time since the clock was made.
    pub fn now(&self) -> Duration {
        match &self.0 {
            Source::Real(start) => start.elapsed(),
            Source::ByHand(nanos) => Duration::from_nanos(nanos.load(Ordering::SeqCst)),
        }
    }

    /// Moves a clock made [`by_hand`](Self::by_hand), up to 584 years in all: there it stands still.
    ///
    /// # Panics
    /// If this is a real clock.
    pub fn advance(&self, by: Duration) {
        match &self.0 {
            Source::Real(_) => panic!("only a clock made by_hand can be moved"),
            Source::ByHand(nanos) => {
                let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
                let sum = |nanos: u64| Some(nanos.saturating_add(by));
                // Never fails, since there is always a sum.
                let _ = nanos.fetch_update(Ordering::SeqCst, Ordering::SeqCst, sum);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_moved_too_far_stands_at_its_end_and_never_goes_back() {
        let end = Duration::from_nanos(u64::MAX);
        for too_far in
            [end, Duration::from_nanos(u64::MAX) + Duration::from_nanos(1), Duration::MAX]
        {
            let clock = Clock::by_hand();
            clock.advance(Duration::from_secs(1));
            clock.advance(too_far);
            assert_eq!(clock.now(), end);
        }
    }
}
