//! Owners that fail, each in its own way: the value comes from the origin within the deadline.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::support::*;

/// How long a question to the owner may take here.
const DEADLINE: Duration = Duration::from_millis(500);
/// What a busy machine may add. The stand-ins would go on for half a minute or for ever.
const SLACK: Duration = Duration::from_secs(5);
/// How long an owner is left alone after its first failure.
const COOLDOWN: Duration = Duration::from_secs(1);

/// One get of a key that belongs to `owner`. Returns the node that asked and how long it took.
fn answered_by_the_origin(owner: &str) -> (Node, Duration) {
    let origin = Origin::of_all();
    let [node] = Cluster::over(&origin).timeout(DEADLINE).max_value_bytes(1000).peer(owner).start();
    let key = node.key_of(owner);
    let start = Instant::now();
    assert_eq!(node.get(&key), Some(value_of(&key)));
    let took = start.elapsed();
    assert!(took < DEADLINE + SLACK, "{took:?}");
    let stats = node.stats();
    assert_eq!((stats.peer_errors, stats.fallbacks, stats.local_loads), (1, 1, 1));
    assert_eq!(node.get(&key), Some(value_of(&key)));
    assert_eq!(node.stats().hot.hits, 1, "what was loaded in its place is kept for a while");
    check_identities([&node]);
    (node, took)
}

fn answered_by_the_origin_while_the_owner_is_unreachable(owner: &str) -> Duration {
    let (node, took) = answered_by_the_origin(owner);
    assert!(!node.believes_in_its_peer(), "it cools down");
    took
}

fn answered_by_the_origin_and_the_owner_is_asked_again(owner: &str) {
    let (node, _) = answered_by_the_origin(owner);
    assert!(node.believes_in_its_peer(), "it did answer");
    let another = node.keys_of(owner).nth(1).unwrap();
    assert_eq!(node.get(&another), Some(value_of(&another)));
    assert_eq!(node.stats().peer_errors, 2);
}

#[test]
fn an_owner_that_is_gone_leaves_the_get_to_the_origin() {
    answered_by_the_origin_while_the_owner_is_unreachable(&dead_url());
}

#[test]
fn an_owner_whose_host_says_nothing_leaves_the_get_to_the_origin() {
    // A queue of connections that is full and that nobody empties: the next ones get no answer.
    let owner = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    owner.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    owner.listen(0).unwrap();
    let address = owner.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, DEADLINE) {
        queued.push(stream);
    }
    let took = answered_by_the_origin_while_the_owner_is_unreachable(&url_of(address));
    // ureq gives a connect the whole milliseconds that are left, so it may end one early.
    assert!(took + Duration::from_millis(1) >= DEADLINE, "it had its time");
}

#[test]
fn silence_falls_back_to_the_origin() {
    let took = answered_by_the_origin_while_the_owner_is_unreachable(&Stub::mute().url);
    assert!(took >= DEADLINE, "it had its time");
}

#[test]
fn a_head_that_drips_falls_back_to_the_origin() {
    answered_by_the_origin_while_the_owner_is_unreachable(&Stub::dripping("").url);
}

#[test]
fn a_body_that_drips_falls_back_to_the_origin() {
    let owner = Stub::dripping("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n");
    answered_by_the_origin_while_the_owner_is_unreachable(&owner.url);
}

#[test]
fn a_body_that_breaks_off_falls_back_to_the_origin() {
    let owner = Stub::raw(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let torn = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe val";
        let _ = stream.write_all(torn);
    });
    answered_by_the_origin_while_the_owner_is_unreachable(&owner.url);
}

#[test]
fn what_is_not_http_falls_back_to_the_origin() {
    let owner = Stub::raw(|mut stream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(b"220 mail.example ready\r\n");
    });
    answered_by_the_origin_while_the_owner_is_unreachable(&owner.url);
}

#[test]
fn status_500_falls_back_to_the_origin() {
    answered_by_the_origin_and_the_owner_is_asked_again(&Stub::answering(500, "oops").url);
}

#[test]
fn status_502_falls_back_to_the_origin() {
    answered_by_the_origin_and_the_owner_is_asked_again(&Stub::answering(502, "disk full").url);
}

#[test]
fn status_503_falls_back_to_the_origin() {
    answered_by_the_origin_and_the_owner_is_asked_again(&Stub::answering(503, "overloaded").url);
}

#[test]
fn status_404_without_the_marker_falls_back_to_the_origin() {
    answered_by_the_origin_and_the_owner_is_asked_again(&Stub::answering(404, "no such page").url);
}

