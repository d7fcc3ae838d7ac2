//! `Combine`: gets of one group that go to the same peer at the same time share a request.
//!
//! A blocking client with a connection for each caller pays for each get with system calls,
//! wake-ups and headers at both ends, and at 64 callers that is all that both ends do. Databases met
//! this long ago and commit in groups: transactions that arrive while a commit is under way leave together
//! in the next one.
//!
//! But a commit is short, and a round trip may be long. So there are a few *lanes*, and no get waits
//! longer than a moment for one:
//!
//! - A get leaves plainly, as a request of its own, while a lane is free and no gets gather.
//! - Otherwise it gathers. The first of those that gather leads them into a *batch*, as soon as a lane
//!   is free, and after [`PAUSE`] in any case: a few slow keys must not hold up the others.
//! - There are [`LANES`] lanes. After a batch of more keys than that there is one, and the pause is three
//!   times as long: so many gets keep the processors of both ends busy, and larger batches make them less
//!   so.
//! - Those that have their answer are woken before the leader of the next batch, so that a caller that
//!   asks again at once comes along. Otherwise there would be two half batches in turns, each at the
//!   cost of a whole one.
//!
//! No get waits for another one's origin: a batch asks only for the peer's cached values. A key
//! that a batch does not bring is asked for plainly after it, by its own caller, and so takes two round
//! trips. Groups that miss much are spared that: after each such get, the next [`PLAIN_AFTER_MISS`]
//! leave plainly.

use std::mem;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

/// How long a get waits for a lane at the most.
pub(super) const PAUSE: Duration = Duration::from_micros(100);
/// As many requests may be out for the next get to leave plainly.
pub(super) const LANES: usize = 4;
/// So many gets leave plainly after one that the peer did not have in its caches.
const PLAIN_AFTER_MISS: u32 = 25;
/// And at the most, after many.
const MOST_PLAIN: u32 = 1_000;

pub(super) struct Combine<A> {
    lanes: usize,
    pause: Duration,
    /// How many of the next gets leave plainly.
    plain_left: AtomicU32,
    // Guards the number of requests that are out and the batch that gathers; no peer is asked under it.
    // Locked before the lock of a batch, never under it.
    state: Mutex<State<A>>,
    /// Wakes the first of those that gather.
    lane_is_free: Condvar,
}

struct State<A> {
    /// How many requests are out.
    out: usize,
    lanes: usize,
    /// Keys that leave together. A batch stays here until its leader takes it out.
    gathering: Option<Arc<Batch<A>>>,
}

/// Keys that are asked for together, each by its own caller.
struct Batch<A> {
    // Guards its keys and its answers.
    inner: Mutex<Inner<A>>,
    is_back: Condvar,
}

struct Inner<A> {
    keys: Vec<String>,
    key_bytes: usize,
    /// The answers, in the order of the keys; each is taken once.
    brought: Option<Vec<Option<A>>>,
}

