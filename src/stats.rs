//! `Stats`: what a group counts.
//!
//! How does an operator know that a node does well? By how many gets its caches answer, by which
//! peers do not answer, and by how long loads take. Three identities hold whenever no get is under
//! way, and tests check them:
//!
//! - `gets = main.hits + hot.hits + misses`
//! - `misses = peer_loads + handed_over + local_loads + local_load_errors + shared`
//! - `fallbacks = peer_errors`
//!
//! Gets that [end with the owner's error](crate::GroupBuilder::retry_failed_loads) are peer errors
//! without a fallback, so that there `misses` has `peer_errors - fallbacks` more.
//!
//! Hits are counted in the shards, under the lock that a hit takes anyway, so that threads share no
//! cache line for counting them. Read on in `metrics.rs`, which writes all this for Prometheus.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cache::CacheStats;

/// A snapshot of a group's counters since it was built. A get counts once, whether a caller in
/// this process or a peer asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Keys asked for.
    pub gets: u64,
    /// Those of them that peers asked for.
    #[doc(alias = "ServerRequests")]
    pub peer_requests: u64,
    /// Gets that no cache could answer.
    pub misses: u64,
    /// Misses answered by the key's owner, with a value or with "no such key": the sum over `peers`, and
    /// over those that left long ago.
    pub peer_loads: u64,
    /// Misses that the owner did not answer, each followed by a fallback, unless the get
    /// [ends with the owner's error](crate::GroupBuilder::retry_failed_loads): a sum of the same kind.
    pub peer_errors: u64,
    /// Misses whose values came from another node's cache without a load: from an earlier owner's, after
    /// the list of peers had changed; or from the owner's, for a get inside a getter.
    pub handed_over: u64,
    /// Loads from the origin in place of an owner that did not answer.
    pub fallbacks: u64,
    /// Keys that the getter answered with a value or "no such key".
    pub local_loads: u64,
    /// Keys for which the getter failed or panicked.
    pub local_load_errors: u64,
    /// Misses that shared another caller's load, or the failure of it.
    #[doc(alias = "LoadsDeduped")]
    pub shared: u64,
    /// Values loaded anew [before they expired](crate::GroupBuilder::refresh_ahead). These loads count
    /// here and in the times of the getter or the peer, and in no other counter.
    pub refreshes: u64,
    /// Such loads that failed.
    pub refresh_errors: u64,
    /// Misses answered by a value [past its time](crate::GroupBuilder::stale_if_error), of this
    /// process or of the owner.
    pub stale: u64,
    /// How long each removal took that this process began, of a key or of all: from the first node to
    /// the last.
    pub removal_times: Histogram,
    /// Those of them that [not all peers](crate::Error::RemoveIncomplete) have confirmed.
    pub removals_incomplete: u64,
    /// How long each call of the getter took; a batch is one call.
    pub getter_times: Histogram,
    /// The questions to each peer, by its name. Those that have left the list are shown for ten minutes.
    pub peers: BTreeMap<String, PeerStats>,
    /// The cache of keys that this process owns.
    pub main: CacheStats,
    /// The cache of other processes' keys.
    pub hot: CacheStats,
}

/// How one peer answered the questions of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Whether it [answered last time](crate::PeerGetter::is_up); `None` if it has left the list of
    /// peers.
    pub up: Option<bool>,
    /// Misses that it answered.
    pub loads: u64,
    /// Misses that it did not answer.
    pub errors: u64,
    /// The same by the kind of error; [`prometheus`](crate::prometheus) lists the kinds.
    pub errors_by_kind: BTreeMap<&'static str, u64>,
    /// How long each question took, answered or not. A batch is one question; a peer that cools down
    /// is not asked, and neither is one that there was no time left to ask.
    pub times: Histogram,
}

/// A histogram of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Histogram {
    /// For each of the [bounds](Self::BOUNDS), how many durations were at most as long as it and
    /// longer than the bound before; at last, how many were longer than all bounds.
    pub counts: [u64; Self::BOUNDS.len() + 1],
    /// The sum of all durations.
    pub sum: Duration,
}

impl Histogram {
    /// 100 µs to 10 s, each about twice the one before.
    #[rustfmt::skip]
    pub const BOUNDS: [Duration; 16] = [
        us(100), us(250), us(500), ms(1), us(2_500), ms(5), ms(10), ms(25),
        ms(50), ms(100), ms(250), ms(500), ms(1_000), ms(2_500), ms(5_000), ms(10_000),
    ];

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// What a group counts outside of the hit path.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) misses: Counter,
    pub(crate) peer_requests: Counter,
    // Not the sums of what is counted for each peer, which would fall when one is forgotten.
    pub(crate) peer_loads: Counter,
    pub(crate) peer_errors: Counter,
    pub(crate) handed_over: Counter,
    pub(crate) fallbacks: Counter,
    pub(crate) local_loads: Counter,
    pub(crate) local_load_errors: Counter,
    pub(crate) shared: Counter,
    pub(crate) refreshes: Counter,
    pub(crate) refresh_errors: Counter,
    pub(crate) stale: Counter,
    pub(crate) removal_times: Times,
    pub(crate) removals_incomplete: Counter,
    pub(crate) getter_times: Times,
    // Guards the table alone, by the peers' names.
    peers: Mutex<BTreeMap<String, Peer>>,
}

/// How long a peer that has left the list is still shown.
const SHOWN_AFTER: Duration = Duration::from_secs(10 * 60);

#[derive(Default)]
struct Peer {
    counters: Arc<PeerCounters>,
    /// When it was first seen to have left the list.
    left: Option<Duration>,
}

