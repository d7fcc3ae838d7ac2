//! Does combining cost latency behind a network?
//!
//! Gets of keys that another process holds, through a relay that stands for the network between
//! them: combined, plain, and plain again, in turns. By how much two measurements of the same thing
//! differ is chance, and says which differences between the first two mean something. Options choose
//! rows, for example `bench network --load groups --rtt 1 --callers 16,64 --seconds 4`.
//!
//! The relay shares the processors with what it carries. Where all are busy, its part of each
//! exchange counts against the gets, and more against those that are not combined; `--load tcp`
//! shows what it can carry.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use geecache::{Group, HttpPool, PoolOptions};
use hdrhistogram::Histogram;
use rand::RngExt;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Exp};

#[allow(dead_code)]
#[path = "../../tests/it/support/relay.rs"]
mod relay;

use self::relay::{Lateness, Relay};
use crate::remote::{Bare, Caller, KEY_BYTES, MISS_PREFIX, Owner, histogram};
use crate::table::{Cell, Report, Table};
use crate::workload::rng;
use crate::{Settings, progress};

pub(crate) const SMALL_BYTES: usize = 3;
pub(crate) const LARGE_BYTES: usize = 1 << 20;
/// The owner's groups of small values, and that of large ones.
pub(crate) const SMALL: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
pub(crate) const LARGE: &str = "large";

/// Each asks for one large value after the other, beside the callers that are measured.
const LARGE_CALLERS: usize = 8;
const LARGE_KEYS: usize = 2 * LARGE_CALLERS;
/// Bytes per second in each direction, beside large values.
const BANDWIDTH: NonZeroU64 = NonZeroU64::new(100_000_000).unwrap();
/// So many, of those that are there and of those that are missed, that few are asked for twice at
/// the same time: such gets share one question anyway.
const KEYS: usize = 10_000;

/// Which rows are measured.
#[derive(clap::Args, Default)]
pub(crate) struct Choice {
    /// For `network`: round trips in ms; `direct` is without the relay
    #[arg(
        long,
        global = true,
        value_name = "MS",
        value_delimiter = ',',
        default_value = "direct,0,0.2,1,20"
    )]
    rtt: Vec<Rtt>,
    /// For `network`: numbers of callers
    #[arg(
        long,
        global = true,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1,4,16,64,256"
    )]
    callers: Vec<usize>,
    /// For `network`: what is asked for; all by default, with --quick all but `groups-misses`
    #[arg(long, global = true, value_delimiter = ',')]
    load: Vec<Load>,
    /// For `network`: when it is asked for; both by default
    #[arg(long, global = true, value_delimiter = ',')]
    arrivals: Vec<Arrivals>,
    /// For `network`: how long each system is measured for each row; the default depends on the row
    #[arg(long, global = true, value_name = "S")]
    seconds: Option<f64>,
}

