//! How times are taken: in rounds, every system once a round, and the median counts.
//!
//! What else runs on the machine slows all systems of a round alike, so a ratio is taken within
//! each round, and the median of those ratios is what the tables show.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

/// What each system gave in each round: `samples[system][round]`.
pub(crate) struct Samples(Vec<Vec<f64>>);

/// Lets each of `systems` systems run once a round: `run` is given the system and the round. Who
/// begins changes from round to round, so that nobody always runs in the wake of the same other.
pub(crate) fn interleave(
    rounds: usize,
    systems: usize,
    bar: &ProgressBar,
    mut run: impl FnMut(usize, usize) -> f64,
) -> Samples {
    let mut samples = vec![Vec::with_capacity(rounds); systems];
    for round in 0..rounds {
        for i in 0..systems {
            let system = (round + i) % systems;
            samples[system].push(run(system, round));
            bar.inc(1);
        }
    }
    Samples(samples)
}

impl Samples {
    pub(crate) fn median(&self, system: usize) -> f64 {
        median(self.0[system].clone())
    }

    /// The median over the rounds of what `system` gave over what `base` gave.
    pub(crate) fn ratio(&self, system: usize, base: usize) -> f64 {
        median(self.0[system].iter().zip(&self.0[base]).map(|(a, b)| a / b).collect())
    }
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// The time from the first of `threads` threads beginning its work to the last one ending it.
pub(crate) fn wall(threads: usize, work: impl Fn(usize) + Sync) -> Duration {
    let (barrier, work) = (&Barrier::new(threads), &work);
    let times: Vec<(Instant, Instant)> = thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(thread);
                    (start, Instant::now())
                })
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    let first = times.iter().map(|t| t.0).min().expect("a thread");
    let last = times.iter().map(|t| t.1).max().expect("a thread");
    last - first
}
