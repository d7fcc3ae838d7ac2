//! `Ring`: the consistent-hash ring. Immutable; knows nothing of caching.
//!
//! Which node owns a key, such that all nodes agree without asking one another, and a node that
//! joins or leaves moves only the keys near its own points? Karger et al., *Consistent
//! Hashing and Random Trees*, STOC 1997: nodes and keys are hashed onto a circle, and a key
//! belongs to the first node point at or after its own.
//! [`HttpPool`](crate::HttpPool) swaps one ring for the next.

use std::collections::BTreeSet;

/// The hash that puts nodes and keys on the circle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RingHash {
    /// CRC-32 (IEEE), as in Go's GeeCache: owners agree with Go nodes. 50 points per node.
    ///
    /// CRC-32 is linear, so the points of a node are those of any other node whose name is equally
    /// long, each combined with the same number by an exclusive or; more points hardly even out the
    /// shares.
    #[default]
    Crc32,
    /// CRC-32 passed through the 32-bit finaliser of MurmurHash3, for even shares in a cluster
    /// without Go nodes. 160 points per node.
    Crc32Mixed,
}

impl RingHash {
    /// The default number of points per node: 50, or 160 for `Crc32Mixed`.
    pub fn default_points(self) -> usize {
        match self {
            Self::Crc32 => 50,
            Self::Crc32Mixed => 160,
        }
    }

    fn of(self, bytes: &[u8]) -> u32 {
        let crc = crc32fast::hash(bytes);
        match self {
            Self::Crc32 => crc,
            Self::Crc32Mixed => fmix32(crc),
        }
    }
}

