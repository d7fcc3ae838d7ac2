//! The relay that stands for a network does what it is told: otherwise tests through it show
//! nothing.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::*;

const MS: Duration = Duration::from_millis(1);

/// A target that sends back what it gets, until that ends.
fn echo() -> Stub {
    Stub::raw(|mut stream| {
        let _ = io::copy(&mut stream.try_clone().unwrap(), &mut stream);
        let _ = stream.shutdown(Shutdown::Write);
    })
}

fn relay_to(stub: &Stub) -> Relay {
    Relay::to(address_of(&stub.url).parse().unwrap()).unwrap()
}

fn connect(relay: &Relay) -> TcpStream {
    let stream = TcpStream::connect(relay.address()).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream
}

/// A connection that has carried something, so that the relay knows of it.
fn connected(relay: &Relay) -> TcpStream {
    let mut stream = connect(relay);
    assert_eq!(echoed(&mut stream, b"hello").unwrap(), b"hello");
    stream
}

/// What comes back for these bytes.
fn echoed(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

fn time_of<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

/// What comes until the end, and how it ends.
fn rest(stream: &mut TcpStream) -> (Vec<u8>, Result<(), ErrorKind>) {
    let mut bytes = Vec::new();
    let end = stream.read_to_end(&mut bytes);
    (bytes, end.map(drop).map_err(|error| error.kind()))
}

fn assert_reset(stream: &mut TcpStream) {
    // Whichever of the two hears of it first.
    let end = stream.write_all(b"more").and_then(|()| stream.read_to_end(&mut Vec::new()));
    assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

/// Nothing comes for a while, and no end either.
fn assert_silent(stream: &mut TcpStream) {
    stream.write_all(b"more").unwrap();
    stream.set_read_timeout(Some(50 * MS)).unwrap();
    assert_eq!(rest(stream), (vec![], Err(ErrorKind::WouldBlock)));
    stream.set_read_timeout(Some(LONG)).unwrap();
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

#[test]
fn all_bytes_arrive_in_order_both_ways_and_so_does_the_end() {
    let target = echo();
    let relay = relay_to(&target);
    relay.set_delays(3 * MS, 5 * MS);
    relay.set_bandwidth(NonZeroU64::new(20 << 20), NonZeroU64::new(30 << 20));
    let bytes = noise(3 << 20);
    together(3, |_| {
        let mut stream = connect(&relay);
        let mut writer = stream.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&bytes).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let (back, end) = rest(&mut stream);
            assert!(back == bytes && end.is_ok());
        });
    });
    eventually("no connection is open", || relay.open() == 0);
    assert_eq!((relay.accepted(), relay.carried()), (3, [9 << 20, 9 << 20]));
}

#[test]
fn an_answer_takes_no_less_than_the_round_trip_and_the_first_one_twice_that() {
    let target = echo();
    let relay = relay_to(&target);
    for (there, back) in [(30 * MS, MS), (MS, 30 * MS)] {
        relay.set_delays(there, back);
        // From the connection on, whose own round trip begins before it can be used.
        let start = Instant::now();
        let mut stream = connect(&relay);
        echoed(&mut stream, b"first").unwrap();
        assert!(start.elapsed() >= 62 * MS);
        for _ in 0..3 {
            assert!(time_of(|| echoed(&mut stream, b"next").unwrap()) >= 31 * MS);
        }
    }
    // Switched while it is open.
    let mut stream = connected(&relay);
    relay.set_delay(Duration::ZERO);
    let quick = (0..100).any(|_| time_of(|| echoed(&mut stream, b"quick").unwrap()) < 31 * MS);
    assert!(quick);
}

#[test]
fn a_delay_costs_no_throughput() {
    let target = echo();
    let relay = relay_to(&target);
    // Chunks of what fits through in a millisecond: 100 of 100 bytes.
    relay.set_bandwidth(NonZeroU64::new(100_000), None);
    relay.set_delay(500 * MS);
    let mut stream = connected(&relay);
    relay.lateness();
    let took = time_of(|| echoed(&mut stream, &noise(10_000)).unwrap());
    // One after the other they would take 25 s.
    assert!(took >= 590 * MS && took < 10_000 * MS, "{took:?}");
    assert!(relay.lateness().deliveries >= 100);
    assert_eq!(relay.lateness().deliveries, 0, "counted anew");
}

