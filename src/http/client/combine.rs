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
//! - It is woken last, after all who have their answer: who of them asks again at once comes
//!   along. The other way round there would be two half batches in turns, each at the cost of a
//!   whole one.
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

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

pub(super) struct Combine<A> {
    // Guards who is out and which batches gather; nobody asks a peer under it. Locked before that
    // of a batch, never under it.
    state: Mutex<State<A>>,
}

struct State<A> {
    plain_out: bool,
    batch_out: bool,
    /// Those that leave when the one that is out returns, the next first.
    gathering: VecDeque<Arc<Batch<A>>>,
}

/// Keys of one group that are asked for together, each by its own caller.
struct Batch<A> {
    group: String,
    // Guards who is in it and what becomes of it.
    inner: Mutex<Inner<A>>,
    turned: Condvar,
}

struct Inner<A> {
    keys: Vec<String>,
    key_bytes: usize,
    /// How many wait for their answer, or to lead.
    waiting: usize,
    stage: Stage<A>,
}

enum Stage<A> {
    /// It gathers or is out.
    Pending,
    /// It is to leave, and whoever of those who wait sees this first leads it.
    Calls,
    /// What it brought for each key; `None`: ask plainly.
    Back(Vec<Option<A>>),
    /// The one answer for all.
    Failed(A),
}

/// The part that a caller plays.
enum Part<A> {
    Plain,
    /// Of this batch, with the key at this place.
    Lead(Arc<Batch<A>>, usize),
    /// With what the batch has brought.
    Follow(Option<A>),
    /// Ran out of time.
    Leave,
}

impl<A: Clone> Combine<A> {
    pub(super) fn new() -> Self {
        let state = State { plain_out: false, batch_out: false, gathering: VecDeque::new() };
        Self { state: Mutex::new(state) }
    }

    /// Asks for `key`: by `plain`, or together with others of its group by `batch`, which gives an
    /// answer for each key, `None` for those to be asked for plainly; or, as an error, one answer
    /// for these and for all who wait. A batch takes as many keys as `fit` into it: given are their
    /// number and the sum of their bytes. `None` if nobody answered within `patience`.
    pub(super) fn get(
        &self,
        group: &str,
        key: &str,
        patience: Duration,
        fit: impl Fn(usize, usize) -> bool,
        batch: impl Fn(&[String]) -> Result<Vec<Option<A>>, A>,
        plain: impl FnOnce() -> A,
    ) -> Option<A> {
        let answer = match self.part(group, key, patience, fit) {
            Part::Plain => {
                let _out = PlainOut(self);
                return Some(plain());
            }
            Part::Lead(led, place) => self.lead(&led, place, batch),
            Part::Follow(answer) => answer,
            Part::Leave => return None,
        };
        Some(answer.unwrap_or_else(plain))
    }

    /// Which part the caller plays. A follower plays it here, and waits for the batch.
    fn part(
        &self,
        group: &str,
        key: &str,
        patience: Duration,
        fit: impl Fn(usize, usize) -> bool,
    ) -> Part<A> {
        let mut state = self.state.lock().unwrap();
        if !state.plain_out && !state.batch_out {
            state.plain_out = true;
            return Part::Plain;
        }
        if !state.batch_out {
            state.batch_out = true;
            return Part::Lead(Arc::new(Batch::new(group, key)), 0);
        }
        let last = state.gathering.iter().rfind(|batch| batch.group == group).cloned();
        if let Some(batch) = last {
            let mut inner = batch.inner.lock().unwrap();
            if fit(inner.keys.len() + 1, inner.key_bytes + key.len()) {
                drop(state);
                let place = inner.add(key);
                return batch.wait(inner, place, patience);
            }
        }
        let batch = Arc::new(Batch::new(group, key));
        state.gathering.push_back(batch.clone());
        let inner = batch.inner.lock().unwrap();
        drop(state);
        batch.wait(inner, 0, patience)
    }

    fn lead(
        &self,
        led: &Arc<Batch<A>>,
        place: usize,
        batch: impl Fn(&[String]) -> Result<Vec<Option<A>>, A>,
    ) -> Option<A> {
        let _out = BatchOut { combine: self, led };
        let keys = self.depart(led);
        match batch(&keys) {
            Ok(mut answers) => {
                let own = answers.get_mut(place).and_then(Option::take);
                led.turn(Stage::Back(answers));
                own
            }
            Err(answer) => {
                let others = mem::take(&mut self.state.lock().unwrap().gathering);
                for batch in [led].into_iter().chain(&others) {
                    batch.turn(Stage::Failed(answer.clone()));
                }
                Some(answer)
            }
        }
    }

