//! `Combine`: gets that share a request.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use super::{ANY_TIME, LONG, NONE, every, many, together};
use crate::combine::Combine;

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(each_get_has_its_own_answer::<2, 1, NO_PAUSE_ENDS>),
        many(each_get_has_its_own_answer::<2, 1, PAUSES_END>),
        many(each_get_has_its_own_answer::<3, 2, NO_PAUSE_ENDS>),
        many(each_get_has_its_own_answer::<3, 2, PAUSES_END>),
        many(each_get_has_its_own_answer::<8, 1, NO_PAUSE_ENDS>),
        many(each_get_has_its_own_answer::<8, 1, PAUSES_END>),
        many(patience_ends_for_some_and_not_for_the_others::<NO_PAUSE_ENDS>),
        many(patience_ends_for_some_and_not_for_the_others::<PAUSES_END>),
        many(a_request_that_panics_leaves_the_others_to_their_patience::<NO_PAUSE_ENDS>),
        many(a_request_that_panics_leaves_the_others_to_their_patience::<PAUSES_END>),
        many(a_batch_that_fails_is_the_answer_of_all_in_it::<NO_PAUSE_ENDS>),
        many(a_batch_that_fails_is_the_answer_of_all_in_it::<PAUSES_END>),
    ]
}

/// Whether a pause can end before a request has returned.
const PAUSES_END: bool = true;
const NO_PAUSE_ENDS: bool = false;

/// A peer that answers a batch for some keys only.
struct Peer {
    combine: Combine<String>,
    fails: bool,
    plain: [AtomicUsize; KEYS],
    batched: [AtomicUsize; KEYS],
}

const KEYS: usize = 10;

impl Peer {
    fn new(pauses_end: bool) -> Self {
        let counts = || [const { AtomicUsize::new(0) }; KEYS];
        let (plain, batched) = (counts(), counts());
        let pause = if pauses_end { ANY_TIME } else { LONG };
        Self { combine: Combine::new(1, pause), fails: false, plain, batched }
    }

    /// Odd keys are in no batch's answer. Three keys fit into a batch. Whoever asks for `bomb` by a
    /// request of its own, or leads a batch with it, panics.
    fn get(&self, key: usize, patience: Duration, bomb: Option<usize>) -> Option<String> {
        let explode = |key| {
            if Some(key) == bomb {
                resume_unwind(Box::new("on purpose"));
            }
        };
        let batch = |keys: &[String]| {
            let keys: Vec<usize> = keys.iter().map(|key| key.parse().unwrap()).collect();
            assert!((1..=3).contains(&keys.len()));
            for &key in &keys {
                assert_eq!(self.batched[key].fetch_add(1, Ordering::SeqCst), 0, "asked twice");
            }
            thread::yield_now();
            explode(key);
            if self.fails {
                return vec![Some("failed".into()); keys.len()];
            }
            keys.iter().map(|key| (key % 2 == 0).then(|| key.to_string())).collect()
        };
        let plain = || {
            assert_eq!(self.plain[key].fetch_add(1, Ordering::SeqCst), 0, "asked twice");
            thread::yield_now();
            explode(key);
            (key.to_string(), true)
        };
        self.combine.get(&key.to_string(), patience, |keys, _| keys <= 3, batch, plain)
    }

    /// Nothing is out and nobody waits: once no get is spared a second round trip any more, one goes out
    /// plainly.
    fn is_at_rest(&self) -> bool {
        for _ in 0..KEYS * 25 {
            let batch = |_: &[String]| vec![Some(String::new())];
            self.combine.get("rest", LONG, |_, _| true, batch, || (String::new(), true));
        }
        self.get(KEYS - 1, LONG, None);
        self.plain[KEYS - 1].load(Ordering::SeqCst) == 1
    }
}

fn each_get_has_its_own_answer<const CALLERS: usize, const GETS: usize, const PAUSES: bool>() {
    let peer = Peer::new(PAUSES);
    together(CALLERS, |i| {
        for key in (i..).step_by(CALLERS).take(GETS) {
            assert_eq!(peer.get(key, LONG, None).unwrap(), key.to_string());
        }
    });
    assert!(peer.is_at_rest());
}

fn patience_ends_for_some_and_not_for_the_others<const PAUSES: bool>() {
    let peer = Peer::new(PAUSES);
    together(5, |i| {
        let patience = if i < 2 { NONE } else { LONG };
        match peer.get(i, patience, None) {
            Some(answer) => assert_eq!(answer, i.to_string()),
            None => assert!(i < 2, "nobody answered {i}"),
        }
    });
    assert!(peer.is_at_rest());
}

fn a_request_that_panics_leaves_the_others_to_their_patience<const PAUSES: bool>() {
    let peer = Peer::new(PAUSES);
    together(5, |i| match catch_unwind(AssertUnwindSafe(|| peer.get(i, ANY_TIME, Some(2)))) {
        Ok(answer) => assert!(answer.is_none_or(|answer| answer == i.to_string())),
        Err(_) => assert_eq!(i, 2),
    });
    assert!(peer.is_at_rest());
}

fn a_batch_that_fails_is_the_answer_of_all_in_it<const PAUSES: bool>() {
    let peer = Peer { fails: true, ..Peer::new(PAUSES) };
    together(5, |i| {
        let answer = peer.get(i, LONG, None).unwrap();
        let asked_plainly = peer.plain[i].load(Ordering::SeqCst) == 1;
        assert_eq!(answer, if asked_plainly { i.to_string() } else { "failed".into() });
    });
    assert!(peer.is_at_rest());
}
