//! `Turn`: which thread receives requests.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use libtest_mimic::Trial;

use super::{LONG, NONE, every, many, together};
use crate::turn::{Holder, Turn};

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(requests_are_accepted_in_order_by_one_thread_at_a_time::<2, 2>),
        many(requests_are_accepted_in_order_by_one_thread_at_a_time::<2, 5>),
        many(requests_are_accepted_in_order_by_one_thread_at_a_time::<4, 6>),
        many(after_a_panic_another_thread_receives),
        many(the_standby_finds_a_thread_that_is_held_up),
    ]
}

/// What `Intake` does, with numbers as the requests.
struct Requests {
    turn: Turn,
    coming: Mutex<VecDeque<usize>>,
    accepted: Mutex<Vec<usize>>,
    is_receiving: AtomicBool,
    answered: AtomicUsize,
}

impl Requests {
    fn new(requests: usize) -> Self {
        Self {
            turn: Turn::default(),
            coming: Mutex::new((0..requests).collect()),
            accepted: Mutex::default(),
            is_receiving: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
        }
    }

    fn receive(&self, me: Holder, bomb: Option<usize>) {
        let begin = || assert!(!self.is_receiving.swap(true, Ordering::SeqCst), "two receive");
        let end = || self.is_receiving.store(false, Ordering::SeqCst);
        begin();
        loop {
            let next = self.coming.lock().unwrap().pop_front();
            let Some(request) = next else { break };
            // Between receiving and accepting a second thread would do harm.
            thread::yield_now();
            self.accepted.lock().unwrap().push(request);
            self.answered.fetch_add(1, Ordering::SeqCst);
            if Some(request) == bomb {
                end();
                resume_unwind(Box::new("on purpose"));
            }
            end();
            self.turn.begin_answer(me);
            thread::yield_now();
            if !self.turn.end_answer(me) {
                return;
            }
            begin();
        }
        end();
    }
}

/// Every thread finds at any moment that the one that answers is held up.
fn requests_are_accepted_in_order_by_one_thread_at_a_time<
    const THREADS: usize,
    const REQUESTS: usize,
>() {
    let requests = Requests::new(REQUESTS);
    let first = requests.turn.take(NONE).expect("nobody has the turn at first");
    together(THREADS, |i| {
        let me = if i == 0 { Some(first) } else { requests.turn.take(NONE) };
        if let Some(me) = me {
            requests.receive(me, None);
        }
    });
    assert_eq!(*requests.accepted.lock().unwrap(), (0..REQUESTS).collect::<Vec<_>>());
    assert_eq!(requests.turn.take(LONG), None, "a thread that is not held up keeps the turn");
}

fn after_a_panic_another_thread_receives() {
    let requests = Requests::new(4);
    let first = requests.turn.take(NONE).unwrap();
    together(2, |i| {
        if i == 0 {
            let receive = || requests.receive(first, Some(1));
            assert!(catch_unwind(AssertUnwindSafe(receive)).is_err());
            requests.turn.release(first);
            return;
        }
        while !requests.turn.watch(NONE, LONG) {}
        // By now the other one may be answering again; it goes on itself then.
        if let Some(me) = requests.turn.take(LONG) {
            requests.receive(me, None);
        }
    });
    let left = requests.coming.lock().unwrap().len();
    assert!(left == 0 || requests.turn.take(NONE).is_some(), "nobody has the turn of the dead");
}

/// As long as nobody answers the standby sleeps; a sleep that missed the beginning of an answer
/// would be a deadlock here.
fn the_standby_finds_a_thread_that_is_held_up() {
    let turn = Turn::default();
    let me = turn.take(NONE).unwrap();
    let is_found = AtomicBool::new(false);
    together(2, |i| {
        if i == 0 {
            turn.begin_answer(me);
            while !is_found.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            assert!(!turn.end_answer(me), "it was found to be held up");
        } else {
            while !turn.watch(NONE, LONG) {}
            assert!(turn.take(NONE).is_some());
            is_found.store(true, Ordering::SeqCst);
        }
    });
}