    /// Nobody joins the batch from here on.
    fn depart(&self, led: &Arc<Batch<A>>) -> Vec<String> {
        let mut state = self.state.lock().unwrap();
        if state.gathering.front().is_some_and(|first| Arc::ptr_eq(first, led)) {
            state.gathering.pop_front();
        }
        mem::take(&mut led.inner.lock().unwrap().keys)
    }
}

impl<A> Combine<A> {
    /// No batch is out any more: the next one that somebody waits for is to leave.
    fn pass_on(&self) {
        let mut state = self.state.lock().unwrap();
        while let Some(next) = state.gathering.front().cloned() {
            let mut inner = next.inner.lock().unwrap();
            if inner.waiting > 0 {
                inner.stage = Stage::Calls;
                drop((inner, state)); // so that who wakes does not meet the locks
                next.turned.notify_one();
                return;
            }
            state.gathering.pop_front();
        }
        state.batch_out = false;
    }
}

impl<A> Batch<A> {
    fn new(group: &str, key: &str) -> Self {
        let mut inner = Inner { keys: vec![], key_bytes: 0, waiting: 0, stage: Stage::Pending };
        inner.add(key);
        Self { group: group.into(), inner: Mutex::new(inner), turned: Condvar::new() }
    }

    fn wait(
        self: &Arc<Self>,
        mut inner: MutexGuard<'_, Inner<A>>,
        place: usize,
        patience: Duration,
    ) -> Part<A>
    where
        A: Clone,
    {
        inner.waiting += 1;
        let is_pending = |inner: &mut Inner<A>| matches!(inner.stage, Stage::Pending);
        let (mut inner, _) = self.turned.wait_timeout_while(inner, patience, is_pending).unwrap();
        inner.waiting -= 1;
        match &mut inner.stage {
            Stage::Pending => Part::Leave,
            Stage::Calls => {
                inner.stage = Stage::Pending;
                Part::Lead(self.clone(), place)
            }
            Stage::Back(answers) => Part::Follow(answers.get_mut(place).and_then(Option::take)),
            Stage::Failed(answer) => Part::Follow(Some(answer.clone())),
        }
    }

    /// Tells all who wait, at once. To wake them one by one would be a system call for each, and
    /// each would take the processor from who wakes the others.
    fn turn(&self, stage: Stage<A>) {
        self.inner.lock().unwrap().stage = stage;
        self.turned.notify_all();
    }
}

impl<A> Inner<A> {
    /// Adds a key; its place.
    fn add(&mut self, key: &str) -> usize {
        self.keys.push(key.into());
        self.key_bytes += key.len();
        self.keys.len() - 1
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
    led: &'c Batch<A>,
}

impl<A> Drop for BatchOut<'_, A> {
    fn drop(&mut self) {
        let is_pending = matches!(self.led.inner.lock().unwrap().stage, Stage::Pending);
        if is_pending {
            self.led.turn(Stage::Back(Vec::new())); // the leader panicked: the others ask plainly
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
            let batch = |keys: &[String]| {
                self.asked.0.send(format!("batch {}", keys.join(" "))).unwrap();
                self.batch_gate.1.recv_timeout(LONG).unwrap();
                assert!(!keys.contains(&"bomb".into()), "on purpose");
                if keys.contains(&"dead".into()) {
                    return Err("unreachable".into());
                }
                let is_cached = |key: &&String| key.starts_with("hit");
                let answer = |key| is_cached(&key).then(|| format!("{key} by batch"));
                Ok(keys.iter().map(answer).collect())
            };
            let plain = || {
                self.asked.0.send(format!("plain {key}")).unwrap();
                self.plain_gate.1.recv_timeout(LONG).unwrap();
                format!("{key} plainly")
            };
            self.combine.get("scores", key, patience, |keys, _| keys <= 4, batch, plain)
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
            let gathering = state.gathering.len();
            assert_eq!((state.plain_out, state.batch_out, gathering), (false, false, 0));
        }

        fn wait_for(&self, waiting: usize) {
            let start = Instant::now();
            let gathered = || {
                let batches = &self.combine.state.lock().unwrap().gathering;
                batches.iter().map(|batch| batch.inner.lock().unwrap().keys.len()).sum::<usize>()
            };
            while gathered() != waiting {
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
            assert_eq!(peer.next_request(), "batch hit2 hit3");
            peer.let_batch();
            assert_eq!(last.join().unwrap().unwrap(), "hit3 by batch");
            peer.let_plain();
            slow.join().unwrap();
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_batch_that_nobody_waits_for_does_not_leave() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let [slow, first] = peer.occupied_in(scope);
            for key in ["hit2", "hit3"] {
                assert_eq!(peer.get(key, Duration::from_millis(1)), None);
            }
            peer.let_batch();
            peer.let_plain();
            for get in [slow, first] {
                get.join().unwrap().unwrap();
            }
        });
        assert!(peer.asked.1.is_empty());
        peer.assert_at_rest();
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