#[test]
fn connections_share_the_bandwidth() {
    let target = echo();
    let relay = relay_to(&target);
    for (there, back) in [(NonZeroU64::new(4 << 20), None), (None, NonZeroU64::new(4 << 20))] {
        relay.set_bandwidth(there, back);
        let took = time_of(|| {
            together(4, |_| {
                let mut stream = connect(&relay);
                let mut writer = stream.try_clone().unwrap();
                let sending = thread::spawn(move || writer.write_all(&noise(256 << 10)).unwrap());
                stream.read_exact(&mut vec![0; 256 << 10]).unwrap();
                sending.join().unwrap();
            });
        });
        assert!(took >= 240 * MS && took < 10_000 * MS, "{took:?}");
    }
}

#[test]
fn small_answers_do_not_wait_for_all_of_the_large_ones() {
    let target = echo();
    let relay = relay_to(&target);
    relay.set_bandwidth(None, NonZeroU64::new(8 << 20));
    let mut small = connected(&relay);
    let mut large = connected(&relay);
    let mut writer = large.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(move || writer.write_all(&noise(8 << 20)).unwrap());
        large.read_exact(&mut vec![0; 1 << 20]).unwrap();
        let took = time_of(|| echoed(&mut small, b"small").unwrap());
        let rest = time_of(|| large.read_exact(&mut vec![0; 7 << 20]).unwrap());
        assert!(took * 2 < rest, "{took:?} {rest:?}");
    });
}

#[test]
fn who_does_not_read_holds_up_nobody_else() {
    let target = echo();
    let relay = relay_to(&target);
    let bytes = noise(32 << 20);
    let mut deaf = connected(&relay);
    let mut writer = deaf.try_clone().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| writer.write_all(&bytes).unwrap());
        eventually("much is under way", || relay.carried()[1] > 1 << 20);
        let mut other = connected(&relay);
        (0..100).for_each(|_| drop(echoed(&mut other, b"hello").unwrap()));
        let mut back = vec![0; bytes.len()];
        deaf.read_exact(&mut back).unwrap();
        assert!(back == bytes);
    });
}

#[test]
fn many_connections_at_once_are_carried() {
    let target = echo();
    let relay = relay_to(&target);
    relay.set_delay(2 * MS);
    together(100, |i| {
        let mut stream = connect(&relay);
        for n in 0..10 {
            let bytes = format!("{n} of {i}");
            assert_eq!(echoed(&mut stream, bytes.as_bytes()).unwrap(), bytes.as_bytes());
        }
    });
    assert_eq!(relay.accepted(), 100);
}

#[test]
fn existing_connections_are_reset_at_the_next_byte_and_new_ones_carried() {
    let target = echo();
    let relay = relay_to(&target);
    let mut streams = [(); 3].map(|()| connected(&relay));
    relay.treat_existing(Treatment::Reset);
    assert_eq!(relay.open(), 3);
    let mut new = connected(&relay);
    streams.iter_mut().for_each(assert_reset);
    assert_eq!(echoed(&mut new, b"still").unwrap(), b"still");
    assert_eq!(relay.open(), 1);
}

#[test]
fn existing_connections_are_swallowed_and_new_ones_carried() {
    let target = echo();
    let relay = relay_to(&target);
    let mut streams = [(); 3].map(|()| connected(&relay));
    relay.treat_existing(Treatment::Swallow);
    let before = relay.carried();
    streams.iter_mut().for_each(assert_silent);
    assert_eq!((relay.open(), relay.carried()), (3, before));
    connected(&relay);
    // What was swallowed is lost; what comes after is carried again.
    relay.treat_existing(Treatment::Carry);
    for stream in &mut streams {
        assert_eq!(echoed(stream, b"back").unwrap(), b"back");
    }
}