/// A round trip; `None`: without the relay.
#[derive(Clone, Copy)]
struct Rtt(Option<Duration>);

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Load {
    /// The network itself, by bare TCP
    Tcp,
    /// One group whose keys the owner has
    Hits,
    /// 8 groups whose keys the owner has
    Groups,
    /// One group; 10 % of the gets wait 5 ms for the owner's origin
    Misses,
    /// The same with 8 groups
    GroupsMisses,
    /// Small values beside 8 callers of 1 MiB values, at 100 MB/s
    Large,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Arrivals {
    /// Each caller asks again at once
    Closed,
    /// Each caller pauses first, for a random time of one round trip on average
    Random,
}

/// What a table shows.
#[derive(Clone, Copy)]
struct Topic {
    load: Load,
    arrivals: Arrivals,
}

/// What a row shows.
#[derive(Clone, Copy)]
struct Row {
    topic: Topic,
    rtt: Rtt,
    callers: usize,
}

pub(crate) fn run(settings: &Settings) -> Report {
    let tables: Vec<(Topic, Vec<Row>)> = settings.network.tables(settings.quick);
    let bar = progress("network", tables.iter().map(|(_, rows)| rows.len()).sum());
    let mut bench = Bench::new();
    let tables = tables.into_iter().map(|(topic, rows)| {
        let mut table = topic.table();
        let mut worse = Worse::default();
        for row in rows {
            match topic.load {
                Load::Tcp => bench.bare_row(row, settings, &mut table),
                _ => bench.row(row, settings, &mut table, &mut worse),
            }
            bar.inc(1);
        }
        if topic.load != Load::Tcp {
            table.note(worse.to_string());
        }
        table.note("late: by how much the relay delivered later than due, mean and p99.");
        table
    });
    Report { topic: "network", tables: tables.collect() }
}

impl Choice {
    fn tables(&self, quick: bool) -> Vec<(Topic, Vec<Row>)> {
        let mut tables = Vec::new();
        for &load in Load::value_variants() {
            for &arrivals in Arrivals::value_variants() {
                let is_chosen = match self.load[..] {
                    [] => !quick || load != Load::GroupsMisses,
                    _ => self.load.contains(&load),
                } && (self.arrivals.is_empty()
                    || self.arrivals.contains(&arrivals));
                let topic = Topic { load, arrivals };
                let rows: Vec<Row> = self.rows(topic).filter(Row::makes_sense).collect();
                if is_chosen && !rows.is_empty() {
                    tables.push((topic, rows));
                }
            }
        }
        tables
    }

    fn rows(&self, topic: Topic) -> impl Iterator<Item = Row> {
        let row = move |rtt, callers| Row { topic, rtt, callers };
        self.rtt.iter().flat_map(move |&rtt| self.callers.iter().map(move |&n| row(rtt, n)))
    }
}

impl Topic {
    fn table(self) -> Table {
        const TIMES: [&str; 4] = ["mean ms", "p50", "p99", "per second"];
        const LATE: [&str; 2] = ["late µs", "late p99"];
        if self.load == Load::Tcp {
            let columns = [&["RTT ms", "callers"][..], &TIMES, &LATE].concat();
            return Table::new("Bare TCP, questions of 13 bytes and answers of 3", &columns);
        }
        let load = match self.load {
            Load::Tcp | Load::Hits => "1 group",
            Load::Groups => "8 groups",
            Load::Misses => "1 group, 10 % misses of 5 ms",
            Load::GroupsMisses => "8 groups, 10 % misses of 5 ms",
            Load::Large => "1 group, beside 8 callers of 1 MiB values at 100 MB/s",
        };
        let arrivals = match self.arrivals {
            Arrivals::Closed => "closed loop",
            Arrivals::Random => "random arrivals",
        };
        let title =
            format!("Gets of another process's keys, values of 3 bytes; {load}; {arrivals}");
        let columns = [
            &["RTT ms", "callers", "gets"][..],
            &["combined: mean ms", "c. p50", "c. p99", "c. per second"],
            &["plain: mean ms", "p. p50", "p. p99", "p. per second"],
            &["c/p mean", "c/p p99", "worse", "p/p mean", "p/p p99"],
            &LATE,
            if self.load == Load::Large { &["c. large MB/s", "p. large MB/s"] } else { &[] },
        ];
        Table::new(title, &columns.concat())
    }
}

impl Row {
    fn makes_sense(&self) -> bool {
        let Topic { load, arrivals } = self.topic;
        match arrivals {
            // The pauses are round trips.
            Arrivals::Random if self.rtt.time().is_zero() => false,
            Arrivals::Random => !matches!(load, Load::Tcp | Load::Large),
            Arrivals::Closed => load != Load::Large || (self.rtt.0.is_some() && self.callers <= 64),
        }
    }

    fn pause(&self) -> Option<Duration> {
        (self.topic.arrivals == Arrivals::Random).then(|| self.rtt.time())
    }

    /// How many turns each system has, and how long one is.
    fn turns(&self, settings: &Settings) -> (u32, Duration) {
        let turns = settings.pick(2, 4);
        // Eight large values take some 80 ms.
        let short = if self.topic.load == Load::Large { 2 * SHORT } else { SHORT };
        let time = match settings.network.seconds {
            Some(seconds) => Duration::from_secs_f64(seconds),
            None => {
                // Some 200 gets where that takes no longer than 3 s, or a tenth of that.
                let gets = self.rtt.time() * settings.pick(20, 200) / self.callers as u32;
                gets.clamp(settings.pick(short / 4, short), settings.pick(SHORT, 4 * SHORT))
            }
        };
        (turns, time / turns)
    }
}

const SHORT: Duration = Duration::from_millis(750);

struct Bench {
    owner: Owner,
    /// In front of the owner's HTTP server, and of its bare TCP one.
    relay: Relay,
    bare_relay: Relay,
    /// Combined, plain, and plain again: without the relay, and through it.
    direct: [Asker; 3],
    relayed: [Asker; 3],
    /// The round trip that the latter know: combining goes by the shortest one of the last second.
    relayed_at: Duration,
}

impl Bench {
    fn new() -> Self {
        let owner = Owner::start();
        let [relay, bare_relay] =
            [owner.http, owner.tcp].map(|address| Relay::to(address).expect("a relay"));
        let (direct, relayed) = (askers(owner.http), askers(relay.address()));
        Self { owner, relay, bare_relay, direct, relayed, relayed_at: Duration::ZERO }
    }

    fn row(&mut self, row: Row, settings: &Settings, table: &mut Table, worse: &mut Worse) {
        let limit = (row.topic.load == Load::Large).then_some(BANDWIDTH);
        self.relay.set_bandwidth(limit, limit);
        self.relay.set_delay(row.rtt.time());
        if self.relayed_at != row.rtt.time() {
            self.relayed_at = row.rtt.time();
            self.relayed = askers(self.relay.address());
        }
        let askers = if row.rtt.0.is_some() { &self.relayed } else { &self.direct };
        let (turns, time) = row.turns(settings);
        // For connections to be there.
        askers.iter().for_each(|asker| drop(asker.ask(row, time / 4 + 2 * row.rtt.time())));
        self.relay.lateness();
        let mut heard = [Heard::default(), Heard::default(), Heard::default()];
        for turn in 0..turns as usize {
            for i in 0..askers.len() {
                let system = (turn + i) % askers.len();
                heard[system].add(askers[system].ask(row, time));
            }
        }
        let late = self.relay.lateness();

        let [combined, plain, again] = &heard;
        for (kind, name) in ["hits", "misses"].into_iter().enumerate() {
            let [of_combined, of_plain, of_again] =
                [combined, plain, again].map(|heard| heard.mean_and_p99(kind));
            if of_plain.contains(&0.0) {
                continue;
            }
            let mark = match worse.note(of_combined, of_plain, of_again) {
                [false, false] => "",
                [true, false] => "mean",
                [false, true] => "p99",
                [true, true] => "mean, p99",
            };
            let mut cells = vec![row.rtt.to_string().into(), row.callers.into(), name.into()];
            cells.extend(combined.cells(kind));
            cells.extend(plain.cells(kind));
            cells.extend(over(of_combined, of_plain));
            cells.push(mark.into());
            cells.extend(over(of_again, of_plain));
            cells.extend(shown(late));
            if row.topic.load == Load::Large {
                cells.extend([combined, plain].map(Heard::large_rate));
            }
            table.row(cells);
        }
        for (heard, system) in heard.iter().zip(["combined", "plain", "plain again"]) {
            let of = format!("RTT {} ms, {} callers, {system}", row.rtt, row.callers);
            if heard.fallbacks > 0 {
                table.note(format!("{of}: {} gets fell back and count as hits", heard.fallbacks));
            }
        }
    }

    fn bare_row(&self, row: Row, settings: &Settings, table: &mut Table) {
        self.bare_relay.set_delay(row.rtt.time());
        let address = row.rtt.0.map_or(self.owner.tcp, |_| self.bare_relay.address());
        let connect = |_| Mutex::new(Bare::connect(address, KEY_BYTES, SMALL_BYTES));
        let connections: Vec<_> = (0..row.callers).map(connect).collect();
        let get = |caller: usize, _: &mut StdRng| {
            connections[caller].lock().unwrap().get("thirteenbytes");
            HIT
        };
        let (turns, time) = row.turns(settings);
        ask(row.callers, None, time / 4, get);
        self.bare_relay.lateness();
        let heard = ask(row.callers, None, time * turns, get);
        let mut cells = vec![row.rtt.to_string().into(), row.callers.into()];
        cells.extend(heard.cells(HIT));
        cells.extend(shown(self.bare_relay.lateness()));
        table.row(cells);
    }
}

/// How many rows are worse than plain by more than they may be: means and p99s.
#[derive(Default)]
struct Worse {
    combined: [usize; 2],
    again: [usize; 2],
}

impl Worse {
    /// Notes a row's means and p99s in nanoseconds; which of the combined ones are worse.
    fn note(&mut self, combined: [f64; 2], plain: [f64; 2], again: [f64; 2]) -> [bool; 2] {
        let is_worse = |time: f64, plain: f64| time > 1.1 * plain && time - plain > 0.1e6;
        for i in 0..2 {
            self.combined[i] += usize::from(is_worse(combined[i], plain[i]));
            self.again[i] += usize::from(is_worse(again[i], plain[i]));
        }
        [0, 1].map(|i| is_worse(combined[i], plain[i]))
    }
}

impl fmt::Display for Worse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { combined: [means, p99s], again: [again_means, again_p99s] } = self;
        write!(
            f,
            "c/p: combined over plain; p/p: plain, measured again, over plain. worse: c/p is more than \
             1.1 and the difference more than 0.1 ms; so are {means} means and {p99s} p99s, and by chance \
             {again_means} means and {again_p99s} p99s of p/p."
        )
    }
}

