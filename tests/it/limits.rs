//! What the guide's table of limits says (`src/guide/access.md`): each just reached, and by one exceeded.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use geecache::{
    BoxError, Error, Group, HttpPool, HttpServer, MAX_GROUP_BYTES, MAX_KEY_BYTES, PeerError,
    PeerPicker, PoolOptions, ServerOptions,
};

use crate::support::*;

/// As the table has them.
const MAX_TOKEN_BYTES: usize = 4_096;
const MAX_URL_BYTES: usize = 1_024;
const MAX_TEXT_BYTES: usize = 1_024;
const MAX_BATCH_KEYS: usize = 1_024;
const MAX_QUESTION_BYTES: usize = 1 << 20;
const MAX_ANSWER_VALUES: usize = 16 << 20;
const MAX_VALUE_BYTES: usize = 16 << 20;
const MAX_ANNOUNCED: usize = 16 << 20;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A key of so many bytes, of which none travels as it is, that `owner` owns.
fn long_key_of(node: &Node, owner: &str, bytes: usize) -> String {
    let han = (0x4e00..).map(|c| char::from_u32(c).unwrap());
    let mut keys = han.map(|han| format!("{han}{}", "%".repeat(bytes - han.len_utf8())));
    keys.find(|key| node.pool.owner(key) == owner).unwrap()
}

/// A key names the length of its value: `number/length`.
fn by_length() -> Origin {
    Origin::new(|key: &str| {
        let length = key.rsplit('/').next().unwrap().parse()?;
        Ok::<_, BoxError>(Some(vec![b'x'; length]))
    })
}

/// Keys of `owner`'s whose values have `length` bytes.
fn keys_of(node: &Node, owner: &str, length: usize) -> impl Iterator<Item = String> {
    let keys = (0..).map(move |i| format!("{i}/{length}"));
    keys.filter(move |key| node.pool.owner(key) == owner)
}

#[test]
fn the_longest_key_group_path_and_token_travel_together() {
    let origin = Origin::of_all();
    let name = " ".repeat(MAX_GROUP_BYTES);
    let [asker, owner] =
        Cluster::over(&origin).groups([&*name]).token(&"t".repeat(MAX_TOKEN_BYTES)).start();
    let key = long_key_of(&asker, &owner.url, MAX_KEY_BYTES);
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((asker.stats().peer_loads, origin.loads()), (1, 1));
    asker.group().remove(&key).unwrap();
    assert_eq!(asker.get_many(&[&key]), [Some(value_of(&key))]);
    asker.group().clear().unwrap();
    assert_eq!(asker.get(&key), Some(value_of(&key)));
    assert_eq!((asker.stats().peer_loads, origin.loads()), (3, 3));
}

#[test]
fn a_key_of_one_byte_more_is_refused_here_and_by_hand() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let long = long_key_of(&node, &node.url, MAX_KEY_BYTES + 1);
    let is_refused =
        |answer: Error| matches!(answer, Error::KeyLength(n) if n == MAX_KEY_BYTES + 1);
    assert!(is_refused(node.group().get(&long).unwrap_err()));
    assert!(is_refused(node.group().get_many(&[&long]).remove(0).unwrap_err()));
    assert!(is_refused(node.group().remove(&long).unwrap_err()));
    assert!(is_refused(node.group().answer_peer(&long).unwrap_err()));
    let escaped: String = long.bytes().map(|byte| format!("%{byte:02X}")).collect();
    for method in ["GET", "DELETE"] {
        let answer = ask(&node.url, &format!("{method} /_geecache/scores/{escaped}"), &[]);
        assert_eq!(answer.status, 400);
        assert_eq!(answer.text(), "a key of 16385 bytes: the longest key is 16384 bytes\n");
    }
    let answer = post(&node.url, "/_geecache/scores", &[], &batch_of(&[&long]));
    assert_eq!((answer.status, answer.text()), (400, "a key is empty or too long\n"));
}