/// The part that a caller plays.
enum Part<'c, A> {
    Plain(Out<'c, A>),
    /// Leads this batch; its own key is the first one.
    Lead(Out<'c, A>, Arc<Batch<A>>),
    /// Its key is in this batch, at this index.
    Follow(Arc<Batch<A>>, usize),
}

impl<A> Combine<A> {
    pub(super) fn new(lanes: usize, pause: Duration) -> Self {
        let state = Mutex::new(State { out: 0, lanes, gathering: None });
        let plain_left = AtomicU32::new(0);
        Self { lanes, pause, plain_left, state, lane_is_free: Condvar::new() }
    }

    /// Asks for a key by `plain`, which also tells whether the peer had it in its caches, or together
    /// with others by `batch`, which gives no answer for a key that the peer has not cached. A batch takes as
    /// many keys as `fit` into it, which is given their number and the sum of their bytes. `None` if nobody
    /// answered within `patience`: the batch is slow, or its leader has panicked.
    pub(super) fn get(
        &self,
        key: &str,
        patience: Duration,
        fit: impl Fn(usize, usize) -> bool,
        batch: impl FnOnce(&[String]) -> Vec<Option<A>>,
        plain: impl FnOnce() -> (A, bool),
    ) -> Option<A> {
        let one_less = |left: u32| left.checked_sub(1);
        if self.plain_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
            return Some(self.note(plain()));
        }
        let answer = match self.join(key, fit) {
            Part::Plain(_out) => return Some(self.note(plain())),
            Part::Lead(_out, led) => led.lead(batch),
            Part::Follow(batch, index) => batch.wait(index, patience)?,
        };
        Some(answer.unwrap_or_else(|| self.note((plain().0, false))))
    }

    /// Notes whether the peer had the key in its caches.
    fn note(&self, (answer, was_cached): (A, bool)) -> A {
        if !was_cached {
            let more = |left: u32| Some((left + PLAIN_AFTER_MISS).min(MOST_PLAIN));
            let _ = self.plain_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        }
        answer
    }

    /// Decides which part the caller plays. The first of those that gather waits here for a lane.
    fn join(&self, key: &str, fit: impl Fn(usize, usize) -> bool) -> Part<'_, A> {
        let mut state = self.state.lock().unwrap();
        if let Some(batch) = &state.gathering {
            let mut inner = batch.inner.lock().unwrap();
            if fit(inner.keys.len() + 1, inner.key_bytes + key.len()) {
                let index = inner.add(key);
                return Part::Follow(batch.clone(), index);
            }
            drop(inner);
            return Part::Plain(self.leave(state));
        }
        if state.out < state.lanes {
            return Part::Plain(self.leave(state));
        }
        let led = Arc::new(Batch::new(key));
        state.gathering = Some(led.clone());
        let is_full = |state: &mut State<A>| state.out >= state.lanes;
        let pause = if state.lanes == 1 { 3 * self.pause } else { self.pause };
        let waited = self.lane_is_free.wait_timeout_while(state, pause, is_full);
        let (mut state, _) = waited.unwrap();
        // No get joins the batch from here on.
        state.gathering = None;
        let keys = led.inner.lock().unwrap().keys.len();
        state.lanes = if keys > LANES { 1 } else { self.lanes };
        Part::Lead(self.leave(state), led)
    }

    fn leave(&self, mut state: MutexGuard<'_, State<A>>) -> Out<'_, A> {
        state.out += 1;
        Out(self)
    }
}

impl<A> Batch<A> {
    fn new(key: &str) -> Self {
        let mut inner = Inner { keys: vec![], key_bytes: 0, brought: None };
        inner.add(key);
        Self { inner: Mutex::new(inner), is_back: Condvar::new() }
    }

    /// Asks for all keys; the answer for the first one. The others are told all at once: to wake them one by
    /// one would be a system call for each, and each would take the processor from the thread that wakes
    /// the others.
    fn lead(&self, batch: impl FnOnce(&[String]) -> Vec<Option<A>>) -> Option<A> {
        let keys = mem::take(&mut self.inner.lock().unwrap().keys);
        let mut brought = batch(&keys);
        let own = brought.first_mut().and_then(Option::take);
        self.inner.lock().unwrap().brought = Some(brought);
        self.is_back.notify_all();
        own
    }

    /// Waits until the batch is back. `None` if it is not within `patience`.
    fn wait(&self, index: usize, patience: Duration) -> Option<Option<A>> {
        let inner = self.inner.lock().unwrap();
        let is_out = |inner: &mut Inner<A>| inner.brought.is_none();
        let (mut inner, _) = self.is_back.wait_timeout_while(inner, patience, is_out).unwrap();
        Some(inner.brought.as_mut()?.get_mut(index).and_then(Option::take))
    }
}

impl<A> Inner<A> {
    /// Adds a key; its index.
    fn add(&mut self, key: &str) -> usize {
        self.keys.push(key.into());
        self.key_bytes += key.len();
        self.keys.len() - 1
    }
}

/// A request that is out, until this is dropped.
struct Out<'c, A>(&'c Combine<A>);

