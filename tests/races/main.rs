//! What threads do to each other, under schedules that a model checker chooses.
//!
//! Can a follower sleep for ever, or an old value outlive its removal, if only the threads meet
//! unluckily enough? A stress test meets the unlucky order now and then; here `shuttle` runs all
//! threads of a scenario on one, decides at each lock and each wait who goes on, and tries every
//! order or thousands of them. A deadlock or a failed assertion ends the test and prints the
//! schedule, which
//!
//! ```text
//! RACES_REPLAY=91020… cargo test -p tests --test races -- name_of_the_scenario
//! ```
//!
//! runs again. `RACES=100` tries 100 times as many schedules, as `make races` does.
//!
//! What is checked are the library's own files, as they are: they are modules of this program too,
//! and in this program `std` is the program itself. It has all that std has; but locks, condition
//! variables and threads are shuttle's.

#![allow(dead_code, unused_imports)] // of the modules' parts that no scenario needs
#![allow(missing_debug_implementations, missing_docs, unreachable_pub)]
#![allow(clippy::new_without_default)]
// The library supports a Rust that has no `let` chains, this program does not have to.
#![allow(clippy::collapsible_if, clippy::collapsible_match)]

extern crate self as std;
extern crate std as real;

pub use real::*;
pub use shuttle::thread_local;

pub mod sync;
pub mod thread;

#[path = "../../src/byte_view.rs"]
mod byte_view;
#[path = "../../src/cache/mod.rs"]
mod cache;
#[path = "../../src/http/server/clients.rs"]
mod clients;
#[path = "../../src/clock.rs"]
mod clock;
#[path = "../../src/http/client/combine.rs"]
mod combine;
#[path = "../../src/elastic.rs"]
mod elastic;
#[path = "../../src/error.rs"]
mod errors; // `error` is of std
#[path = "../../src/flight.rs"]
mod flight;
#[path = "../../src/getter.rs"]
mod getter;
#[path = "../../src/group/mod.rs"]
mod group;
#[path = "../../src/peer.rs"]
mod peer;
#[path = "../../src/http/server/queue.rs"]
mod queue;
#[path = "../../src/stats.rs"]
mod stats;
#[path = "../../src/warnings.rs"]
mod warnings;

use byte_view::ByteView;
use clock::Clock;
use errors::{Error, MAX_KEY_BYTES, PeerError};
use getter::{BoxError, Getter, Loaded};
use group::{Group, GroupBuilder};
use peer::{PeerGetter, PeerPicker};

mod scenarios;

fn main() -> ::real::process::ExitCode {
    let arguments = libtest_mimic::Arguments::from_args();
    libtest_mimic::run(&arguments, scenarios::all()).exit_code()
}
