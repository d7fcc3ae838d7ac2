//! How long does a get take whose key is there?

use crate::measure::{interleave, wall};
use crate::systems::{self, Bound, Size};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, zipf};
use crate::{Settings, progress};

const KEYS: usize = 100_000;

pub(crate) fn run(settings: &Settings) -> Report {
    let (rounds, gets) = settings.pick((5, 300_000), (21, 200_000));
    // Twice the room, so that every key stays.
    let size = Size { entries: 2 * KEYS, key_bytes: 13, value_bytes: 100 };
    let keys = Keys::new(KEYS, size.key_bytes);
    let systems = systems::all(size, Bound::Entries);
    let all: Vec<u32> = (0..KEYS as u32).collect();
    for system in &systems {
        system.replay(&keys, &all);
        assert_eq!(system.entries(), KEYS, "{} holds all", system.name());
    }

    let mut table = Table::new(
        "Gets of 100,000 resident keys of 13 bytes, values of 100 bytes, Zipf 0.99",
        &["threads", "system", "ns/get and thread", "geecache is x times as fast"],
    );
    let threads = [1, 2, 4];
    let bar = progress("hits", threads.len() * rounds * systems.len());
    for threads in threads {
        let sequences: Vec<Vec<u32>> =
            (0..threads as u64).map(|seed| zipf(&mut rng(seed), KEYS, 0.99, gets)).collect();
        let samples = interleave(rounds, systems.len(), &bar, |system, _round| {
            let system = &systems[system];
            let time = wall(threads, |thread| system.replay(&keys, &sequences[thread]));
            time.as_nanos() as f64 / gets as f64
        });
        for (i, system) in systems.iter().enumerate() {
            table.row([
                threads.into(),
                system.name().into(),
                Cell::Number(samples.median(i), 1),
                Cell::Number(samples.ratio(i, 0), 2),
            ]);
        }
    }
    for system in &systems {
        assert_eq!(system.loads(), KEYS as u64, "{}: every get was a hit", system.name());
    }
    Report { topic: "hits", tables: vec![table] }
}
