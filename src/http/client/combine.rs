//! `Combine`: gets of one group that go to the same peer at the same time share a request.
//!
//! A blocking client with a connection for each caller pays for each get with system calls,
//! wake-ups and headers at both ends, and at 64 callers that is all that both ends do. Databases met
//! this long ago and commit in groups: what arrives while a commit is under way leaves together
//! in the next one.
//!
//! But a commit is short, and a round trip may be long. A get that waits for the return of a request
//! that has just left takes up to twice as long as one that leaves at once. So a request holds back
//! the next one for a moment only, the [*pause*](Pace::pause). Where requests queue up, because the
//! processors of either end are busy, it is longer: there a get that waits loses nothing.
//!
//! - A get leaves at once, as a plain request of its own, if the request that left last has returned or
//!   has been out for the pause; or if there were no more than [`FEW`] gets at the same time lately.
//! - Otherwise it gathers, and the first get of those that gather keeps the time. When the request
//!   that left last returns, or the pause ends, one of them leads all into the next *batch*.
//! - Callers are woken in this order: first those that have their answer, then the leader of the
//!   next batch. A caller that asks again at once so comes along. The other way round there would be
//!   two half batches in turns, each at the cost of a whole one.
//! - No more than [`MOST_OUT`] batches are out at the same time.
//!
//! No get waits for another one's origin: a batch asks only for what the peer has in its caches, and
//! those of its keys that are not there are asked for plainly after it, each by its own caller.

use std::mem;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::clock::Clock;

/// The shortest pause: how long a request that is out holds back the next one at least.
pub(super) const PAUSE: Duration = Duration::from_micros(100);
/// And at most; in multiples of the shortest.
const LONGEST_PAUSE: u32 = 10;
/// For how long the shortest round trip, and the most gets at the same time, are remembered.
const REMEMBERED: Duration = Duration::from_secs(1);
/// Where there are so many gets at the same time, or fewer, each asks for itself: to share would save less
/// than it takes to wait for each other.
pub(super) const FEW: usize = 4;
/// The most batches that are out at the same time. Beyond it gets gather until one returns.
const MOST_OUT: usize = 16;

pub(super) struct Combine<A> {
    clock: Clock,
    few: usize,
    /// How many gets are under way, plain or in a batch.
    under_way: AtomicUsize,
    // Guards what is out and what gathers; nobody asks a peer under it. Locked before the lock of
    // a batch, never under it.
    state: Mutex<State<A>>,
}

struct State<A> {
    /// Keys that leave together. A batch stays here until its leader takes it out.
    gathering: Option<Arc<Batch<A>>>,
    batches_out: usize,
    /// The number of the request that left last, plain or a batch.
    last: u64,
    last_left_at: Duration,
    last_is_back: bool,
    pace: Pace,
}

/// How long requests take, and how many gets there are.
struct Pace {
    least_pause: Duration,
    /// The most gets at the same time in this window of time, and in the one before.
    most: [usize; 2],
    /// The shortest round trip in these windows.
    shortest: [Duration; 2],
    window_ends: Duration,
    /// For how long batches wait for a processor: a moving mean.
    queued: Duration,
}

impl Pace {
    fn new(least_pause: Duration) -> Self {
        let shortest = [Duration::MAX; 2];
        let (window_ends, queued) = (Duration::ZERO, Duration::ZERO);
        Self { least_pause, most: [0; 2], shortest, window_ends, queued }
    }

    /// What a round trip takes beyond twice the shortest one it has spent waiting for a processor: a
    /// get that leaves later only joins that queue later. A peer whose round trip is no longer than
    /// two pauses is waited for in any case: that costs less than a request of its own.
    fn pause(&self) -> Duration {
        self.queued.max(self.least_pause).min(LONGEST_PAUSE * self.least_pause)
    }

    /// Notes that a request has returned.
    fn note(&mut self, took: Duration, is_batch: bool, now: Duration) {
        if now >= self.window_ends {
            self.window_ends = now + REMEMBERED;
            self.shortest = [Duration::MAX, self.shortest[0]];
            self.most = [0, self.most[0]];
        }
        self.shortest[0] = self.shortest[0].min(took);
        if is_batch {
            let shortest = self.shortest[0].min(self.shortest[1]);
            let is_near = shortest <= 2 * self.least_pause;
            let queued = took.saturating_sub(if is_near { Duration::ZERO } else { 2 * shortest });
            // One that was held up says little: many in a row must be slow.
            let queued = queued.min(4 * self.queued + self.least_pause);
            self.queued = self.queued - self.queued / 8 + queued / 8;
        }
    }
}

