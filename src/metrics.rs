//! `prometheus`: [`Stats`] in the text format of Prometheus.

use std::fmt::{Display, Write};
use std::iter::zip;

use crate::cache::CacheStats;
use crate::stats::{Histogram, Stats};

/// The metrics of several groups in the Prometheus text format (version 0.0.4).
///
/// | metric | type | labels | what |
/// |---|---|---|---|
/// | `geecache_gets_total` | counter | group | Keys asked for, by callers here and by peers. |
/// | `geecache_peer_requests_total` | counter | group | Keys that peers asked for. |
/// | `geecache_misses_total` | counter | group | Gets that no cache could answer. |
/// | `geecache_handed_over_total` | counter | group | Misses that an earlier owner answered. |
/// | `geecache_fallbacks_total` | counter | group | Loads in place of an owner. |
/// | `geecache_local_loads_total` | counter | group | Keys that the getter answered. |
/// | `geecache_local_load_errors_total` | counter | group | Keys for which the getter failed. |
/// | `geecache_shared_total` | counter | group | Misses that shared another's load. |
/// | `geecache_refreshes_total` | counter | group | Values renewed before they expired. |
/// | `geecache_refresh_errors_total` | counter | group | Renewals that failed. |
/// | `geecache_stale_total` | counter | group | Misses answered by a value past its time. |
/// | `geecache_removals_incomplete_total` | counter | group | Removals that a peer did not confirm. |
/// | `geecache_hits_total` | counter | group, cache | Gets that a cache answered. |
/// | `geecache_evictions_total` | counter | group, cache | Entries evicted to make room for others. |
/// | `geecache_expirations_total` | counter | group, cache | Expired entries replaced or evicted. |
/// | `geecache_rejected_total` | counter | group, cache | Values too large to be kept. |
/// | `geecache_entries` | gauge | group, cache | Entries held. |
/// | `geecache_bytes` | gauge | group, cache | Bytes held, overhead included. |
/// | `geecache_max_bytes` | gauge | group, cache | The budget in bytes. |
/// | `geecache_peer_up` | gauge | group, peer | 1 if the peer answered last time, 0 if it cools down. |
/// | `geecache_peer_loads_total` | counter | group, peer | Misses that the owner answered. |
/// | `geecache_peer_errors_total` | counter | group, peer, kind | Misses that the owner did not answer. |
/// | `geecache_origin_load_seconds` | histogram | group | Time of each getter call. |
/// | `geecache_peer_load_seconds` | histogram | group, peer | Time of each question to a peer. |
/// | `geecache_queued_requests` | gauge | none | Requests that wait for a worker. |
/// | `geecache_shed_total` | counter | none | Requests refused with 503. |
///
/// The last two are added by [`HttpServer`](crate::HttpServer), which answers `/metrics` with all of
/// them; [`HttpServer::metrics`](crate::HttpServer::metrics) gives the same to a program's own page.
/// `cache` is `main` or `hot`. A histogram has the series `_bucket` (with `le`, from 100 µs to 10 s),
/// `_sum` and `_count`.
///
/// The kinds of errors of a peer: `connection` (none, a broken one, or no HTTP), `timeout`, `slow` (no
/// answer within the deadline, though the peer answers others), `out_of_time` (too little was left to ask), `cooling_down` (not asked), `load_failed` (its own load;
/// status `502`), the statuses `401`, `404` (no such group there) and `503` (overloaded), `status` (any
/// other), `stranger` (no node of the cluster), `too_large` (the value) and `unsupported`.
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
    let groups = groups.into_iter().map(|(name, stats)| (label("group", name), stats));
    let groups: Vec<_> = groups.collect();
    let (mut caches, mut peers) = (Vec::new(), Vec::new());
    for (group, stats) in &groups {
        caches.push((format!("{group},cache=\"main\""), &stats.main));
        caches.push((format!("{group},cache=\"hot\""), &stats.hot));
        let of_peer =
            |(name, peer): (&String, _)| (format!("{group},{}", label("peer", name)), peer);
        peers.extend(stats.peers.iter().map(of_peer));
    }

    let mut text = String::new();
    for &(name, help, read) in GROUP_METRICS {
        let values = groups.iter().map(|(labels, stats)| (labels, read(stats)));
        family(&mut text, name, help, values);
    }
    for &(name, help, read) in CACHE_METRICS {
        let values = caches.iter().map(|(labels, stats)| (labels, read(stats)));
        family(&mut text, name, help, values);
    }
    let up = peers.iter().filter_map(|(labels, peer)| Some((labels, u64::from(peer.up?))));
    let help = "1 if the peer answered last time, 0 if it cools down.";
    family(&mut text, "geecache_peer_up", help, up);
    let loads = peers.iter().map(|(labels, peer)| (labels, peer.loads));
    let help = "Misses that the owner answered.";
    family(&mut text, "geecache_peer_loads_total", help, loads);
    let errors = peers.iter().flat_map(|(labels, peer)| {
        let kinds = peer.errors.iter();
        kinds.map(move |(kind, &errors)| (format!("{labels},kind=\"{kind}\""), errors))
    });
    let help = "Misses that the owner did not answer.";
    family(&mut text, "geecache_peer_errors_total", help, errors);
    let times = groups.iter().map(|(labels, stats)| (labels, &stats.getter_times));
    histogram(&mut text, "geecache_origin_load_seconds", "Time of each getter call.", times);
    let times = peers.iter().map(|(labels, peer)| (labels, &peer.times));
    histogram(&mut text, "geecache_peer_load_seconds", "Time of each question to a peer.", times);
    text
}