#[test]
fn a_value_of_the_default_transfer_limit_travels_and_one_byte_more_is_loaded_here() {
    let origin = by_length();
    let [asker, owner] = Cluster::over(&origin).start();
    for (length, peer_loads) in [(MAX_VALUE_BYTES, 1), (MAX_VALUE_BYTES + 1, 1)] {
        let key = keys_of(&asker, &owner.url, length).next().unwrap();
        assert_eq!(asker.group().get(&key).unwrap().unwrap().len(), length);
        assert_eq!(asker.stats().peer_loads, peer_loads, "{length}");
    }
    assert_eq!(asker.stats().fallbacks, 1);

    let [asker] = Cluster::over(&origin).max_value_bytes(u64::MAX).peer(&owner.url).start();
    let key = keys_of(&asker, &owner.url, 1).next().unwrap();
    assert_eq!(asker.get(&key).unwrap(), "x");
    assert_eq!((asker.stats().peer_loads, asker.stats().fallbacks), (1, 0), "no limit at all");
}

#[test]
fn an_entry_of_just_the_budget_is_kept_and_one_byte_more_is_not() {
    const BUDGET: usize = 1 << 20;
    const OVERHEAD: usize = 80;
    let origin = by_length();
    let [node] =
        Cluster::over(&origin).settings(|_, group| group.max_bytes(BUDGET).hot_bytes(0)).start();
    let length = BUDGET - OVERHEAD - "1/1048489".len();
    for (key, kept) in [(format!("1/{}", length + 1), 0), (format!("1/{length}"), 1)] {
        assert_eq!(key.len(), "1/1048489".len());
        node.get(&key).unwrap();
        let main = node.stats().main;
        assert_eq!((main.entries, main.rejected), (kept, 1), "{key}");
    }
    assert_eq!(node.stats().main.bytes, BUDGET);
}

#[test]
fn a_batch_has_up_to_1024_keys_and_a_mebibyte() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let ask = |body: &[u8]| post(&node.url, "/_geecache/scores", &[], body);
    assert_eq!(ask(&batch_of(&["k"; MAX_BATCH_KEYS])).status, 200);
    let answer = ask(&batch_of(&["k"; MAX_BATCH_KEYS + 1]));
    assert_eq!((answer.status, answer.text()), (400, "more keys than there can be\n"));

    // 63 of the longest keys, and one that fills it up.
    let long = "k".repeat(MAX_KEY_BYTES);
    let rest = MAX_QUESTION_BYTES - 4 - 63 * (2 + MAX_KEY_BYTES) - 2;
    for (more, status) in [(0, 200), (1, 413)] {
        let last = "k".repeat(rest + more);
        let keys: Vec<_> = [&*long; 63].into_iter().chain([&*last]).collect();
        let body = batch_of(&keys);
        assert_eq!((body.len(), ask(&body).status), (MAX_QUESTION_BYTES + more, status));
    }
}

#[test]
fn an_answer_to_a_batch_has_up_to_16_mebibytes_of_values() {
    let [asker, owner] = Cluster::over(&by_length()).start();
    let quarter = MAX_ANSWER_VALUES / 4;
    let three: Vec<_> = keys_of(&asker, &owner.url, quarter).take(3).collect();
    let asked_again = |last: usize| {
        let before = owner.stats().peer_requests;
        let last_key = keys_of(&asker, &owner.url, last).nth(3).unwrap();
        let keys: Vec<_> = three.iter().cloned().chain([last_key]).collect();
        for (value, length) in
            asker.get_many(&keys).into_iter().zip([quarter, quarter, quarter, last])
        {
            assert_eq!(value.unwrap().len(), length);
        }
        owner.stats().peer_requests - before - 4
    };
    assert_eq!(asked_again(quarter), 0);
    assert_eq!(asked_again(quarter + 1), 1, "the last one did not fit in");
    assert_eq!(asker.stats().peer_errors, 0);
}

#[test]
fn the_longest_answer_to_a_batch_arrives() {
    let origin = Origin::new(|key: &str| {
        match key.strip_prefix("value ") {
            Some(_) => Ok(vec![b'x'; MAX_ANSWER_VALUES]),
            None => Err(BoxError::from("e".repeat(2 * MAX_TEXT_BYTES))),
        }
        .map(Some)
    });
    let [asker, owner] = Cluster::over(&origin).start();
    let mut values = (0..).map(|i| format!("value {i}"));
    let value = values.find(|key| asker.pool.owner(key) == owner.url).unwrap();
    let errors = asker.keys_of(&owner.url).take(MAX_BATCH_KEYS - 1);
    let keys: Vec<_> = errors.chain([value]).collect();
    let peer = asker.pool.pick(&keys[0]).unwrap();
    let texts: Vec<_> = keys.iter().map(String::as_str).collect();
    let mut answers = peer.get_many("scores", &texts);
    let value = answers.pop().unwrap().unwrap().unwrap();
    assert_eq!(value.value.len(), MAX_ANSWER_VALUES);
    for answer in answers {
        assert!(matches!(answer, Err(PeerError::LoadFailed(text)) if text.len() == MAX_TEXT_BYTES));
    }
}

