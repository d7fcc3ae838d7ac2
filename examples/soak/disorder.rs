//! What happens to the nodes: kills, restarts, freezes, changes of the lists.

use std::time::{Duration, Instant};
use std::{array, thread};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::callers::World;
use crate::nodes::NODES;

#[derive(Clone, Copy)]
enum Event {
    /// Killed, and started again after a while.
    Kill,
    /// Told to end, and started again.
    Restart,
    /// Stopped where it stands for a while: mute, but its kernel takes connections.
    Freeze,
    /// Left out of the others' lists for a while. It goes on answering, and has a full list.
    Leave,
}

const EVENTS: [Event; 4] = [Event::Kill, Event::Restart, Event::Freeze, Event::Leave];

/// How often each happened.
pub(crate) type Happened = [u64; EVENTS.len()];

pub(crate) const NAMES: [&str; EVENTS.len()] = ["kills", "restarts", "freezes", "list changes"];

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
        let [during, after] =
            array::from_fn(|_| Duration::from_millis(rng.random_range(200..1_500)));
        happen(world, EVENTS[event], node, during)?;
        happened[event] += 1;
        thread::sleep(after);
        if let Some(ended) = world.nodes.ended().first() {
            return Err(ended.clone());
        }
    }
}

fn happen(world: World<'_>, event: Event, node: usize, during: Duration) -> Result<(), String> {
    match event {
        Event::Kill => {
            world.nodes.kill(node);
            thread::sleep(during);
            world.nodes.start_one(node)
        }
        Event::Restart => {
            world.nodes.end(node)?;
            world.nodes.start_one(node)
        }
        Event::Freeze => {
            world.nodes.freeze(node, during);
            Ok(())
        }
        Event::Leave => {
            world.truth.lists_differ();
            world.nodes.set_lists(Some(node))?;
            thread::sleep(during);
            world.nodes.set_lists(None)?;
            world.truth.lists_agree();
            Ok(())
        }
    }
}
