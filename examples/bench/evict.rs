//! How long does a get take where most keys have to be loaded, and others give way?

use crate::measure::{interleave, wall};
use crate::systems::{self, Bound, Size, System};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, uniform, zipf};
use crate::{Settings, progress};

const KEYS: usize = 1_000_000;

pub(crate) fn run(settings: &Settings) -> Report {
    let (rounds, gets) = settings.pick((5, 100_000), (15, 100_000));
    let size = Size { entries: KEYS / 10, key_bytes: 16, value_bytes: 100 };
    let keys = Keys::new(KEYS, size.key_bytes);
    type Draw = fn(u64, usize) -> Vec<u32>;
    let workloads: [(&str, Draw); 2] = [
        ("uniform", |seed, gets| uniform(&mut rng(seed), KEYS, gets)),
        ("Zipf 0.99", |seed, gets| zipf(&mut rng(seed), KEYS, 0.99, gets)),
    ];
    type Systems = fn(Size) -> Vec<Box<dyn System>>;
    let comparisons: [(&str, &[usize], Systems); 2] = [
        ("Get, on a miss insert", &[1, 2], |size| systems::all(size, Bound::Bytes)),
        ("Get, all who miss a key wait for one load", &[1, 2, 4], systems::all_that_load_once),
    ];
    let steps = |(_, threads, systems): &(&str, &[usize], Systems)| {
        threads.len() * systems(size).len() * (rounds + 1) * workloads.len()
    };
    let bar = progress("evict", comparisons.iter().map(steps).sum());
    let tables = comparisons.map(|(what, threads, systems)| {
        let mut table = Table::new(
            format!("{what}; room for a tenth of 1,000,000 keys of 16 bytes, values of 100 bytes"),
            &[
                "keys",
                "threads",
                "system",
                "ns/get and thread",
                "loaded",
                "geecache is x times as fast",
            ],
        );
        for (name, draw) in workloads {
            let systems = systems(size);
            let warm_up = draw(0, 4 * size.entries);
            for system in &systems {
                system.replay(&keys, &warm_up);
                bar.inc(threads.len() as u64);
            }
            for &threads in threads {
                // New keys in each round: a sequence that comes again is a loop, and a policy can
                // learn it.
                let sequences: Vec<Vec<u32>> =
                    (0..rounds * threads).map(|i| draw((threads << 32 | i) as u64, gets)).collect();
                let loads: Vec<u64> = systems.iter().map(|system| system.loads()).collect();
                let samples = interleave(rounds, systems.len(), &bar, |system, round| {
                    let system = &systems[system];
                    let time = wall(threads, |thread| {
                        system.replay(&keys, &sequences[round * threads + thread])
                    });
                    time.as_nanos() as f64 / gets as f64
                });
                for (i, system) in systems.iter().enumerate() {
                    let loaded =
                        (system.loads() - loads[i]) as f64 / (rounds * threads * gets) as f64;
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
        table
    });
    Report { topic: "evict", tables: tables.into() }
}
