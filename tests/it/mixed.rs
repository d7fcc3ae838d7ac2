//! Nodes that speak the raw-bytes protocol of Go's GeeCache, in the same cluster.
//!
//! The stand-ins do what the Go sources do, line by line: `HTTPPool.ServeHTTP` and
//! `httpGetter.Get` of geecache/http.go, and `Map` of geecache/consistenthash.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use geecache::{BoxError, Error};
use percent_encoding::percent_decode_str;

use crate::support::*;

/// Keys that Go's client and server bring across unharmed.
const KEYS: &[&str] = &[
    "Tom", "Jack", "Sam", "a b", "a+b", "a/b", "/a//b/", ".", "..", "100%", "%2F", "?a=b", "#",
    "键", "\r\n", "~",
];

/// `consistenthash.Map` with the 50 points a node that `geecache/http.go` gives it.
pub(crate) fn owner_in_go<'n>(nodes: &[&'n str], key: &str) -> &'n str {
    let (mut keys, mut hash_map) = (Vec::new(), HashMap::new());
    for node in nodes {
        for i in 0..50 {
            let hash = crc32fast::hash(format!("{i}{node}").as_bytes());
            keys.push(hash);
            hash_map.insert(hash, *node);
        }
    }
    keys.sort_unstable();
    let hash = crc32fast::hash(key.as_bytes());
    let index = keys.iter().position(|&point| point >= hash).unwrap_or(keys.len());
    hash_map[&keys[index % keys.len()]]
}

/// A Go node with the group `scores` over a map that lacks `kkk`, and the keys it was asked for.
pub(crate) fn go_node() -> (Stub, Arc<Mutex<Vec<String>>>) {
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let stub = Stub::http({
        let asked = asked.clone();
        move |raw| {
            // net/http decodes the path as a path, so a plus sign stays one.
            let path = percent_decode_str(raw).decode_utf8().unwrap();
            // parts := strings.SplitN(r.URL.Path[len(p.basePath):], "/", 2)
            let parts: Vec<_> = path["/_geecache/".len()..].splitn(2, '/').collect();
            let error = |status, text: &str| {
                response(status, "text/plain; charset=utf-8", format!("{text}\n"))
            };
            let [group, key] = parts[..] else { return error(400, "bad request") };
            if group != "scores" {
                return error(404, &format!("no such group: {group}"));
            }
            asked.lock().unwrap().push(key.into());
            match key {
                "" => error(500, "key is required"),
                "kkk" => error(500, "kkk not exist"),
                key => response(200, "application/octet-stream", go_value_of(key)),
            }
        }
    });
    (stub, asked)
}

/// Not text, since the bytes are raw.
pub(crate) fn go_value_of(key: &str) -> Vec<u8> {
    [b"\xff\0go: ", key.as_bytes()].concat()
}

/// `httpGetter.Get`, of the group and key as `url.QueryEscape` writes them.
pub(crate) fn go_get(url: &str, group: &str, key: &str) -> Result<Vec<u8>, u16> {
    let path = format!("/_geecache/{}/{}", query_escape(group), query_escape(key));
    let headers = ["User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip"];
    let answer = ask(url, &format!("GET {path}"), &headers);
    if answer.status == 200 { Ok(answer.body) } else { Err(answer.status) }
}

fn query_escape(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        b' ' => "+".into(),
        byte => format!("%{byte:02X}"),
    };
    text.bytes().map(escape).collect()
}

#[test]
fn the_ring_of_these_tests_is_gos() {
    let recorded =
        include_str!("../../src/ring-vectors.tsv").lines().filter(|l| !l.starts_with('#'));
    for row in recorded {
        let [nodes, key, owner] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
        assert_eq!(owner_in_go(&nodes.split(',').collect::<Vec<_>>(), key), owner, "{row}");
    }
}

#[test]
fn each_key_is_asked_of_the_node_that_gos_ring_names_and_arrives_unchanged() {
    let origin = Origin::of_all();
    let go = [go_node(), go_node()];
    let [rust] = Cluster::over(&origin).peer(&go[0].0.url).peer(&go[1].0.url).start();
    let nodes = [&*rust.url, &go[0].0.url, &go[1].0.url];
    let more: Vec<_> = (0..100).map(|i| format!("key {i}")).collect();
    let mut expected: [Vec<String>; 3] = Default::default();
    for key in KEYS.iter().copied().chain(more.iter().map(String::as_str)) {
        let owner = owner_in_go(&nodes, key);
        let index = nodes.iter().position(|&node| node == owner).unwrap();
        expected[index].push(key.into());
        let value = rust.group().get(key).unwrap().unwrap();
        match index {
            0 => assert_eq!(value, value_of(key)),
            _ => assert_eq!(value, go_value_of(key)),
        }
    }
    assert!(expected.iter().all(|keys| !keys.is_empty()));
    assert_eq!(origin.loads(), expected[0].len());
    assert_eq!(*go[0].1.lock().unwrap(), expected[1]);
    assert_eq!(*go[1].1.lock().unwrap(), expected[2]);
    assert_eq!(rust.stats().peer_errors, 0);
}