fn over(times: [f64; 2], plain: [f64; 2]) -> [Cell; 2] {
    [0, 1].map(|i| Cell::Number(times[i] / plain[i], 2))
}

fn shown(late: Lateness) -> [Cell; 2] {
    [late.mean, late.p99].map(|microseconds| Cell::Number(microseconds, 0))
}

// The kinds of gets.
const HIT: usize = 0;
const MISS: usize = 1;

/// What callers have heard.
struct Heard {
    /// How long gets took in nanoseconds, by their kind.
    times: [Histogram<u64>; 2],
    took: Duration,
    large_bytes: usize,
    fallbacks: u64,
}

impl Default for Heard {
    fn default() -> Self {
        let times = [histogram(), histogram()];
        Self { times, took: Duration::ZERO, large_bytes: 0, fallbacks: 0 }
    }
}

impl Heard {
    fn add(&mut self, other: Self) {
        for (all, times) in self.times.iter_mut().zip(other.times) {
            all.add(times).expect("one range");
        }
        self.took += other.took;
        self.large_bytes += other.large_bytes;
        self.fallbacks += other.fallbacks;
    }

    fn cells(&self, kind: usize) -> [Cell; 4] {
        let times = &self.times[kind];
        let ms = |nanoseconds| Cell::Number(nanoseconds / 1e6, 3);
        let [p50, p99] = [0.5, 0.99].map(|q| ms(quantile(times, q)));
        let rate = times.len() as f64 / self.took.as_secs_f64();
        [ms(times.mean()), p50, p99, Cell::Number(rate, 0)]
    }

