//! After all that: the nodes find each other again, and each key is loaded once.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::callers::{Tally, World};
use crate::nodes::NODES;
use crate::truth::{self, TTL};

/// Keys that nobody has asked for before, for a few rounds.
pub(crate) const KEYS: usize = ROUNDS * ROUND;

const ROUNDS: usize = 100;
const ROUND: usize = 50;

/// More than the longest cool-down, twice.
const PATIENCE: Duration = Duration::from_secs(90);

/// Says how often so many keys were loaded.
pub(crate) fn settle(world: World<'_>) -> Result<String, String> {
    find_each_other(world)?;
    let deadline = Instant::now() + PATIENCE;
    for round in (0..ROUNDS).take_while(|_| Instant::now() < deadline) {
        // So that there is room, and nothing gives way.
        if world.nodes.ask(0, "/clear", "")?.0 != 200 {
            continue;
        }
        let first = truth::KEYS + round * ROUND;
        let keys: Vec<usize> = (first..first + ROUND).collect();
        let (fallbacks, start) = (fallbacks(world)?, Instant::now());
        ask_everywhere(world, &keys)?;
        let loads: u64 = keys.iter().map(|&key| world.truth.loads(key)).sum();
        let fallbacks = self::fallbacks(world)? - fallbacks;
        // On a busy machine an owner can be too slow or a value expire: then once more.
        if fallbacks == 0 && start.elapsed() < TTL / 2 {
            let said = format!("{loads} of {ROUND} keys");
            return if loads == ROUND as u64 { Ok(said) } else { Err(said) };
        }
    }
    Err("the nodes did not settle: still they load in place of each other".into())
}

/// Asks until each node has found all its peers again.
fn find_each_other(world: World<'_>) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut tally = Tally::new();
    for key in (0..truth::KEYS).cycle() {
        let mut all_well = true;
        for node in 0..NODES {
            tally.get(world, node, &[key]);
            all_well &= world.nodes.ask(node, "/well", "")?.0 == 200;
        }
        if all_well {
            break;
        }
        if Instant::now() > deadline {
            return Err(format!("after {PATIENCE:?} the nodes have not found each other"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    complain(&tally)
}

/// Four callers ask all nodes for all keys.
fn ask_everywhere(world: World<'_>, keys: &[usize]) -> Result<(), String> {
    let place = AtomicUsize::new(0);
    let ask = || {
        let (caller, mut tally) = (place.fetch_add(1, Ordering::Relaxed), Tally::new());
        for (i, &key) in keys.iter().cycle().take(NODES * keys.len()).enumerate() {
            tally.get(world, caller + i, &[key]);
        }
        complain(&tally)
    };
    thread::scope(|scope| {
        let callers: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        callers.into_iter().try_for_each(|caller| caller.join().expect("a caller panicked"))
    })
}

fn fallbacks(world: World<'_>) -> Result<u64, String> {
    let of_node = |node| {
        let (_, text) = world.nodes.ask(node, "/fallbacks", "")?;
        text.parse::<u64>().map_err(|error| format!("{text}: {error}"))
    };
    (0..NODES).map(of_node).sum()
}

fn complain(tally: &Tally) -> Result<(), String> {
    match tally.wrong + tally.failed {
        0 => Ok(()),
        n => Err(format!("{n} gets went wrong after the end of all disorder")),
    }
}
