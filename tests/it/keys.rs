//! Any UTF-8 key and any group name travel between nodes exactly.

use geecache::MAX_KEY_BYTES;

use crate::support::*;

const AWKWARD: &[&str] = &[
    "Tom",
    "a b",
    " ",
    "a+b",
    "+",
    "a/b/c",
    "/",
    "//",
    "//a//b//",
    ".",
    "..",
    "../..",
    "./a/../b",
    "100%",
    "%",
    "%2F",
    "%zz",
    "?",
    "a?b=c&d",
    "#",
    "a#b",
    "\0",
    "a\r\nHost: b\r\n\r\n",
    "\t\x1b\x7f",
    "é",
    "键",
    "😀",
    "\u{202e}\u{feff}",
    "\\\"';:@!$&()*,=[]{}|^`<>~",
];

#[test]
fn every_key_arrives_exactly_in_every_group() {
    let origin = Origin::of_all();
    let nodes: [Node; 2] = Cluster::over(&origin).groups(AWKWARD.iter().copied()).start();
    let long = ["k".repeat(4096), "ключ/ ".repeat(410), "\u{1f600}".repeat(MAX_KEY_BYTES / 4)];
    let keys: Vec<&str> = AWKWARD.iter().copied().chain(long.iter().map(String::as_str)).collect();
    for (name, groups) in AWKWARD.iter().zip(nodes[0].groups().iter().zip(nodes[1].groups())) {
        let loads = origin.loads();
        for key in &keys {
            for group in [groups.0, groups.1] {
                let value = group.get(key).unwrap().unwrap();
                assert_eq!(value, value_of(key), "{key:?} in {name:?}");
            }
        }
        // One load a key: the node that does not own it had it from the same group of the other.
        assert_eq!(origin.loads() - loads, keys.len(), "{name:?}");
        let (a, b) = (groups.0.stats(), groups.1.stats());
        assert!(a.peer_loads > 0 && b.peer_loads > 0);
        assert_eq!(a.peer_loads + b.peer_loads, keys.len() as u64, "{name:?}");
        assert_eq!((a.peer_requests, b.peer_requests), (b.peer_loads, a.peer_loads), "{name:?}");
    }
}
