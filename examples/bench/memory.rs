//! How much memory does an entry take, over its key and value?
//!
//! Each system is filled in a process of its own, which prints by how much it has grown: in one
//! process the second system would be given what the first has freed.

use std::convert::Infallible;
use std::process::Command;
use std::{env, fs};

use geecache::Group;

use crate::systems::{self, Bound, Size};
use crate::table::{Cell, Report, Table};
use crate::workload::Keys;
use crate::{Settings, progress};

const SIZE: Size = Size { entries: 1_000_000, key_bytes: 16, value_bytes: 32 };

/// A budget that a million entries do not fit into.
const BUDGET: usize = 64 << 20;

/// Under this name a group with [`BUDGET`] is filled.
const BUDGETED: &str = "budgeted";

/// Under this name it is filled with small entries, and then with values of [`LARGE`] bytes.
const CHANGED: &str = "changed";
const LARGE: usize = 100 << 10;

/// Under this name the same happens where the allocator gives each large value pages of its own.
const MAPPED: &str = "mapped";

pub(crate) fn run(settings: &Settings) -> Report {
    let rounds = settings.pick(1, 3);
    let bar = progress("memory", (systems::NAMES.len() + 3) * rounds);
    let growth = |system: &str| {
        let grown = (0..rounds).map(|_| {
            bar.inc(1);
            Growth::of_child(system)
        });
        let mut grown: Vec<Growth> = grown.collect();
        grown.sort_by_key(|growth| growth.bytes);
        grown.swap_remove(rounds / 2)
    };

    let mut entries = Table::new(
        "1,000,000 entries, keys of 16 bytes, values of 32 bytes: resident memory",
        &["system", "entries", "bytes/entry over key and value", "times geecache's"],
    );
    let growths = systems::NAMES.map(growth);
    for (system, growth) in systems::NAMES.iter().zip(&growths) {
        entries.row([
            (*system).into(),
            growth.entries.into(),
            Cell::Number(growth.overhead(), 1),
            Cell::Number(growth.overhead() / growths[0].overhead(), 2),
        ]);
    }
    let mut budget = Table::new(
        "A group that is given more than its budget has room for: resident memory",
        &["given", "max_bytes", "entries", "the process grows by", "growth over budget"],
    );
    for (given, system) in [
        ("such entries", BUDGETED),
        ("such entries, then values of 100 KiB", CHANGED),
        ("the same, with MALLOC_MMAP_THRESHOLD_=65536", MAPPED),
    ] {
        let growth = growth(system);
        budget.row([
            given.into(),
            BUDGET.into(),
            growth.entries.into(),
            growth.bytes.into(),
            Cell::Number(growth.bytes as f64 / BUDGET as f64, 3),
        ]);
    }
    Report { topic: "memory", tables: vec![entries, budget] }
}

/// In the child: fills one system and prints by how much the process has grown.
pub(crate) fn fill(system: &str) {
    if [CHANGED, MAPPED].contains(&system) {
        return change();
    }
    let keys = Keys::new(SIZE.entries, SIZE.key_bytes);
    let all: Vec<u32> = (0..SIZE.entries as u32).collect();
    let before = resident_bytes();
    let system = match system {
        BUDGETED => systems::geecache_of(BUDGET, SIZE),
        name => systems::all(SIZE, Bound::Entries)
            .into_iter()
            .find(|system| system.name() == name)
            .expect("one of the systems"),
    };
    system.replay(&keys, &all);
    let entries = system.entries();
    println!("{} {entries}", resident_bytes() - before);
}

/// The same for [`CHANGED`].
fn change() {
    let before = resident_bytes();
    let load = |key: &str| {
        let bytes = if key.starts_with("large") { LARGE } else { SIZE.value_bytes };
        Ok::<_, Infallible>(Some(vec![1; bytes]))
    };
    let group = Group::builder("changed", load).max_bytes(BUDGET).build().expect("a group");
    let small = (0..SIZE.entries).map(|i| format!("small{i:011}"));
    // A large value is kept when it is loaded for the second time.
    let large = (0..4 * BUDGET / LARGE).flat_map(|i| [i, i]).map(|i| format!("large{i:011}"));
    for key in small.chain(large) {
        group.get(&key).expect("a value");
    }
    println!("{} {}", resident_bytes() - before, group.stats().main.entries);
}

struct Growth {
    bytes: usize,
    entries: usize,
}

impl Growth {
    fn of_child(system: &str) -> Self {
        let bench = env::current_exe().expect("the path of this program");
        let mut child = Command::new(bench);
        child.args(["fill", system]);
        if system == MAPPED {
            child.env("MALLOC_MMAP_THRESHOLD_", "65536");
        }
        let output = child.output().expect("a child");
        let text = String::from_utf8_lossy(&output.stdout);
        let mut numbers = text.split_whitespace().map(|number| number.parse().expect("a number"));
        let mut next = || numbers.next().expect("two numbers");
        Self { bytes: next(), entries: next() }
    }

    /// Bytes per entry besides its key and value.
    fn overhead(&self) -> f64 {
        self.bytes as f64 / self.entries as f64 - (SIZE.key_bytes + SIZE.value_bytes) as f64
    }
}

/// The memory that this process has in RAM.
fn resident_bytes() -> usize {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").expect("Linux");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:")).expect("a line");
    let kibibytes: usize = line.trim().trim_end_matches(" kB").parse().expect("a number");
    kibibytes << 10
}
