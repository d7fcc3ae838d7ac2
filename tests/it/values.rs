//! Values of all sizes, budgets, and times to live.

use std::time::Duration;

use geecache::{BoxError, Clock, Loaded};

use crate::support::*;

/// What each entry costs besides its key and value, as `max_bytes` documents it.
const OVERHEAD: usize = 80;

/// A key names the length of its value: `owner's prefix/length`.
fn by_length() -> Origin {
    Origin::new(|key: &str| {
        let length = key.rsplit('/').next().unwrap().parse()?;
        Ok::<_, BoxError>(Some(bytes(length)))
    })
}

/// Bytes that show a shift, a loss or a repetition.
fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// A key of `owner`'s whose value has `length` bytes.
fn key_of(node: &Node, owner: &str, length: usize) -> String {
    let mut keys = (0..).map(|i| format!("{i}/{length}"));
    keys.find(|key| node.pool.owner(key) == owner).unwrap()
}

#[test]
fn values_of_0_bytes_to_10_mib_arrive_whole() {
    let [asker, owner] = Cluster::over(&by_length()).start();
    // tiny_http would send 32 KiB and more in chunks, and ureq read no more than 10 MiB.
    for length in [0, 1, 32 << 10, (32 << 10) + 1, 10 << 20, (10 << 20) + 1] {
        let value = asker.group().get(&key_of(&asker, &owner.url, length)).unwrap().unwrap();
        assert!(value == bytes(length), "{length}");
    }
    assert_eq!((asker.stats().peer_loads, asker.stats().peer_errors), (6, 0));
}

#[test]
fn a_value_of_just_the_transfer_limit_travels_and_one_byte_more_is_loaded_here() {
    let [asker, owner] = Cluster::over(&by_length()).max_value_bytes(100_000).start();
    let get = |length| {
        let value = asker.group().get(&key_of(&asker, &owner.url, length)).unwrap().unwrap();
        assert!(value == bytes(length), "{length}");
        (asker.stats().peer_loads, asker.stats().fallbacks)
    };
    assert_eq!(get(100_000), (1, 0));
    assert_eq!(get(100_001), (1, 1));
    assert!(asker.believes_in_its_peer(), "its value is too large, but it did answer");
}

#[test]
fn a_value_above_the_budget_is_returned_and_flushes_nothing() {
    let origin = by_length();
    let [asker, owner] =
        Cluster::over(&origin).settings(|_, group| group.max_bytes(64 << 10)).start();
    let small: Vec<_> = (0..10).map(|length| key_of(&asker, &owner.url, length)).collect();
    let get_small = || small.iter().for_each(|key| drop(owner.get(key).unwrap()));
    get_small();
    let before = owner.stats();
    for _ in 0..2 {
        let value = asker.group().get(&key_of(&asker, &owner.url, 64 << 10)).unwrap().unwrap();
        assert!(value == bytes(64 << 10));
    }
    get_small();
    let (stats, loads) = (owner.stats(), origin.loads());
    assert_eq!((stats.main.rejected, stats.main.evictions), (2, 0));
    assert_eq!((stats.main.entries, stats.main.bytes), (10, before.main.bytes));
    assert_eq!((stats.main.hits, loads), (10, 12));
    assert_eq!((asker.stats().hot.rejected, asker.stats().hot.evictions), (2, 0));
}

#[test]
fn replacing_values_a_thousand_times_leaves_the_byte_count_exact() {
    let (clock, second) = (Clock::by_hand(), Duration::from_secs(1));
    let origin = Origin::new({
        let clock = clock.clone();
        move |key: &str| {
            // Grows and shrinks as time goes by.
            let value = Loaded::from(bytes(clock.now().as_secs() as usize * 37 % 1000));
            let is_replaced = !key.ends_with("stays");
            Ok::<_, BoxError>(Some(if is_replaced { value.ttl(second) } else { value }))
        }
    });
    // Room for a tenth of what comes: a count that drifts would make the other entry give way.
    let [asker, owner] = Cluster::over(&origin)
        .settings({
            let clock = clock.clone();
            move |_, group| group.max_bytes(64 << 10).clock(clock.clone())
        })
        .start();
    let stays = owner
        .keys_of(&owner.url)
        .map(|key| key + " stays")
        .find(|key| owner.pool.owner(key) == owner.url)
        .unwrap();
    let key = asker.key_of(&owner.url);
    assert_eq!(owner.get(&stays).unwrap(), "");
    for i in 1..=1000 {
        clock.advance(second);
        let lengths = [(); 3].map(|()| asker.group().get(&key).unwrap().unwrap().len());
        let length = i * 37 % 1000;
        assert_eq!(lengths, [length; 3]);
        let bytes = key.len() + length + OVERHEAD;
        let rest = stays.len() + OVERHEAD;
        let (main, hot) = (owner.stats().main, asker.stats().hot);
        assert_eq!((main.entries, main.bytes), (2, bytes + rest), "after {i} values");
        assert_eq!((hot.entries, hot.bytes), (1, bytes), "after {i} values");
    }
    assert_eq!((origin.loads(), owner.stats().main.expirations), (1001, 999));
}

#[test]
fn what_remains_of_a_time_to_live_travels() {
    let origin = Origin::new(|_: &str| {
        Ok::<_, BoxError>(Some(Loaded::from("630").ttl(Duration::from_secs(60))))
    });
    // The nodes' clocks do not agree, nor need they.
    let clocks = [Clock::by_hand(), Clock::by_hand()];
    clocks[0].advance(Duration::from_secs(1_000_000));
    let [asker, owner] = Cluster::over(&origin)
        .settings({
            let clocks = clocks.clone();
            move |node, group| group.clock(clocks[node].clone()).hot_ttl(Duration::from_secs(3600))
        })
        .start();
    let key = asker.key_of(&owner.url);
    let get = || assert_eq!(asker.get(&key).unwrap(), "630");
    owner.get(&key);
    clocks[1].advance(Duration::from_secs(20));
    get(); // and keeps the copy for the 40 s that are left
    clocks[0].advance(Duration::from_secs(39));
    get();
    assert_eq!((asker.stats().peer_loads, asker.stats().hot.hits), (1, 1));
    clocks[0].advance(Duration::from_secs(1));
    get();
    assert_eq!((asker.stats().peer_loads, asker.stats().hot.expirations), (2, 1));
    assert_eq!(origin.loads(), 1, "the owner's own time is not over");
    clocks[1].advance(Duration::from_secs(40));
    clocks[0].advance(Duration::from_secs(40));
    get();
    assert_eq!(origin.loads(), 2);
}
