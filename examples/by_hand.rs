//! `PeerPicker` and `PeerGetter` written by hand: three nodes in one process, and no HTTP.
//!
//! Type `cargo run --example by_hand`. Each node is asked for Tom, but only Tom's owner searches
//! the origin: `node c searches the origin for Tom`, then `node a: 630`, `node b: 630` and so on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use geecache::{Error, Group, Loaded, PeerError, PeerGetter, PeerPicker, Ring, RingHash};

/// In place of a network: each node's group by the node's name.
type Nodes = Arc<Mutex<BTreeMap<&'static str, Arc<Group>>>>;

/// The cluster as the node `me` sees it.
struct Picker {
    me: &'static str,
    ring: Arc<Ring>,
    nodes: Nodes,
}

impl PeerPicker for Picker {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        let owner = self.ring.owner(key).filter(|&owner| owner != self.me)?;
        let group = self.nodes.lock().unwrap().get(owner)?.clone();
        Some(Arc::new(Peer(owner.to_string(), group)))
    }
}

/// Another node: its name and its group.
struct Peer(String, Arc<Group>);

impl PeerGetter for Peer {
    fn name(&self) -> &str {
        &self.0
    }

    fn get(&self, _group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        let answer = self.1.answer_peer(key).map_err(|e| PeerError::Transport(e.to_string()))?;
        Ok(answer.map(|(value, ttl)| Loaded { ttl, ..value.into() }))
    }
}

fn main() -> Result<(), Error> {
    let (names, nodes) = (["a", "b", "c"], Nodes::default());
    let ring = Arc::new(Ring::new(names, 50, RingHash::Crc32));
    for me in names {
        let scores = Group::builder("scores", move |key: &str| {
            println!("node {me} searches the origin for {key}");
            Ok::<_, Infallible>((key == "Tom").then_some("630"))
        });
        let picker = Picker { me, ring: ring.clone(), nodes: nodes.clone() };
        nodes.lock().unwrap().insert(me, scores.peers(Arc::new(picker)).build()?);
    }
    let groups = nodes.lock().unwrap().clone();
    groups.iter().try_for_each(|(node, group)| {
        group.get("Tom").map(|score| println!("node {node}: {}", score.unwrap()))
    })
}