    /// In nanoseconds; 0 if there were no gets of this kind.
    fn mean_and_p99(&self, kind: usize) -> [f64; 2] {
        [self.times[kind].mean(), quantile(&self.times[kind], 0.99)]
    }

    fn large_rate(&self) -> Cell {
        Cell::Number(self.large_bytes as f64 / self.took.as_secs_f64() / 1e6, 0)
    }
}

fn quantile(times: &Histogram<u64>, quantile: f64) -> f64 {
    times.value_at_quantile(quantile) as f64
}

/// Lets callers get for so long, each with pauses of so much on average before. `get` is given the
/// caller and tells the kind of the get.
fn ask(
    callers: usize,
    pause: Option<Duration>,
    time: Duration,
    get: impl Fn(usize, &mut StdRng) -> usize + Sync,
) -> Heard {
    let barrier = &Barrier::new(callers);
    let pause = pause.map(|mean| Exp::new(1.0 / mean.as_secs_f64()).expect("a pause"));
    let call = |caller: usize| {
        let mut rng = rng(caller as u64);
        let mut times = [histogram(), histogram()];
        barrier.wait();
        let begin = Instant::now();
        loop {
            if let Some(pause) = pause {
                thread::sleep(Duration::from_secs_f64(pause.sample(&mut rng)));
            }
            let start = Instant::now();
            if start - begin > time {
                return (times, begin, start);
            }
            let kind = get(caller, &mut rng);
            times[kind].saturating_record(start.elapsed().as_nanos() as u64);
        }
    };
    let mut heard = Heard::default();
    thread::scope(|scope| {
        let callers: Vec<_> = (0..callers).map(|i| scope.spawn(move || call(i))).collect();
        let callers = callers.into_iter().map(|caller| caller.join().expect("no panic"));
        let (mut first, mut last): (Option<Instant>, Option<Instant>) = (None, None);
        for (times, begin, end) in callers {
            heard.add(Heard { times, ..Heard::default() });
            first = first.into_iter().chain([begin]).min();
            last = last.max(Some(end));
        }
        heard.took = last.expect("a caller") - first.expect("a caller");
    });
    heard
}

/// One that combines and two that do not.
fn askers(owner: SocketAddr) -> [Asker; 3] {
    [true, false, false].map(|combine| Asker::new(owner, combine))
}

