//! What does it bring to ask for a hundred keys at once?

use std::convert::Infallible;
use std::hint::black_box;
use std::time::{Duration, Instant};

use geecache::Group;

use crate::measure::interleave;
use crate::remote::{Asking, Bare, Caller, KEY_BYTES, KEYS, Owner};
use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, scattered};
use crate::{Settings, progress};

const BATCH: usize = 100;
const VALUE_BYTES: usize = 100;

pub(crate) fn run(settings: &Settings) -> Report {
    Report { topic: "batch", tables: vec![remote(settings), local(settings)] }
}

/// Keys that another process holds, over one connection.
fn remote(settings: &Settings) -> Table {
    let (rounds, time) =
        settings.pick((5, Duration::from_millis(200)), (15, Duration::from_millis(300)));
    let names = ["Group::get", "Group::get_many", "bare TCP"];
    let bar = progress("batch", rounds * names.len());
    let owner = Owner::start();
    let mut asking = &Asking::new(&owner, VALUE_BYTES, true);
    let mut bare = Bare::connect(owner.tcp, BATCH * KEY_BYTES, BATCH * VALUE_BYTES);
    let keys: Vec<&str> =
        scattered(KEYS).into_iter().map(|key| &*asking.keys[key as usize]).collect();
    let texts: Vec<String> = keys.chunks(BATCH).map(|batch| batch.concat()).collect();
    let mut ask = |system, batch: usize| match system {
        0 => keys[batch * BATCH..][..BATCH].iter().for_each(|key| asking.get(key)),
        1 => {
            let values = asking.group.get_many(&keys[batch * BATCH..][..BATCH]);
            let lengths =
                values.iter().map(|value| value.as_ref().unwrap().as_ref().unwrap().len());
            assert_eq!(lengths.sum::<usize>(), BATCH * VALUE_BYTES);
        }
        _ => bare.get(&texts[batch]),
    };
    // For the owner to hold all, and connections to be there.
    (0..names.len()).for_each(|system| (0..texts.len()).for_each(|batch| ask(system, batch)));
    let connections = owner.connections().len();
    let samples = interleave(rounds, names.len(), &bar, |system, _round| {
        let start = Instant::now();
        let batches = (0..texts.len()).cycle().take_while(|_| start.elapsed() < time);
        let asked = batches.map(|batch| ask(system, batch)).count();
        (asked * BATCH) as f64 / start.elapsed().as_secs_f64()
    });
    assert_eq!(owner.connections().len(), connections, "no new ones");
    asking.assert_that_the_owner_answered();

    let mut table = Table::new(
        "1,000 keys of another process over one connection, values of 100 bytes: one after the \
         other, in batches of 100, and the bytes of these keys and values alone",
        &["system", "keys/s", "MB/s of values", "of Group::get", "of bare TCP"],
    );
    for (i, name) in names.into_iter().enumerate() {
        table.row([
            name.into(),
            Cell::Number(samples.median(i), 0),
            Cell::Number(samples.median(i) * VALUE_BYTES as f64 / 1e6, 1),
            Cell::Number(samples.ratio(i, 0), 2),
            Cell::Number(samples.ratio(i, 2), 3),
        ]);
    }
    table
}

/// Keys that this process holds.
fn local(settings: &Settings) -> Table {
    let (rounds, batches) = settings.pick((11, 1_000), (51, 2_000));
    // Who asks for a hundred wants them all, but one by one each answer may be dropped at once.
    let names =
        ["100 times Group::get, each dropped", "100 times Group::get, all kept", "Group::get_many"];
    let bar = progress("batch", rounds * names.len());
    let getter = |_: &str| Ok::<_, Infallible>(Some(vec![b'v'; VALUE_BYTES]));
    let group = Group::builder("local", getter).build().expect("a group");
    let numbered = Keys::new(KEYS, KEY_BYTES);
    let keys: Vec<&str> = scattered(KEYS).into_iter().map(|key| numbered.get(key)).collect();
    group.get_many(&keys).into_iter().for_each(|value| assert!(value.unwrap().is_some()));
    let samples = interleave(rounds, names.len(), &bar, |system, _round| {
        let start = Instant::now();
        for batch in keys.chunks(BATCH).cycle().take(batches) {
            match system {
                0 => batch.iter().for_each(|key| drop(black_box(group.get(key)))),
                1 => drop(black_box(batch.iter().map(|key| group.get(key)).collect::<Vec<_>>())),
                _ => drop(black_box(group.get_many(batch))),
            }
        }
        start.elapsed().as_nanos() as f64 / batches as f64
    });
    assert_eq!(group.stats().misses, KEYS as u64, "every get was a hit");

    let mut table = Table::new(
        "100 of 1,000 resident keys, values of 100 bytes",
        &["system", "ns/100 keys", "of each dropped", "of all kept"],
    );
    for (i, name) in names.into_iter().enumerate() {
        table.row([
            name.into(),
            Cell::Number(samples.median(i), 0),
            Cell::Number(samples.ratio(i, 0), 2),
            Cell::Number(samples.ratio(i, 1), 2),
        ]);
    }
    table
}
