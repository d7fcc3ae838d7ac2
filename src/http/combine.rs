//! `Combine`: gets that go to the same peer at the same time share a request.
//!
//! A blocking client with a connection for each caller pays for each get with system calls,
//! wake-ups and headers at both ends, and at 64 callers that is all both ends do. Databases met
//! this long ago and commit in groups: what arrives while a commit is under way leaves together
//! in the next one. No timer, and nobody waits when nothing is under way:
//!
//! - A get that finds nothing out goes out at once, as a request of its own: *plainly*.
//! - While only that is out, the next one goes out at once as a *batch*, if only of one key.
//! - While a batch is out, further gets gather. When it returns, one of those that wait leads
//!   the next batch and takes all the others along.
//! - When it returns because the peer cannot be reached, those that wait hear of that as well:
//!   a dead peer is not asked once more.
//!
//! What gathers must not wait for strangers. If callers gathered behind whatever is out:
//!
//! 1. A asks for a key that the owner does not have; the owner asks the origin, for a second.
//! 2. B wants a key that the owner has, gathers behind A, and waits for A's origin.
//!
//! So nobody ever waits for a plain request. A batch asks only for what the peer has cached, and
//! those keys of it that are not are asked for plainly after it, each by its own caller.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub(super) struct Combine<A> {
    // Guards who is out and who waits; nobody asks a peer under it.
    state: Mutex<State<A>>,
}

struct State<A> {
    plain_out: bool,
    batch_out: bool,
    waiting: Vec<Arc<Waiter<A>>>,
}

struct Waiter<A> {
    // Only keys of the same group go into one batch.
    group: String,
    key: String,
    // Guards what becomes of this caller.
    fate: Mutex<Fate<A>>,
    decided: Condvar,
}

enum Fate<A> {
    Waiting,
    /// The next batch is this one's to lead.
    Leads,
    /// What the batch brought; `None`: ask plainly.
    Answered(Option<A>),
    /// Ran out of time.
    Gone,
}

/// The part that a caller plays.
enum Part<A> {
    Plain,
    Lead,
    Wait(Arc<Waiter<A>>),
}

impl<A> Combine<A> {
    pub(super) fn new() -> Self {
        let state = State { plain_out: false, batch_out: false, waiting: Vec::new() };
        Self { state: Mutex::new(state) }
    }

    /// Asks for `key`: by `plain`, or together with others of its group by `batch`, which gives an
    /// answer for each of up to `fitting` keys, `None` for those to be asked for plainly; or, as
    /// an error, one answer for these and for all who wait. `None` if nobody answered within
    /// `patience`.
    pub(super) fn get(
        &self,
        group: &str,
        key: &str,
        patience: Duration,
        fitting: impl Fn(&[&str]) -> usize,
        batch: impl Fn(&[&str]) -> Result<Vec<Option<A>>, A>,
        plain: impl FnOnce() -> A,
    ) -> Option<A>
    where
        A: Clone,
    {
        let answer = match self.part(group, key) {
            Part::Plain => {
                let _out = PlainOut(self);
                return Some(plain());
            }
            Part::Lead => self.lead(group, key, fitting, batch),
            Part::Wait(waiter) => match waiter.wait(patience) {
                Fate::Leads => self.lead(group, key, fitting, batch),
                Fate::Answered(answer) => answer,
                Fate::Waiting | Fate::Gone => return None,
            },
        };
        Some(answer.unwrap_or_else(plain))
    }

    fn part(&self, group: &str, key: &str) -> Part<A> {
        let mut state = self.state.lock().unwrap();
        if !state.plain_out && !state.batch_out {
            state.plain_out = true;
            Part::Plain
        } else if !state.batch_out {
            state.batch_out = true;
            Part::Lead
        } else {
            let waiter = Arc::new(Waiter {
                group: group.into(),
                key: key.into(),
                fate: Mutex::new(Fate::Waiting),
                decided: Condvar::new(),
            });
            state.waiting.push(waiter.clone());
            Part::Wait(waiter)
        }
    }

    fn lead(
        &self,
        group: &str,
        key: &str,
        fitting: impl Fn(&[&str]) -> usize,
        batch: impl Fn(&[&str]) -> Result<Vec<Option<A>>, A>,
    ) -> Option<A>
    where
        A: Clone,
    {
        let mut out = BatchOut { combine: self, waiters: self.gather(group, key, fitting) };
        let keys: Vec<&str> =
            [key].into_iter().chain(out.waiters.iter().map(|w| &*w.key)).collect();
        let (own, others) = match batch(&keys) {
            Ok(answers) => {
                let mut answers = answers.into_iter();
                (answers.next().flatten(), answers.collect())
            }
            Err(answer) => {
                out.waiters.append(&mut self.state.lock().unwrap().waiting);
                (Some(answer.clone()), vec![Some(answer); out.waiters.len()])
            }
        };
        // The next batch goes out first, and is under way while the callers of this one wake up.
        let waiters = std::mem::take(&mut out.waiters);
        drop(out);
        let others = others.into_iter().chain(std::iter::repeat_with(|| None));
        for (waiter, answer) in waiters.into_iter().zip(others) {
            waiter.decide(Fate::Answered(answer));
        }
        own
    }