#[test]
fn a_group_that_a_go_node_lacks_falls_back_without_harm() {
    let (go, asked) = go_node();
    let [rust] = Cluster::over(&Origin::of_all()).groups(["heights"]).peer(&go.url).start();
    for key in rust.keys_of(&go.url).take(3) {
        assert_eq!(rust.get(&key), Some(value_of(&key)));
    }
    assert_eq!((rust.stats().peer_errors, rust.stats().fallbacks), (3, 3));
    assert!(rust.believes_in_its_peer());
    assert!(asked.lock().unwrap().is_empty());
}

#[test]
fn a_key_that_a_go_node_lacks_falls_back_without_harm() {
    let (go, asked) = go_node();
    let origin = Origin::new(|key: &str| Ok::<_, BoxError>((key != "kkk").then(|| value_of(key))));
    let [rust] = loop {
        // The ports decide who owns `kkk`: half of the rings give it to the Go node.
        let rust: [Node; 1] = Cluster::over(&origin).peer(&go.url).start();
        if rust[0].pool.owner("kkk") == go.url {
            break rust;
        }
    };
    assert_eq!(rust.get("kkk"), None);
    assert_eq!((rust.stats().fallbacks, rust.stats().local_loads), (1, 1));
    assert!(rust.believes_in_its_peer());
    assert_eq!(*asked.lock().unwrap(), ["kkk"]);
    let key = rust.key_of(&go.url);
    assert_eq!(rust.group().get(&key).unwrap().unwrap(), go_value_of(&key));
}

#[test]
fn a_go_node_that_knows_no_batches_is_asked_singly() {
    let (go, asked) = go_node();
    let origin = Origin::of_all();
    let [rust] =
        Cluster::over(&origin).settings(|_, group| group.hot_bytes(0)).peer(&go.url).start();
    let keys: Vec<_> = rust.keys_of(&go.url).take(20).collect();
    let texts: Vec<_> = keys.iter().map(String::as_str).collect();
    for (key, value) in keys.iter().zip(rust.group().get_many(&texts)) {
        assert_eq!(value.unwrap().unwrap(), go_value_of(key));
    }
    assert_eq!(*asked.lock().unwrap(), keys);
    together(16, |i| {
        for key in keys.iter().cycle().skip(i).take(20) {
            assert_eq!(rust.group().get(key).unwrap().unwrap(), go_value_of(key));
        }
    });
    assert_eq!((origin.loads(), rust.stats().peer_errors), (0, 0));
    check_identities([&rust]);
}

#[test]
fn a_go_node_cannot_be_told_of_a_removal_and_is_named() {
    let (go, _) = go_node();
    let [rust] = Cluster::over(&Origin::of_all()).peer(&go.url).start();
    let key = rust.key_of(&rust.url);
    for removed in [rust.group().remove(&key), rust.group().clear()] {
        let Err(Error::RemoveIncomplete { failed }) = removed else { panic!("{removed:?}") };
        assert_eq!(failed.into_iter().map(|(name, _)| name).collect::<Vec<_>>(), [&*go.url]);
    }
    assert!(rust.believes_in_its_peer());
}

#[test]
fn a_go_client_is_understood() {
    let origin = Origin::new(|key: &str| match key {
        "bad" => Err("disk full"),
        key => Ok((key != "kkk").then(|| value_of(key))),
    });
    let names = ["scores", "a b", "a/b", "键"];
    let [rust] = Cluster::over(&origin).groups(names).start();
    for group in names {
        for key in KEYS {
            let value = go_get(&rust.url, group, key);
            assert_eq!(value, Ok(value_of(key).into()), "{key:?} in {group:?}");
        }
    }
    assert_eq!(origin.loads(), names.len() * KEYS.len());
    // To it, all that is not 200 is an error, and it loads by itself.
    assert_eq!(go_get(&rust.url, "scores", "kkk"), Err(404));
    assert_eq!(go_get(&rust.url, "scores", "bad"), Err(502));
    assert_eq!(go_get(&rust.url, "heights", "Tom"), Err(404));
}
