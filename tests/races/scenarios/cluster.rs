//! Several nodes, each a `Group`, that ask each other without a network.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use libtest_mimic::Trial;

use super::group::{Origin, ask};
use super::{many, together};
use crate::{Clock, Group, GroupBuilder, Loaded, PeerError, PeerGetter, PeerPicker};

pub(super) fn all() -> Vec<Trial> {
    vec![
        many(a_key_is_loaded_once_in_all_nodes_together),
        many(nothing_from_before_a_removal_is_seen_after_it::<0, false, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, false, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, false, false>),
        many(nothing_from_before_a_removal_is_seen_after_it::<0, true, true>),
        many(nothing_from_before_a_removal_is_seen_after_it::<1, true, true>),
        many(a_removal_beats_the_renewal_of_copies::<0, false>),
        many(a_removal_beats_the_renewal_of_copies::<1, false>),
        many(a_removal_beats_the_renewal_of_copies::<1, true>),
        many(what_is_handed_over_is_not_loaded),
        many(a_removal_reaches_a_node_that_is_known_later::<0, false>),
        many(a_removal_reaches_a_node_that_is_known_later::<2, false>),
        many(a_removal_reaches_a_node_that_is_known_later::<0, true>),
        many(no_copy_is_made_of_a_copy_that_a_removal_has_not_reached::<false>),
        many(no_copy_is_made_of_a_copy_that_a_removal_has_not_reached::<true>),
        many(nothing_is_taken_over_that_a_node_which_knows_no_earlier_owner_has_removed::<false>),
        many(nothing_is_taken_over_that_a_node_which_knows_no_earlier_owner_has_removed::<true>),
        many(getters_of_two_nodes_that_ask_for_each_others_keys_end),
        many(a_removal_wins_against_a_hand_over::<0, STAYS, true>),
        many(a_removal_wins_against_a_hand_over::<1, STAYS, true>),
        many(a_removal_wins_against_a_hand_over::<2, STAYS, true>),
        many(a_removal_wins_against_a_hand_over::<1, LEAVES, true>),
        many(a_removal_wins_against_a_hand_over::<2, LEAVES, true>),
        many(a_removal_wins_against_a_hand_over::<1, STAYS, false>),
        many(a_removal_wins_against_a_hand_over::<2, STAYS, false>),
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

    fn get_cached(&self, _group: &str, keys: &[&str], _time: Duration) -> Vec<Option<Loaded>> {
        let answer = |key: &&str| self.group.answer_cached(key).unwrap();
        let answers = keys.iter().map(answer);
        answers.map(|found| found.map(|(value, ttl)| Loaded { ttl, ..value.into() })).collect()
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
    nodes_with(|own, members| origin.group().peers(Arc::new(Peers { own, members })))
}

fn nodes_with(builder: impl Fn(usize, Members) -> GroupBuilder) -> Vec<Arc<Group>> {
    let members = Members::default();
    let node = |own| builder(own, members.clone()).hot_bytes(5_000).build().unwrap();
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
        nodes.iter().for_each(|node| assert_eq!(ask(node, 0), 1));
    }
    remove_while_others_ask::<BY, ALL>(&origin, &nodes);
}

/// The value and its copies are due from the start.
fn a_removal_beats_the_renewal_of_copies<const BY: usize, const ALL: bool>() {
    let (origin, clock, ttl) = (Origin::at(1), Clock::by_hand(), Duration::from_secs(10));
    let nodes = nodes_with(|own, members| {
        let builder = origin.group().peers(Arc::new(Peers { own, members }));
        builder.clock(clock.clone()).ttl(ttl).refresh_ahead(ttl / 2)
    });
    for node in &nodes {
        assert_eq!(ask(node, 0), 1);
    }
    assert!(nodes[1..].iter().all(|node| node.stats().hot.entries == 1));
    clock.advance(ttl * 3 / 4);
    remove_while_others_ask::<BY, ALL>(&origin, &nodes);
}

fn remove_while_others_ask<const BY: usize, const ALL: bool>(
    origin: &Origin,
    nodes: &[Arc<Group>],
) {
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
        for node in nodes {
            assert_eq!(ask(node, 0), 2, "while others ask");
        }
    });
    for node in nodes {
        assert_eq!(ask(node, 0), 2, "was kept");
    }
}

/// Whether the first node stays in the list or leaves it.
const STAYS: usize = 0;
const LEAVES: usize = 1;

/// What node `own` knows of the others, whose list changes: node 0 owned every key, then node 1 does.
struct Changing {
    peers: Peers,
    lists: Arc<Lists>,
}

type OnChange = dyn Fn() + Send + Sync;

