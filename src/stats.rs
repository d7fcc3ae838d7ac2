//! `Stats`: the counters of a group.
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
//! cache line for counting them. `metrics.rs` writes all this for Prometheus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cache::CacheStats;
use crate::{PeerError, PeerGetter};

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
    /// over those that have left.
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
    /// Misses answered by a value [past its time](crate::GroupBuilder::stale_if_error) of this process.
    pub stale: u64,
    /// Removals that this process began, of a key or of all, and that
    /// [not all peers](crate::Error::RemoveIncomplete) have confirmed.
    pub removals_incomplete: u64,
    /// How long each call of the getter took; a batch is one call.
    pub getter_times: Histogram,
    /// The questions to each peer, by its name. A peer that has left the list is shown until the list
    /// changes again, a minute later or more.
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
    /// Misses that it did not answer, by the kind of error; [`prometheus`](crate::prometheus) lists the kinds.
    pub errors: BTreeMap<&'static str, u64>,
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
        us(100), us(250), us(500), us(1_000), us(2_500), us(5_000), us(10_000), us(25_000),
        us(50_000), us(100_000), us(250_000), us(500_000),
        us(1_000_000), us(2_500_000), us(5_000_000), us(10_000_000),
    ];

    pub(crate) fn record(&mut self, time: Duration) {
        self.counts[Self::BOUNDS.partition_point(|&bound| bound < time)] += 1;
        self.sum = self.sum.saturating_add(time);
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

const fn us(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// The counters outside of the hit path.
// The mutex guards all of them, held for a few additions.
#[derive(Default)]
pub(crate) struct Counters(Mutex<Stats>);

impl Counters {
    pub(crate) fn add(&self, add: impl FnOnce(&mut Stats)) {
        add(&mut self.0.lock().unwrap());
    }

    /// With the counts of the caches, and the peers in the list.
    pub(crate) fn with(
        &self,
        [main, hot]: [CacheStats; 2],
        peers: &[Arc<dyn PeerGetter>],
    ) -> Stats {
        let counted = self.0.lock().unwrap().clone();
        let gets = main.hits + hot.hits + counted.misses;
        let mut stats = Stats { gets, main, hot, ..counted };
        peers.iter().for_each(|peer| stats.peer(peer.name()).up = Some(peer.is_up()));
        stats
    }
}

impl Stats {
    /// Counts a miss that a peer was asked for.
    pub(crate) fn note_peer<T>(&mut self, name: &str, answer: &Result<T, PeerError>) {
        let peer = self.peer(name);
        match answer {
            Ok(_) => {
                peer.loads += 1;
                self.peer_loads += 1;
            }
            Err(error) => {
                *peer.errors.entry(error.kind()).or_default() += 1;
                self.peer_errors += 1;
            }
        }
    }

    /// The counters of a peer.
    pub(crate) fn peer(&mut self, name: &str) -> &mut PeerStats {
        self.peers.entry(name.into()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Loaded;

    #[test]
    fn a_time_is_counted_where_it_is_no_longer_than_the_bound() {
        let mut histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.record(Duration::from_micros(micros));
        }
        assert_eq!((histogram.counts[0], histogram.counts[1]), (2, 1));
        assert_eq!((histogram.counts[15], histogram.counts[16]), (1, 1));
        assert_eq!(histogram.count(), 5);
        assert_eq!(histogram.sum, Duration::from_micros(20_000_202));
        assert!(Histogram::BOUNDS.is_sorted());
    }

    struct Peer(&'static str);

    impl PeerGetter for Peer {
        fn name(&self) -> &str {
            self.0
        }

        fn get(&self, _: &str, _: &str) -> Result<Option<Loaded>, PeerError> {
            unreachable!()
        }

        fn is_up(&self) -> bool {
            self.0 == "d"
        }
    }

    #[test]
    fn a_peer_that_left_keeps_its_counts_and_is_neither_up_nor_down() {
        let counters = Counters::default();
        counters.add(|stats| stats.peer("b").loads += 1);
        let (main, hot) = (CacheStats { hits: 2, ..CacheStats::default() }, CacheStats::default());
        counters.add(|stats| stats.misses += 1);
        let stats = counters.with([main, hot], &[Arc::new(Peer("c")), Arc::new(Peer("d"))]);
        let up: Vec<_> = stats.peers.iter().map(|(name, peer)| (&**name, peer.up)).collect();
        assert_eq!(up, [("b", None), ("c", Some(false)), ("d", Some(true))]);
        assert_eq!((stats.gets, stats.peers["b"].loads), (3, 1));
    }
}