/// A node none of whose keys are its own and that keeps no copies.
struct Asker {
    small: Vec<Arc<Group>>,
    large: Arc<Group>,
    keys: Vec<String>,
    missed: Vec<String>,
}

impl Asker {
    fn new(owner: SocketAddr, combine: bool) -> Self {
        let (me, peer) = ("http://127.0.0.1:1".to_string(), format!("http://{owner}"));
        let options = PoolOptions { combine, ..PoolOptions::default() };
        let pool = HttpPool::with_options(&me, options).expect("a valid URL");
        pool.set_peers([&me, &peer]).expect("a list with this node");
        let keys = |prefix: &str, count| -> Vec<String> {
            let width = KEY_BYTES - prefix.len();
            let numbered = (0..).map(|i| format!("{prefix}{i:0width$}"));
            numbered.filter(|key| pool.owner(key) == peer).take(count).collect()
        };
        let group = |name: &str| {
            // Who falls back is counted.
            let getter = |_: &str| Ok::<_, std::convert::Infallible>(Some("fallback"));
            let group = Group::builder(name, getter).peers(pool.clone()).hot_bytes(0);
            group.build().expect("a group")
        };
        let (keys, missed) = (keys("", KEYS), keys(MISS_PREFIX, KEYS));
        let (small, large) = (SMALL.map(group).into(), group(LARGE));
        let asker = Self { small, large, keys, missed };
        // For the owner to have them.
        let texts: Vec<&str> = asker.keys.iter().map(|key| &**key).collect();
        asker.small.iter().for_each(|group| drop(group.get_many(&texts)));
        (0..LARGE_KEYS).for_each(|key| asker.get_large(key));
        assert_eq!(asker.fallbacks(), 0, "the owner answers");
        asker
    }

    fn fallbacks(&self) -> u64 {
        self.small.iter().map(|group| group.stats().fallbacks).sum()
    }

    fn get_large(&self, key: usize) {
        let value = self.large.get(&self.keys[key]).expect("an answer").expect("a value");
        assert_eq!(value.len(), LARGE_BYTES);
    }

    fn ask(&self, row: Row, time: Duration) -> Heard {
        let load = row.topic.load;
        let groups = match load {
            Load::Groups | Load::GroupsMisses => &self.small[..],
            _ => &self.small[..1],
        };
        let has_misses = matches!(load, Load::Misses | Load::GroupsMisses);
        let get = |_: usize, rng: &mut StdRng| {
            let is_miss = has_misses && rng.random_range(0..10) == 0;
            let keys = if is_miss { &self.missed } else { &self.keys };
            let key = &keys[rng.random_range(0..keys.len())];
            let value = groups[rng.random_range(0..groups.len())].get(key).expect("an answer");
            if value.is_some() { HIT } else { MISS }
        };
        let (is_over, large_bytes) = (AtomicBool::new(false), AtomicUsize::new(0));
        let before = self.fallbacks();
        let mut heard = thread::scope(|scope| {
            for caller in 0..if load == Load::Large { LARGE_CALLERS } else { 0 } {
                let (is_over, large_bytes) = (&is_over, &large_bytes);
                scope.spawn(move || {
                    // Two of its own: who asks for the same key at the same time shares the answer.
                    let keys = [caller, caller + LARGE_CALLERS].into_iter().cycle();
                    for key in keys.take_while(|_| !is_over.load(Ordering::Relaxed)) {
                        self.get_large(key);
                        large_bytes.fetch_add(LARGE_BYTES, Ordering::Relaxed);
                    }
                });
            }
            let mut heard = ask(row.callers, row.pause(), time, get);
            heard.large_bytes = large_bytes.load(Ordering::Relaxed);
            is_over.store(true, Ordering::Relaxed);
            heard
        });
        heard.fallbacks = self.fallbacks() - before;
        heard
    }
}

impl Rtt {
    fn time(self) -> Duration {
        self.0.unwrap_or_default()
    }
}

impl FromStr for Rtt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "direct" {
            return Ok(Self(None));
        }
        let milliseconds: f64 = text.parse().map_err(|_| "neither a number nor `direct`")?;
        let time = Duration::try_from_secs_f64(milliseconds / 1e3);
        time.map(|time| Self(Some(time))).map_err(|error| error.to_string())
    }
}

impl fmt::Display for Rtt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("direct"),
            Some(time) => write!(f, "{}", time.as_secs_f64() * 1e3),
        }
    }
}