/// Keys that are asked for together, each by its own caller.
struct Batch<A> {
    // Guards which keys are in it and what becomes of them.
    inner: Mutex<Inner<A>>,
    turned: Condvar,
}

struct Inner<A> {
    keys: Vec<String>,
    key_bytes: usize,
    stage: Stage<A>,
}

enum Stage<A> {
    Gathering,
    /// It may leave: whichever caller sees this first leads it.
    NeedsLeader,
    /// It has a leader, which is about to take it out or has done so.
    Led,
    Back(Brought<A>),
}

/// What a batch has brought.
pub(super) enum Brought<A> {
    /// An answer for each key, in their order; `None` for a key that is to be asked for plainly.
    Each(Vec<Option<A>>),
    /// One answer for all keys: an error.
    All(A),
}

/// The part that a caller plays.
enum Part<A> {
    Plain(Departure),
    /// Leads this batch, with the key at this index.
    Lead(Arc<Batch<A>>, usize),
    /// Has what the batch has brought for its key.
    Follow(Option<A>),
    TimedOut,
}

impl<A: Clone> Combine<A> {
    /// Up to `few` gets at the same time are not combined; `pause` is the shortest one.
    pub(super) fn new(few: usize, pause: Duration, clock: Clock) -> Self {
        let state = State {
            gathering: None,
            batches_out: 0,
            last: 0,
            last_left_at: Duration::ZERO,
            last_is_back: true,
            pace: Pace::new(pause),
        };
        Self { clock, few, under_way: AtomicUsize::new(0), state: Mutex::new(state) }
    }

    /// Asks for `key` by `plain`, or together with others by `batch`. A batch takes as many keys as
    /// `fit` into it, which is given their number and the sum of their bytes. `None` if nobody
    /// answered within `patience`.
    pub(super) fn get(
        &self,
        key: &str,
        patience: Duration,
        fit: impl Fn(usize, usize) -> bool,
        batch: impl Fn(&[String]) -> Brought<A>,
        plain: impl FnOnce() -> A,
    ) -> Option<A> {
        let _under_way = UnderWay::begin(&self.under_way);
        let answer = match self.join(key, patience, fit) {
            Part::Plain(departure) => {
                let _out = Out { combine: self, departure, batch: None };
                return Some(plain());
            }
            Part::Lead(led, index) => self.lead(&led, index, batch),
            Part::Follow(answer) => answer,
            Part::TimedOut => return None,
        };
        Some(answer.unwrap_or_else(plain))
    }

    /// Decides which part the caller plays. A follower plays it here: it waits for the batch.
    fn join(&self, key: &str, patience: Duration, fit: impl Fn(usize, usize) -> bool) -> Part<A> {
        let mut state = self.state.lock().unwrap();
        let most = &mut state.pace.most[0];
        *most = self.under_way.load(Ordering::Relaxed).max(*most);
        let may_leave = self.may_leave(&state);
        let Some(batch) = state.gathering.clone() else {
            if may_leave {
                return Part::Plain(self.depart(&mut state));
            }
            let batch = Arc::new(Batch::new(key));
            state.gathering = Some(batch.clone());
            return self.keep_time(state, &batch, patience);
        };
        let mut inner = batch.inner.lock().unwrap();
        if !fit(inner.keys.len() + 1, inner.key_bytes + key.len()) {
            return Part::Plain(self.depart(&mut state));
        }
        let index = inner.add(key);
        if may_leave && inner.claim_lead() {
            drop(inner);
            return Part::Lead(batch, index);
        }
        drop(state);
        batch.wait(inner, index, patience)
    }