#[test]
fn existing_connections_are_cut_in_mid_answer_and_new_ones_carried() {
    let target = echo();
    let relay = relay_to(&target);
    for (by, end) in [(CutBy::End, Ok(())), (CutBy::Reset, Err(ErrorKind::ConnectionReset))] {
        let mut stream = connected(&relay);
        let mut idle = connected(&relay);
        relay.treat_existing(Treatment::Cut { after: 8, by });
        assert_eq!(echoed(&mut stream, b"five!").unwrap(), b"five!");
        stream.write_all(b"and five").unwrap();
        assert_eq!(rest(&mut stream), (b"and".to_vec(), end));
        idle.write_all(b"exactly8").unwrap();
        assert_eq!(rest(&mut idle), (b"exactly8".to_vec(), end));
        connected(&relay);
    }
    eventually("no connection is open", || relay.open() == 0);
}

#[test]
fn the_target_sees_a_reset_too() {
    let (ended, ends) = crossbeam_channel::unbounded();
    let target = Stub::raw(move |mut stream| {
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        ended.send(rest(&mut stream)).unwrap();
    });
    let relay = relay_to(&target);
    let mut stream = connected(&relay);
    relay.treat_existing(Treatment::Reset);
    assert_reset(&mut stream);
    let end = ends.recv_timeout(LONG).unwrap();
    assert_eq!(end, (vec![], Err(ErrorKind::ConnectionReset)));
}

#[test]
fn new_connections_are_treated_badly_and_existing_ones_carried() {
    let target = echo();
    let relay = relay_to(&target);
    let mut existing = connected(&relay);
    let still = |stream: &mut TcpStream| assert_eq!(echoed(stream, b"still").unwrap(), b"still");

    relay.treat_new(Treatment::Reset);
    assert_reset(&mut connect(&relay));
    still(&mut existing);

    relay.treat_new(Treatment::Swallow);
    assert_silent(&mut connect(&relay));
    still(&mut existing);

    for (by, end) in [(CutBy::End, Ok(())), (CutBy::Reset, Err(ErrorKind::ConnectionReset))] {
        relay.treat_new(Treatment::Cut { after: 3, by });
        let mut new = connect(&relay);
        new.write_all(b"hello").unwrap();
        assert_eq!(rest(&mut new), (b"hel".to_vec(), end));
        still(&mut existing);
    }

    relay.refuse_new();
    let refused = TcpStream::connect(relay.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    still(&mut existing);

    relay.treat_new(Treatment::Carry);
    still(&mut connected(&relay));
    still(&mut existing);
    assert_eq!(target.connections(), 4, "those to be carried or cut");
    assert_eq!(relay.accepted(), 6);
}

#[test]
fn a_target_that_is_not_there_resets_the_client() {
    let relay = Relay::to(address_of(&dead_url()).parse().unwrap()).unwrap();
    assert_reset(&mut connect(&relay));
}

#[test]
fn all_ends_with_the_relay() {
    let target = echo();
    let relay = relay_to(&target);
    let address = relay.address();
    let mut streams = [(); 3].map(|()| connected(&relay));
    relay.set_delay(LONG * 10);
    streams.iter_mut().for_each(|stream| stream.write_all(b"never").unwrap());
    assert!(time_of(|| drop(relay)) < LONG);
    for mut stream in streams {
        assert!(rest(&mut stream).0.is_empty());
    }
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn nodes_behind_relays_ask_each_other_through_them() {
    let origin = Origin::of_all();
    let ([mut a, b], [to_a, to_b]) = Cluster::over(&origin).behind_relays();
    let keys: Vec<String> = a.keys_of(&b.url).take(3).collect();
    assert_eq!(a.get(&keys[0]), Some(value_of(&keys[0])));
    assert_eq!((to_a.accepted(), to_b.accepted()), (0, 1));
    to_b.set_delay(50 * MS);
    assert!(time_of(|| a.get(&keys[1])) >= 50 * MS);
    assert_eq!((b.stats().peer_requests, a.stats().fallbacks), (2, 0));

    // A restarted node is where its relay looks for it.
    let key = b.key_of(&a.url);
    a.take_server().shutdown(LONG);
    a.restart();
    assert_eq!(b.get(&key), Some(value_of(&key)));
    assert_eq!((to_a.accepted(), b.stats().fallbacks), (1, 0));
    check_identities([&a, &b]);
}