pub(crate) fn family<L: Display>(
    text: &mut String,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, u64)>,
) {
    // As Prometheus wants counters to be named.
    let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
    head(text, name, kind, help);
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{{{labels}}} {value}");
    }
}

fn histogram<'h, L: Display>(
    text: &mut String,
    name: &str,
    help: &str,
    values: impl IntoIterator<Item = (L, &'h Histogram)>,
) {
    head(text, name, "histogram", help);
    for (labels, times) in values {
        let mut until_here = 0;
        for (bound, count) in zip(Histogram::BOUNDS, times.counts) {
            until_here += count;
            let bound = bound.as_secs_f64();
            let _ = writeln!(text, "{name}_bucket{{{labels},le=\"{bound}\"}} {until_here}");
        }
        let (sum, count) = (times.sum.as_secs_f64(), times.count());
        let _ = writeln!(text, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}");
        let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
    }
}

/// Writes the two lines before a metric's values.
fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn label(name: &str, value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("{name}=\"{value}\"")
}

/// Its name, its help and how it is read.
type Metric<S> = (&'static str, &'static str, fn(&S) -> u64);

const GROUP_METRICS: &[Metric<Stats>] = &[
    ("geecache_gets_total", "Keys asked for, by callers here and by peers.", |s| s.gets),
    ("geecache_peer_requests_total", "Keys that peers asked for.", |s| s.peer_requests),
    ("geecache_misses_total", "Gets that no cache could answer.", |s| s.misses),
    ("geecache_handed_over_total", "Misses that an earlier owner answered.", |s| s.handed_over),
    ("geecache_fallbacks_total", "Loads in place of an owner.", |s| s.fallbacks),
    ("geecache_local_loads_total", "Keys that the getter answered.", |s| s.local_loads),
    ("geecache_local_load_errors_total", "Keys for which the getter failed.", |s| {
        s.local_load_errors
    }),
    ("geecache_shared_total", "Misses that shared another's load.", |s| s.shared),
    ("geecache_refreshes_total", "Values renewed before they expired.", |s| s.refreshes),
    ("geecache_refresh_errors_total", "Renewals that failed.", |s| s.refresh_errors),
    ("geecache_stale_total", "Misses answered by a value past its time.", |s| s.stale),
    ("geecache_removals_incomplete_total", "Removals that a peer did not confirm.", |s| {
        s.removals_incomplete
    }),
];

const CACHE_METRICS: &[Metric<CacheStats>] = &[
    ("geecache_hits_total", "Gets that a cache answered.", |c| c.hits),
    ("geecache_evictions_total", "Entries evicted to make room for others.", |c| c.evictions),
    ("geecache_expirations_total", "Expired entries replaced or evicted.", |c| c.expirations),
    ("geecache_rejected_total", "Values too large to be kept.", |c| c.rejected),
    ("geecache_entries", "Entries held.", |c| c.entries as u64),
    ("geecache_bytes", "Bytes held, overhead included.", |c| c.bytes as u64),
    ("geecache_max_bytes", "The budget in bytes.", |c| c.max_bytes as u64),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PeerError, PeerStats};

    #[test]
    fn each_metric_has_its_help_and_type_once_and_labels_are_escaped() {
        let text = prometheus([("a", Stats::default()), ("b\"\\\n", Stats::default())]);
        assert_eq!(text.matches("# TYPE geecache_gets_total counter\n").count(), 1);
        assert!(text.contains("geecache_gets_total{group=\"a\"} 0\n"));
        assert!(text.contains("geecache_bytes{group=\"b\\\"\\\\\\n\",cache=\"hot\"} 0\n"));
    }

    #[test]
    fn the_kinds_of_errors_of_peers_are_those_of_the_docs() {
        let status = |code| PeerError::Status { code, text: String::new() };
        let text = String::new;
        let errors = [
            [PeerError::Transport(text()), PeerError::Timeout, PeerError::OutOfTime],
            [PeerError::CoolingDown, PeerError::Stranger(text()), PeerError::Unsupported],
            [PeerError::TooLarge { limit: 1 }, PeerError::LoadFailed(text()), status(401)],
            [status(404), status(503), status(418)],
        ];
        let docs = include_str!("metrics.rs").split("pub fn prometheus").next().unwrap();
        for error in errors.iter().flatten().chain([&PeerError::Slow]) {
            assert!(docs.contains(&format!("`{}`", error.kind())), "{error}");
        }
    }

    #[test]
    fn a_histogram_is_cumulative_and_a_peer_that_left_is_not_up_or_down() {
        let mut stats = Stats::default();
        let mut peer = PeerStats { up: None, loads: 3, ..PeerStats::default() };
        (peer.times.counts[0], peer.times.counts[3], peer.times.counts[16]) = (1, 1, 1);
        stats.peers.insert("http://b:1".into(), peer);
        let text = prometheus([("a", stats)]);
        let values: Vec<_> = text.lines().filter(|line| line.contains("peer=")).collect();
        let bucket = |le| {
            let labels = format!("group=\"a\",peer=\"http://b:1\",le=\"{le}\"");
            let line = format!("geecache_peer_load_seconds_bucket{{{labels}}} ");
            let line = values.iter().find_map(|value| value.strip_prefix(&line)).unwrap();
            line.parse::<u64>().unwrap()
        };
        assert_eq!([bucket("0.0001"), bucket("0.0005"), bucket("0.001")], [1, 1, 2]);
        assert_eq!([bucket("10"), bucket("+Inf")], [2, 3]);
        assert!(values.contains(&"geecache_peer_loads_total{group=\"a\",peer=\"http://b:1\"} 3"));
        assert!(!values.iter().any(|value| value.contains("peer_up")));
    }
}