    /// Waits as the first of a batch: for no longer than the pause, unless too many are out.
    fn keep_time(
        &self,
        state: MutexGuard<'_, State<A>>,
        batch: &Arc<Batch<A>>,
        patience: Duration,
    ) -> Part<A> {
        let pause = (state.last_left_at + state.pace.pause()).saturating_sub(self.clock.now());
        // Where too many are out, the next one that returns calls for a leader.
        let pause = if state.batches_out < MOST_OUT { pause } else { patience };
        let inner = batch.inner.lock().unwrap();
        drop(state);
        let mut part = batch.wait(inner, 0, pause.min(patience));
        if matches!(part, Part::TimedOut) && pause < patience {
            let state = self.state.lock().unwrap();
            let mut inner = batch.inner.lock().unwrap();
            if state.batches_out < MOST_OUT && inner.claim_lead() {
                return Part::Lead(batch.clone(), 0);
            }
            drop(state);
            part = batch.wait(inner, 0, patience - pause);
        }
        if matches!(part, Part::TimedOut) {
            // Nobody would keep the time for the others.
            batch.call_for_leader();
        }
        part
    }

    fn lead(
        &self,
        led: &Arc<Batch<A>>,
        index: usize,
        batch: impl Fn(&[String]) -> Brought<A>,
    ) -> Option<A> {
        let (departure, keys) = {
            let mut state = self.state.lock().unwrap();
            // Nobody joins the batch from here on.
            state.gathering = None;
            state.batches_out += 1;
            let departure = self.depart(&mut state);
            (departure, mem::take(&mut led.inner.lock().unwrap().keys))
        };
        // When this is dropped, the next batch may leave: after all of this one were woken.
        let _out = Out { combine: self, departure, batch: Some(led) };
        let mut brought = batch(&keys);
        let own = brought.take(index);
        led.turn(Stage::Back(brought));
        own
    }

    /// Whether nothing holds a request back.
    fn may_leave(&self, state: &State<A>) -> bool {
        // Not how many there are just now: while those of a batch wake up, they are always few.
        let are_few = state.pace.most.into_iter().all(|most| most <= self.few);
        state.batches_out < MOST_OUT
            && (are_few
                || state.last_is_back
                || self.clock.now() >= state.last_left_at + state.pace.pause())
    }

    /// Notes that a request leaves.
    fn depart(&self, state: &mut State<A>) -> Departure {
        state.last += 1;
        state.last_left_at = self.clock.now();
        state.last_is_back = false;
        Departure { number: state.last, at: state.last_left_at }
    }
}

impl<A> Batch<A> {
    fn new(key: &str) -> Self {
        let mut inner = Inner { keys: vec![], key_bytes: 0, stage: Stage::Gathering };
        inner.add(key);
        Self { inner: Mutex::new(inner), turned: Condvar::new() }
    }

    fn wait(
        self: &Arc<Self>,
        inner: MutexGuard<'_, Inner<A>>,
        index: usize,
        patience: Duration,
    ) -> Part<A>
    where
        A: Clone,
    {
        let is_pending =
            |inner: &mut Inner<A>| matches!(inner.stage, Stage::Gathering | Stage::Led);
        let (mut inner, _) = self.turned.wait_timeout_while(inner, patience, is_pending).unwrap();
        match &mut inner.stage {
            Stage::Gathering | Stage::Led => Part::TimedOut,
            Stage::NeedsLeader => {
                inner.stage = Stage::Led;
                Part::Lead(self.clone(), index)
            }
            Stage::Back(brought) => Part::Follow(brought.take(index)),
        }
    }

    /// One of the callers that wait is to lead, or the next one that comes.
    fn call_for_leader(&self) {
        let mut inner = self.inner.lock().unwrap();
        if matches!(inner.stage, Stage::Gathering) {
            inner.stage = Stage::NeedsLeader;
            drop(inner); // so that the thread that wakes does not meet the lock
            self.turned.notify_one();
        }
    }

    /// Tells all callers that wait, at once. To wake them one by one would be a system call for each,
    /// and each would take the processor from the thread that wakes the others.
    fn turn(&self, stage: Stage<A>) {
        self.inner.lock().unwrap().stage = stage;
        self.turned.notify_all();
    }
}

impl<A> Inner<A> {
    /// Adds a key; its index.
    fn add(&mut self, key: &str) -> usize {
        self.keys.push(key.into());
        self.key_bytes += key.len();
        self.keys.len() - 1
    }

