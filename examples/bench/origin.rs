//! What do callers notice of an origin that is slow, or down for a while?
//!
//! A caller asks again after it has its answer, so callers that wait less ask for more. Many of 1,000
//! keys by Zipf are asked for so seldom that no get finds their value due, and it expires. How many gets
//! would still wait if each renewal took no time is measured as well: "renewals without cost".

use std::collections::HashMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use geecache::{Group, GroupBuilder};
use hdrhistogram::Histogram;

use crate::table::{Cell, Report, Table};
use crate::workload::{Keys, rng, zipf};
use crate::{Settings, progress};

const KEYS: usize = 1_000;
/// Few enough for each to be asked for all the time, and to be renewed by four threads.
const FEW_KEYS: usize = 100;
const CALLERS: usize = 16;
const PAUSE: Duration = Duration::from_millis(1);
const ORIGIN: Duration = Duration::from_millis(50);
const TTL: Duration = Duration::from_secs(2);
const AHEAD: Duration = Duration::from_millis(500);
/// Two lives, until the values do not expire together any more.
const WARM_UP: Duration = Duration::from_secs(4);

pub(crate) fn run(settings: &Settings) -> Report {
    let time = Duration::from_secs(settings.pick(5, 20));
    let outage = Duration::from_secs(settings.pick(3, 10));
    let bar = progress("origin", SYSTEMS.len() + 2 + OPTIONS.len());
    let mut tables = Vec::new();
    for (keys, systems) in [(KEYS, &SYSTEMS[..]), (FEW_KEYS, &SYSTEMS[..2])] {
        let mut slow = Table::new(
            format!(
                "{CALLERS} callers, {} ms between gets, {keys} keys by Zipf 0.99 that live for {} s, \
                 an origin of {} ms",
                PAUSE.as_millis(),
                TTL.as_secs(),
                ORIGIN.as_millis()
            ),
            &["", "p50 us", "p99 us", "p99.9 us", "waited", "gets/s", "loads/s", "of 100 gets"],
        );
        for (name, start) in systems {
            let origin = Arc::new(Origin::default());
            let get = start(&origin);
            ask(&*get, keys, WARM_UP);
            let before = origin.loads();
            let seen = ask(&*get, keys, time);
            let loads = (origin.loads() - before) as f64;
            let percentile = |p| Cell::Number(seen.times.value_at_percentile(p) as f64, 0);
            let waited = seen.times.count_between(ORIGIN.as_micros() as u64 / 2, u64::MAX);
            let gets = seen.times.len() as f64;
            slow.row([
                (*name).into(),
                percentile(50.0),
                percentile(99.0),
                percentile(99.9),
                Cell::Number(100.0 * waited as f64 / gets, 2),
                Cell::Number(gets / time.as_secs_f64(), 0),
                Cell::Number(loads / time.as_secs_f64(), 0),
                Cell::Number(100.0 * loads / gets, 1),
            ]);
            bar.inc(1);
        }
        slow.note("waited: of 100 gets, those that took more than half of what the origin takes.");
        slow.note("loads: keys that the origin was asked for.");
        tables.push(slow);
    }
    let mut down = Table::new(
        format!(
            "The same with {KEYS} keys; for {} s in the middle the origin fails",
            outage.as_secs()
        ),
        &["", "gets", "failed gets", "failed loads", "of a key within a second"],
    );
    for (name, options) in OPTIONS {
        let origin = Arc::new(Origin::default());
        let get = geecache(&origin, options);
        load_all(&*get);
        ask(&*get, KEYS, WARM_UP);
        origin.is_down.store(true, Ordering::SeqCst);
        let seen = ask(&*get, KEYS, outage);
        origin.is_down.store(false, Ordering::SeqCst);
        let after = ask(&*get, KEYS, WARM_UP);
        let failures = origin.failures.lock().expect("no panic");
        down.row([
            name.into(),
            Cell::from((seen.times.len() + after.times.len()) as usize),
            Cell::from(seen.failed + after.failed),
            failures.len().into(),
            too_soon(&failures).into(),
        ]);
        bar.inc(1);
    }
    down.note("All keys were loaded before.");
    tables.push(down);
    Report { topic: "origin", tables }
}

type Get = dyn Fn(&str) -> bool + Sync;
type Options = fn(GroupBuilder) -> GroupBuilder;

type Start = fn(&Arc<Origin>) -> Box<Get>;

const SYSTEMS: [(&str, Start); 5] = [
    ("geecache", |origin| geecache(origin, |builder| builder)),
    ("geecache, refresh_ahead of 500 ms", |origin| {
        geecache(origin, |builder| builder.refresh_ahead(AHEAD))
    }),
    ("renewals without cost", without_cost),
    ("moka", moka),
    ("quick_cache", quick_cache),
];

const OPTIONS: [(&str, Options); 3] = [
    ("geecache", |builder| builder),
    ("geecache, stale_if_error", |builder| builder.stale_if_error(Duration::from_secs(3600))),
    ("geecache, both", |builder| {
        builder.stale_if_error(Duration::from_secs(3600)).refresh_ahead(AHEAD)
    }),
];

#[derive(Default)]
struct Origin {
    loads: AtomicUsize,
    is_down: AtomicBool,
    /// The loads that failed: of which key, and when they began and ended.
    failures: Mutex<Vec<(String, Instant, Instant)>>,
}

