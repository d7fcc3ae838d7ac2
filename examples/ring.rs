//! Who owns which key, and how even the shares are.
//!
//! Type `cargo run --example ring -- Tom Jack Sam`. It prints the share of each of three nodes,
//! then the owner of each key; `--nodes` gives other nodes, `--mixed` the more even hash:
//!
//! ```text
//!  40.9 %  http://localhost:8001
//!  ...
//! Tom is owned by http://localhost:8001
//! ```

use clap::Parser;
use geecache::{Ring, RingHash};

const NODES: &str = "http://localhost:8001,http://localhost:8002,http://localhost:8003";

/// Prints the share of each node and the owner of each key.
#[derive(Parser)]
struct Options {
    /// The keys whose owners are asked for
    keys: Vec<String>,
    /// The nodes' names, just as the cluster writes them
    #[arg(long, value_name = "URL,URL,…", value_delimiter = ',', default_value = NODES)]
    nodes: Vec<String>,
    /// Pass CRC-32 through a finaliser: more even shares, but other owners than Go nodes have
    #[arg(long)]
    mixed: bool,
    /// Points of each node on the ring [default: 50, or 160 where mixed]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    points: Option<u16>,
}

fn main() {
    let options = Options::parse();
    let hash = if options.mixed { RingHash::Crc32Mixed } else { RingHash::Crc32 };
    let points = options.points.map_or(hash.default_points(), usize::from);
    let ring = Ring::new(options.nodes, points, hash);

    for (node, share) in ring.shares() {
        println!("{:5.1} %  {node}", share * 100.0);
    }
    let (node, times) = ring.largest_share();
    if times > 1.5 {
        let cure = if options.mixed { "more --points even" } else { "--mixed (Crc32Mixed) evens" };
        println!("{node} owns {times:.1} times as much as a node on average; {cure} that");
    }
    for key in options.keys {
        println!("{key} is owned by {}", ring.owner(&key).expect("the ring has a node"));
    }
}