    /// Makes the caller the leader; `false` if there is one.
    fn claim_lead(&mut self) -> bool {
        let is_free = matches!(self.stage, Stage::Gathering | Stage::NeedsLeader);
        if is_free {
            self.stage = Stage::Led;
        }
        is_free
    }
}

impl<A: Clone> Brought<A> {
    /// The answer for the key at `index`, each of which is taken once.
    fn take(&mut self, index: usize) -> Option<A> {
        match self {
            Self::Each(answers) => answers.get_mut(index).and_then(Option::take),
            Self::All(answer) => Some(answer.clone()),
        }
    }
}

/// A get that is under way, until it is dropped.
struct UnderWay<'c>(&'c AtomicUsize);

impl<'c> UnderWay<'c> {
    fn begin(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Departure {
    number: u64,
    at: Duration,
}

/// A request that is out. It is back when this is dropped, also if its thread panics.
struct Out<'c, A> {
    combine: &'c Combine<A>,
    departure: Departure,
    batch: Option<&'c Batch<A>>,
}

impl<A> Drop for Out<'_, A> {
    fn drop(&mut self) {
        if let Some(batch) = self.batch {
            let is_pending = matches!(batch.inner.lock().unwrap().stage, Stage::Led);
            if is_pending {
                // The leader panicked: the others ask plainly.
                batch.turn(Stage::Back(Brought::Each(Vec::new())));
            }
        }
        let now = self.combine.clock.now();
        let mut state = self.combine.state.lock().unwrap();
        state.pace.note(now.saturating_sub(self.departure.at), self.batch.is_some(), now);
        let were_too_many = state.batches_out >= MOST_OUT;
        if self.batch.is_some() {
            state.batches_out -= 1;
        }
        state.last_is_back |= self.departure.number == state.last;
        // Gets that gathered because too many were out have nobody who keeps the time.
        let may_leave = state.batches_out < MOST_OUT && (state.last_is_back || were_too_many);
        let next = state.gathering.clone().filter(|_| may_leave);
        drop(state);
        if let Some(next) = next {
            next.call_for_leader();
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

    /// A peer that reports each request and answers when it is let. The pause is long, and only the
    /// clock that is moved by hand ends it.
    struct Peer {
        combine: Combine<String>,
        clock: Clock,
        asked: (Sender<String>, Receiver<String>),
        plain_gate: (Sender<()>, Receiver<()>),
        batch_gate: (Sender<()>, Receiver<()>),
    }

    type Get<'s> = ScopedJoinHandle<'s, Option<String>>;

    impl Peer {
        fn new() -> Self {
            Self::pausing(LONG)
        }

        fn pausing(pause: Duration) -> Self {
            Self::with(0, pause)
        }

        fn with(few: usize, pause: Duration) -> Self {
            let (asked, plain_gate, batch_gate) = (bounded(100), bounded(0), bounded(0));
            let clock = Clock::by_hand();
            let combine = Combine::new(few, pause, clock.clone());
            Self { combine, clock, asked, plain_gate, batch_gate }
        }

        fn get(&self, key: &str, patience: Duration) -> Option<String> {
            let batch = |keys: &[String]| {
                self.asked.0.send(format!("batch {}", keys.join(" "))).unwrap();
                self.batch_gate.1.recv_timeout(LONG).unwrap();
                assert!(!keys.contains(&"bomb".into()), "on purpose");
                if keys.contains(&"dead".into()) {
                    return Brought::All("unreachable".into());
                }
                let is_cached = |key: &&String| key.starts_with("hit");
                let answer = |key| is_cached(&key).then(|| format!("{key} by batch"));
                Brought::Each(keys.iter().map(answer).collect())
            };
            let plain = || {
                self.asked.0.send(format!("plain {key}")).unwrap();
                self.plain_gate.1.recv_timeout(LONG).unwrap();
                format!("{key} plainly")
            };
            self.combine.get(key, patience, |keys, _| keys <= 4, batch, plain)
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

        /// Gets that gather behind what is out, one after the other.
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

        /// The keys that gather now.
        fn gathering(&self) -> usize {
            let state = self.combine.state.lock().unwrap();
            state.gathering.as_ref().map_or(0, |batch| batch.inner.lock().unwrap().keys.len())
        }

        fn wait_for(&self, gathering: usize) {
            let start = Instant::now();
            while self.gathering() != gathering {
                assert!(start.elapsed() < LONG, "waited in vain");
                thread::yield_now();
            }
        }

        fn assert_at_rest(&self) {
            assert!(self.asked.1.is_empty());
            let state = self.combine.state.lock().unwrap();
            assert_eq!((state.batches_out, state.last_is_back), (0, true));
            assert_eq!(self.combine.under_way.load(Ordering::Relaxed), 0);
            assert!(state.gathering.is_none());
        }
    }

    #[test]
    fn the_pause_is_as_long_as_requests_queue_up_within_bounds() {
        let micros = Duration::from_micros;
        let mut pace = Pace::new(micros(100));
        let mut now = Duration::ZERO;
        let mut note = |pace: &mut Pace, took: u64, times: u32| {
            for _ in 0..times {
                now += Duration::from_millis(1);
                pace.note(micros(took), true, now);
            }
            pace.pause().as_micros()
        };
        // A long way is no queue.
        assert_eq!(note(&mut pace, 20_000, 100), 100);
        assert_eq!(note(&mut pace, 20_100, 100), 100);
        assert_eq!(note(&mut pace, 40_000, 100), 100, "and some jitter is none either");
        // On one machine round trips take 50 µs; five times that means busy processors.
        assert_eq!(note(&mut pace, 50, 1), 100);
        assert!((240..=250).contains(&note(&mut pace, 250, 100)));
        // One that is lost for a while changes little, and many only so much.
        assert!(note(&mut pace, 200_000, 1) < 400);
        assert_eq!(note(&mut pace, 200_000, 100), 1_000);
        // The shortest is forgotten after two windows: the way has become longer.
        note(&mut pace, 20_000, 2 * REMEMBERED.as_millis() as u32 + 1);
        assert_eq!(note(&mut pace, 20_000, 1_000), 100);
    }

    fn answers(gets: Vec<Get<'_>>) -> Vec<String> {
        gets.into_iter().map(|get| get.join().unwrap().unwrap()).collect()
    }

    #[test]
    fn a_lonely_get_goes_out_plainly() {
        let peer = Peer::new();
        thread::scope(|scope| {
            for _ in 0..2 {
                let get = peer.out(scope, "hit");
                peer.let_plain();
                assert_eq!(get.join().unwrap().unwrap(), "hit plainly");
            }
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_few_gets_leave_at_once_and_those_beyond_them_gather() {
        let peer = Peer::with(2, LONG);
        thread::scope(|scope| {
            let few = vec![peer.out(scope, "hit1"), peer.out(scope, "hit2")];
            let gathered = peer.gathered(scope, &["hit3", "hit4"]);
            (0..2).for_each(|_| peer.let_plain());
            assert_eq!(peer.next_request(), "batch hit3 hit4");
            peer.let_batch();
            assert_eq!(answers(few), ["hit1 plainly", "hit2 plainly"]);
            assert_eq!(answers(gathered), ["hit3 by batch", "hit4 by batch"]);
            // There were four, and will be again.
            let first = peer.out(scope, "hit5");
            let behind = peer.gathered(scope, &["hit6"]);
            peer.let_plain();
            assert_eq!(peer.next_request(), "batch hit6");
            peer.let_batch();
            assert_eq!(answers(vec![first]), ["hit5 plainly"]);
            assert_eq!(answers(behind), ["hit6 by batch"]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn gets_gather_behind_what_has_just_left_and_leave_together_when_it_returns() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let gathered = peer.gathered(scope, &["hit2", "miss", "hit3"]);
            peer.let_plain();
            assert_eq!(first.join().unwrap().unwrap(), "hit1 plainly");
            assert_eq!(peer.next_request(), "batch hit2 miss hit3");
            let behind = peer.gathered(scope, &["hit4"]);
            peer.let_batch();
            // What was not cached is asked for plainly; the next batch leaves as well.
            let mut requests = [peer.next_request(), peer.next_request()];
            requests.sort();
            assert_eq!(requests, ["batch hit4", "plain miss"]);
            peer.let_plain();
            peer.let_batch();
            assert_eq!(answers(gathered), ["hit2 by batch", "miss plainly", "hit3 by batch"]);
            assert_eq!(answers(behind), ["hit4 by batch"]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn after_the_pause_gets_leave_though_nothing_has_returned() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let slow = peer.out(scope, "slow");
            let mut gathered = peer.gathered(scope, &["hit1"]);
            peer.clock.advance(LONG);
            // It comes after the pause, and leads.
            gathered.push(peer.start(scope, "hit2"));
            assert_eq!(peer.next_request(), "batch hit1 hit2");
            peer.clock.advance(LONG);
            let third = peer.out(scope, "hit3");
            peer.let_batch();
            assert_eq!(answers(gathered), ["hit1 by batch", "hit2 by batch"]);
            (0..2).for_each(|_| peer.let_plain());
            answers(vec![slow, third]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn the_first_that_gathers_ends_the_pause_by_itself() {
        let peer = Peer::pausing(Duration::from_millis(1));
        thread::scope(|scope| {
            let slow = peer.out(scope, "slow");
            let gathered = vec![peer.start(scope, "hit1")];
            assert_eq!(peer.next_request(), "batch hit1");
            peer.let_batch();
            assert_eq!(answers(gathered), ["hit1 by batch"]);
            peer.let_plain();
            answers(vec![slow]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_get_that_does_not_fit_into_the_batch_goes_out_plainly() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let gathered = peer.gathered(scope, &["hit2", "hit3", "hit4", "hit5"]);
            let beyond = peer.out(scope, "hit6");
            (0..2).for_each(|_| peer.let_plain());
            assert_eq!(peer.next_request(), "batch hit2 hit3 hit4 hit5");
            peer.let_batch();
            assert_eq!(answers(gathered).len(), 4);
            answers(vec![first, beyond]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn beyond_the_limit_gets_gather_until_a_batch_returns() {
        let peer = Peer::new();
        let keys: Vec<_> = (0..2 * MOST_OUT + 2).map(|i| format!("hit{i}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        thread::scope(|scope| {
            let mut gets = vec![peer.out(scope, "slow")];
            let (out, beyond) = keys.split_at(2 * MOST_OUT);
            for pair in out.chunks(2) {
                gets.extend(peer.gathered(scope, &pair[..1]));
                peer.clock.advance(LONG);
                gets.push(peer.start(scope, pair[1]));
                assert_eq!(peer.next_request(), format!("batch {}", pair.join(" ")));
            }
            peer.clock.advance(LONG);
            gets.extend(peer.gathered(scope, beyond));
            assert!(peer.asked.1.is_empty(), "too many are out");
            peer.let_batch();
            assert_eq!(peer.next_request(), format!("batch {}", beyond.join(" ")));
            (0..MOST_OUT).for_each(|_| peer.let_batch());
            peer.let_plain();
            answers(gets);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_batch_that_fails_is_the_answer_for_its_keys_and_no_others() {
        let peer = Peer::new();
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
    fn patience_ends_and_another_leads_in_place_of_the_one_that_has_gone() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            assert_eq!(peer.get("hit2", Duration::from_millis(1)), None);
            // The next one that comes leads, though nothing has returned.
            let next = peer.start(scope, "hit3");
            assert_eq!(peer.next_request(), "batch hit2 hit3");
            peer.let_batch();
            assert_eq!(next.join().unwrap().unwrap(), "hit3 by batch");
            peer.let_plain();
            answers(vec![first]);
        });
        peer.assert_at_rest();
    }

    #[test]
    fn a_leader_that_panics_lets_the_others_ask_plainly() {
        let peer = Peer::new();
        thread::scope(|scope| {
            let first = peer.out(scope, "hit1");
            let other = peer.gathered(scope, &["hit2"]);
            peer.clock.advance(LONG);
            // It comes after the pause, and leads.
            let bomb = scope.spawn(|| catch_unwind(AssertUnwindSafe(|| peer.get("bomb", LONG))));
            assert_eq!(peer.next_request(), "batch hit2 bomb");
            peer.let_batch();
            assert!(bomb.join().unwrap().is_err());
            assert_eq!(peer.next_request(), "plain hit2");
            (0..2).for_each(|_| peer.let_plain());
            assert_eq!(answers(other), ["hit2 plainly"]);
            answers(vec![first]);
        });
        peer.assert_at_rest();
    }
}