    /// Takes those of the group along who wait, as far as they fit in.
    fn gather(
        &self,
        group: &str,
        key: &str,
        fitting: impl Fn(&[&str]) -> usize,
    ) -> Vec<Arc<Waiter<A>>> {
        let mut state = self.state.lock().unwrap();
        let waiting = std::mem::take(&mut state.waiting);
        let (mut gathered, others): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|waiter| waiter.group == group);
        let keys: Vec<&str> = [key].into_iter().chain(gathered.iter().map(|w| &*w.key)).collect();
        state.waiting = gathered.split_off(fitting(&keys) - 1);
        state.waiting.extend(others);
        gathered
    }

    /// The batch is back: the next one is led by somebody who still waits, if anybody does.
    fn pass_on(&self) {
        loop {
            let mut state = self.state.lock().unwrap();
            if state.waiting.is_empty() {
                state.batch_out = false;
                return;
            }
            let next = state.waiting.remove(0);
            drop(state);
            if next.decide(Fate::Leads) {
                return;
            }
        }
    }
}

impl<A> Waiter<A> {
    fn wait(&self, patience: Duration) -> Fate<A> {
        let fate = self.fate.lock().unwrap();
        let (mut fate, _) = self
            .decided
            .wait_timeout_while(fate, patience, |fate| matches!(fate, Fate::Waiting))
            .unwrap();
        // Whether it waited in vain is decided here, under the lock: who is made the leader
        // just now leads, and who is gone is not made the leader.
        std::mem::replace(&mut *fate, Fate::Gone)
    }

    /// Whether the caller is still there.
    fn decide(&self, decision: Fate<A>) -> bool {
        let mut fate = self.fate.lock().unwrap();
        let is_there = matches!(*fate, Fate::Waiting);
        if is_there {
            *fate = decision;
            drop(fate); // so that who wakes does not meet the lock
            self.decided.notify_one();
        }
        is_there
    }
}

struct PlainOut<'c, A>(&'c Combine<A>);

impl<A> Drop for PlainOut<'_, A> {
    fn drop(&mut self) {
        self.0.state.lock().unwrap().plain_out = false;
    }
}

struct BatchOut<'c, A> {
    combine: &'c Combine<A>,
    // Those who are not told yet.
    waiters: Vec<Arc<Waiter<A>>>,
}

