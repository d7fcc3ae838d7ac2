//! What do callers notice of an origin that is slow, or down for a while?

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
const CALLERS: usize = 16;
const PAUSE: Duration = Duration::from_millis(1);
const ORIGIN: Duration = Duration::from_millis(50);
const TTL: Duration = Duration::from_secs(2);
/// Two lives, until the values do not expire together any more.
const WARM_UP: Duration = Duration::from_secs(4);

pub(crate) fn run(settings: &Settings) -> Report {
    let time = Duration::from_secs(settings.pick(5, 20));
    let outage = Duration::from_secs(settings.pick(3, 10));
    let bar = progress("origin", 7);
    let mut slow = Table::new(
        format!(
            "{CALLERS} callers, {} ms between gets, {KEYS} keys by Zipf 0.99 that live for {} s, \
             an origin of {} ms",
            PAUSE.as_millis(),
            TTL.as_secs(),
            ORIGIN.as_millis()
        ),
        &["", "p50 us", "p99 us", "p99.9 us", "waited", "gets/s", "loads/s"],
    );
    for (name, start) in SYSTEMS {
        let origin = Arc::new(Origin::default());
        let get = start(&origin);
        ask(&*get, WARM_UP);
        let before = origin.loads();
        let seen = ask(&*get, time);
        let percentile = |p| Cell::Number(seen.times.value_at_percentile(p) as f64, 0);
        let waited = seen.times.count_between(ORIGIN.as_micros() as u64 / 2, u64::MAX);
        let per_second = |n: f64| Cell::Number(n / time.as_secs_f64(), 0);
        slow.row([
            name.into(),
            percentile(50.0),
            percentile(99.0),
            percentile(99.9),
            Cell::Percent(waited as f64 / seen.times.len() as f64),
            per_second(seen.times.len() as f64),
            per_second((origin.loads() - before) as f64),
        ]);
        bar.inc(1);
    }
    slow.note("waited: the share of gets that took more than half of what the origin takes.");
    let mut down = Table::new(
        format!("The same, and for {} s in the middle the origin fails", outage.as_secs()),
        &["", "gets", "failed gets", "failed loads", "of a key within a second"],
    );
    for (name, options) in OPTIONS {
        let origin = Arc::new(Origin::default());
        let get = geecache(&origin, options);
        ask(&*get, WARM_UP);
        origin.is_down.store(true, Ordering::SeqCst);
        let seen = ask(&*get, outage);
        origin.is_down.store(false, Ordering::SeqCst);
        let after = ask(&*get, WARM_UP);
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
    Report { topic: "origin", tables: vec![slow, down] }
}

type Get = dyn Fn(&str) -> bool + Sync;
type Options = fn(GroupBuilder) -> GroupBuilder;

type Start = fn(&Arc<Origin>) -> Box<Get>;

const SYSTEMS: [(&str, Start); 4] = [
    ("geecache", |origin| geecache(origin, |builder| builder)),
    ("geecache, refresh_ahead(0.25)", |origin| {
        geecache(origin, |builder| builder.refresh_ahead(0.25))
    }),
    ("moka", moka),
    ("quick_cache", quick_cache),
];

const OPTIONS: [(&str, Options); 3] = [
    ("geecache", |builder| builder),
    ("geecache, stale_if_error", |builder| builder.stale_if_error(Duration::from_secs(3600))),
    ("geecache, both", |builder| {
        builder.stale_if_error(Duration::from_secs(3600)).refresh_ahead(0.25)
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
    let group = options(builder).build().expect("a group");
    Box::new(move |key| group.get(key).is_ok())
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

/// Asks from all callers for that long.
fn ask(get: &Get, time: Duration) -> Seen {
    let keys = &Keys::new(KEYS, 20);
    let draw = |caller| zipf(&mut rng(caller as u64), KEYS, 0.99, 1 << 14);
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