impl Origin {
    fn loads(&self) -> usize {
        self.loads.load(Ordering::SeqCst)
    }

    fn load(&self, key: &str) -> Result<Option<String>, Box<dyn Error + Send + Sync>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        let (is_down, began) = (self.is_down.load(Ordering::SeqCst), Instant::now());
        thread::sleep(ORIGIN);
        if is_down {
            let failure = (key.to_string(), began, Instant::now());
            self.failures.lock().expect("no panic").push(failure);
            return Err("down".into());
        }
        Ok(Some(key.to_string()))
    }
}

/// How many failed loads of a key began less than a second after the one before had failed.
fn too_soon(failures: &[(String, Instant, Instant)]) -> usize {
    let mut failures: Vec<_> = failures.iter().collect();
    failures.sort();
    let is_too_soon = |pair: &&[&(String, Instant, Instant)]| {
        pair[0].0 == pair[1].0 && pair[1].1 < pair[0].2 + Duration::from_secs(1)
    };
    failures.windows(2).filter(is_too_soon).count()
}

fn geecache(origin: &Arc<Origin>, options: Options) -> Box<Get> {
    let origin = origin.clone();
    let builder = Group::builder("origin", move |key: &str| origin.load(key)).ttl(TTL);
    of_group(options(builder))
}

fn of_group(builder: GroupBuilder) -> Box<Get> {
    let group = builder.build().expect("a group");
    Box::new(move |key| group.get(key).is_ok())
}

/// Stands for a cache whose renewals take no time: a value that is asked for in the last part of its
/// life is new at once. After that a get waits for the origin.
fn without_cost(origin: &Arc<Origin>) -> Box<Get> {
    let (origin, keys) = (origin.clone(), Keys::new(KEYS, 20));
    let loaded: HashMap<String, Mutex<Option<Instant>>> =
        (0..KEYS).map(|key| (keys.get(key as u32).to_string(), Mutex::default())).collect();
    Box::new(move |key| {
        let mut loaded = loaded[key].lock().expect("no panic");
        match loaded.map(|at| at.elapsed()) {
            Some(age) if age < TTL - AHEAD => return true,
            Some(age) if age < TTL => drop(origin.loads.fetch_add(1, Ordering::SeqCst)),
            _ => drop(origin.load(key)),
        }
        *loaded = Some(Instant::now());
        true
    })
}

fn moka(origin: &Arc<Origin>) -> Box<Get> {
    let origin = origin.clone();
    let cache =
        moka::sync::Cache::builder().max_capacity(10 * KEYS as u64).time_to_live(TTL).build();
    Box::new(move |key| {
        let load = || origin.load(key).map(Option::unwrap_or_default);
        cache.try_get_with_by_ref(key, load).is_ok()
    })
}

/// It knows no time to live: values bear theirs, and who finds one that is over removes it first.
fn quick_cache(origin: &Arc<Origin>) -> Box<Get> {
    let origin = origin.clone();
    let cache = quick_cache::sync::Cache::<String, (Instant, String)>::new(10 * KEYS);
    Box::new(move |key| {
        let load = || {
            Ok::<_, Box<dyn Error + Send + Sync>>((
                Instant::now() + TTL,
                origin.load(key)?.unwrap_or_default(),
            ))
        };
        let is_over = |value: &(Instant, String)| value.0 <= Instant::now();
        match cache.get_or_insert_with(key, load) {
            Ok(value) if is_over(&value) => {
                cache.remove_if(key, is_over);
                cache.get_or_insert_with(key, load).is_ok()
            }
            answer => answer.is_ok(),
        }
    })
}

struct Seen {
    /// In microseconds.
    times: Histogram<u64>,
    failed: usize,
}

/// Asks for each key once.
fn load_all(get: &Get) {
    let keys = &Keys::new(KEYS, 20);
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let part = (caller..KEYS).step_by(CALLERS);
            scope.spawn(move || part.for_each(|key| assert!(get(keys.get(key as u32)))));
        }
    });
}

/// Asks from all callers for that long.
fn ask(get: &Get, keys: usize, time: Duration) -> Seen {
    let draw = |caller| zipf(&mut rng(caller as u64), keys, 0.99, 1 << 14);
    let keys = &Keys::new(keys, 20);
    let asked: Vec<_> = (0..CALLERS).map(draw).collect();
    let end = Instant::now() + time;
    let call = |asked: &[u32]| {
        let mut seen = Seen { times: histogram(), failed: 0 };
        for &key in asked.iter().cycle() {
            let start = Instant::now();
            if start >= end {
                break;
            }
            seen.failed += usize::from(!get(keys.get(key)));
            seen.times.saturating_record(start.elapsed().as_micros() as u64);
            thread::sleep(PAUSE);
        }
        seen
    };
    thread::scope(|scope| {
        let callers: Vec<_> = asked.iter().map(|asked| scope.spawn(move || call(asked))).collect();
        let mut all = Seen { times: histogram(), failed: 0 };
        for caller in callers {
            let seen = caller.join().expect("no panic");
            all.times.add(seen.times).expect("the same bounds");
            all.failed += seen.failed;
        }
        all
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds")
}
