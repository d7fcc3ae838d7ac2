//! Clients that fall silent, drip, do not read, send ahead, or use up the descriptors: what it
//! costs those who behave.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use geecache::{HttpServer, ServerOptions};

use crate::child::{Child, IDLE_THREADS, allow_many_files};
use crate::support::*;

/// Sends some bytes on a connection of its own, which stays open.
fn sending(url: &str, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(bytes.as_bytes()).unwrap();
    stream
}

/// The 99th percentile of a caller who asks `healthz`, each second time on a new connection.
fn p99_of_a_caller(url: &str) -> Duration {
    let mut kept = Client::connect(url);
    let mut times: Vec<_> = (0..400)
        .map(|i| {
            let start = Instant::now();
            let mut new = (i % 2 == 0).then(|| Client::connect(url));
            let client = new.as_mut().unwrap_or(&mut kept);
            client.send("GET /healthz", &[]);
            assert_eq!(client.answer().status, 200);
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() * 99 / 100]
}

/// Where the machine is so busy that a server of a few lines takes long for the same caller, four
/// times that is allowed instead of 100 ms.
#[test]
fn a_thousand_half_open_requests_slow_nobody_down_and_leave_nothing_behind() {
    let files = allow_many_files();
    let idle_timeout = Duration::from_secs(4);
    let child = Child::start(idle_timeout, files);
    let plain_server = plain_server();
    let before = p99_of_a_caller(&child.url);
    let (threads, memory) = (child.threads(), child.memory());

    let halves = [
        "GE",
        "GET /_geecache/scores/Tom HTTP/1.1\r\nHost: no",
        "POST /_geecache/scores HTTP/1.1\r\nContent-Length: 1000\r\n\r\nhalf",
        "POST /_geecache/scores HTTP/1.1\r\nContent-Length: 2000\r\n\r\nhalf",
        "POST /_geecache/scores HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\nhalf",
    ];
    let half_open: Vec<_> =
        (0..1000).map(|i| sending(&child.url, halves[i % halves.len()])).collect();
    eventually("each has a thread", || child.threads() >= threads + 900);
    let (during, plain) = (p99_of_a_caller(&child.url), p99_of_a_caller(&plain_server.url));
    println!("p99 {before:?} before, {during:?} beside 1000 half-open requests, plain {plain:?}");
    assert!(during < Duration::from_millis(100).max(4 * plain));

    // Those whose body is missing are told so, and have the same time once more.
    eventually("they are sent away", || child.threads() < threads + IDLE_THREADS);
    drop(half_open);
    println!("memory: {memory} bytes before, {} after", child.memory());
    assert!(child.memory() < memory + (16 << 20));
    child.check_for_panics();
}

#[test]
fn a_lack_of_descriptors_ends_with_the_connections_that_caused_it() {
    // An odd and an even limit: the acceptor fails in `accept`, or in cloning what it accepted.
    for files in [80, 81] {
        let child = Child::start(LONG, files);
        let mut open = Client::connect(&child.url);
        let mut is_answered = || {
            open.send("GET /_geecache/scores/Tom", &[]);
            open.answer().text() == value_of("Tom")
        };
        assert!(is_answered());
        let idle: Vec<_> = (0..100).map(|_| sending(&child.url, "")).collect();
        let mut late = sending(&child.url, "GET /healthz HTTP/1.1\r\n\r\n");
        late.set_read_timeout(Some(Duration::from_millis(1500))).unwrap();
        assert!(late.read(&mut [0; 1]).is_err(), "it is out of descriptors");
        assert!(is_answered());

        let closed = Instant::now();
        drop((idle, late));
        eventually("it answers again", || {
            let mut stream = sending(&child.url, "GET /healthz HTTP/1.1\r\n\r\n");
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.read(&mut [0; 1]).is_ok_and(|n| n > 0)
        });
        println!("{files} descriptors: it answers {:?} after they are closed", closed.elapsed());
        assert!(closed.elapsed() < Duration::from_secs(3));
        assert!(is_answered());
        child.logs("newcomers");
        child.logs("answers again");
    }
}

/// Announces a body and sends a byte of it.
fn drip(url: &str, request: &str) -> TcpStream {
    sending(url, &format!("{request} HTTP/1.1\r\nContent-Length: 2000\r\n\r\n."))
}

#[test]
fn a_body_that_does_not_arrive_holds_its_own_connection_alone() {
    let (origin, gate) = Origin::gated();
    let [node] = Cluster::over(&origin).token("secret").workers(1, 0).start();
    let front = HttpServer::serve(
        std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
        ServerOptions { workers: 1, queue: 0, ..ServerOptions::default() },
        |_, body| geecache::tiny_http::Response::from_data(body).boxed(),
    );
    let front = front.unwrap();
    let front_url = url_of(front.local_addr());

    let drippers: Vec<_> = ["POST /_geecache/scores", "GET /_geecache/scores/Tom", "GET /healthz"]
        .iter()
        .cycle()
        .take(30)
        .map(|request| drip(&node.url, request))
        .chain((0..10).map(|_| drip(&front_url, "POST /")))
        .collect();
    // Without a queue each is refused but the one that meets a worker who waits.
    let is_answered = |url: &str| {
        let mut client = Client::connect(url);
        eventually("a worker has time", || {
            client.send("GET /healthz", &[]);
            client.answer().status == 200
        });
    };
    is_answered(&node.url);
    is_answered(&front_url);

    // Nor does it hold up those who are refused.
    thread::scope(|scope| {
        let taken = scope.spawn(|| {
            let token = ["Authorization: Bearer secret"];
            while ask(&node.url, "GET /_geecache/scores/Tom", &token).status == 503 {}
        });
        eventually("the worker is busy", || gate.waiting() == 1);
        let drippers: Vec<_> = (0..10).map(|_| drip(&node.url, "GET /healthz")).collect();
        assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 503);
        drop(drippers);
        gate.open();
        taken.join().unwrap();
    });
    drop(drippers);
    let body = "x".repeat(2000);
    assert_eq!(post(&front_url, "/", &[], body.as_bytes()).text(), body, "a whole one is read");
}

