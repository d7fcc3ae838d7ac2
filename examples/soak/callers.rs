//! Callers that ask, change and remove at random, and check every answer.

use std::collections::VecDeque;
use std::iter::{self, zip};
use std::ops::AddAssign;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Zipf};

use crate::Problems;
use crate::nodes::{NODES, Nodes};
use crate::truth::{DOWN, KEYS, Question, Rule, Truth};

pub(crate) const CALLERS: usize = 16;

/// How often in a million of what a caller does; the rest are single gets. Each change is followed
/// by a removal.
const CHANGES: u32 = 10_000;
const CLEARINGS: u32 = 100;
const BATCHES: u32 = 50_000;
/// The most keys in a batch.
const BATCH: usize = 50;

/// What is shared by all callers.
#[derive(Clone, Copy)]
pub(crate) struct World<'w> {
    pub(crate) nodes: &'w Nodes,
    pub(crate) truth: &'w Truth,
    pub(crate) problems: &'w Problems,
}

/// What a caller has done and seen.
pub(crate) struct Tally {
    pub(crate) gets: u64,
    pub(crate) wrong: u64,
    pub(crate) failed: u64,
    /// Gets whose load failed at the origin.
    pub(crate) down: u64,
    /// Answers by the [`Rule`] they were checked against.
    pub(crate) checked: [u64; 3],
    pub(crate) batches: u64,
    pub(crate) removals: u64,
    pub(crate) incomplete: u64,
    /// Of single gets, in microseconds.
    pub(crate) latencies: Histogram<u64>,
}

/// Asks at random until `end`.
pub(crate) fn ask_at_random(world: World<'_>, seed: u64, caller: u64, end: &AtomicBool) -> Tally {
    let mut rng = StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(caller));
    let popularity = Zipf::new(KEYS as f64, 0.9).expect("a population and an exponent");
    let mut tally = Tally::new();
    // To be removed once more, as a user should.
    let mut half_removed = VecDeque::new();
    while !end.load(Ordering::Relaxed) {
        let first = rng.random_range(0..NODES);
        let key = popularity.sample(&mut rng) as usize - 1;
        match rng.random_range(0..1_000_000) {
            ..CHANGES => {
                // Twice at once: what others load after the first removal meets the second one.
                let changes = [(key, true), (key, true)].into_iter();
                let older = half_removed.pop_front().map(|key| (key, false));
                for (key, changes) in changes.chain(older) {
                    if changes {
                        world.truth.change(key);
                    }
                    if !tally.remove(world, first, key) {
                        half_removed.push_back(key);
                    }
                    tally.get(world, first + 1, &[key]);
                }
            }
            dice if dice < CHANGES + CLEARINGS => tally.clear(world, first),
            dice if dice < CHANGES + CLEARINGS + BATCHES => {
                let more = rng.random_range(1..BATCH);
                let others = (0..more).map(|_| rng.random_range(0..KEYS));
                let keys: Vec<usize> = iter::once(key).chain(others).collect();
                tally.get(world, first, &keys);
            }
            _ => tally.get(world, first, &[key]),
        }
    }
    tally
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            gets: 0,
            wrong: 0,
            failed: 0,
            down: 0,
            checked: [0; 3],
            batches: 0,
            removals: 0,
            incomplete: 0,
            latencies: Histogram::new_with_bounds(1, 60_000_000, 3).expect("valid bounds"),
        }
    }

    /// Gets one key, or many as a batch.
    pub(crate) fn get(&mut self, world: World<'_>, first: usize, keys: &[usize]) {
        let _asking = world.truth.asking();
        let questions: Vec<_> = keys.iter().map(|&key| world.truth.question(key)).collect();
        let lines = keys.iter().map(usize::to_string).collect::<Vec<_>>().join("\n");
        let start = Instant::now();
        let said = world.nodes.ask(first, "/get", &lines);
        let took = start.elapsed();
        self.gets += keys.len() as u64;
        match keys.len() {
            1 => self.latencies.saturating_record(took.as_micros() as u64),
            _ => self.batches += 1,
        }
        let failed = match &said {
            Ok((200, text)) => {
                let answers: Vec<&str> = text.split('\n').collect();
                for (question, answer) in zip(&questions, &answers) {
                    self.check(world, first, question, answer);
                }
                keys.len().saturating_sub(answers.len())
            }
            _ => keys.len(),
        };
        if failed > 0 {
            self.failed += failed as u64;
            world.problems.add(format!("{failed} gets of {} failed: {said:?}", keys.len()));
        }
    }

    fn check(&mut self, world: World<'_>, first: usize, question: &Question<'_>, answer: &str) {
        let checked = match answer.split_at_checked(1) {
            Some(("=", value)) => question.check(Some(value)),
            Some(("-", "")) => question.check(None),
            // And there was no older value to give.
            Some(("!", error)) if error.contains(DOWN) => {
                self.down += 1;
                return;
            }
            _ => {
                self.failed += 1;
                return world.problems.add(format!("a get failed: {answer}"));
            }
        };
        self.checked[question.rule as usize] += 1;
        if let Err(what) = checked {
            self.wrong += 1;
            world.problems.add(format!("node {first} or next: {what}, rule {}", question.rule));
        }
    }

    /// Whether the removal was complete.
    fn remove(&mut self, world: World<'_>, first: usize, key: usize) -> bool {
        let removal = world.truth.removal(key..key + 1);
        let said = world.nodes.ask(first, "/remove", &key.to_string());
        removal.ended(self.has_removed(world, said))
    }

    fn clear(&mut self, world: World<'_>, first: usize) {
        let removal = world.truth.removal(0..KEYS);
        let said = world.nodes.ask(first, "/clear", "");
        removal.ended(self.has_removed(world, said));
    }

    fn has_removed(&mut self, world: World<'_>, said: Result<(u16, String), String>) -> bool {
        self.removals += 1;
        match said {
            Ok((200, _)) => return true,
            Ok((502, text)) if text.starts_with("removed, but not from") => self.incomplete += 1,
            _ => {
                self.failed += 1;
                world.problems.add(format!("a removal failed: {said:?}"));
            }
        }
        false
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.gets += other.gets;
        self.wrong += other.wrong;
        self.failed += other.failed;
        self.down += other.down;
        zip(&mut self.checked, other.checked).for_each(|(sum, checked)| *sum += checked);
        self.batches += other.batches;
        self.removals += other.removals;
        self.incomplete += other.incomplete;
        self.latencies.add(other.latencies).expect("the same bounds");
    }
}

impl std::fmt::Display for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Newest => "the newest version, or one that came meanwhile",
            Self::Changing => "also those before a change whose removal has not returned",
            Self::HalfRemoved => "also those before an incomplete removal",
        })
    }
}
