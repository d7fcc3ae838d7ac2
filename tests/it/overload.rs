//! Three times as many questions as the workers can take: what those get who are let in, what the
//! others get, and what that does to the origin.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::child::{Child, IDLE_THREADS, SLOW, allow_many_files};
use crate::support::*;

/// The workers of the default options.
const WORKERS: u32 = 16;
/// A question that is let in and taken by no worker is refused after so long.
const LONGEST_WAIT: Duration = Duration::from_millis(50);
const ATTEMPTS: usize = 5;

/// Sends `n` requests on `clients` connections. Each is sent `period` after the last one,
/// whether that is answered or not, as long as a connection is free. The statuses, and how long
/// each answer took.
fn offer(
    url: &str,
    request: impl Fn(u32) -> String + Sync,
    n: u32,
    clients: usize,
    period: Duration,
) -> Vec<(u16, Duration)> {
    let (start, next) = (Instant::now(), AtomicU32::new(0));
    let ask = |_| {
        let mut client = Client::connect(url);
        let mut answers = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return answers;
            }
            // The pace of the offer; nothing is waited for.
            thread::sleep((start + i * period).saturating_duration_since(Instant::now()));
            let sent = Instant::now();
            client.send(&request(i), &[]);
            let status = client.answer().status;
            answers.push((status, sent.elapsed()));
        }
    };
    together(clients, ask).concat()
}

/// Does something while one more client asks for a key that is there, again and again.
fn beside_hits<T>(url: &str, work: impl FnOnce() -> T) -> T {
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, start) = (Client::connect(url), Instant::now());
            while !is_done.load(Ordering::Relaxed) && start.elapsed() < LONG {
                client.send("GET /_geecache/scores/hit", &[]);
                client.answer();
            }
        });
        let result = work();
        is_done.store(true, Ordering::Relaxed);
        result
    })
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut times = times.to_vec();
    times.sort();
    times[times.len() * percent / 100]
}

fn times_of(answers: &[(u16, Duration)], status: u16) -> Vec<Duration> {
    answers.iter().filter(|answer| answer.0 == status).map(|answer| answer.1).collect()
}

/// The bounds are set against what the same node takes without too much to do, in turn with it, so
/// that a busy machine moves both: for a few of the same questions (`alone`), and for as many quick
/// ones on as many connections, whose way through the threads is as long (`quick`). Where the
/// machine is not busy, the quick ones take less than a millisecond, and what is left are the
/// three times, and the 50 ms and some, that are promised. Where it is busy for a part of the time, one of
/// several attempts meets them. A caller who asks for a hit after the other changes nothing: how
/// long those take says nothing of the questions that wait.
#[test]
fn those_let_in_wait_no_longer_than_an_answer_takes_and_the_others_are_told_soon() {
    let child = Child::start(LONG, allow_many_files());
    let keys = AtomicU32::new(0);
    // Keys that nobody has asked for.
    let slow = |_| format!("GET /_geecache/scores/slow-{}", keys.fetch_add(1, Ordering::Relaxed));
    let period = SLOW / WORKERS / 3;
    let n = Duration::from_secs(2).div_duration_f64(period) as u32;
    let unloaded = || {
        let answers = offer(&child.url, slow, 100, 4, Duration::ZERO);
        assert!(answers.iter().all(|answer| answer.0 == 200), "nobody is refused");
        times_of(&answers, 200)
    };

    let threads = child.threads();
    let mut memory = Vec::new();
    let mut attempt = || {
        let alone = unloaded();
        let answers = beside_hits(&child.url, || offer(&child.url, slow, n, 128, period));
        let (accepted, refused) = (times_of(&answers, 200), times_of(&answers, 503));
        memory.push(child.memory());
        assert_eq!(accepted.len() + refused.len(), n as usize);
        let removal = |_| "DELETE /_geecache/scores/quick".into();
        let answers = offer(&child.url, removal, n, 128, period);
        let quick = times_of(&answers, 204);
        let [p99_alone, p99_accepted, p99_refused, p99_quick] =
            [&alone, &accepted, &refused, &quick].map(|times| percentile(times, 99));
        println!(
            "of {n} questions {} are accepted, p99 {p99_accepted:?}, alone {p99_alone:?}; {} are \
             refused, p99 {p99_refused:?}, quick ones {p99_quick:?}",
            accepted.len(),
            refused.len(),
        );
        // The workers can take a third of the questions; on a busy machine less.
        accepted.len() > n as usize / 10
            && p99_accepted < 3 * (p99_alone + p99_quick)
            && p99_refused < LONGEST_WAIT + Duration::from_millis(5).max(8 * p99_quick)
    };
    assert!((0..ATTEMPTS).any(|_| attempt()), "in none of {ATTEMPTS} attempts");
    assert!(memory[memory.len() - 1] < memory[0] + (16 << 20), "{memory:?}");

    eventually("the threads of the load end", || child.threads() < threads + IDLE_THREADS);
    eventually("an answer takes as long as before", || percentile(&unloaded(), 50) < 2 * SLOW);
    child.check_for_panics();
}

#[test]
fn a_burst_of_quick_questions_is_not_refused() {
    let [node] = Cluster::over(&Origin::of_all()).start();
    assert_eq!(node.get("Tom"), Some(value_of("Tom")));
    // Sixteen times as many as there are workers.
    let mut clients: Vec<_> = (0..256).map(|_| Client::connect(&node.url)).collect();
    clients.iter_mut().for_each(|client| client.send("GET /_geecache/scores/Tom", &[]));
    for client in &mut clients {
        assert_eq!(client.answer().status, 200);
    }
}

#[test]
fn while_an_owner_is_overloaded_each_asking_node_loads_a_key_once() {
    let (gated, gate) = Origin::gated();
    let [owner] = Cluster::over(&gated).workers(1, 0).start();
    let origin = Origin::of_all();
    let askers: [[Node; 1]; 2] =
        [(); 2].map(|()| Cluster::over(&origin).without_combining().peer(&owner.url).start());
    let keys: Vec<_> = askers[0][0].keys_of(&owner.url).take(10).collect();
    thread::scope(|scope| {
        // Without a queue a request is taken only by a worker that waits for one just then.
        let taken = scope
            .spawn(|| while ask(&owner.url, "GET /_geecache/scores/Tom", &[]).status == 503 {});
        eventually("its worker is busy", || gate.waiting() == 1);
        for round in 1..=2 {
            for [asker] in &askers {
                together(8, |_| {
                    for key in &keys {
                        assert_eq!(asker.get(key), Some(value_of(key)));
                    }
                });
            }
            // Not a load for each of the 160 gets; and none in the second round, since a node
            // keeps what it has loaded in place of an owner.
            assert_eq!(origin.loads(), 2 * keys.len(), "round {round}");
        }
        assert!(askers.iter().all(|[asker]| asker.believes_in_its_peer()), "it did answer");
        gate.open();
        taken.join().unwrap();
    });
}
