//! Clients that send anything: broken, contradictory and endless requests from a seeded generator.
//!
//! `make stress SEEDS=…` goes on for longer. What a seed sends is the same each time.

use std::env;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt, SeedableRng};

use crate::child::{Child, IDLE_THREADS, allow_many_files};
use crate::support::*;

/// How many seeds are tried; [`SEEDS`] asks for more.
const FEW: u64 = 1_000;
const SEEDS: &str = "GEECACHE_TEST_SEEDS";

/// In place of a status: the connection is closed without an answer.
const CLOSED: u16 = 0;

/// What a client sends, and which statuses its first answer may have.
struct Attempt {
    bytes: Vec<u8>,
    may_be: &'static [u16],
}

fn attempt(bytes: impl Into<Vec<u8>>, may_be: &'static [u16]) -> Attempt {
    Attempt { bytes: bytes.into(), may_be }
}

/// A request with these header lines and this body, and nothing added.
fn request(first: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let headers: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    [format!("{first}\r\nHost: node\r\n{headers}\r\n").as_bytes(), body].concat()
}

fn with_length(first: &str, body: &[u8]) -> Vec<u8> {
    request(first, &[&format!("Content-Length: {}", body.len())], body)
}

fn in_chunks(body: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", body.len()).as_bytes(), body, b"\r\n0\r\n\r\n"].concat()
}

const TOM: &str = "GET /_geecache/scores/Tom HTTP/1.1";
const BATCH: &str = "POST /_geecache/scores HTTP/1.1";
const HEALTH: &str = "GET /healthz HTTP/1.1";

fn bytes(random: &mut StdRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; random.random_range(1..=most)];
    random.fill_bytes(&mut bytes);
    bytes
}

/// A proper request.
fn proper(random: &mut StdRng) -> Vec<u8> {
    let keys: Vec<_> = (0..random.random_range(1..300)).map(|i| format!("key {i}")).collect();
    let batch = batch_of(&keys.iter().map(String::as_str).collect::<Vec<_>>());
    match random.random_range(0..6) {
        0 => request(TOM, &[], b""),
        1 => with_length(BATCH, &batch),
        2 => request(BATCH, &["Transfer-Encoding: chunked"], &in_chunks(&batch)),
        3 => request("DELETE /_geecache/scores/Tim HTTP/1.1", &[], b""),
        4 => with_length(HEALTH, &batch),
        _ => request("GET /metrics HTTP/1.1", &["Accept: */*"], b""),
    }
}

