//! Several nodes, each a `Group`, that ask each other without a network.

use std::sync::{Arc, OnceLock, Weak};

use libtest_mimic::Trial;

use super::group::{Origin, ask};
use super::{many, together};
use crate::{Group, Loaded, PeerError, PeerGetter, PeerPicker};

pub(super) fn all() -> Vec<Trial> {
    vec![
        many(a_key_is_loaded_once_in_all_nodes_together),
        many(nothing_from_before_a_removal_is_seen_after_it::<0, false, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, false, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, false, false>),
        many(nothing_from_before_a_removal_is_seen_after_it::<0, true, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, true, true>),
    ]
}

/// As many nodes as there are in the scenario; the first owns every key.
const NODES: usize = 3;

type Members = Arc<OnceLock<Vec<Weak<Group>>>>;

/// What node `own` knows of the others.
struct Peers {
    own: usize,
    members: Members,
}

impl Peers {
    fn peer(&self, node: usize) -> Arc<dyn PeerGetter> {
        let group = self.members.get().unwrap()[node].upgrade().unwrap();
        Arc::new(Peer { name: node.to_string(), group })
    }
}

impl PeerPicker for Peers {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        (self.own != 0).then(|| self.peer(0))
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        (0..NODES).filter(|&node| node != self.own).map(|node| self.peer(node)).collect()
    }
}

struct Peer {
    name: String,
    group: Arc<Group>,
}

impl PeerGetter for Peer {
    fn name(&self) -> &str {
        &self.name
    }

    fn get(&self, _group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        let answer = self.group.answer_peer(key).unwrap();
        Ok(answer.map(|(value, ttl)| Loaded { ttl, ..value.into() }))
    }

    fn remove(&self, _group: &str, key: &str) -> Result<(), PeerError> {
        self.group.answer_removal(key).unwrap();
        Ok(())
    }

    fn clear(&self, _group: &str) -> Result<(), PeerError> {
        self.group.answer_clear();
        Ok(())
    }
}

fn nodes_over(origin: &Arc<Origin>) -> Vec<Arc<Group>> {
    let members = Members::default();
    let node = |own| {
        let peers = Peers { own, members: members.clone() };
        origin.group().peers(peers).hot_bytes(5_000).build().unwrap()
    };
    let nodes: Vec<_> = (0..NODES).map(node).collect();
    members.set(nodes.iter().map(Arc::downgrade).collect()).unwrap();
    nodes
}

fn a_key_is_loaded_once_in_all_nodes_together() {
    let origin = Origin::at(1);
    let nodes = nodes_over(&origin);
    together(4, |i| assert_eq!(nodes[i % NODES].get("k").unwrap().unwrap(), "1"));
    assert_eq!(origin.loads(), 1);
}

fn nothing_from_before_a_removal_is_seen_after_it<
    const BY: usize,
    const ALL: bool,
    const COPIES: bool,
>() {
    let origin = Origin::at(1);
    let nodes = nodes_over(&origin);
    if COPIES {
        // Who has asked once keeps a copy from the second time on.
        nodes.iter().for_each(|node| assert_eq!(ask(node, 0), 1));
    }
    together(3, |i| {
        if i > 0 {
            let node = &nodes[(BY + i - 1) % NODES];
            ask(node, 0);
            ask(node, 0);
            return;
        }
        origin.write(2);
        if ALL {
            nodes[BY].clear().unwrap()
        } else {
            nodes[BY].remove("k").unwrap()
        }
        for node in &nodes {
            assert_eq!(ask(node, 0), 2, "while others ask");
        }
    });
    for node in &nodes {
        assert_eq!(ask(node, 0), 2, "was kept");
    }
}
