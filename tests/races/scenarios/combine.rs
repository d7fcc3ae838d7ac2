//! `Combine`: gets that share a request.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;

use super::{LONG, NONE, every, many, together};
use crate::combine::Combine;

pub(super) fn all() -> Vec<Trial> {
    vec![
        every(each_get_has_its_own_answer::<2, 1>),
        many(each_get_has_its_own_answer::<3, 2>),
        many(each_get_has_its_own_answer::<8, 1>),
        many(patience_ends_for_some_and_not_for_the_others),
        many(a_request_that_panics_leaves_the_others_to_ask),
        many(a_batch_that_fails_is_the_answer_of_all_who_wait),
    ]
}

/// A peer that answers a batch for some keys only, and one batch at a time.
struct Peer {
    combine: Combine<String>,
    batch_out: AtomicBool,
    fails: bool,
    plain: [AtomicUsize; KEYS],
    batched: [AtomicUsize; KEYS],
}

const KEYS: usize = 10;

impl Peer {
    fn new() -> Self {
        let counts = || [const { AtomicUsize::new(0) }; KEYS];
        let (plain, batched) = (counts(), counts());
        let batch_out = AtomicBool::new(false);
        Self { combine: Combine::new(), batch_out, fails: false, plain, batched }
    }

    /// Odd keys are in no batch's answer. Three keys fit into a batch. Whoever asks for `bomb` by a
    /// request of its own, or leads a batch with it, panics.
    fn get(&self, key: usize, patience: Duration, bomb: Option<usize>) -> Option<String> {
        // Two groups; only keys of the same one go together.
        let group_of = |key: usize| if key.is_multiple_of(3) { "threes" } else { "others" };
        let group = group_of(key);
        let explode = |key| {
            if Some(key) == bomb {
                resume_unwind(Box::new("on purpose"));
            }
        };
        let batch = |keys: &[String]| {
            assert!(!self.batch_out.swap(true, Ordering::SeqCst), "two batches are out");
            let keys: Vec<usize> = keys.iter().map(|key| key.parse().unwrap()).collect();
            assert!(keys.iter().all(|&key| group_of(key) == group) && keys.len() <= 3);
            for &key in &keys {
                assert_eq!(self.batched[key].fetch_add(1, Ordering::SeqCst), 0, "asked twice");
            }
            thread::yield_now();
            self.batch_out.store(false, Ordering::SeqCst);
            explode(key);
            if self.fails {
                return Err("failed".into());
            }
            Ok(keys.iter().map(|key| (key % 2 == 0).then(|| key.to_string())).collect())
        };
        let plain = || {
            assert_eq!(self.plain[key].fetch_add(1, Ordering::SeqCst), 0, "asked twice");
            thread::yield_now();
            explode(key);
            key.to_string()
        };
        self.combine.get(group, &key.to_string(), patience, |keys, _| keys <= 3, batch, plain)
    }

    /// Nothing is out and nobody waits: a get goes out plainly.
    fn is_at_rest(&self) -> bool {
        self.get(KEYS - 1, LONG, None);
        self.plain[KEYS - 1].load(Ordering::SeqCst) == 1
            && self.batched[KEYS - 1].load(Ordering::SeqCst) == 0
    }
}

fn each_get_has_its_own_answer<const CALLERS: usize, const GETS: usize>() {
    let peer = Peer::new();
    together(CALLERS, |i| {
        for key in (i..).step_by(CALLERS).take(GETS) {
            assert_eq!(peer.get(key, LONG, None).unwrap(), key.to_string());
        }
    });
    assert!(peer.is_at_rest());
}

fn patience_ends_for_some_and_not_for_the_others() {
    let peer = Peer::new();
    together(5, |i| {
        let patience = if i < 2 { NONE } else { LONG };
        match peer.get(i, patience, None) {
            Some(answer) => assert_eq!(answer, i.to_string()),
            None => assert!(i < 2, "nobody answered {i}"),
        }
    });
    assert!(peer.is_at_rest());
}

fn a_request_that_panics_leaves_the_others_to_ask() {
    let peer = Peer::new();
    together(5, |i| match catch_unwind(AssertUnwindSafe(|| peer.get(i, LONG, Some(2)))) {
        Ok(answer) => assert_eq!(answer.unwrap(), i.to_string()),
        Err(_) => assert_eq!(i, 2),
    });
    assert!(peer.is_at_rest());
}

fn a_batch_that_fails_is_the_answer_of_all_who_wait() {
    let peer = Peer { fails: true, ..Peer::new() };
    together(5, |i| {
        let answer = peer.get(i, LONG, None).unwrap();
        let asked_plainly = peer.plain[i].load(Ordering::SeqCst) == 1;
        assert_eq!(answer, if asked_plainly { i.to_string() } else { "failed".into() });
    });
    assert!(peer.is_at_rest());
}
