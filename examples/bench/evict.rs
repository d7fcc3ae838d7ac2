//! How long does a get take where most keys have to be loaded, and others give way?

use indicatif::ProgressBar;

use crate::measure::{interleave, wall};
use crate::systems::{self, Bound, Size, System};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, uniform, zipf};
use crate::{Settings, progress};

const KEYS: usize = 1_000_000;
const SIZE: Size = Size { entries: KEYS / 10, key_bytes: 16, value_bytes: 100 };

/// How many threads get, and what they ask.
struct Comparison {
    what: &'static str,
    threads: &'static [usize],
    systems: fn() -> Vec<Box<dyn System>>,
}

const COMPARISONS: [Comparison; 2] = [
    Comparison {
        what: "Get, on a miss insert",
        threads: &[1, 2],
        systems: || systems::all(SIZE, Bound::Bytes),
    },
    Comparison {
        what: "Get, all who miss a key wait for one load",
        threads: &[1, 2, 4],
        systems: || systems::all_that_load_once(SIZE),
    },
];

/// Draws so many keys, by a seed.
type Draw = fn(u64, usize) -> Vec<u32>;

const WORKLOADS: [(&str, Draw); 2] = [
    ("uniform", |seed, gets| uniform(&mut rng(seed), KEYS, gets)),
    ("Zipf 0.99", |seed, gets| zipf(&mut rng(seed), KEYS, 0.99, gets)),
];

pub(crate) fn run(settings: &Settings) -> Report {
    let turns = settings.pick((5, 100_000), (15, 100_000));
    let keys = Keys::new(KEYS, SIZE.key_bytes);
    let steps =
        |it: &Comparison| it.threads.len() * (it.systems)().len() * (turns.0 + 1) * WORKLOADS.len();
    let bar = progress("evict", COMPARISONS.iter().map(steps).sum());
    let tables = COMPARISONS.iter().map(|comparison| {
        let mut table = Table::new(
            format!(
                "{}; room for a tenth of 1,000,000 keys of 16 bytes, values of 100 bytes",
                comparison.what
            ),
            &[
                "keys",
                "threads",
                "system",
                "ns/get and thread",
                "loaded",
                "geecache is x times as fast",
            ],
        );
        for workload in WORKLOADS {
            compare(comparison, workload, turns, &keys, &bar, &mut table);
        }
        table
    });
    Report { topic: "evict", tables: tables.collect() }
}

fn compare(
    comparison: &Comparison,
    (name, draw): (&str, Draw),
    (rounds, gets): (usize, usize),
    keys: &Keys,
    bar: &ProgressBar,
    table: &mut Table,
) {
    let systems = (comparison.systems)();
    let warm_up = draw(0, 4 * SIZE.entries);
    for system in &systems {
        system.replay(keys, &warm_up);
        bar.inc(comparison.threads.len() as u64);
    }
    for &threads in comparison.threads {
        // New keys in each round: a sequence that comes again is a loop, and a policy can learn it.
        let sequences: Vec<Vec<u32>> =
            (0..rounds * threads).map(|i| draw((threads << 32 | i) as u64, gets)).collect();
        let loads: Vec<u64> = systems.iter().map(|system| system.loads()).collect();
        let samples = interleave(rounds, systems.len(), bar, |system, round| {
            let system = &systems[system];
            let time =
                wall(threads, |thread| system.replay(keys, &sequences[round * threads + thread]));
            time.as_nanos() as f64 / gets as f64
        });
        for (i, system) in systems.iter().enumerate() {
            let loaded = (system.loads() - loads[i]) as f64 / (rounds * threads * gets) as f64;
            table.row([
                name.into(),
                threads.into(),
                system.name().into(),
                Cell::Number(samples.median(i), 0),
                Cell::Percent(loaded),
                Cell::Number(samples.ratio(i, 0), 2),
            ]);
        }
    }
}
