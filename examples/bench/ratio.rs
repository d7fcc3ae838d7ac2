//! Which share of the gets finds its key, with room for a part of the keys?
//!
//! Caches have room for the same number of entries. The optimum (Belady, *A Study of Replacement
//! Algorithms for a Virtual-Storage Computer*, 1966) knows the future: it parts with the entry
//! that will not be asked for again for the longest time, be it the one just loaded.

use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use rand::RngExt;

use crate::large;
use crate::systems::{self, Bound, Size, System};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, ranks, rng, scattered, zipf};
use crate::{Settings, progress};

/// How near to the best the default is to be: one percent of the gets.
const NEAR: f64 = 0.01;

struct Workload {
    name: String,
    requests: Requests,
}

enum Requests {
    Fixed(Vec<u32>),
    /// A loop over a tenth more keys than there is room for, so many requests long; the sizes
    /// are parts of so many keys.
    Loop {
        length: usize,
        population: usize,
    },
}

pub(crate) fn run(settings: &Settings) -> Report {
    let (population, length) = settings.pick((50_000, 300_000), (200_000, 1_500_000));
    let mut workloads: Vec<Workload> = [0.7, 0.9, 1.1]
        .map(|exponent| Workload {
            name: format!("Zipf {exponent}"),
            requests: Requests::Fixed(zipf(&mut rng(1), population, exponent, length)),
        })
        .into();
    workloads.push(Workload {
        name: "Zipf 0.9, one-pass scans".into(),
        requests: Requests::Fixed(scans(population, length)),
    });
    workloads.push(Workload {
        name: "loop of 1.1 times the cache".into(),
        requests: Requests::Loop { length, population },
    });
    workloads.push(Workload {
        name: "Zipf 0.9, drifting".into(),
        requests: Requests::Fixed(drift(population, length)),
    });
    for path in &settings.traces {
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let requests = trace(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        workloads.push(Workload {
            name: name.split('.').next().unwrap_or(&name).into(),
            requests: Requests::Fixed(requests),
        });
    }

    let mut table = Table::new(
        "Hit ratio, with room for a part of the distinct keys",
        &[
            "workload",
            "room",
            "optimum",
            "geecache",
            "LRU",
            "quick_cache",
            "moka",
            "geecache to the best other",
        ],
    );
    let rooms = [0.001, 0.01, 0.1];
    let bar = progress("ratio", workloads.len() * rooms.len());
    // `off`: how far our LRU is from the crate's, which has one list and counts entries.
    let (mut rows, mut behind, mut off) = (0, Vec::new(), 0.0);
    for workload in &workloads {
        for room in rooms {
            let (entries, requests) = workload.requests.with_room_for(room);
            let ([geecache, others @ ..], lru) = ratios(entries, &requests);
            off = f64::max(off, (others[0] - lru).abs());
            let best = others.into_iter().fold(0.0, f64::max);
            rows += 1;
            if geecache < best - NEAR {
                behind.push(format!("{} at {} %", workload.name, 100.0 * room));
            }
            let mut row = vec![
                workload.name.clone().into(),
                format!("{} %", 100.0 * room).into(),
                Cell::Percent(optimum(entries, &requests)),
                Cell::Percent(geecache),
            ];
            row.extend(others.map(Cell::Percent));
            row.push(Cell::Points(geecache - best));
            table.row(row);
            bar.inc(1);
        }
    }
    table.note(format!(
        "The default is the best but for the optimum, or within 1 % of the gets of the best, in {} of {rows} rows.",
        rows - behind.len()
    ));
    if !behind.is_empty() {
        table.note(format!("It is not for: {}.", behind.join("; ")));
    }
    table.note(format!(
        "LRU is geecache's; the `lru` crate differs by {:.1} % of the gets at the most.",
        100.0 * off
    ));
    Report { topic: "ratio", tables: vec![table, large::compare(settings)] }
}

impl Requests {
    /// The number of entries that are `room` of the distinct keys, and the requests.
    fn with_room_for(&self, room: f64) -> (usize, Vec<u32>) {
        let part = |distinct: usize| ((distinct as f64 * room) as usize).max(1);
        match self {
            Self::Fixed(requests) => (part(distinct(requests)), requests.clone()),
            &Self::Loop { length, population } => {
                let entries = part(population);
                let keys = (entries + entries / 10) as u32;
                (entries, (0..keys).cycle().take(length).collect())
            }
        }
    }
}

/// The hit ratios of geecache, geecache as LRU, quick_cache and moka; and of the `lru` crate.
fn ratios(entries: usize, requests: &[u32]) -> ([f64; 4], f64) {
    let size = Size { entries, key_bytes: 8, value_bytes: 8 };
    let keys = Keys::new(*requests.iter().max().expect("requests") as usize + 1, size.key_bytes);
    let ratio = |system: Box<dyn System>| {
        system.replay(&keys, requests);
        // quick_cache rounds up in each of its shards.
        let most = entries + entries / 32 + 1;
        assert!(system.entries() <= most, "{} keeps to its size", system.name());
        1.0 - system.loads() as f64 / requests.len() as f64
    };
    let compared = [
        ratio(systems::geecache(size)),
        ratio(systems::geecache_lru(size)),
        ratio(systems::quick_cache(size, Bound::Entries)),
        ratio(systems::prompt_moka(size)),
    ];
    (compared, ratio(systems::lru(size)))
}

/// The hit ratio of the best that any cache of so many entries can do.
fn optimum(entries: usize, requests: &[u32]) -> f64 {
    const NEVER: u32 = u32::MAX;
    let keys = *requests.iter().max().expect("requests") as usize + 1;
    let mut next = vec![NEVER; keys];
    let mut next_use = vec![NEVER; requests.len()];
    for (now, &key) in requests.iter().enumerate().rev() {
        next_use[now] = next[key as usize];
        next[key as usize] = now as u32;
    }
    // By the time of their next use. Uses that are past stay below all that are to come, so the
    // top is always an entry that is held.
    let mut furthest = BinaryHeap::new();
    let mut held = vec![false; keys];
    let (mut count, mut hits) = (0, 0);
    for (&key, &next) in requests.iter().zip(&next_use) {
        if std::mem::replace(&mut held[key as usize], true) {
            hits += 1;
        } else {
            count += 1;
        }
        furthest.push((next, key));
        if count > entries {
            let (_, key) = furthest.pop().expect("more than none");
            held[key as usize] = false;
            count -= 1;
        }
    }
    hits as f64 / requests.len() as f64
}

fn distinct(requests: &[u32]) -> usize {
    let mut keys = requests.to_vec();
    keys.sort_unstable();
    keys.dedup();
    keys.len()
}

/// Zipf 0.9 with scans of 1,000 keys that are never asked for again: a fifth of the requests.
fn scans(population: usize, length: usize) -> Vec<u32> {
    const SCAN: usize = 1_000;
    let mut popular = zipf(&mut rng(2), population, 0.9, length).into_iter();
    let mut passed = population as u32..;
    let mut requests = Vec::with_capacity(length);
    while requests.len() < length {
        requests.extend(popular.by_ref().take(4 * SCAN));
        requests.extend(passed.by_ref().take(SCAN));
    }
    requests.truncate(length);
    requests
}

/// Zipf 0.9, where with each request two keys change places: what is popular goes out of fashion.
fn drift(population: usize, length: usize) -> Vec<u32> {
    let mut rng = rng(3);
    let mut keys = scattered(population);
    let ranks = ranks(&mut rng, population, 0.9, length);
    ranks
        .into_iter()
        .map(|rank| {
            let (a, b) = (rng.random_range(0..population), rng.random_range(0..population));
            keys.swap(a, b);
            keys[rank]
        })
        .collect()
}

/// The requests of a file with one key a line, gzipped or not, as numbers.
fn trace(path: &Path) -> io::Result<Vec<u32>> {
    let mut file = BufReader::new(File::open(path)?);
    let gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
    let text: Box<dyn Read> =
        if gzipped { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
    let mut numbers = HashMap::new();
    BufReader::new(text)
        .lines()
        .map(|line| {
            let next = numbers.len() as u32;
            Ok(*numbers.entry(line?).or_insert(next))
        })
        .collect()
}
