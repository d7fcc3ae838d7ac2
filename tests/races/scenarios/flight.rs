//! `Flight`: one leads, the others follow.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use libtest_mimic::Trial;

use super::{LONG, NONE, every, many, together};
use crate::flight::{Flight, Unanswered};

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(each_caller_has_an_answer_younger_than_its_question::<2, 1>),
        many(each_caller_has_an_answer_younger_than_its_question::<4, 2>),
        every(a_panic_is_told_to_those_who_followed_and_to_nobody_later::<2, 1>),
        many(a_panic_is_told_to_those_who_followed_and_to_nobody_later::<4, 2>),
        every(what_is_forgotten_answers_nobody_who_comes_later::<2, false>),
        many(what_is_forgotten_answers_nobody_who_comes_later::<4, true>),
        many(what_is_forgotten_answers_nobody_who_comes_later::<4, false>),
        many(what_is_forgotten_leaves_the_next_ones_place),
        every(patience_ends_for_one_and_not_for_the_others::<2>),
        many(patience_ends_for_one_and_not_for_the_others::<4>),
        every(a_leader_that_asks_again_is_told_and_its_followers_are_released::<2>),
        many(a_leader_that_asks_again_is_told_and_its_followers_are_released::<4>),
    ]
}

/// Work that no two may be at.
#[derive(Default)]
struct Work {
    busy: AtomicBool,
    done: AtomicUsize,
}

impl Work {
    /// Tells how often it has been done.
    fn run(&self) -> usize {
        assert!(!self.busy.swap(true, Ordering::SeqCst), "two are at the same work");
        thread::yield_now();
        self.busy.store(false, Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst) + 1
    }
}

fn each_caller_has_an_answer_younger_than_its_question<const CALLERS: usize, const ASKS: usize>() {
    let (flight, work) = (Flight::new(), Work::default());
    together(CALLERS, |_| {
        let ask = |_| flight.run("k", LONG, || work.run()).unwrap();
        assert!((0..ASKS).map(ask).is_sorted_by(|a, b| a < b), "an answer was remembered");
    });
}

fn a_panic_is_told_to_those_who_followed_and_to_nobody_later<
    const CALLERS: usize,
    const ASKS: usize,
>() {
    let (flight, panicked) = (Flight::new(), AtomicBool::new(false));
    let work = || {
        thread::yield_now();
        if !panicked.swap(true, Ordering::SeqCst) {
            resume_unwind(Box::new("on purpose"));
        }
    };
    let ask = || catch_unwind(AssertUnwindSafe(|| flight.run("k", LONG, work)));
    together(CALLERS, |_| {
        let mut told = 0;
        for _ in 0..ASKS {
            match ask() {
                Ok(Ok(())) => {}
                Err(_) | Ok(Err(Unanswered::LeaderPanicked)) => told += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(told <= 1, "told of a panic that was over");
    });
}

fn what_is_forgotten_answers_nobody_who_comes_later<const CALLERS: usize, const ALL: bool>() {
    let (flight, origin) = (Flight::new(), AtomicUsize::new(1));
    let ask = || {
        let read = || {
            let version = origin.load(Ordering::SeqCst);
            thread::yield_now();
            version
        };
        flight.run("k", LONG, read).unwrap()
    };
    together(CALLERS, |i| {
        if i > 0 {
            ask();
            return;
        }
        origin.store(2, Ordering::SeqCst);
        if ALL {
            flight.forget_all()
        } else {
            flight.forget("k")
        }
        assert_eq!(ask(), 2, "joined what was forgotten");
    });
}

fn what_is_forgotten_leaves_the_next_ones_place() {
    let (flight, work) = (Flight::new(), Work::default());
    thread::scope(|scope| {
        scope.spawn(|| flight.run("k", LONG, || 0).unwrap());
        thread::yield_now();
        flight.forget("k");
        for _ in 0..2 {
            scope.spawn(|| flight.run("k", LONG, || work.run()).unwrap());
        }
    });
}

fn patience_ends_for_one_and_not_for_the_others<const CALLERS: usize>() {
    let (flight, work) = (Flight::new(), Work::default());
    together(CALLERS, |i| {
        let patience = if i == 0 { NONE } else { LONG };
        match flight.run("k", patience, || work.run()) {
            Err(Unanswered::TimedOut) => assert_eq!(i, 0),
            answer => assert!(answer.is_ok(), "{answer:?}"),
        }
    });
}

fn a_leader_that_asks_again_is_told_and_its_followers_are_released<const CALLERS: usize>() {
    let flight = Flight::new();
    let again = || flight.run("k", LONG, || false) == Err(Unanswered::Recursive);
    together(CALLERS, |_| assert_eq!(flight.run("k", LONG, again), Ok(true)));
}