impl<A> Drop for Out<'_, A> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap();
        state.out -= 1;
        let has_a_leader = state.gathering.is_some() && state.out < state.lanes;
        drop(state); // so that the thread that wakes does not meet the lock
        if has_a_leader {
            self.0.lane_is_free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, bounded};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::thread::{self, Scope, ScopedJoinHandle};
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    /// A peer that reports each request and answers when it is let.
    struct Peer {
        combine: Combine<String>,
        asked: (Sender<String>, Receiver<String>),
        plain_gate: (Sender<()>, Receiver<()>),
        batch_gate: (Sender<()>, Receiver<()>),
    }

    type Get<'s> = ScopedJoinHandle<'s, Option<String>>;

    impl Peer {
        fn new(lanes: usize, pause: Duration) -> Self {
            let (asked, plain_gate, batch_gate) = (bounded(100), bounded(0), bounded(0));
            Self { combine: Combine::new(lanes, pause), asked, plain_gate, batch_gate }
        }

        fn get(&self, key: &str, patience: Duration) -> Option<String> {
            let batch = |keys: &[String]| {
                self.asked.0.send(format!("batch {}", keys.join(" "))).unwrap();
                self.batch_gate.1.recv_timeout(LONG).unwrap();
                assert!(!keys.contains(&"bomb".into()), "on purpose");
                if keys.contains(&"dead".into()) {
                    return vec![Some("unreachable".into()); keys.len()];
                }
                let is_cached = |key: &&String| key.starts_with("hit");
                let answer = |key| is_cached(&key).then(|| format!("{key} by batch"));
                keys.iter().map(answer).collect()
            };
            let plain = || {
                self.asked.0.send(format!("plain {key}")).unwrap();
                self.plain_gate.1.recv_timeout(LONG).unwrap();
                (format!("{key} plainly"), !key.starts_with("miss"))
            };
            self.combine.get(key, patience, |keys, _| keys <= 6, batch, plain)
        }

        fn start<'s>(&'s self, scope: &'s Scope<'s, '_>, key: &'s str) -> Get<'s> {
            scope.spawn(move || self.get(key, LONG))
        }

        /// A get that is out plainly.
        fn out<'s>(&'s self, scope: &'s Scope<'s, '_>, key: &'s str) -> Get<'s> {
            let get = self.start(scope, key);
            assert_eq!(self.next_request(), format!("plain {key}"));
            get
        }

        /// Gets that gather behind those that are out, one after the other.
        fn gathered<'s>(&'s self, scope: &'s Scope<'s, '_>, keys: &[&'s str]) -> Vec<Get<'s>> {
            let gather = |(i, key): (usize, &&'s str)| {
                let get = self.start(scope, key);
                self.wait_for(i + 1);
                get
            };
            keys.iter().enumerate().map(gather).collect()
        }

        fn next_request(&self) -> String {
            self.asked.1.recv_timeout(LONG).unwrap()
        }

        fn let_plain(&self) {
            self.plain_gate.0.send_timeout((), LONG).unwrap();
        }

        fn let_batch(&self) {
            self.batch_gate.0.send_timeout((), LONG).unwrap();
        }

        /// Waits until so many keys gather.
        fn wait_for(&self, gathering: usize) {
            let start = Instant::now();
            let keys = |batch: &Arc<Batch<_>>| batch.inner.lock().unwrap().keys.len();
            let gathers = || self.combine.state.lock().unwrap().gathering.as_ref().map_or(0, keys);
            while gathers() != gathering {
                assert!(start.elapsed() < LONG, "waited in vain");
                thread::yield_now();
            }
        }

        fn assert_at_rest(&self) {
            assert!(self.asked.1.is_empty());
            let state = self.combine.state.lock().unwrap();
            assert!(state.out == 0 && state.gathering.is_none());
        }
    }

    fn answers(gets: Vec<Get<'_>>) -> Vec<String> {
        gets.into_iter().map(|get| get.join().unwrap().unwrap()).collect()
    }

    #[test]
    fn gets_leave_plainly_while_lanes_are_free_and_gather_beyond_them() {
        let peer = Peer::new(2, LONG);
        thread::scope(|scope| {
            let few = vec![peer.out(scope, "hit1"), peer.out(scope, "hit2")];
            let gathered = peer.gathered(scope, &["hit3", "miss", "hit4"]);
            peer.let_plain();
            assert_eq!(peer.next_request(), "batch hit3 miss hit4");
            let behind = peer.gathered(scope, &["hit5"]);
            peer.let_batch();
            // A key that was not cached is asked for plainly, and the next batch leaves as well.
            let mut requests = [peer.next_request(), peer.next_request()];
            requests.sort();
            assert_eq!(requests, ["batch hit5", "plain miss"]);
            (0..2).for_each(|_| peer.let_plain());
            peer.let_batch();
            assert_eq!(answers(few), ["hit1 plainly", "hit2 plainly"]);
            assert_eq!(answers(gathered), ["hit3 by batch", "miss plainly", "hit4 by batch"]);
            assert_eq!(answers(behind), ["hit5 by batch"]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn after_the_pause_the_first_that_gathers_leads_though_no_lane_is_free() {
        let peer = Peer::new(1, Duration::from_millis(1));
        thread::scope(|scope| {
            let slow = vec![peer.out(scope, "slow")];
            let gathered = vec![peer.start(scope, "hit1")];
            assert_eq!(peer.next_request(), "batch hit1");
            peer.let_batch();
            assert_eq!(answers(gathered), ["hit1 by batch"]);
            peer.let_plain();
            answers(slow);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn after_a_large_batch_there_is_one_lane_and_after_a_small_one_there_are_all() {
        let peer = Peer::new(2, LONG);
        // All gets of `plain` leave plainly, and those of `batch` behind them.
        let leave = |plain: &[&str], batch: &[&str]| {
            thread::scope(|scope| {
                let out: Vec<_> = plain.iter().map(|key| peer.out(scope, key)).collect();
                let gathered = peer.gathered(scope, batch);
                out.iter().for_each(|_| peer.let_plain());
                assert_eq!(peer.next_request(), format!("batch {}", batch.join(" ")));
                peer.let_batch();
                answers(out);
                answers(gathered);
            });
        };
        leave(&["hit1", "hit2"], &["hit3", "hit4", "hit5", "hit6", "hit7"]);
        leave(&["hit1"], &["hit2", "hit3", "hit4", "hit5", "hit6"]);
        leave(&["hit1"], &["hit2", "hit3", "hit4", "hit5"]);
        leave(&["hit1", "hit2"], &["hit3"]);
        peer.assert_at_rest();
    }

    #[test]
    fn groups_that_miss_much_leave_plainly_and_those_that_miss_little_gather() {
        // So many of a thousand gets leave plainly, if each so-many-th misses.
        let plain = |every: u32| {
            let combine = Combine::new(0, Duration::ZERO);
            let mut plain = 0;
            for i in 0..1_000 {
                let misses = i % every == 0;
                let batch = |_: &[String]| vec![(!misses).then_some(())];
                let is_plain = combine.plain_left.load(Ordering::Relaxed) > 0;
                combine.get("key", LONG, |_, _| true, batch, || ((), !misses)).unwrap();
                plain += u32::from(is_plain);
            }
            plain
        };
        assert_eq!((plain(1_001), plain(100), plain(20)), (25, 250, 999));
    }

    #[test]
    fn a_get_that_does_not_fit_into_the_batch_goes_out_plainly() {
        let peer = Peer::new(1, LONG);
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let keys = ["hit2", "hit3", "hit4", "hit5", "hit6", "hit7"];
            let gathered = peer.gathered(scope, &keys);
            let beyond = peer.out(scope, "hit8");
            (0..2).for_each(|_| peer.let_plain());
            assert_eq!(peer.next_request(), format!("batch {}", keys.join(" ")));
            peer.let_batch();
            assert_eq!(answers(gathered).len(), 6);
            answers(vec![first, beyond]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_batch_that_fails_is_the_answer_for_its_keys_and_no_others() {
        let peer = Peer::new(1, LONG);
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let failing = peer.gathered(scope, &["hit2", "dead"]);
            peer.let_plain();
            assert_eq!(peer.next_request(), "batch hit2 dead");
            let behind = peer.gathered(scope, &["hit3"]);
            peer.let_batch();
            assert_eq!(answers(failing), ["unreachable", "unreachable"]);
            assert_eq!(peer.next_request(), "batch hit3");
            peer.let_batch();
            assert_eq!(answers(behind), ["hit3 by batch"]);
            answers(vec![first]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn patience_ends_for_a_get_whose_batch_does_not_return() {
        let peer = Peer::new(1, LONG);
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let led = peer.gathered(scope, &["hit2"]);
            let impatient = scope.spawn(|| peer.get("hit3", Duration::from_millis(1)));
            assert_eq!(impatient.join().unwrap(), None);
            peer.let_plain();
            assert_eq!(peer.next_request(), "batch hit2 hit3");
            peer.let_batch();
            assert_eq!(answers(led), ["hit2 by batch"]);
            answers(vec![first]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_leader_that_panics_leaves_the_others_to_their_patience() {
        let peer = Peer::new(1, LONG);
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let bomb = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| peer.get("bomb", LONG))));
            peer.wait_for(1);
            let other = scope.spawn(|| peer.get("hit2", Duration::from_millis(1)));
            assert_eq!(other.join().unwrap(), None);
            peer.let_plain();
            assert_eq!(peer.next_request(), "batch bomb hit2");
            peer.let_batch();
            assert!(bomb.join().unwrap().is_err());
            answers(vec![first]);
        });
        peer.assert_at_rest();
    }
}