#[test]
fn the_first_1024_bytes_of_an_errors_text_travel() {
    let cause = |length: usize| "e".repeat(length - "loading \"bad\": ".len());
    for length in [MAX_TEXT_BYTES, MAX_TEXT_BYTES + 1, 1 << 20] {
        let origin =
            Origin::new(move |_: &str| Err::<Option<&str>, _>(BoxError::from(cause(length))));
        let [owner] = Cluster::over(&origin).start();
        let [asker] = Cluster::over(&origin).peer(&owner.url).start();
        let peer = asker.pool.others().remove(0);
        let whole = format!("loading \"bad\": {}", cause(length));
        let text = whole[..MAX_TEXT_BYTES].to_string();
        let expected = Err(PeerError::LoadFailed(text));
        assert_eq!(peer.get("scores", "bad"), expected, "{length}");
        assert_eq!(peer.get_many("scores", &["bad", "bad"]), [expected.clone(), expected]);
    }
}

#[test]
fn a_body_of_16_mebibytes_is_read_to_be_refused() {
    // That more is not even read is shown in `protocol`.
    let [node] = Cluster::over(&Origin::of_all()).start();
    let answer = post(&node.url, "/_geecache/scores", &[], &vec![0; MAX_ANNOUNCED]);
    assert_eq!(answer.status, 413);
}

#[test]
fn settings_reach_their_limits_and_not_beyond() {
    let name = |length| {
        let group = Group::builder("n".repeat(length), Origin::of_all()).build();
        group.err().map(|error| error.to_string())
    };
    assert_eq!(name(MAX_GROUP_BYTES), None);
    assert!(name(MAX_GROUP_BYTES + 1).unwrap().ends_with(": a name has 1 to 1024 bytes"));

    let pool = |options| {
        let pool = HttpPool::with_options("http://a:1", options)
            .and_then(|pool| pool.set_peers(["http://a:1", "http://b:1", "http://c:1"]));
        pool.err().map(|error| error.to_string())
    };
    let server = |options| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let groups: [Arc<Group>; 0] = [];
        HttpServer::start(listener, groups, options).err().map(|error| error.to_string())
    };
    let (pools, servers) = (PoolOptions::default, ServerOptions::default);
    let url = |length: usize| {
        let url = format!("http://{}", "h".repeat(length - "http://".len()));
        HttpPool::new(url).err().map(|error| error.to_string())
    };
    let token = |length| Some("t".repeat(length));
    let one = Duration::from_nanos(1);

    let refused = |gist: &str, at_limit: Option<String>, above: Option<String>| {
        assert_eq!(at_limit, None);
        assert!(above.as_ref().is_some_and(|error| error.contains(gist)), "{above:?}");
    };
    refused("up to 1024 bytes", url(MAX_URL_BYTES), url(MAX_URL_BYTES + 1));
    let with = |length| pool(PoolOptions { token: token(length), ..pools() });
    refused("1 to 4096", with(MAX_TOKEN_BYTES), with(MAX_TOKEN_BYTES + 1));
    let tokens = |length| vec!["t".into(), "t".repeat(length)];
    let with = |length| server(ServerOptions { tokens: tokens(length), ..servers() });
    refused("1 to 4096", with(MAX_TOKEN_BYTES), with(MAX_TOKEN_BYTES + 1));
    let with = |points| pool(PoolOptions { points_per_peer: Some(points), ..pools() });
    refused("1 to 10000 points", with(10_000), with(10_001));
    let with = |timeout| pool(PoolOptions { timeout, ..pools() });
    refused("a day", with(DAY), with(DAY + one));
    let with = |idle_timeout| server(ServerOptions { idle_timeout, ..servers() });
    refused("a day", with(DAY), with(DAY + one));
    refused("a second", with(SECOND), with(SECOND - one));
    // That 4,096 workers do start is shown in `node`, lest it be these tests that have the threads.
    let with = |workers| server(ServerOptions { workers, ..servers() });
    refused("1 to 4096 workers", with(1), with(4_097));
    let with = |queue| server(ServerOptions { queue, ..servers() });
    refused("65536 requests", with(65_536), with(65_537));
}