#[derive(Default)]
pub(crate) struct PeerCounters {
    pub(crate) loads: Counter,
    // Guards the number of errors of each kind.
    errors: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) times: Times,
}

/// A [`Histogram`] that threads count in.
#[derive(Default)]
pub(crate) struct Times {
    counts: [Counter; Histogram::BOUNDS.len() + 1],
    nanos: Counter,
}

impl Times {
    pub(crate) fn record(&self, time: Duration) {
        self.counts[Histogram::BOUNDS.partition_point(|&bound| bound < time)].add(1);
        self.nanos.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    fn snapshot(&self) -> Histogram {
        Histogram {
            counts: self.counts.each_ref().map(Counter::get),
            sum: Duration::from_nanos(self.nanos.get()),
        }
    }
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add_one(&self) {
        self.add(1);
    }

    fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(crate) fn note_local_load<T, E>(&self, loaded: &Result<T, E>) {
        match loaded {
            Ok(_) => self.local_loads.add_one(),
            Err(_) => self.local_load_errors.add_one(),
        }
    }

    pub(crate) fn of_peer(&self, name: &str) -> Arc<PeerCounters> {
        let mut peers = self.peers.lock().unwrap();
        match peers.get(name) {
            Some(peer) => peer.counters.clone(),
            None => peers.entry(name.into()).or_default().counters.clone(),
        }
    }

    /// `peers` are the current ones, and whether each is up. `now` is the group's time.
    pub(crate) fn snapshot<'p>(
        &self,
        main: CacheStats,
        hot: CacheStats,
        peers: impl IntoIterator<Item = (&'p str, bool)>,
        now: Duration,
    ) -> Stats {
        let are_up: BTreeMap<&str, bool> = peers.into_iter().collect();
        let mut by_peer = self.snapshot_peers(&are_up, now);
        for (name, is_up) in are_up {
            by_peer.entry(name.into()).or_default().up = Some(is_up);
        }
        let misses = self.misses.get();
        Stats {
            gets: main.hits + hot.hits + misses,
            peer_requests: self.peer_requests.get(),
            misses,
            peer_loads: self.peer_loads.get(),
            peer_errors: self.peer_errors.get(),
            handed_over: self.handed_over.get(),
            fallbacks: self.fallbacks.get(),
            local_loads: self.local_loads.get(),
            local_load_errors: self.local_load_errors.get(),
            shared: self.shared.get(),
            refreshes: self.refreshes.get(),
            refresh_errors: self.refresh_errors.get(),
            stale: self.stale.get(),
            removal_times: self.removal_times.snapshot(),
            removals_incomplete: self.removals_incomplete.get(),
            getter_times: self.getter_times.snapshot(),
            peers: by_peer,
            main,
            hot,
        }
    }

    /// All that are shown. Forgets those that left long ago.
    fn snapshot_peers(
        &self,
        current: &BTreeMap<&str, bool>,
        now: Duration,
    ) -> BTreeMap<String, PeerStats> {
        let mut peers = self.peers.lock().unwrap();
        peers.retain(|name, peer| {
            peer.left = match current.contains_key(&**name) {
                true => None,
                false => peer.left.or(Some(now)),
            };
            peer.left.is_none_or(|left| now < left + SHOWN_AFTER)
        });
        peers.iter().map(|(name, peer)| (name.clone(), peer.counters.snapshot())).collect()
    }
}

impl PeerCounters {
    pub(crate) fn add_error(&self, kind: &'static str) {
        *self.errors.lock().unwrap().entry(kind).or_default() += 1;
    }

    fn snapshot(&self) -> PeerStats {
        let errors_by_kind = self.errors.lock().unwrap().clone();
        PeerStats {
            up: None,
            loads: self.loads.get(),
            errors: errors_by_kind.values().sum(),
            errors_by_kind,
            times: self.times.snapshot(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_where_it_is_no_longer_than_the_bound() {
        let times = Times::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            times.record(Duration::from_micros(micros));
        }
        let histogram = times.snapshot();
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!((histogram.counts[15], histogram.counts[16]), (1, 1));
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.sum, Duration::from_micros(20_000_202));
        assert!(Histogram::BOUNDS.is_sorted());
    }

    #[test]
    fn a_peer_that_left_keeps_its_counts_and_is_neither_up_nor_down() {
        let counters = Counters::default();
        let load = |peer| {
            counters.peer_loads.add_one();
            counters.of_peer(peer).loads.add_one();
        };
        load("b");
        counters.peer_errors.add_one();
        counters.of_peer("c").add_error("timeout");
        let caches = CacheStats::default;
        let at = |seconds, peers: &[(&'static str, bool)]| {
            let now = Duration::from_secs(seconds);
            counters.snapshot(caches(), caches(), peers.iter().copied(), now)
        };
        let stats = at(1, &[("c", false), ("d", true)]);
        let up: Vec<_> = stats.peers.iter().map(|(name, peer)| (&**name, peer.up)).collect();
        assert_eq!(up, [("b", None), ("c", Some(false)), ("d", Some(true))]);
        assert_eq!((stats.peer_loads, stats.peer_errors), (1, 1));

        assert_eq!(at(600, &[("c", true)]).peers.len(), 2, "for ten minutes");
        let stats = at(601, &[("c", true)]);
        assert_eq!(stats.peers.keys().collect::<Vec<_>>(), ["c"]);
        assert_eq!((stats.peer_loads, stats.peer_errors), (1, 1), "the sums stay");
        load("b");
        assert_eq!(at(602, &[("b", true)]).peer_loads, 2, "it has returned");
    }
}
