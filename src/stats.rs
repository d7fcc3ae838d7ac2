//! `Stats`: what a group counts, as numbers and as Prometheus text.
//!
//! Two identities hold once no get is under way, and a test checks them after each scenario:
//!
//! - `gets = main.hits + hot.hits + misses`
//! - `misses = peer_loads + local_loads + local_load_errors + shared`
//!
//! Hits are counted in the shards, under the lock that a hit takes anyway, so that counting
//! costs the hit path no cache line that threads share.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache::CacheStats;

/// A snapshot of a group's counters since it was built. A get counts once, whether a caller in
/// this process or a peer asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys asked for.
    pub gets: u64,
    /// Those of them that a peer asked for.
    #[doc(alias = "ServerRequests")]
    pub peer_requests: u64,
    /// Gets that no cache could answer.
    pub misses: u64,
    /// Misses answered by the key's owner, with a value or with "no such key".
    pub peer_loads: u64,
    /// Owners that did not answer; each is followed by a fallback.
    pub peer_errors: u64,
    /// Loads from the origin in place of an owner that did not answer.
    pub fallbacks: u64,
    /// Calls of the getter that gave a value or "no such key".
    pub local_loads: u64,
    /// Calls of the getter that failed or panicked.
    pub local_load_errors: u64,
    /// Misses that another caller's load answered, or failed together with it.
    #[doc(alias = "LoadsDeduped")]
    pub shared: u64,
    /// The cache of keys that this process owns.
    pub main: CacheStats,
    /// The cache of other processes' keys.
    pub hot: CacheStats,
}

/// What a group counts off the hit path.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) misses: Counter,
    pub(crate) peer_requests: Counter,
    pub(crate) peer_loads: Counter,
    pub(crate) peer_errors: Counter,
    pub(crate) fallbacks: Counter,
    pub(crate) local_loads: Counter,
    pub(crate) local_load_errors: Counter,
    pub(crate) shared: Counter,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn snapshot(&self, main: CacheStats, hot: CacheStats) -> Stats {
        let misses = self.misses.get();
        Stats {
            gets: main.hits + hot.hits + misses,
            peer_requests: self.peer_requests.get(),
            misses,
            peer_loads: self.peer_loads.get(),
            peer_errors: self.peer_errors.get(),
            fallbacks: self.fallbacks.get(),
            local_loads: self.local_loads.get(),
            local_load_errors: self.local_load_errors.get(),
            shared: self.shared.get(),
            main,
            hot,
        }
    }
}

/// The metrics of several groups in the Prometheus text format (version 0.0.4), each with the
/// label `group`.
///
/// ```
/// # use geecache::Group;
/// let scores = Group::builder("scores", |_: &str| Ok::<_, std::io::Error>(Some("630"))).build()?;
/// scores.get("Tom")?;
/// scores.get("Tom")?;
/// let text = geecache::prometheus([(scores.name(), scores.stats())]);
/// assert!(text.contains("geecache_hits_total{group=\"scores\",cache=\"main\"} 1\n"));
/// # Ok::<(), geecache::Error>(())
/// ```
pub fn prometheus<'g>(groups: impl IntoIterator<Item = (&'g str, Stats)>) -> String {
    let groups: Vec<_> = groups.into_iter().map(|(name, stats)| (label(name), stats)).collect();
    let mut text = String::new();
    for (name, kind, help, read) in GROUP_METRICS {
        head(&mut text, name, kind, help);
        for (group, stats) in &groups {
            let _ = writeln!(text, "{name}{{group=\"{group}\"}} {}", read(stats));
        }
    }
    for (name, kind, help, read) in CACHE_METRICS {
        head(&mut text, name, kind, help);
        for (group, stats) in &groups {
            for (cache, stats) in [("main", &stats.main), ("hot", &stats.hot)] {
                let value = read(stats);
                let _ = writeln!(text, "{name}{{group=\"{group}\",cache=\"{cache}\"}} {value}");
            }
        }
    }
    text
}

/// The two lines in front of a metric's values.
pub(crate) fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

type Metric<S> = (&'static str, &'static str, &'static str, fn(&S) -> u64);

const GROUP_METRICS: &[Metric<Stats>] = &[
    ("geecache_gets_total", "counter", "Keys asked for, by callers here and by peers.", |s| s.gets),
    ("geecache_peer_requests_total", "counter", "Keys that peers asked for.", |s| s.peer_requests),
    ("geecache_misses_total", "counter", "Gets that no cache could answer.", |s| s.misses),
    ("geecache_peer_loads_total", "counter", "Misses that the owner answered.", |s| s.peer_loads),
    ("geecache_peer_errors_total", "counter", "Owners that did not answer.", |s| s.peer_errors),
    ("geecache_fallbacks_total", "counter", "Loads in place of an owner.", |s| s.fallbacks),
    ("geecache_local_loads_total", "counter", "Getter calls that succeeded.", |s| s.local_loads),
    ("geecache_local_load_errors_total", "counter", "Getter calls that failed.", |s| {
        s.local_load_errors
    }),
    ("geecache_shared_total", "counter", "Misses that shared another's load.", |s| s.shared),
];

const CACHE_METRICS: &[Metric<CacheStats>] = &[
    ("geecache_hits_total", "counter", "Gets that a cache answered.", |c| c.hits),
    ("geecache_evictions_total", "counter", "Entries that gave way to others.", |c| c.evictions),
    ("geecache_expirations_total", "counter", "Entries found expired.", |c| c.expirations),
    ("geecache_rejected_total", "counter", "Values larger than the budget.", |c| c.rejected),
    ("geecache_entries", "gauge", "Entries held.", |c| c.entries as u64),
    ("geecache_bytes", "gauge", "Bytes held, overhead included.", |c| c.bytes as u64),
    ("geecache_max_bytes", "gauge", "The budget in bytes.", |c| c.max_bytes as u64),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_metric_has_its_help_and_type_once_and_labels_are_escaped() {
        let text = prometheus([("a", Stats::default()), ("b\"\\\n", Stats::default())]);
        assert_eq!(text.matches("# TYPE geecache_gets_total counter\n").count(), 1);
        assert!(text.contains("geecache_gets_total{group=\"a\"} 0\n"));
        assert!(text.contains("geecache_bytes{group=\"b\\\"\\\\\\n\",cache=\"hot\"} 0\n"));
        let values = text.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(values, 2 * GROUP_METRICS.len() + 4 * CACHE_METRICS.len());
    }
}
