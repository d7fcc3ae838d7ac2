//! `Queue`: what waits for a worker.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use libtest_mimic::Trial;

use super::{LONG, NONE, every, many, together};
use crate::queue::Queue;

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(each_item_let_in_is_taken_once::<1, 1, 2>),
        many(each_item_let_in_is_taken_once::<2, 2, 3>),
        every(each_item_wakes_a_worker::<1>),
        many(each_item_wakes_a_worker::<3>),
        many(without_room_an_item_is_let_in_only_if_a_worker_is_idle),
        many(an_item_is_taken_by_a_worker_or_refused::<1>),
        many(an_item_is_taken_by_a_worker_or_refused::<3>),
        many(a_close_ends_workers_that_wait),
    ]
}

/// `WORKERS` take what `CLIENTS` bring, each so many items, until the last client closes the queue.
fn each_item_let_in_is_taken_once<
    const WORKERS: usize,
    const CLIENTS: usize,
    const ITEMS: usize,
>() {
    let queue = Queue::new(WORKERS, 1, None);
    let taken = [const { AtomicUsize::new(0) }; 10];
    let clients_left = AtomicUsize::new(CLIENTS);
    let (let_in, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    together(WORKERS + CLIENTS, |i| {
        let Some(client) = i.checked_sub(WORKERS) else {
            while let Some(item) = queue.pop() {
                let item: usize = item;
                assert_eq!(taken[item].fetch_add(1, Ordering::SeqCst), 0, "taken twice");
            }
            return;
        };
        for item in client * ITEMS..(client + 1) * ITEMS {
            match queue.push(item) {
                Ok(()) => let_in.fetch_add(1, Ordering::SeqCst),
                Err(back) => {
                    assert_eq!(back, item);
                    refused.fetch_add(1, Ordering::SeqCst)
                }
            };
        }
        if clients_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            queue.close();
        }
    });
    let taken: usize = taken.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    assert_eq!(taken, let_in.load(Ordering::SeqCst), "nothing that was let in is left");
    assert_eq!(taken + refused.load(Ordering::SeqCst), CLIENTS * ITEMS);
}

/// Nothing closes the queue, so a worker that is not woken would be a deadlock.
fn each_item_wakes_a_worker<const N: usize>() {
    let queue = Queue::new(N, N, None);
    together(N + 1, |i| match i {
        0 => (0..N).for_each(|item| assert!(queue.push(item).is_ok())),
        _ => assert!(queue.pop().is_some()),
    });
}

fn without_room_an_item_is_let_in_only_if_a_worker_is_idle() {
    let queue = Queue::new(1, 0, None);
    let (is_taken, is_let_in) = (AtomicBool::new(false), AtomicBool::new(false));
    together(2, |i| {
        if i == 0 {
            is_taken.store(queue.pop().is_some(), Ordering::SeqCst);
            assert_eq!(queue.push("second"), Err("second"), "the only worker is busy");
            return;
        }
        let is_idle = queue.has_idle();
        is_let_in.store(queue.push("first").is_ok(), Ordering::SeqCst);
        assert!(is_let_in.load(Ordering::SeqCst) || !is_idle);
        queue.close();
    });
    assert_eq!(is_taken.into_inner(), is_let_in.into_inner());
}

/// The only worker takes one item, and then the queue is closed or not. A refuser that is not woken for
/// the others would be a deadlock.
fn an_item_is_taken_by_a_worker_or_refused<const N: usize>() {
    let queue = Queue::new(1, N, Some(NONE));
    let (taken, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    together(3, |i| match i {
        0 => {
            let let_in = (0..=N).filter(|&item| queue.push(item).is_ok()).count();
            while taken.load(Ordering::SeqCst) + refused.load(Ordering::SeqCst) < let_in {
                thread::yield_now();
            }
            queue.close();
        }
        1 => {
            taken.fetch_add(usize::from(queue.pop().is_some()), Ordering::SeqCst);
        }
        _ => {
            while queue.pop_overdue().is_some() {
                refused.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    assert_eq!(queue.pop_overdue(), None, "it is closed");
    assert!(taken.into_inner() <= 1);
}

fn a_close_ends_workers_that_wait() {
    let queue = Queue::new(3, 2, Some(LONG));
    together(5, |i| match i {
        0 => queue.close(),
        1 => assert_eq!(queue.pop_overdue(), None),
        _ => assert_eq!(queue.pop(), None::<()>),
    });
    assert_eq!(queue.push(()), Err(()));
}
