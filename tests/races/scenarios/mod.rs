//! The scenarios, and how schedules for them are found.

mod cache;
mod clients;
mod cluster;
mod combine;
mod elastic;
mod flight;
mod group;
mod queue;

use std::any::type_name;
use std::env;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use shuttle::scheduler::{DfsScheduler, PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// So long that it never ends here.
const LONG: Duration = Duration::from_secs(60);
/// No patience at all.
const NONE: Duration = Duration::ZERO;
/// More than nothing, and so little that it can end at any moment.
const ANY_TIME: Duration = Duration::from_nanos(1);

pub(crate) fn all() -> Vec<Trial> {
    [
        flight::all(),
        cache::all(),
        group::all(),
        cluster::all(),
        combine::all(),
        clients::all(),
        queue::all(),
        elastic::all(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Runs `work` on so many threads. This one only waits for them: shuttle wakes it, whatever it waits
/// for, when the last of them ends.
fn together(threads: usize, work: impl Fn(usize) + Sync) {
    let work = &work;
    thread::scope(|scope| {
        for i in 0..threads {
            scope.spawn(move || work(i));
        }
    });
}

/// A scenario so small that every schedule is tried.
fn every(scenario: impl Fn() + Copy + Send + Sync + 'static) -> Trial {
    trial(scenario, move || {
        let most = 100_000;
        let tried = run(DfsScheduler::new(Some(most), false), scenario);
        assert!(tried < most, "not every schedule was tried");
    })
}

/// A scenario of which a thousand schedules are tried: half of them made by chance, half
/// with few switches of threads at chosen moments, which most faults need no more of.
fn many(scenario: impl Fn() + Copy + Send + Sync + 'static) -> Trial {
    trial(scenario, move || {
        let schedules = 500 * env::var("RACES").map_or(1, |factor| factor.parse().unwrap());
        run(RandomScheduler::new(schedules), scenario);
        run(PctScheduler::new(4, schedules), scenario);
    })
}

fn trial(
    scenario: impl Fn() + Copy + Send + Sync + 'static,
    search: impl FnOnce() + Send + 'static,
) -> Trial {
    Trial::test(name_of(&scenario), move || {
        match env::var("RACES_REPLAY") {
            Ok(schedule) => shuttle::replay(scenario, &schedule),
            Err(_) => search(),
        }
        Ok(())
    })
}

fn name_of<S>(_: &S) -> &'static str {
    type_name::<S>().trim_start_matches("races::scenarios::")
}

fn run(scheduler: impl Scheduler + 'static, scenario: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();
    config.silence_warnings = true;
    // Frames of debug builds are large: shuttle's 60 KiB do not hold a group's.
    config.stack_size = 1 << 18;
    Runner::new(scheduler, config).run(scenario)
}
