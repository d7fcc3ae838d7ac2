//! How long does it take to find a key's owner, and how even are the nodes' shares?

use std::hint::black_box;

use geecache::{Ring, RingHash};
use hashring::HashRing;
use rand::RngExt;

use crate::measure::{interleave, wall};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, uniform};
use crate::{Settings, progress};

const KEYS: usize = 100_000;

const POINTS: usize = 50;

pub(crate) fn run(settings: &Settings) -> Report {
    Report { topic: "ring", tables: vec![look_ups(settings), balance()] }
}

fn look_ups(settings: &Settings) -> Table {
    let (rounds, asked) = settings.pick((5, 200_000), (31, 200_000));
    let mut table = Table::new(
        "The owner of a key of 13 bytes, 50 points a node",
        &["nodes", "system", "ns/look-up", "geecache is x times as fast"],
    );
    let keys = Keys::new(KEYS, 13);
    let sequence = uniform(&mut rng(1), KEYS, asked);
    let counts = [3, 100, 1_000];
    let bar = progress("ring", counts.len() * rounds * 3);
    for count in counts {
        let nodes = addresses(count, 2);
        let ring = Ring::new(nodes.iter().map(String::as_str), POINTS, RingHash::Crc32);
        let bare = bare_points(&nodes);
        let mut hashring = HashRing::new();
        hashring.batch_add(
            nodes.iter().flat_map(|n| (0..POINTS).map(move |i| (i, n.as_str()))).collect(),
        );
        let look_up = |find: &(dyn Fn(&[u32]) + Sync)| wall(1, |_| find(&sequence));
        let samples = interleave(rounds, 3, &bar, |system, _round| {
            let time = match system {
                0 => look_up(&|sequence| {
                    for &key in sequence {
                        black_box(ring.owner(keys.get(key)));
                    }
                }),
                1 => look_up(&|sequence| {
                    for &key in sequence {
                        let hash = crc32fast::hash(keys.get(key).as_bytes());
                        let next = bare.partition_point(|point| point.0 < hash);
                        let owner = bare[if next == bare.len() { 0 } else { next }].1;
                        black_box(nodes[owner].as_str());
                    }
                }),
                _ => look_up(&|sequence| {
                    for &key in sequence {
                        black_box(hashring.get(&keys.get(key)));
                    }
                }),
            };
            time.as_nanos() as f64 / asked as f64
        });
        for (i, name) in ["geecache", "bare binary search", "hashring"].into_iter().enumerate() {
            table.row([
                count.into(),
                name.into(),
                Cell::Number(samples.median(i), 1),
                Cell::Number(samples.ratio(i, 0), 2),
            ]);
        }
    }
    table
}

/// The points of all nodes in rising order, each with the index of its node.
fn bare_points(nodes: &[String]) -> Vec<(u32, usize)> {
    let mut points: Vec<(u32, usize)> = nodes
        .iter()
        .enumerate()
        .flat_map(|(node, name)| {
            (0..POINTS).map(move |i| (crc32fast::hash(format!("{i}{name}").as_bytes()), node))
        })
        .collect();
    points.sort_unstable();
    points
}

fn balance() -> Table {
    const SETS: u64 = 60;
    let mut table = Table::new(
        "The busiest node's share over the mean, 60 random sets of addresses",
        &["hash", "nodes", "points a node", "average", "worst"],
    );
    for (name, hash) in
        [("CRC-32, as Go", RingHash::Crc32), ("CRC-32, then mixed", RingHash::Crc32Mixed)]
    {
        for (count, points) in [(3, 50), (10, 160)] {
            let busiest: Vec<f64> = (0..SETS)
                .map(|set| {
                    let ring = Ring::new(addresses(count, set), points, hash);
                    let shares = ring.shares().into_iter().map(|(_, share)| share);
                    shares.fold(0.0, f64::max) * count as f64
                })
                .collect();
            table.row([
                name.into(),
                count.into(),
                points.into(),
                Cell::Number(busiest.iter().sum::<f64>() / SETS as f64, 2),
                Cell::Number(busiest.iter().copied().fold(0.0, f64::max), 2),
            ]);
        }
    }
    table
}

/// Different addresses of one private network.
fn addresses(count: usize, seed: u64) -> Vec<String> {
    let mut rng = rng(seed);
    let mut addresses = Vec::with_capacity(count);
    while addresses.len() < count {
        let [a, b, c]: [u8; 3] = rng.random();
        let address = format!("http://10.{a}.{b}.{c}:8001");
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses
}
