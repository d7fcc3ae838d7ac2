//! The programs of `examples` that are one file: they print what their headers promise, and the
//! nodes of `in_one_file` agree with those of the library and of Go.

use std::path::Path;
use std::process::{Child, Stdio};
use std::{env, fs};

use geecache::{BoxError, ByteView, Error, Ring, RingHash};

use crate::mixed::{go_get, go_node, go_value_of, owner_in_go};
use crate::node::urls;
use crate::support::*;

const SCORES: [(&str, &str); 3] = [("Tom", "630"), ("Jack", "589"), ("Sam", "567")];

fn source_of(example: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/{example}.rs"));
    fs::read_to_string(file).unwrap()
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example prints the first block of its header, line by line.
fn check_output(name: &str) {
    let source = source_of(name);
    let (_, block) = source.split_once("//! ```text\n").unwrap();
    let (block, _) = block.split_once("//! ```\n").unwrap();
    let promised: Vec<_> = block.lines().map(|line| line.trim_start_matches("//! ")).collect();

    let mut process = Running(example(name).stdout(Stdio::piped()).spawn().unwrap());
    let lines = Lines::of(process.0.stdout.take().unwrap());
    assert!(ended(&mut process.0).success());
    assert_eq!(lines.all(), promised);
}

#[test]
fn hello_prints_what_its_header_says() {
    check_output("hello");
}

#[test]
fn three_prints_what_its_header_says() {
    check_output("three");
}

#[test]
fn typed_prints_what_its_header_says() {
    check_output("typed");
}

#[test]
fn the_one_file_has_nothing_of_the_library_and_names_cures_that_are_there() {
    let source = source_of("in_one_file");
    assert!(!source.contains("geecache::"));
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("../src");
    let cures = source.lines().filter_map(|line| line.strip_prefix("//   cure "));
    let cures: Vec<_> = cures.collect();
    assert!(cures.len() > 15, "the table was found");
    for cure in cures {
        let words: Vec<_> = cure.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
        let texts = words.iter().filter(|word| word.ends_with(".rs"));
        let texts: Vec<_> =
            texts.map(|file| fs::read_to_string(src.join(file)).expect(file)).collect();
        for (_, function) in words.iter().filter_map(|word| word.split_once("::")) {
            let is_there = |text: &String| text.contains(&format!("fn {function}"));
            assert!(texts.iter().any(is_there), "{function} in{cure}");
        }
        assert!(!texts.is_empty() && cure.contains("first") | cure.contains("second"), "{cure}");
    }
}

/// A node of `in_one_file`, with the server that people ask.
struct OneFile {
    process: Running,
    log: Lines,
    api: String,
}

impl OneFile {
    /// Starts the node at `url`, and another server at `api` on the same host.
    fn start(url: &str, api: &str, peers: &[&str]) -> Self {
        let (host, port) = address_of(url).split_once(':').unwrap();
        let (_, api_port) = address_of(api).split_once(':').unwrap();
        let mut command = example("in_one_file");
        command.args(["--host", host, "--port", port, "--api", api_port]);
        command.args(["--peers", &peers.join(",")]).stderr(Stdio::piped());
        let mut process = Running(command.spawn().unwrap());
        let log = Lines::of(process.0.stderr.take().unwrap());
        log.line_with("frontend server is running");
        Self { process, log, api: api.into() }
    }

    fn get(&self, key: &str) -> (u16, Vec<u8>) {
        let answer = ask(&self.api, &format!("GET /api?key={key}"), &[]);
        (answer.status, answer.body)
    }

    /// Kills it. Returns the keys that it has searched for, in order of the alphabet.
    fn searched(mut self) -> Vec<String> {
        self.process.0.kill().unwrap();
        let lines = self.log.all();
        let keys = lines.iter().filter_map(|line| line.split_once("search key "));
        let mut keys: Vec<_> = keys.map(|(_, key)| key.into()).collect();
        keys.sort();
        keys
    }
}

#[test]
fn three_nodes_of_the_one_file_answer_every_key_and_only_its_owner_searches() {
    let addresses = urls::<6>("127.0.0.27");
    let (urls, apis) = addresses.split_at(3);
    let peers: Vec<_> = urls.iter().map(String::as_str).collect();
    let mut nodes: Vec<_> =
        urls.iter().zip(apis).map(|(url, api)| (url, OneFile::start(url, api, &peers))).collect();
    for (_, node) in &nodes {
        for (key, score) in SCORES {
            assert_eq!(node.get(key), (200, score.into()));
        }
        assert_eq!(node.get("kkk"), (500, "kkk not exist\n".into()));
        assert_eq!(node.get("a%20b").0, 400);
    }

    let ring = Ring::new(urls, 50, RingHash::Crc32);
    let expected = |url: &str| {
        let owned = SCORES.iter().map(|&(key, _)| key).filter(|key| ring.owner(key) == Some(url));
        // An absent key is searched by its owner, and again by the node that asked the owner.
        let absent = if ring.owner("kkk") == Some(url) { 3 } else { 1 };
        let mut keys: Vec<_> = owned.chain(vec!["kkk"; absent]).map(String::from).collect();
        keys.sort();
        keys
    };
    let position = urls.iter().position(|url| ring.owner("Tom") == Some(url)).unwrap();
    let (url, owner) = nodes.remove(position);
    assert_eq!(owner.searched(), expected(url));
    for (_, node) in &nodes {
        assert_eq!(node.get("Tom"), (200, "630".into()), "its owner is gone");
    }
    for (url, node) in nodes {
        let mut expected = expected(url);
        expected.push("Tom".into());
        expected.sort();
        assert_eq!(node.searched(), expected);
    }
}

#[test]
fn callers_of_the_same_key_of_the_one_file_share_one_search() {
    let [url, api] = urls("127.0.0.73");
    let node = OneFile::start(&url, &api, &[&url]);
    // The node has eight workers.
    let answers = together(8, |_| node.get("kkk"));
    assert!(answers.iter().all(|(status, _)| *status == 500));
    // An absent key is not kept: a caller that comes after the end of a search begins another one.
    let searched = node.searched();
    assert!(searched.len() < 8, "{searched:?}");
}

#[test]
fn nodes_of_the_one_file_of_the_library_and_of_go_stand_in_one_cluster() {
    let (go, asked) = go_node();
    let origin = Origin::new(|key: &str| {
        let score = SCORES.iter().find(|(name, _)| *name == key);
        Ok::<_, BoxError>(Some(score.map_or_else(|| value_of(key), |(_, score)| score.to_string())))
    });
    let [library] = Cluster::over(&origin).peer(&go.url).start();
    // The one file has the scores alone, so it must own one of them.
    let (score, [url, api]) = loop {
        let addresses = urls::<2>("127.0.0.28");
        let nodes = [&*library.url, &*go.url, &*addresses[0]];
        let mut scores = SCORES.iter();
        if let Some(score) = scores.find(|(key, _)| owner_in_go(&nodes, key) == addresses[0]) {
            break (score, addresses);
        }
    };
    let peers = [&*library.url, &*go.url, &*url];
    library.pool.set_peers(peers).unwrap();
    let one_file = OneFile::start(&url, &api, &peers);

    let key_of = |owner: &str| {
        let mut keys = (0..).map(|i| format!("key-{i}"));
        keys.find(|key| owner_in_go(&peers, key) == owner).unwrap()
    };
    let (of_library, of_go) = (key_of(&library.url), key_of(&go.url));
    for (key, value) in [
        (score.0, score.1.into()),
        (&of_library, value_of(&of_library).into()),
        (&of_go, go_value_of(&of_go)),
    ] {
        let owner = owner_in_go(&peers, key);
        assert_eq!(library.pool.owner(key), owner);
        assert_eq!(library.group().get(key).unwrap().unwrap(), value);
        assert_eq!(one_file.get(key), (200, value.clone()));
        if owner != go.url {
            assert_eq!(go_get(owner, "scores", key), Ok(value), "as the Go node asks");
        }
    }
    assert_eq!((library.stats().peer_loads, library.stats().peer_errors), (2, 0));
    assert_eq!(origin.loads(), 1);
    assert_eq!(*asked.lock().unwrap(), [&*of_go; 2]);

    // The one file knows no batches, and no removals.
    let scores = library.group().get_many(&[score.0; 2]);
    let is_right = |got: &Result<Option<ByteView>, _>| {
        got.as_ref().is_ok_and(|got| got.as_ref().is_some_and(|got| got == score.1))
    };
    assert!(scores.iter().all(is_right), "{scores:?}");
    assert_eq!(library.stats().fallbacks, 0);
    let Err(Error::RemoveIncomplete { failed }) = library.group().remove(score.0) else { panic!() };
    assert!(failed.iter().any(|(name, _)| *name == url), "{failed:?}");

    // A key that it cannot take: whoever is asked finds the value.
    let mut odd = (0..).map(|i| format!("key {i}"));
    let odd = odd.find(|key| owner_in_go(&peers, key) == url).unwrap();
    assert_eq!(library.get(&odd), Some(value_of(&odd)));
    assert_eq!(library.stats().fallbacks, 1);
    assert!(library.pool.peers().iter().all(|(_, is_up)| *is_up));

    // It agrees on the owner of every key. Those that it owns itself are no scores.
    together(3, |i| {
        for key in (i..100).step_by(3).map(|i| format!("other-{i}")) {
            let owner = owner_in_go(&peers, &key);
            let expected = match owner {
                _ if owner == library.url => (200, value_of(&key).into()),
                _ if owner == go.url => (200, go_value_of(&key)),
                _ => (500, format!("{key} not exist\n").into()),
            };
            assert_eq!(one_file.get(&key), expected, "owned by {owner}");
        }
    });
}
