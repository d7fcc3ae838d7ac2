//! Do large values push out small ones that are asked for more often? The second part of `ratio`.

use rand::RngExt;

use crate::Settings;
use crate::progress;
use crate::systems::{Large, Size, System, all_with_large};
use crate::table::{Cell, Table};
use crate::workload::{Keys, rng, zipf};

const MAX_BYTES: usize = 64 << 20;
const KEYS: usize = 300_000;
const SIZE: Size = Size { entries: MAX_BYTES / 288, key_bytes: 8, value_bytes: 200 };
const LARGE: usize = 64 << 10;

struct Workload {
    name: &'static str,
    /// From this key on values are large.
    first_large: usize,
    requests: Vec<u32>,
}

pub(crate) fn compare(settings: &Settings) -> Table {
    let length = settings.pick(500_000, 2_000_000);
    let popular = || zipf(&mut rng(4), KEYS, 0.9, length);
    let mut random = rng(5);
    let mut fresh = KEYS as u32..;
    let one_off = popular().into_iter().map(|key| {
        let is_one_off = random.random_range(0..100) == 0;
        if is_one_off { fresh.next().expect("a key") } else { key }
    });
    let workloads = [
        Workload {
            name: "1 % of the gets ask for a large value that nobody asks for again",
            first_large: KEYS,
            requests: one_off.collect(),
        },
        Workload {
            name: "1 % of the keys have large values, as popular as others",
            first_large: KEYS - KEYS / 100,
            requests: popular(),
        },
        Workload {
            name: "all values are large",
            first_large: 0,
            requests: zipf(&mut rng(6), KEYS / 30, 0.9, length / 10),
        },
    ];
    let mut table = Table::new(
        "Hit ratio, 64 MiB, keys by Zipf 0.9, values of 200 bytes or, if large, of 64 KiB",
        &["workload", "keys", "geecache", "LRU", "quick_cache", "moka"],
    );
    let bar = progress("ratio", workloads.len());
    for Workload { name, first_large, requests } in workloads {
        let keys = Keys::new(*requests.iter().max().expect("requests") as usize + 1, 8);
        let large = || Large { first: format!("{first_large:08}"), value: vec![b'v'; LARGE] };
        let systems = all_with_large(MAX_BYTES, SIZE, large);
        let ratios: Vec<_> =
            systems.iter().map(|system| ratios(&**system, &keys, &requests, first_large)).collect();
        for (i, what) in ["small", "large"].into_iter().enumerate() {
            let cells: Option<Vec<_>> = ratios.iter().map(|ratios| ratios[i]).collect();
            let Some(cells) = cells else { continue };
            let mut row = vec![name.into(), what.into()];
            row.extend(cells.into_iter().map(Cell::Percent));
            table.row(row);
        }
        bar.inc(1);
    }
    table
}

/// The hit ratios of small and of large keys; `None` if there are none or none comes again.
fn ratios(
    system: &dyn System,
    keys: &Keys,
    requests: &[u32],
    first_large: usize,
) -> [Option<f64>; 2] {
    let is_large = |&key: &u32| key as usize >= first_large;
    let (mut gets, mut loads) = ([0, 0], [0, 0]);
    for run in requests.chunk_by(|a, b| is_large(a) == is_large(b)) {
        let before = system.loads();
        system.replay(keys, run);
        let i = usize::from(is_large(&run[0]));
        gets[i] += run.len();
        loads[i] += (system.loads() - before) as usize;
    }
    let ratio = |i: usize| (loads[i] < gets[i]).then(|| 1.0 - loads[i] as f64 / gets[i] as f64);
    [ratio(0), ratio(1)]
}
