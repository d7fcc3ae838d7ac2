//! Measures geecache side by side with the crates that people would use instead.
//!
//! ```text
//! cargo run --release -p bench -- hits|evict|memory|ratio|ring|hot|fetch|combine|batch|network|stampede|origin|handover|nodes|all [--json] [--quick]
//! ```
//!
//! Tables go to stdout, progress to stderr. Every number is measured in the run that prints it;
//! times are medians of rounds in which the systems take turns, so the ratios hold on a machine
//! that is busy with other things as well. One file a topic:
//!
//! - `hits`: gets of keys that are there
//! - `evict`: gets of which most load and evict
//! - `memory`: resident bytes per entry
//! - `ratio`: which share of the gets finds its key, against other policies and the optimum
//! - `ring`: finding a key's owner, and how even the shares are
//! - `hot`: which share of the gets asks no peer
//! - `fetch`: gets of keys that another process holds
//! - `combine`: such gets that share requests
//! - `batch`: many keys at once
//! - `network`: such gets behind a network, combined and not
//! - `stampede`: many callers of one cold key
//! - `origin`: callers of an origin that is slow, or down for a while
//! - `handover`: what the origin is asked for when the list of nodes changes
//! - `nodes`: what grows with the number of nodes
//!
//! `workload` draws the keys, `systems` makes the caches, `remote` is the other process,
//! `measure` takes the times and `table` prints them.

mod batch;
mod combine;
mod evict;
mod fetch;
mod handover;
mod hits;
mod hot;
mod large;
mod measure;
mod memory;
mod network;
mod nodes;
mod origin;
mod ratio;
mod redis;
mod remote;
mod ring;
mod stampede;
mod systems;
mod table;
mod workload;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use clap::{Parser, Subcommand};
use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use table::Report;

/// Measures geecache beside the crates that people would use instead.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    topic: Topic,
    #[command(flatten)]
    settings: Settings,
}

#[derive(clap::Args)]
struct Settings {
    /// Print one JSON object a topic instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Fewer rounds and requests
    #[arg(long, global = true)]
    quick: bool,
    /// For `ratio`: a trace to replay, one key a line, gzipped or not; may be given again
    #[arg(long = "trace", value_name = "FILE", global = true)]
    traces: Vec<PathBuf>,
    #[command(flatten)]
    network: network::Choice,
}

#[derive(Subcommand)]
enum Topic {
    /// Gets of keys that are there
    Hits,
    /// Gets of which most load and evict
    Evict,
    /// Resident bytes per entry
    Memory,
    /// The share of gets that find their key
    Ratio,
    /// Finding a key's owner, and how even the shares are
    Ring,
    /// The share of gets that ask no peer
    Hot,
    /// Gets of keys that another process holds
    Fetch,
    /// Such gets that share requests
    Combine,
    /// Many keys at once
    Batch,
    /// Such gets behind a network, combined and not
    Network,
    /// Many callers of one cold key
    Stampede,
    /// Callers of an origin that is slow, or down for a while
    Origin,
    /// What the origin is asked for when the list of nodes changes
    Handover,
    /// What grows with the number of nodes
    Nodes,
    /// Every topic in turn
    All,
    /// A child of `memory`
    #[command(hide = true)]
    Fill { system: String },
    /// The child of `fetch`, `combine`, `batch` and `network`
    #[command(hide = true)]
    Own,
}

impl Settings {
    /// Of two amounts of work, the one that was asked for.
    fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

const ALL: &[fn(&Settings) -> Report] = &[
    hits::run,
    evict::run,
    memory::run,
    ratio::run,
    ring::run,
    hot::run,
    fetch::run,
    combine::run,
    batch::run,
    network::run,
    stampede::run,
    origin::run,
    handover::run,
    nodes::run,
];

fn main() {
    let Cli { topic, settings } = Cli::parse();
    let topics = match topic {
        Topic::Hits => &[hits::run as _],
        Topic::Evict => &[evict::run as _],
        Topic::Memory => &[memory::run as _],
        Topic::Ratio => &[ratio::run as _],
        Topic::Ring => &[ring::run as _],
        Topic::Hot => &[hot::run as _],
        Topic::Fetch => &[fetch::run as _],
        Topic::Combine => &[combine::run as _],
        Topic::Batch => &[batch::run as _],
        Topic::Network => &[network::run as _],
        Topic::Stampede => &[stampede::run as _],
        Topic::Origin => &[origin::run as _],
        Topic::Handover => &[handover::run as _],
        Topic::Nodes => &[nodes::run as _],
        Topic::All => ALL,
        Topic::Fill { system } => return memory::fill(&system),
        Topic::Own => return remote::own(),
    };
    let machine = machine();
    if !settings.json {
        println!("{machine}\n");
    }
    for topic in topics {
        let report = topic(&settings);
        if settings.json { report.print_json(&machine) } else { report.print() }
    }
}

/// A bar on stderr, where that is a terminal.
fn progress(topic: &'static str, steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:>9} {wide_bar} {pos}/{len} {elapsed}");
    let bar = ProgressBar::new(steps as u64).with_style(style.expect("a valid template"));
    bar.with_message(topic).with_finish(ProgressFinish::AndClear)
}

/// What this machine is and how busy it was at the start, in one line.
fn machine() -> String {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map_or("?", |rest| rest.trim_matches([':', ' ', '\t'])).to_string()
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let gibibytes = memory.trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / (1 << 20) as f64;
    // It knows the names of processors that /proc/cpuinfo has as numbers alone.
    let lscpu = Command::new("lscpu").env("LC_ALL", "C").output();
    let lscpu = lscpu.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).into_owned(),
    );
    let load = read("/proc/loadavg");
    let load: Vec<_> = load.split(' ').take(3).collect();
    format!(
        "{} x {}, {gibibytes:.0} GiB, Linux {}; load averages at the start, of 1, 5 and 15 minutes: {}",
        thread::available_parallelism().map_or(0, usize::from),
        field(&lscpu, "Model name:"),
        read("/proc/sys/kernel/osrelease").trim(),
        load.join(", "),
    )
}