/// The finaliser of MurmurHash3 (Austin Appleby, public domain): each bit of the input changes
/// each bit of the output with a probability near one half.
fn fmix32(mut h: u32) -> u32 {
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Which node owns which key.
///
/// Point `i` of node `n` lies at `hash(decimal(i) + n)`. The owner of a key depends on the set
/// of nodes alone, never on their order: if two points have the same position, the node with the
/// greater name has it.
///
/// ```
/// use geecache::{Ring, RingHash};
/// let nodes = ["http://localhost:8001", "http://localhost:8002", "http://localhost:8003"];
/// let ring = Ring::new(nodes, 50, RingHash::Crc32);
/// assert_eq!(ring.owner("Tom"), Some("http://localhost:8001"));
/// ```
#[doc(alias = "consistenthash")]
#[derive(Clone, Debug)]
pub struct Ring {
    hash: RingHash,
    nodes: Box<[String]>,
    // Sorted by position; no two have the same.
    points: Box<[Point]>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    position: u32,
    node: u32,
}

/// The most points per node: a ring keeps the points of all nodes in memory.
pub(crate) const MAX_POINTS: usize = 10_000;

impl Ring {
    /// A ring of `nodes` with `points_per_node` points each. Names given twice count once.
    ///
    /// # Panics
    /// If `points_per_node` is more than 10,000.
    #[doc(alias = "replicas")]
    pub fn new<N: Into<String>>(
        nodes: impl IntoIterator<Item = N>,
        points_per_node: usize,
        hash: RingHash,
    ) -> Self {
        assert!(points_per_node <= MAX_POINTS, "a node has up to {MAX_POINTS} points on a ring");
        let nodes: BTreeSet<String> = nodes.into_iter().map(Into::into).collect();
        let nodes: Box<[String]> = nodes.into_iter().collect();
        let mut points = Vec::with_capacity(nodes.len() * points_per_node);
        // The nodes come in falling order and the sort is stable, so of the points at a position
        // the one of the greatest name comes first, and stays.
        for (node, name) in nodes.iter().enumerate().rev() {
            points.extend((0..points_per_node).map(|i| Point {
                position: hash.of(format!("{i}{name}").as_bytes()),
                node: node as u32,
            }));
        }
        points.sort_by_key(|point| point.position);
        points.dedup_by_key(|point| point.position);
        Self { hash, nodes, points: points.into() }
    }

    /// The node that owns `key`; `None` if the ring has no points.
    pub fn owner(&self, key: &str) -> Option<&str> {
        let position = self.position(key);
        let next = self.points.partition_point(|point| point.position < position);
        let point = self.points.get(next).or(self.points.first())?;
        Some(&self.nodes[point.node as usize])
    }

    /// The position of `key` on the circle. The first of the [`points`](Self::points) at or after it
    /// is the owner's; after the last point, the first of all.
    #[doc(alias = "place")]
    pub fn position(&self, key: &str) -> u32 {
        self.hash.of(key.as_bytes())
    }

    /// The nodes, sorted by name.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = &str> {
        self.nodes.iter().map(String::as_str)
    }

    /// The positions of the points on the circle of 2³², in rising order, with their nodes.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (u32, &str)> {
        self.points.iter().map(|point| (point.position, &*self.nodes[point.node as usize]))
    }

    /// The part of the circle that each node owns, sorted by name; the sum is 1.
    pub fn shares(&self) -> Vec<(&str, f64)> {
        let mut owned = vec![0_u64; self.nodes.len()];
        let mut previous = self.points.last();
        for point in &self.points {
            // An arc ends at its owner's point; the first one wraps around, a single one is the circle.
            let before = previous.map_or(0, |p| p.position);
            let arc = u64::from(point.position.wrapping_sub(before).wrapping_sub(1)) + 1;
            owned[point.node as usize] += arc;
            previous = Some(point);
        }
        let share = |owned: u64| owned as f64 / (1_u64 << 32) as f64;
        self.nodes().zip(owned.into_iter().map(share)).collect()
    }

    /// The node with the largest share, and how many times the average share that is. 0 if the ring has
    /// no points.
    pub fn largest_share(&self) -> (&str, f64) {
        let shares = self.shares();
        let largest = shares.iter().max_by(|(_, a), (_, b)| a.total_cmp(b));
        largest.map_or(("", 0.0), |&(node, share)| (node, share * shares.len() as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(nodes: &[&str]) -> Ring {
        Ring::new(nodes.iter().copied(), 50, RingHash::Crc32)
    }

    #[test]
    fn owners_are_those_that_go_computes_in_any_order_of_the_list() {
        let rows: Vec<&str> =
            include_str!("ring-vectors.tsv").lines().filter(|l| !l.starts_with('#')).collect();
        assert_eq!(rows.len(), 240);
        for row in rows {
            let [nodes, key, owner] = row.split('\t').collect::<Vec<_>>()[..] else {
                panic!("three columns expected: {row:?}");
            };
            let mut nodes: Vec<&str> = nodes.split(',').collect();
            for _ in 0..nodes.len() {
                nodes.rotate_left(1);
                assert_eq!(ring(&nodes).owner(key), Some(owner), "{key:?} of {nodes:?}");
                nodes.reverse();
                assert_eq!(ring(&nodes).owner(key), Some(owner), "{key:?} of {nodes:?}");
            }
        }
    }

    #[test]
    fn where_points_collide_the_greater_name_wins() {
        // Points "1" + "1host" and "11" + "host" are the same text.
        for order in [["host", "1host"], ["1host", "host"]] {
            let ring = Ring::new(order, 20, RingHash::Crc32);
            let position = crc32fast::hash(b"11host");
            let owner = ring.points().find(|&(at, _)| at == position).unwrap().1;
            assert_eq!(owner, "host");
        }
    }

    #[test]
    fn a_key_beyond_the_last_point_belongs_to_the_first() {
        let ring = ring(&["a", "b", "c"]);
        let last = ring.points().last().unwrap().0;
        let key = (0..).map(|i| i.to_string()).find(|k| ring.position(k) > last);
        assert_eq!(ring.owner(&key.unwrap()), ring.points().next().map(|(_, node)| node));
    }

    #[test]
    fn the_owner_is_that_of_the_first_point_at_or_after_the_position_of_the_key() {
        let ring = ring(&["a", "b", "c"]);
        assert_eq!(ring.position("Tom"), crc32fast::hash(b"Tom"));
        for key in (0..1_000).map(|i| i.to_string()) {
            let mut points = ring.points();
            let next = points.find(|&(position, _)| position >= ring.position(&key));
            let (_, owner) = next.or(ring.points().next()).unwrap();
            assert_eq!(ring.owner(&key), Some(owner));
        }
    }

    #[test]
    fn an_empty_ring_owns_nothing() {
        assert_eq!(ring(&[]).owner("Tom"), None);
        assert!(ring(&[]).shares().is_empty());
        assert_eq!(ring(&[]).largest_share(), ("", 0.0));
        assert_eq!(ring(&["only"]).largest_share(), ("only", 1.0));
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_keys() {
        let (three, two) = (ring(&["a", "b", "c"]), ring(&["a", "b"]));
        for key in (0..10_000).map(|i| i.to_string()) {
            let owner = three.owner(&key).unwrap();
            assert!(owner == "c" || two.owner(&key) == Some(owner));
        }
    }

    #[test]
    fn a_node_has_up_to_ten_thousand_points() {
        assert!(Ring::new(["a"], MAX_POINTS, RingHash::Crc32).points().len() > MAX_POINTS * 9 / 10);
        for too_many in [MAX_POINTS + 1, usize::MAX] {
            let panic =
                std::panic::catch_unwind(|| Ring::new(["a", "b"], too_many, RingHash::Crc32));
            assert_eq!(
                panic.unwrap_err().downcast_ref::<String>().map(String::as_str),
                Some("a node has up to 10000 points on a ring")
            );
        }
    }

    #[test]
    fn shares_are_the_part_of_the_keys_and_sum_to_one() {
        let ring =
            ring(&["http://localhost:8001", "http://localhost:8002", "http://localhost:8003"]);
        let keys: Vec<String> = (0..100_000).map(|i| format!("user:{i:08}")).collect();
        for (node, share) in ring.shares() {
            let owned = keys.iter().filter(|k| ring.owner(k) == Some(node)).count();
            assert!(
                (owned as f64 / keys.len() as f64 - share).abs() < 0.05,
                "{node} {share} {owned}"
            );
        }
        let sum: f64 = ring.shares().iter().map(|(_, share)| share).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        assert_eq!(Ring::new(["only"], 1, RingHash::Crc32).shares(), [("only", 1.0)]);
    }

    #[test]
    fn mixing_evens_the_shares_of_similar_names() {
        let nodes = || (0..10).map(|i| format!("http://10.0.0.{i}:8001"));
        let busiest = |hash: RingHash| Ring::new(nodes(), 160, hash).largest_share().1;
        assert!(busiest(RingHash::Crc32Mixed) < 1.3);
        assert!(busiest(RingHash::Crc32Mixed) < busiest(RingHash::Crc32));
        assert_eq!(RingHash::Crc32.default_points(), 50);
        assert_eq!(RingHash::Crc32Mixed.default_points(), 160);
    }
}
