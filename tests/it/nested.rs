//! Getters that ask for other keys: no get inside one waits for a worker of another node.

use std::sync::{Arc, Barrier, OnceLock};
use std::thread;
use std::time::Instant;

use geecache::{BoxError, Group};

use crate::support::*;

/// The group of each node, for the getter that all of them share: by the node's thread it cannot tell
/// which one it runs on, so a key says whose group it asks.
type Groups = Arc<OnceLock<Vec<Arc<Group>>>>;

fn nodes(
    workers: usize,
    load: impl Fn(&Groups, &str) -> String + Send + Sync + 'static,
) -> (Groups, [Node; 2]) {
    let groups = Groups::default();
    let of_getter = groups.clone();
    let origin = Origin::new(move |key: &str| Ok::<_, BoxError>(Some(load(&of_getter, key))));
    let nodes: [Node; 2] = Cluster::over(&origin).workers(workers, 256).start();
    groups.set(nodes.iter().map(|node| node.groups()[0].clone()).collect()).ok().unwrap();
    (groups, nodes)
}

/// Keys like "0 page 7", which node 0 owns, and so on.
fn keys(node: &Node, owner: usize, what: &str, url: &str) -> Vec<String> {
    let keys = (0..).map(|i| format!("{owner} {what} {i}"));
    keys.filter(|key| node.pool.owner(key) == url).take(4).collect()
}

#[test]
fn pages_whose_parts_another_node_owns_do_not_hold_up_two_nodes() {
    let workers = 4;
    let all_begin = Barrier::new(2 * workers);
    let parts = Arc::new(OnceLock::<[String; 2]>::new());
    let known = parts.clone();
    let (_groups, [a, b]) = nodes(workers, move |groups, key| {
        if key.contains("part") {
            return format!("the value of {key}");
        }
        // All workers of both nodes are in a getter when each of these asks the other node.
        all_begin.wait();
        let own = usize::from(key.starts_with('1'));
        let part = &known.get().unwrap()[1 - own];
        groups.get().unwrap()[own].get(part).unwrap().unwrap().to_string()
    });
    let part = |owner, url: &str| keys(&a, owner, "part", url).swap_remove(0);
    parts.set([part(0, &a.url), part(1, &b.url)]).unwrap();
    let start = Instant::now();
    thread::scope(|scope| {
        for (owner, asked, url) in [(0, &b, &a.url), (1, &a, &b.url)] {
            for key in keys(&a, owner, "page", url) {
                let part = &parts.get().unwrap()[1 - owner];
                scope.spawn(move || assert_eq!(asked.get(&key), Some(value_of(part))));
            }
        }
    });
    // The nodes' questions would wait for LONG.
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
    check_identities([&a, &b]);
}

#[test]
fn a_batch_inside_a_getter_finds_the_key_that_is_being_loaded() {
    let keys = Arc::new(OnceLock::<[String; 2]>::new());
    let known = keys.clone();
    let (_groups, [a, b]) = nodes(4, move |groups, key| {
        let [own, far] = known.get().unwrap();
        if key != own {
            return "far".into();
        }
        let answers = groups.get().unwrap()[0].get_many(&[own, far]);
        let text = |answer: &Result<_, geecache::Error>| match answer {
            Ok(_) => "a value".to_string(),
            Err(error) => error.to_string(),
        };
        answers.iter().map(text).collect::<Vec<_>>().join("; ")
    });
    keys.set([a.key_of(&a.url), a.key_of(&b.url)]).unwrap();
    let start = Instant::now();
    let told = a.get(&keys.get().unwrap()[0]).unwrap();
    assert!(told.contains("waits for its own answer") && told.ends_with("; a value"), "{told}");
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
}

#[test]
fn two_batches_whose_getters_ask_for_each_others_keys_end() {
    let keys = Arc::new(OnceLock::<[String; 4]>::new());
    let (known, both_lead) = (keys.clone(), Barrier::new(2));
    let (groups, [a, _b]) = nodes(4, move |groups, key| {
        let [a, c, y, z] = known.get().unwrap();
        let asked = match key {
            key if key == a => y,
            key if key == z => c,
            _ => return "value".into(),
        };
        both_lead.wait();
        groups.get().unwrap()[0].get(asked).map_or_else(|e| e.to_string(), |_| "value".into())
    });
    let mut own = a.keys_of(&a.url);
    keys.set([(); 4].map(|()| own.next().unwrap())).unwrap();
    let [a, c, y, z] = keys.get().unwrap();
    let group = &groups.get().unwrap()[0];
    let start = Instant::now();
    thread::scope(|scope| {
        for keys in [[a, c], [z, y]] {
            scope.spawn(move || {
                let answers = group.get_many(&keys.map(String::as_str));
                assert!(answers.iter().all(Result::is_ok), "{answers:?}");
            });
        }
    });
    assert!(start.elapsed() < LONG / 2, "{:?}", start.elapsed());
}
