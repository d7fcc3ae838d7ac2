//! `Clients`: the requests of one client, one after the other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use libtest_mimic::Trial;

use super::{many, together};
use crate::clients::Clients;

pub(super) fn all() -> Vec<Trial> {
    vec![
        many(requests_are_answered_in_order_one_at_a_time::<2>),
        many(requests_are_answered_in_order_one_at_a_time::<5>),
    ]
}

const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

/// One thread receives, and leaves the request under way to the other one. After an answer each goes on
/// with the next request.
fn requests_are_answered_in_order_one_at_a_time<const REQUESTS: usize>() {
    let (clients, left) = (Clients::new(), Mutex::new(Vec::new()));
    let (answered, is_answering) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let is_over = AtomicBool::new(false);
    let answer = |mut next: Option<usize>| {
        while let Some(request) = next {
            assert!(!is_answering.swap(true, Ordering::SeqCst), "two at a time");
            answered.lock().unwrap().push(request);
            is_answering.store(false, Ordering::SeqCst);
            next = clients.next(CLIENT);
        }
    };
    together(2, |i| {
        if i == 0 {
            for request in 0..REQUESTS {
                match clients.enter(CLIENT, request) {
                    Some(request) if request % 2 == 0 => left.lock().unwrap().push(request),
                    next => answer(next),
                }
            }
            is_over.store(true, Ordering::SeqCst);
            return;
        }
        loop {
            let was_over = is_over.load(Ordering::SeqCst);
            let request = left.lock().unwrap().pop();
            if request.is_none() && was_over {
                break;
            }
            answer(request);
            thread::yield_now();
        }
    });
    assert_eq!(*answered.lock().unwrap(), (0..REQUESTS).collect::<Vec<_>>());
    assert_eq!(clients.enter(CLIENT, REQUESTS), Some(REQUESTS), "nothing is under way");
}
