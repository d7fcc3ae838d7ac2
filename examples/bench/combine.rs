//! What does it bring that concurrent gets share requests, and whom does it hold up?

use std::time::Duration;

use crate::remote::{Asking, Bare, KEYS, Owner, callers, take_turns};
use crate::table::{Cell, Report, Table};
use crate::{Settings, progress};

const VALUE_BYTES: usize = 3;
const SYSTEMS: [&str; 3] = ["bare TCP", "not combined", "combined"];
const COUNTS: [usize; 3] = [1, 16, 64];

pub(crate) fn run(settings: &Settings) -> Report {
    let turns = settings.pick((5, Duration::from_millis(200)), (15, Duration::from_millis(300)));
    Report { topic: "combine", tables: vec![rates(turns), beside_slow_keys(turns)] }
}

fn rates(turns: (usize, Duration)) -> Table {
    let bar = progress("combine", COUNTS.len() * turns.0 * SYSTEMS.len());
    let mut table = Table::new(
        "Single gets of 1,000 keys of another process, by blocking callers, values of 3 bytes",
        &[
            "callers",
            "system",
            "gets/s",
            "p50 µs",
            "p99 µs",
            "of bare TCP",
            "of not combined",
            "p99 of not combined",
        ],
    );
    let owner = Owner::start();
    let [plain, combined] = [false, true].map(|combine| Asking::new(&owner, VALUE_BYTES, combine));
    for count in COUNTS {
        let mut systems = [
            Bare::callers(count, &owner, &plain.keys, VALUE_BYTES),
            plain.callers(count),
            combined.callers(count),
        ];
        let answered = take_turns(&mut systems, &owner, turns, &bar);
        let p99 = |i| answered.microseconds(i, 0.99);
        for (i, name) in SYSTEMS.into_iter().enumerate() {
            table.row([
                count.into(),
                name.into(),
                Cell::Number(answered.rates.median(i), 0),
                Cell::Number(answered.microseconds(i, 0.5), 0),
                Cell::Number(p99(i), 0),
                Cell::Number(answered.rates.ratio(i, 0), 2),
                Cell::Number(answered.rates.ratio(i, 1), 2),
                Cell::Number(p99(i) / p99(1), 2),
            ]);
        }
    }
    [plain, combined].iter().for_each(Asking::assert_that_the_owner_answered);
    table
}

/// Who waits for the origin leaves the others more of the machine. So beside callers of which
/// each now and then asks for a slow key, there are callers that ask for nothing else.
fn beside_slow_keys((rounds, time): (usize, Duration)) -> Table {
    const CALLERS: usize = 16;
    const SLOW_CALLERS: usize = 8;
    let bar = progress("combine", 3 * rounds);
    let mut table = Table::new(
        "The gets of 16 combining callers whose keys the owner holds, beside keys that wait 50 ms \
         for its origin each time",
        &["slow keys", "p50 µs", "p90 µs", "p99 µs", "p90 of none"],
    );
    let owner = Owner::start();
    let asking = Asking::new(&owner, VALUE_BYTES, true);
    let mut mixed = asking.keys.clone();
    mixed[..KEYS / 20].clone_from_slice(&asking.slow_keys[..KEYS / 20]);
    let mut beside = asking.callers(CALLERS);
    beside.extend(callers(SLOW_CALLERS, &asking.slow_keys, || Box::new(&asking)));
    let mut systems =
        [asking.callers(CALLERS), callers(CALLERS, &mixed, || Box::new(&asking)), beside];
    let answered = take_turns(&mut systems, &owner, (rounds, 3 * time), &bar);
    let names = ["none", "1 in 20 of each caller's", "those of 8 further callers"];
    for (i, name) in names.into_iter().enumerate() {
        let microseconds = |quantile| answered.microseconds(i, quantile);
        table.row([
            name.into(),
            Cell::Number(microseconds(0.5), 0),
            Cell::Number(microseconds(0.9), 0),
            Cell::Number(microseconds(0.99), 0),
            Cell::Number(microseconds(0.9) / answered.microseconds(0, 0.9), 2),
        ]);
    }
    asking.assert_that_the_owner_answered();
    table
}