#[derive(Default)]
struct Lists {
    /// Whether each node has the new list.
    are_new: [AtomicBool; NODES],
    // Guards what is to be called after a change, by node.
    on_change: Mutex<[Option<Weak<OnChange>>; NODES]>,
}

impl Lists {
    fn is_new(&self, node: usize) -> bool {
        self.are_new[node].load(Ordering::SeqCst)
    }

    fn change(&self) {
        (0..NODES).for_each(|node| self.change_of(node));
    }

    fn change_of(&self, node: usize) {
        if !self.are_new[node].swap(true, Ordering::SeqCst) {
            let changed = self.on_change.lock().unwrap()[node].clone();
            changed.unwrap().upgrade().unwrap()();
        }
    }
}

impl PeerPicker for Changing {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        let owner = usize::from(self.lists.is_new(self.peers.own));
        (self.peers.own != owner).then(|| self.peers.peer(owner))
    }

    fn former(&self, _key: &str) -> Vec<Arc<dyn PeerGetter>> {
        // Node 2 has come after that.
        let is_new = self.lists.is_new(self.peers.own) && self.peers.own == 1;
        is_new.then(|| self.peers.peer(0)).into_iter().collect()
    }

    fn on_change(&self, changed: Weak<dyn Fn() + Send + Sync>) {
        self.lists.on_change.lock().unwrap()[self.peers.own] = Some(changed);
    }

    /// A node that has left is among them, and node 1 only if it is known.
    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        let knows_all = self.lists.is_new(self.peers.own);
        let is_other = |&node: &usize| node != self.peers.own && (knows_all || node != 1);
        (0..NODES).filter(is_other).map(|node| self.peers.peer(node)).collect()
    }
}

/// Node 0 has the value, and each node the list, old or new.
fn nodes_that_change(origin: &Arc<Origin>) -> (Vec<Arc<Group>>, Arc<Lists>) {
    let lists = Arc::<Lists>::default();
    let nodes = nodes_with(|own, members| {
        let peers = Peers { own, members };
        let changing = Changing { peers, lists: lists.clone() };
        origin.group().peers(Arc::new(changing)).clock(Clock::by_hand())
    });
    assert_eq!(ask(&nodes[0], 0), 1);
    (nodes, lists)
}

fn what_is_handed_over_is_not_loaded() {
    let origin = Origin::at(1);
    let (nodes, lists) = nodes_that_change(&origin);
    together(4, |i| match i {
        0 => lists.change(),
        // Not as a batch: see `group::a_value_whose_key_goes_to_another_node_has_an_end`.
        i => assert_eq!(ask(&nodes[i % NODES], 0), 1),
    });
    assert_eq!(ask(&nodes[1], 0), 1);
    assert_eq!(origin.loads(), 1);
}

/// The list changes, and then a value and its removal come, while others ask. Where the first node has
/// left the list, nobody asks it any more.
fn a_removal_wins_against_a_hand_over<const BY: usize, const FIRST: usize, const BEFORE: bool>() {
    let origin = Origin::at(1);
    let (nodes, lists) = nodes_that_change(&origin);
    if BEFORE {
        lists.change();
    }
    let asked = &nodes[usize::from(FIRST != STAYS)..];
    together(3, |i| {
        if i > 0 {
            let node = &asked[i % asked.len()];
            ask(node, 0);
            ask(node, 0);
            return;
        }
        lists.change();
        origin.write(2);
        nodes[BY].remove("k").unwrap();
        for node in asked {
            assert_eq!(ask(node, 0), 2, "while others ask");
        }
    });
    for node in asked {
        assert_eq!(ask(node, 0), 2, "was kept");
    }
}

/// Node 1 comes. All but the remover know it, ask it, and have copies of what it loaded by itself.
fn a_removal_reaches_a_node_that_is_known_later<const BY: usize, const ALL: bool>() {
    let origin = Origin::at(1);
    let (nodes, lists) = nodes_that_change(&origin);
    (0..NODES).filter(|&node| node != BY).for_each(|node| lists.change_of(node));
    together(3, |i| {
        if i > 0 {
            // One asks the new node, the other is the new node.
            let node = [1, 2 - BY][i - 1];
            ask(&nodes[node], 0);
            return;
        }
        origin.write(2);
        if ALL {
            nodes[BY].clear().unwrap()
        } else {
            nodes[BY].remove("k").unwrap()
        }
        lists.change_of(BY);
        for node in &nodes {
            assert_eq!(ask(node, 0), 2, "while others ask");
        }
    });
    for node in &nodes {
        assert_eq!(ask(node, 0), 2, "was kept");
    }
}