/// The same with some bytes changed, put in, taken out or cut off.
fn mutated(random: &mut StdRng) -> Vec<u8> {
    let mut bytes = proper(random);
    for _ in 0..random.random_range(1..8) {
        // Mostly near the start, where it matters.
        let most = if random.random_bool(0.8) { bytes.len().min(120) } else { bytes.len() };
        let at = random.random_range(0..=most);
        match random.random_range(0..5) {
            0 if at < bytes.len() => bytes[at] = random.random(),
            1 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            2 if at < bytes.len() => drop(bytes.remove(at)),
            3 => bytes.insert(at, *b"\r\n\0: /%0\xff9".choose(random).unwrap()),
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes
}

/// The attempt of a seed.
fn attempt_of(seed: u64) -> Attempt {
    let random = &mut StdRng::seed_from_u64(seed);
    let number = random.random_range(0..40_u32);
    let batch = batch_of(&["Tom", "Jack"]);
    // Each costs the node a thread for good, so they are few.
    if seed < FEW && seed % 50 == 7 {
        let length = random.random_range((16 << 20) + 1..=u64::MAX);
        return attempt(request(BATCH, &[&format!("Content-Length: {length}")], b"."), &[413]);
    }
    match random.random_range(0..16) {
        0 => attempt(bytes(random, 3000), &[CLOSED, 400]),
        1 => {
            let lines = [&bytes(random, 100)[..], b"\r\n", &bytes(random, 100), b"\r\n\r\n"];
            attempt(lines.concat(), &[CLOSED, 400])
        }
        2..=5 => {
            attempt(mutated(random), &[CLOSED, 100, 200, 204, 400, 401, 404, 405, 408, 413, 417])
        }
        6 => {
            let version = ["HTTP/1.2", "HTTP/4.0", "http/1.1", "HTTP/1.10", "HTTP/", "", "HTTP"];
            let version = version.choose(random).unwrap();
            attempt(request(&format!("GET /healthz {version}"), &[], b""), &[400])
        }
        7 => {
            let length = ["+5", "-5", "5, 5", "5 5", "0x5", "five", "", "99999999999999999999999"];
            let length = format!("Content-Length: {}", length.choose(random).unwrap());
            attempt(request(BATCH, &[&length], b"hello"), &[400])
        }
        8 => {
            let length = format!("Content-Length: {number}");
            let more = format!("Content-Length: {}", number + 1);
            let body = vec![b'x'; number as usize];
            let codings = ["gzip", "identity", "chunked, gzip", "gzip, chunked", "xchunked"];
            let coding = format!("Transfer-Encoding: {}", codings.choose(random).unwrap());
            let chunked = "Transfer-Encoding: chunked";
            let bytes = match number % 4 {
                0 => request(BATCH, &[&length, &more], &body),
                1 => request(BATCH, &[&length, chunked], &in_chunks(&batch)),
                2 => request(BATCH, &[chunked, chunked], &in_chunks(&batch)),
                _ => request(BATCH, &[&coding], &in_chunks(&batch)),
            };
            attempt(bytes, &[400])
        }
        9 => {
            let lies = ["zz", "-1", "fffffffffffffffff", "", " ", "5;", "5\n", "7fffffffffffffff"];
            let lie = lies.choose(random).unwrap();
            let body = [format!("{lie}\r\n").as_bytes(), &bytes(random, 100)].concat();
            attempt(request(BATCH, &["Transfer-Encoding: chunked"], &body), &[CLOSED, 400])
        }
        10 => {
            let body = vec![b'x'; (1 << 20) + 1 + number as usize];
            match number % 2 {
                0 => attempt(with_length(BATCH, &body), &[413]),
                _ => {
                    let chunks = in_chunks(&body);
                    attempt(request(HEALTH, &["Transfer-Encoding: chunked"], &chunks), &[413])
                }
            }
        }
        11 => {
            let first = |key| format!("GET /_geecache/scores/{key} HTTP/1.1");
            let unescaped = first("Tom").replace("Tom", "T\u{f6}m").into_bytes();
            let all: [(Vec<u8>, &[u16]); 5] = [
                (request(&first("%FF%FE"), &[], b""), &[400]),
                (request(&first("%C3"), &[], b""), &[400]),
                (request(&first("%00"), &[], b""), &[200]),
                (request(&first("a\0b"), &[], b""), &[200]),
                ([&unescaped[..], b"\r\n\r\n"].concat(), &[CLOSED]),
            ];
            let (bytes, may_be) = all[number as usize % 5].clone();
            attempt(bytes, may_be)
        }
        12 => {
            let expectation = ["Expect: 100-continue", "Expect: a miracle"];
            let expectation = expectation[number as usize % 2];
            let length = format!("Content-Length: {}", batch.len());
            let bytes = request(BATCH, &[&length, expectation], &batch);
            attempt(bytes, if number % 2 == 0 { &[100] } else { &[417] })
        }
        13 => {
            let ahead = request(TOM, &[], b"").repeat(1 + number as usize);
            attempt([ahead, mutated(random)].concat(), &[200])
        }
        14 => {
            let forms = ["CONNECT node:80", "OPTIONS *", "GET healthz", "GET http://node/healthz"];
            let form = number as usize % 4;
            let bytes = request(&format!("{} HTTP/1.1", forms[form]), &[], b"");
            attempt(bytes, &[404])
        }
        _ => {
            let qualities: Vec<_> =
                (0..100).map(|i| format!("x{i};q={}", [f32::NAN, i as f32][i % 2])).collect();
            let many: Vec<_> = (0..2000).map(|i| format!("X-{i}: {i}")).collect();
            let many: Vec<_> = many.iter().map(String::as_str).collect();
            let (bytes, may_be): (_, &[u16]) = match number % 6 {
                0 => (request(HEALTH, &[&format!("TE: {}", qualities.join(", "))], b""), &[200]),
                1 => (request(HEALTH, &many, b""), &[200]),
                2 => (request(HEALTH, &[&format!("X: {}", "x".repeat(100_000))], b""), &[200]),
                3 => (request(HEALTH, &["no colon"], b""), &[400]),
                4 => (request(HEALTH, &["Connection: upgrade", "Upgrade: h2c"], b"??"), &[200]),
                _ => (request(&format!("GET /{} HTTP/1.1", "x".repeat(100_000)), &[], b""), &[404]),
            };
            attempt(bytes, may_be)
        }
    }
}

/// Sends it all and the end of it; the statuses that come back until the connection is closed.
fn statuses(url: &str, bytes: &[u8]) -> Vec<u16> {
    let mut stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // It may be closed before all is sent, and with what it was sent unread.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let (mut answers, mut part) = (Vec::new(), [0; 4096]);
    // One that upgrades is the answer to a body that cannot be read: then it is left open.
    while !answers.starts_with(b"HTTP/1.1 413 Payload Too Large\r\nConnection: upgrade") {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(n) => answers.extend_from_slice(&part[..n]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
            Err(error) => panic!("neither answered nor closed: {error}"),
        }
    }
    let text = String::from_utf8_lossy(&answers);
    let lines = text.split("HTTP/").skip(1).filter(|line| line.as_bytes().get(1) == Some(&b'.'));
    lines.filter_map(|line| line.get(4..7)?.parse().ok()).collect()
}

#[test]
fn whatever_is_sent_is_answered_rightly_or_cut_off_and_harms_nobody_else() {
    let seeds = env::var(SEEDS).map_or(FEW, |seeds| seeds.parse().unwrap());
    let child = Child::start(LONG, allow_many_files());
    let try_seed = |seed| {
        let Attempt { bytes, may_be } = attempt_of(seed);
        // These get no answer at all, see `clients`.
        let later = [&b" HTTP/2.0\r"[..], b" HTTP/3.0\r"];
        if bytes.windows(11).any(|window| later.contains(&window)) {
            return;
        }
        let statuses = statuses(&child.url, &bytes);
        let first = statuses.first().copied().unwrap_or(CLOSED);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
        assert!(may_be.contains(&first), "seed {seed}: {statuses:?} to {shown:?}");
        assert!(statuses.iter().all(|status| *status < 500), "seed {seed}: {statuses:?}");
    };
    // What it keeps in any case it has after the first few.
    (0..50).for_each(try_seed);
    let (threads, memory) = (child.threads(), child.memory());

    let (next, start) = (AtomicU64::new(50), Instant::now());
    together(4, |_| {
        let mut well_behaved = Client::connect(&child.url);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                break;
            }
            try_seed(seed);
            well_behaved.send("GET /_geecache/scores/Tom", &[]);
            assert_eq!(well_behaved.answer().text(), value_of("Tom"), "after seed {seed}");
            if seed % 1_000 == 0 {
                let (threads, memory) = (child.threads(), child.memory() >> 20);
                let took = start.elapsed().as_secs();
                println!("{seed} of {seeds} seeds, {took} s, {threads} threads, {memory} MiB");
            }
        }
    });
    child.check_for_panics();
    let given_up = (50..FEW).filter(|seed| seed % 50 == 7).count();
    eventually("the threads of the connections end", || {
        child.threads() < threads + given_up + IDLE_THREADS
    });
    println!("{threads} threads at first, {} at last", child.threads());
    println!("{memory} bytes at first, {} at last", child.memory());
    assert!(child.memory() < memory + (32 << 20));
}