#[test]
fn a_status_that_points_elsewhere_is_not_followed_and_falls_back_to_the_origin() {
    let elsewhere = Stub::answering(200, "a stranger's value");
    let (location, questions) = (elsewhere.url.clone(), Arc::new(AtomicUsize::new(0)));
    let owner = Stub::http({
        let questions = questions.clone();
        move |path| {
            questions.fetch_add(1, Ordering::SeqCst);
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {location}{path}\r\n");
            format!("{head}Content-Length: 0\r\n\r\n").into()
        }
    });
    answered_by_the_origin_and_the_owner_is_asked_again(&owner.url);
    assert_eq!((questions.load(Ordering::SeqCst), elsewhere.connections()), (2, 0));
}

#[test]
fn a_body_over_the_limit_falls_back_to_the_origin() {
    let owner = Stub::http(|_| response(200, "application/octet-stream", [b'x'; 1001]));
    answered_by_the_origin_and_the_owner_is_asked_again(&owner.url);
}

#[test]
fn a_body_over_the_limit_that_does_not_tell_its_length_falls_back_to_the_origin() {
    let owner = Stub::http(|_| {
        let chunk = format!("3e9\r\n{}\r\n", "x".repeat(1001));
        format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}0\r\n\r\n").into()
    });
    answered_by_the_origin_and_the_owner_is_asked_again(&owner.url);
}

#[test]
fn a_mute_owner_costs_one_deadline_and_not_one_each() {
    let owner = Stub::mute();
    let [node] = Cluster::over(&Origin::of_all()).timeout(DEADLINE).peer(&owner.url).start();
    let start = Instant::now();
    for key in node.keys_of(&owner.url).take(100) {
        assert_eq!(node.get(&key), Some(value_of(&key)));
    }
    // One question at first, and one more for each cool-down that has ended meanwhile.
    let most = 1.0 + start.elapsed().as_secs_f64() / COOLDOWN.as_secs_f64();
    assert!(owner.connections() as f64 <= most, "{} of {most}", owner.connections());
    assert_eq!(node.stats().fallbacks, 100);
}

#[test]
fn after_the_cool_down_one_caller_tries_and_finds_the_owner_back() {
    let (is_up, questions, gate) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), Gate::default());
    let owner = Stub::http({
        let (is_up, questions, gate) = (is_up.clone(), questions.clone(), gate.clone());
        move |_| {
            if !is_up.load(Ordering::SeqCst) {
                return b"nonsense\r\n".into();
            }
            questions.fetch_add(1, Ordering::SeqCst);
            gate.wait();
            response(200, "application/octet-stream", "from the owner")
        }
    });
    let [node] = Cluster::over(&Origin::of_all()).peer(&owner.url).start();
    let mut keys = node.keys_of(&owner.url);
    let first = keys.next().unwrap();
    assert_eq!(node.get(&first), Some(value_of(&first)));
    assert!(!node.believes_in_its_peer());
    is_up.store(true, Ordering::SeqCst);

    let (others, mut keys) = (keys.by_ref().take(20).collect::<Vec<_>>(), keys);
    thread::scope(|scope| {
        // Falls back until the cool-down has ended; the get that tries then waits at the gate.
        scope.spawn(|| {
            eventually("a get that the owner answers", || {
                node.get(&keys.next().unwrap()).unwrap() == "from the owner"
            });
        });
        eventually("somebody tries", || gate.waiting() == 1);
        for key in &others {
            assert_eq!(node.get(key), Some(value_of(key)), "the others fall back meanwhile");
        }
        assert_eq!(questions.load(Ordering::SeqCst), 1);
        gate.open();
    });
    assert!(node.believes_in_its_peer());
}

#[test]
fn an_owner_that_restarts_is_asked_again() {
    let origin = Origin::of_all();
    let [asker, mut owner] = Cluster::over(&origin).timeout(DEADLINE).host("127.0.0.3").start();
    let url = owner.url.clone();
    let mut keys = asker.keys_of(&url);
    let mut get_another = || {
        let key = keys.next().unwrap();
        assert_eq!(asker.get(&key), Some(value_of(&key)));
    };
    get_another();
    assert_eq!((asker.stats().peer_loads, owner.stats().peer_requests), (1, 1));

    assert!(owner.take_server().shutdown(LONG));
    get_another();
    assert_eq!((asker.stats().peer_loads, asker.stats().fallbacks), (1, 1));

    owner.restart();
    eventually("the owner answers again", || {
        get_another();
        asker.stats().peer_loads > 1
    });
    assert!(asker.believes_in_its_peer());
    check_identities([&asker, &owner]);
}