/// All nodes take node 1 for the owner, but for those that still take node 0 for it.
struct Differing {
    peers: Peers,
    are_old: &'static [usize],
}

impl PeerPicker for Differing {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        let owner = usize::from(!self.are_old.contains(&self.peers.own));
        (self.peers.own != owner).then(|| self.peers.peer(owner))
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        self.peers.others()
    }
}

/// Node 2 asks node 0, which has a copy, or takes itself for the owner.
fn no_copy_is_made_of_a_copy_that_a_removal_has_not_reached<const BOTH: bool>() {
    let origin = Origin::at(1);
    let are_old: &[usize] = if BOTH { &[0, 2] } else { &[2] };
    let nodes = nodes_with(|own, members| {
        origin.group().peers(Arc::new(Differing { peers: Peers { own, members }, are_old }))
    });
    assert_eq!(ask(&nodes[0], 0), 1);
    remove_while_one_asks(&origin, &nodes, &nodes[2], || nodes[1].remove("k").unwrap());
}

/// Afterwards none of `nodes` has an old value.
fn remove_while_one_asks(
    origin: &Origin,
    nodes: &[Arc<Group>],
    asker: &Group,
    remove: impl Fn() + Sync,
) {
    together(2, |i| {
        if i > 0 {
            ask(asker, 0);
            return;
        }
        origin.write(2);
        remove();
        for node in nodes {
            assert_eq!(ask(node, 0), 2, "while others ask");
        }
    });
    for node in nodes {
        assert_eq!(ask(node, 0), 2, "was kept");
    }
}

/// Node 0, which owned every key, has left, and still answers node 1, which owns them now. Node 2 came
/// later.
struct Left(Peers);

impl PeerPicker for Left {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        (self.0.own == 2).then(|| self.0.peer(1))
    }

    fn former(&self, _key: &str) -> Vec<Arc<dyn PeerGetter>> {
        (self.0.own == 1).then(|| self.0.peer(0)).into_iter().collect()
    }

    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        vec![self.0.peer(3 - self.0.own)]
    }
}

fn nothing_is_taken_over_that_a_node_which_knows_no_earlier_owner_has_removed<const ALL: bool>() {
    let origin = Origin::at(1);
    let nodes =
        nodes_with(|own, members| origin.group().peers(Arc::new(Left(Peers { own, members }))));
    assert_eq!(ask(&nodes[0], 0), 1);
    remove_while_one_asks(&origin, &nodes[1..], &nodes[1], || match ALL {
        true => nodes[2].clear().unwrap(),
        false => nodes[2].remove("k").unwrap(),
    });
}

/// A node that has one worker. Of the keys, "0 …" are node 0's, and all others node 1's.
struct Worker {
    peer: Peer,
    // Held while it answers a peer's question.
    is_free: Arc<Mutex<()>>,
}

impl PeerGetter for Worker {
    fn name(&self) -> &str {
        self.peer.name()
    }

    fn get(&self, group: &str, key: &str) -> Result<Option<Loaded>, PeerError> {
        let _busy = self.is_free.lock().unwrap();
        self.peer.get(group, key)
    }

    fn get_cached(&self, group: &str, keys: &[&str], time: Duration) -> Vec<Option<Loaded>> {
        self.peer.get_cached(group, keys, time)
    }
}

struct Workers {
    own: usize,
    members: Members,
    are_free: [Arc<Mutex<()>>; 2],
}

impl PeerPicker for Workers {
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>> {
        let owner = usize::from(!key.starts_with('0'));
        let group = self.members.get().unwrap()[owner].upgrade().unwrap();
        let peer = Peer { name: owner.to_string(), group };
        let worker = Worker { peer, is_free: self.are_free[owner].clone() };
        (owner != self.own).then(|| Arc::new(worker) as Arc<dyn PeerGetter>)
    }
}

fn getters_of_two_nodes_that_ask_for_each_others_keys_end() {
    let are_free: [Arc<Mutex<()>>; 2] = Default::default();
    let nodes = nodes_with(|own, members| {
        let of_node = members.clone();
        // A page has a part, of which the other node is the owner.
        let load = move |key: &str| {
            let group = of_node.get().unwrap()[own].upgrade().unwrap();
            match key {
                "0 page" => group.get("1 part"),
                "1 page" => group.get("0 part"),
                _ => Ok(Some("part".into())),
            }
        };
        let picker = Workers { own, members, are_free: are_free.clone() };
        Group::builder("pages", load).max_bytes(10_000).peers(Arc::new(picker))
    });
    together(2, |i| {
        let page = ["1 page", "0 page"][i];
        assert_eq!(nodes[i].get(page).unwrap().unwrap(), "part");
    });
}