#[test]
fn answers_that_nobody_reads_hold_no_worker() {
    let origin = Origin::new(|_: &str| Ok::<_, geecache::BoxError>(Some(vec![0; 32 << 20])));
    let [node] = Cluster::over(&origin).workers(1, 8).start();
    let _deaf: Vec<_> =
        (0..4).map(|_| sending(&node.url, "GET /_geecache/scores/Tom HTTP/1.1\r\n\r\n")).collect();
    eventually("they are answered", || node.stats().peer_requests == 4);
    let start = Instant::now();
    assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 200);
    assert!(start.elapsed() < Duration::from_secs(4), "none of them was waited for");
}

/// Hits are answered where requests are received.
#[test]
fn hits_that_nobody_reads_hold_up_nobody() {
    let origin = Origin::new(|_: &str| Ok::<_, geecache::BoxError>(Some(vec![0; 8_000])));
    let [node] = Cluster::over(&origin).start();
    assert_eq!(ask(&node.url, "GET /_geecache/scores/Tom", &[]).status, 200);
    let mut deaf = sending(&node.url, "");
    socket2::SockRef::from(&deaf).set_recv_buffer_size(1).unwrap();
    // Each is sent when the one before is counted, until one cannot be taken on any more.
    let is_counted = |hits| {
        let start = Instant::now();
        while node.stats().main.hits < hits && start.elapsed() < Duration::from_secs(1) {
            thread::yield_now();
        }
        node.stats().main.hits == hits
    };
    let sent = (1..10_000).take_while(|&hits| {
        deaf.write_all(b"GET /_geecache/scores/Tom HTTP/1.1\r\n\r\n").unwrap();
        is_counted(hits)
    });
    assert!(sent.count() < 5_000, "an answer waits for its client");
    let start = Instant::now();
    assert_eq!(ask(&node.url, "GET /_geecache/scores/Tom", &[]).status, 200);
    assert!(start.elapsed() < Duration::from_secs(2), "it was not waited for");
}

#[test]
fn hits_are_answered_while_all_workers_wait_for_the_origin() {
    let (origin, gate) = Origin::gated_for(|key| key != "Tom");
    let [node] = Cluster::over(&origin).workers(1, 0).start();
    let get = |key: &str| ask(&node.url, &format!("GET /_geecache/scores/{key}"), &[]).status;
    // Without a queue each is refused but the one that meets a worker who waits.
    eventually("Tom is loaded", || get("Tom") == 200);
    thread::scope(|scope| {
        let jack = scope.spawn(|| while get("Jack") == 503 {});
        eventually("the worker is busy", || gate.waiting() == 1);
        // Also if they come at the same time.
        let mut clients: Vec<_> = (0..64).map(|_| Client::connect(&node.url)).collect();
        for _ in 0..10 {
            clients.iter_mut().for_each(|client| client.send("GET /_geecache/scores/Tom", &[]));
            assert!(clients.iter_mut().all(|client| client.answer().status == 200));
        }
        assert_eq!(get("Sam"), 503);
        gate.open();
        jack.join().unwrap();
    });
}

#[test]
fn answers_that_nobody_reads_are_refused_before_they_take_the_memory() {
    let origin = Origin::new(|_: &str| Ok::<_, geecache::BoxError>(Some(vec![0; 32 << 20])));
    let [node] = Cluster::over(&origin).start();
    let mut deaf: Vec<_> =
        (0..8).map(|_| sending(&node.url, "GET /_geecache/scores/Tom HTTP/1.1\r\n\r\n")).collect();
    // The first byte and no more: 256 MiB are on their way.
    deaf.iter_mut().for_each(|client| client.read_exact(&mut [0]).unwrap());
    assert_eq!(ask(&node.url, "GET /_geecache/scores/Tom", &[]).status, 503);
    assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 200, "small ones need no room");
    drop(deaf);
    eventually("there is room again", || {
        ask(&node.url, "GET /_geecache/scores/Tom", &[]).status == 200
    });
}

/// tiny_http answers these only once the request is dropped, and drops it only once it is answered.
/// Nothing that comes to us, so nothing that could be mended here.
#[test]
fn a_version_that_is_not_spoken_costs_its_own_connection_alone() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    let _mute: Vec<_> = (0..30)
        .map(|_| sending(&node.url, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"))
        .chain((0..30).map(|_| sending(&node.url, "GET /healthz HTTP/3.0\r\n\r\n")))
        .collect();
    assert_eq!(ask(&node.url, "GET /_geecache/scores/Tom", &[]).text(), value_of("Tom"));
}

#[test]
fn requests_sent_ahead_are_answered_in_order_and_one_at_a_time() {
    let (origin, gate) = Origin::gated();
    let [node] = Cluster::over(&origin).workers(2, 8).start();
    let mut hasty = Client::connect(&node.url);
    for i in 0..20 {
        hasty.send(&format!("GET /_geecache/scores/{i}"), &[]);
    }
    eventually("the first one is being loaded", || gate.waiting() == 1);
    assert_eq!(ask(&node.url, "GET /healthz", &[]).status, 200, "a worker is left for others");
    assert_eq!(gate.waiting(), 1);
    gate.open();
    for i in 0..20 {
        assert_eq!(hasty.answer().text(), value_of(&i.to_string()));
    }
}