impl<A> Drop for BatchOut<'_, A> {
    fn drop(&mut self) {
        for waiter in self.waiters.drain(..) {
            waiter.decide(Fate::Answered(None));
        }
        self.combine.pass_on();
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

    impl Peer {
        fn new() -> Self {
            let (asked, plain_gate, batch_gate) = (bounded(100), bounded(0), bounded(0));
            Self { combine: Combine::new(), asked, plain_gate, batch_gate }
        }

        fn get(&self, key: &str, patience: Duration) -> Option<String> {
            let batch = |keys: &[&str]| {
                self.asked.0.send(format!("batch {}", keys.join(" "))).unwrap();
                self.batch_gate.1.recv_timeout(LONG).unwrap();
                assert!(!keys.contains(&"bomb"), "on purpose");
                if keys.contains(&"dead") {
                    return Err("unreachable".into());
                }
                let is_cached = |key: &&str| key.starts_with("hit");
                let answer = |key: &&str| is_cached(key).then(|| format!("{key} by batch"));
                Ok(keys.iter().map(answer).collect())
            };
            let plain = || {
                self.asked.0.send(format!("plain {key}")).unwrap();
                self.plain_gate.1.recv_timeout(LONG).unwrap();
                format!("{key} plainly")
            };
            self.combine.get("scores", key, patience, |keys| keys.len().min(4), batch, plain)
        }

        /// Two gets that are out: of `slow`, plainly, and of `hit1`, as a batch.
        fn occupied_in<'s>(
            &'s self,
            scope: &'s Scope<'s, '_>,
        ) -> [ScopedJoinHandle<'s, Option<String>>; 2] {
            let slow = scope.spawn(|| self.get("slow", LONG));
            assert_eq!(self.next_request(), "plain slow");
            let first = scope.spawn(|| self.get("hit1", LONG));
            assert_eq!(self.next_request(), "batch hit1");
            [slow, first]
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

        /// Nothing is out and nobody waits.
        fn assert_at_rest(&self) {
            let state = self.combine.state.lock().unwrap();
            assert_eq!((state.plain_out, state.batch_out, state.waiting.len()), (false, false, 0));
        }

        fn wait_for(&self, waiting: usize) {
            let start = Instant::now();
            while self.combine.state.lock().unwrap().waiting.len() != waiting {
                assert!(start.elapsed() < LONG, "waited in vain");
                thread::yield_now();
            }
        }
    }

    #[test]
    fn a_lonely_get_goes_out_plainly() {
        let peer = Peer::new();
        thread::scope(|scope| {
            for _ in 0..2 {
                let get = scope.spawn(|| peer.get("hit", LONG));
                assert_eq!(peer.next_request(), "plain hit");
                peer.let_plain();
                assert_eq!(get.join().unwrap().unwrap(), "hit plainly");
            }
        });
    }

    #[test]
    fn gets_gather_behind_a_batch_and_never_behind_a_plain_request() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let [slow, first] = peer.occupied_in(scope);
            let mut gathered = Vec::new();
            for (i, key) in ["hit2", "miss", "hit3", "hit4", "hit5"].into_iter().enumerate() {
                gathered.push(scope.spawn({
                    let peer = &peer;
                    move || peer.get(key, LONG)
                }));
                peer.wait_for(i + 1);
            }
            peer.let_batch();
            assert_eq!(first.join().unwrap().unwrap(), "hit1 by batch");
            assert_eq!(peer.next_request(), "batch hit2 miss hit3 hit4");
            peer.let_batch();
            // What was not cached is asked for plainly, and what did not fit in goes next.
            let mut requests = [peer.next_request(), peer.next_request()];
            requests.sort();
            assert_eq!(requests, ["batch hit5", "plain miss"]);
            peer.let_batch();
            peer.let_plain();
            peer.let_plain();
            assert_eq!(slow.join().unwrap().unwrap(), "slow plainly");
            let answers: Vec<_> =
                gathered.into_iter().map(|g| g.join().unwrap().unwrap()).collect();
            let expected = [
                "hit2 by batch",
                "miss plainly",
                "hit3 by batch",
                "hit4 by batch",
                "hit5 by batch",
            ];
            assert_eq!(answers, expected);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn who_gathers_behind_a_batch_to_a_dead_peer_is_told_and_does_not_ask() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let [slow, first] = peer.occupied_in(scope);
            let dead = scope.spawn(|| peer.get("dead", LONG));
            peer.wait_for(1);
            let along: Vec<_> =
                ["hit2", "hit3"].map(|key| scope.spawn(|| peer.get(key, LONG))).into();
            peer.wait_for(3);
            peer.let_batch();
            assert_eq!(first.join().unwrap().unwrap(), "hit1 by batch");
            let mut keys: Vec<_> = peer.next_request().split(' ').map(String::from).collect();
            keys.sort();
            assert_eq!(keys, ["batch", "dead", "hit2", "hit3"]);
            let behind = scope.spawn(|| peer.get("hit4", LONG));
            peer.wait_for(1);
            peer.let_batch();
            for get in along.into_iter().chain([dead, behind]) {
                assert_eq!(get.join().unwrap().unwrap(), "unreachable");
            }
            peer.let_plain();
            slow.join().unwrap();
        });
        assert!(peer.asked.1.is_empty());
        peer.assert_at_rest();
    }

    #[test]
    fn patience_ends_and_who_is_gone_does_not_lead() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let [slow, first] = peer.occupied_in(scope);
            assert_eq!(peer.get("hit2", Duration::from_millis(1)), None);
            let last = scope.spawn(|| peer.get("hit3", LONG));
            peer.wait_for(2);
            peer.let_batch();
            assert_eq!(first.join().unwrap().unwrap(), "hit1 by batch");
            assert_eq!(peer.next_request(), "batch hit3");
            peer.let_batch();
            assert_eq!(last.join().unwrap().unwrap(), "hit3 by batch");
            peer.let_plain();
            slow.join().unwrap();
        });
    }

    #[test]
    fn a_leader_that_panics_lets_the_others_ask_plainly() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let [slow, first] = peer.occupied_in(scope);
            let bomb = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| peer.get("bomb", LONG))));
            peer.wait_for(1);
            let other = scope.spawn(|| peer.get("hit2", LONG));
            peer.wait_for(2);
            peer.let_batch();
            assert_eq!(first.join().unwrap().unwrap(), "hit1 by batch");
            assert_eq!(peer.next_request(), "batch bomb hit2");
            peer.let_batch();
            assert!(bomb.join().unwrap().is_err());
            assert_eq!(peer.next_request(), "plain hit2");
            peer.let_plain();
            peer.let_plain();
            assert_eq!(other.join().unwrap().unwrap(), "hit2 plainly");
            slow.join().unwrap();
        });
        assert!(!peer.combine.state.lock().unwrap().batch_out);
    }
}
