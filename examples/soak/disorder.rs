//! What happens to the nodes: kills, restarts, freezes, changes of the lists; and to the network
//! between them: delays, resets, silence, cuts.

use std::thread;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::callers::World;
use crate::nodes::NODES;
use crate::relay::{CutBy, Treatment};

#[derive(Clone, Copy)]
enum Event {
    /// Killed, and started again after a while.
    Kill,
    /// Told to end, and started again.
    Restart,
    /// Stopped where it stands for a while: mute, but its kernel takes connections.
    Freeze,
    /// Left out of the others' lists for a while. It goes on answering, and has a full list. The others
    /// take over its keys from it.
    Leave,
    /// The same, but its list has nobody else. When it returns, it takes over keys from the others.
    StandAlone,
    /// From now on it takes a while, or none, to ask it and to hear its answers.
    Delay,
    /// The connections to it are reset when they next carry a byte.
    Reset,
    /// The connections to it carry nothing any more, and nobody is told.
    Silence,
    /// The connections to it end, or are reset, somewhere in its next answers.
    Cut,
}

const EVENTS: [Event; 9] = [
    Event::Kill,
    Event::Restart,
    Event::Freeze,
    Event::Leave,
    Event::StandAlone,
    Event::Delay,
    Event::Reset,
    Event::Silence,
    Event::Cut,
];

/// The most on the way to a node and back, together.
const LONGEST_ROUND_TRIP: Duration = Duration::from_millis(20);
/// The most of its answers that a connection still carries when it is about to be cut: from
/// within the first header to a few values.
const LONGEST_CUT: usize = 5_000;

/// How often each happened.
pub(crate) type Happened = [u64; EVENTS.len()];

pub(crate) const NAMES: [&str; EVENTS.len()] = [
    "kills",
    "restarts",
    "freezes",
    "list changes",
    "nodes that stood alone",
    "delays",
    "resets",
    "silences",
    "cuts",
];

/// Each to each node in turn, and then at random until `end`.
pub(crate) fn run(
    world: World<'_>,
    seed: u64,
    end: Instant,
    happened: &mut Happened,
) -> Result<(), String> {
    let mut rng = StdRng::seed_from_u64(seed);
    let in_turn = (0..EVENTS.len()).flat_map(|event| (0..NODES).map(move |node| (event, node)));
    let mut in_turn = in_turn.fuse();
    loop {
        let (event, node) = match in_turn.next() {
            Some(next) => next,
            None if Instant::now() > end => return Ok(()),
            None => (rng.random_range(0..EVENTS.len()), rng.random_range(0..NODES)),
        };
        world.problems.bar.set_message(format!("{}: node {node}", NAMES[event]));
        happen(world, EVENTS[event], node, &mut rng)?;
        happened[event] += 1;
        thread::sleep(a_while(&mut rng));
        if let Some(ended) = world.nodes.ended().first() {
            return Err(ended.clone());
        }
    }
}

fn happen(world: World<'_>, event: Event, node: usize, rng: &mut StdRng) -> Result<(), String> {
    let relay = world.nodes.relay(node);
    match event {
        Event::Kill => {
            world.nodes.kill(node);
            thread::sleep(a_while(rng));
            return world.nodes.start_one(node);
        }
        Event::Restart => {
            world.nodes.end(node)?;
            return world.nodes.start_one(node);
        }
        Event::Freeze => world.nodes.freeze(node, a_while(rng)),
        Event::Leave | Event::StandAlone => {
            world.truth.lists_differ();
            world.nodes.set_lists(Some(node))?;
            if matches!(event, Event::StandAlone) {
                world.nodes.set_alone(node)?;
            }
            thread::sleep(a_while(rng));
            world.nodes.set_lists(None)?;
            world.truth.lists_agree();
        }
        Event::Delay => {
            let round_trip = LONGEST_ROUND_TRIP.mul_f64(rng.random());
            let there = round_trip.mul_f64(rng.random());
            relay.set_delays(there, round_trip - there);
        }
        Event::Reset => relay.treat_existing(Treatment::Reset),
        Event::Silence => relay.treat_existing(Treatment::Swallow),
        Event::Cut => {
            let by = if rng.random() { CutBy::End } else { CutBy::Reset };
            let after = rng.random_range(0..LONGEST_CUT);
            relay.treat_existing(Treatment::Cut { after, by });
        }
    }
    Ok(())
}

fn a_while(rng: &mut StdRng) -> Duration {
    Duration::from_millis(rng.random_range(200..1_500))
}
