//! `Flight`: of all threads that want the same work at the same time one does it, and the
//! others wait for its answer. Knows nothing of caching.
//!
//! What keeps a thousand callers of a key that just expired from asking a slow origin a
//! thousand times? One of them, the *leader*, runs; the others, its *followers*, sleep on a
//! condition variable and share its answer. Nothing is remembered: a later caller leads anew.
//!
//! In Go's singleflight a leader that panics leaves its call in the table:
//!
//! 1. A leads for a key, and its work panics; A's thread unwinds.
//! 2. B waits for A. Nobody will wake it.
//! 3. C comes for the same key, finds A's call, and waits as well; so does everybody after it.
//!
//! Here the leader holds a guard, and unwinding drops it: the key is free, and B is told.
//!
//! Work may ask for other keys, and so a leader can follow. Then threads can wait for each other in a
//! circle:
//!
//! 1. A leads "a" and B leads "b";
//! 2. A's work asks for "b" and waits for B;
//! 3. B's work asks for "a" and waits for A.
//!
//! So a leader says which leader it waits for, and one that would close a circle is told instead; a
//! circle of one is a leader that asks for its own key.
//!
//! [`Group`](crate::Group) has two flights, and says why one is not enough.

use std::array;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread_local;
use std::time::Duration;

use foldhash::fast::FixedState;

/// Work under way, by key.
#[doc(alias = "singleflight")]
pub(crate) struct Flight<T> {
    // Several, so that threads with different keys seldom meet at the same lock.
    tables: [Table<T>; TABLES],
}

const TABLES: usize = 16;

// Guards a map of calls alone: leaders work, and followers wait, without it. Shares no cache line
// with its neighbour.
#[repr(align(128))]
struct Table<T>(Mutex<Calls<T>>);

// By the hash of the key. Has no seed, so that the model checker can repeat a schedule.
type Calls<T> = HashMap<u64, Arc<Call<T>>, FixedState>;

/// Work under way for one key.
pub(crate) struct Call<T> {
    key: Box<str>,
    leader: Arc<Thread>,
    is_done: AtomicBool,
    // Guards the leader's answer; `None` while it works.
    outcome: Mutex<Option<Result<T, Unanswered>>>,
    done: Condvar,
}

thread_local! {
    static THIS: Arc<Thread> = Arc::default();
}

/// A thread as others see it that may have to wait for it.
#[derive(Default)]
struct Thread {
    /// How many calls it leads, in all flights.
    leads: AtomicUsize,
    // Guards the call that it follows.
    waits_for: Mutex<Option<Arc<dyn Led>>>,
}

/// A call, whatever its answer is.
trait Led: Send + Sync {
    fn leader(&self) -> &Arc<Thread>;
    fn is_done(&self) -> bool;
}

impl<T: Send> Led for Call<T> {
    fn leader(&self) -> &Arc<Thread> {
        &self.leader
    }

    fn is_done(&self) -> bool {
        self.is_done.load(Ordering::SeqCst)
    }
}

/// Whether this thread leads a call in any flight, and now asks for something that its work needs.
pub(crate) fn is_leading() -> bool {
    THIS.with(|this| this.leads.load(Ordering::Relaxed) > 0)
}

/// Why a follower has no answer to share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The leader panicked.
    LeaderPanicked,
    /// The leader is this very thread, or waits for it: they would wait for each other.
    Recursive,
    /// The leader took longer than this follower wanted to wait.
    TimedOut,
}

/// The part of a caller in the work for its key.
pub(crate) enum Seat<'f, T: Clone> {
    Leader(LeaderGuard<'f, T>),
    Follower(Arc<Call<T>>),
}

impl<T: Clone> Flight<T> {
    pub(crate) fn new() -> Self {
        Self { tables: array::from_fn(|_| Table(Mutex::default())) }
    }

    /// Takes part in the work for `key`: leads it, unless another thread does. The guard is dropped by
    /// this same thread.
    #[doc(alias = "Do")]
    pub(crate) fn join(&self, key: &str) -> Seat<'_, T> {
        let hash = hash(key);
        let mut calls = self.table(hash).lock().unwrap();
        let found = calls.entry(hash);
        if let Entry::Occupied(call) = &found {
            if *call.get().key == *key {
                return Seat::Follower(call.get().clone());
            }
        }
        let leader = THIS.with(Arc::clone);
        leader.leads.fetch_add(1, Ordering::Relaxed);
        let (is_done, outcome, done) = Default::default();
        let call = Arc::new(Call { key: key.into(), leader, is_done, outcome, done });
        // While another key of the same hash is led, which hardly ever happens, nobody follows this call.
        if let Entry::Vacant(vacant) = found {
            vacant.insert(call.clone());
        }
        Seat::Leader(LeaderGuard { flight: self, hash, call: Some(call) })
    }

    /// From now on nobody follows the work that is under way for `key`: the next caller leads anew.
    pub(crate) fn forget(&self, key: &str) {
        let hash = hash(key);
        self.table(hash).lock().unwrap().remove(&hash);
    }

    /// The same for all keys.
    pub(crate) fn forget_all(&self) {
        self.tables.iter().for_each(|Table(calls)| calls.lock().unwrap().clear());
    }

    fn table(&self, hash: u64) -> &Mutex<Calls<T>> {
        &self.tables[hash as usize % TABLES].0
    }
}

fn hash(key: &str) -> u64 {
    FixedState::default().hash_one(key)
}

impl<T: Clone + Send + 'static> Call<T> {
    /// The leader's answer, waited for no longer than `patience`.
    pub(crate) fn wait(self: &Arc<Self>, patience: Duration) -> Result<T, Unanswered> {
        let this = THIS.with(Arc::clone);
        // Nobody waits for a thread that leads nothing.
        let is_leading = this.leads.load(Ordering::Relaxed) > 0;
        if is_leading {
            // Before the circle is looked for: of several threads that close one, the last sees it.
            *this.waits_for.lock().unwrap() = Some(self.clone());
        }
        let answer = match is_leading && this.waits_for_itself() {
            true => Err(Unanswered::Recursive),
            false => self.wait_for_outcome(patience),
        };
        if is_leading {
            this.waits_for.lock().unwrap().take();
        }
        answer
    }

    fn wait_for_outcome(&self, patience: Duration) -> Result<T, Unanswered> {
        let outcome = self.outcome.lock().unwrap();
        // No wake-up can be missed: the outcome is looked at under the lock under which the
        // leader sets it, and the wait releases that lock only once this thread is listed.
        let (outcome, _) =
            self.done.wait_timeout_while(outcome, patience, |outcome| outcome.is_none()).unwrap();
        outcome.clone().unwrap_or(Err(Unanswered::TimedOut))
    }
}

impl Thread {
    /// Whether a circle of threads, each of which waits for the next, leads back to this one.
    fn waits_for_itself(self: &Arc<Self>) -> bool {
        let mut next = self.clone();
        loop {
            let waits_for = next.waits_for.lock().unwrap().clone();
            match waits_for {
                Some(call) if !call.is_done() => next = call.leader().clone(),
                _ => return false,
            }
            if Arc::ptr_eq(self, &next) {
                return true;
            }
        }
    }
}

/// Held by the leader of a key. When it is dropped, the key is free again and the followers are told,
/// also if the leader unwinds.
#[must_use]
pub(crate) struct LeaderGuard<'f, T: Clone> {
    flight: &'f Flight<T>,
    hash: u64,
    // `None` when it has ended.
    call: Option<Arc<Call<T>>>,
}

impl<T: Clone> LeaderGuard<'_, T> {
    /// Hands the answer to the followers.
    pub(crate) fn finish(mut self, answer: &T) {
        self.end(|| Ok(answer.clone()));
    }

    fn end(&mut self, outcome: impl FnOnce() -> Result<T, Unanswered>) {
        let Some(ended) = self.call.take() else { return };
        ended.leader.leads.fetch_sub(1, Ordering::Relaxed);
        ended.is_done.store(true, Ordering::SeqCst);
        // The key is freed first: a caller that comes from now on leads anew, and hears of no
        // answer or panic that is older than its question.
        let mut calls = self.flight.table(self.hash).lock().unwrap();
        if let Entry::Occupied(call) = calls.entry(self.hash) {
            // Unless this call was forgotten, and another thread leads the key.
            if Arc::ptr_eq(call.get(), &ended) {
                call.remove();
            }
        }
        drop(calls);
        // Most leaders have no followers, and to notify nobody is a system call, too.
        if Arc::strong_count(&ended) > 1 {
            *ended.outcome.lock().unwrap() = Some(outcome());
            ended.done.notify_all();
        }
    }
}

impl<T: Clone> Drop for LeaderGuard<'_, T> {
    fn drop(&mut self) {
        self.end(|| Err(Unanswered::LeaderPanicked));
    }
}

#[cfg(test)]
impl<T: Clone + Send + 'static> Flight<T> {
    fn is_led(&self, key: &str) -> bool {
        self.table(hash(key)).lock().unwrap().contains_key(&hash(key))
    }

    /// How many callers have joined the leader of a key.
    pub(crate) fn followers(&self, key: &str) -> usize {
        // The table and the leader hold one each.
        let hash = hash(key);
        let calls = self.table(hash).lock().unwrap();
        calls.get(&hash).map_or(0, |call| Arc::strong_count(call) - 2)
    }

    /// Leads or follows, whichever it is.
    pub(crate) fn run(
        &self,
        key: &str,
        patience: Duration,
        work: impl FnOnce() -> T,
    ) -> Result<T, Unanswered> {
        match self.join(key) {
            Seat::Leader(guard) => {
                let answer = work();
                guard.finish(&answer);
                Ok(answer)
            }
            Seat::Follower(call) => call.wait(patience),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    /// Spins, politely, until `condition` holds; gives up after `LONG`.
    fn eventually(condition: impl Fn() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "waited in vain");
            thread::yield_now();
        }
    }

    #[test]
    fn followers_share_what_the_leader_finds() {
        let flight = Flight::new();
        let runs = AtomicUsize::new(0);
        let (open, gate) = bounded(0);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                flight.run("k", LONG, || {
                    gate.recv_timeout(LONG).unwrap();
                    runs.fetch_add(1, Ordering::SeqCst) + 42
                })
            });
            eventually(|| flight.is_led("k"));
            let others: Vec<_> =
                (0..10).map(|_| scope.spawn(|| flight.run("k", LONG, || unreachable!()))).collect();
            eventually(|| flight.followers("k") == 10);
            open.send(()).unwrap();
            assert_eq!(leader.join().unwrap(), Ok(42));
            for other in others {
                assert_eq!(other.join().unwrap(), Ok(42));
            }
        });
        assert_eq!(flight.run("k", LONG, || 7), Ok(7), "nothing is remembered");
    }

    #[test]
    fn different_keys_do_not_wait_for_each_other() {
        let flight = Flight::new();
        assert_eq!(flight.run("a", LONG, || 1 + flight.run("b", LONG, || 1).unwrap()), Ok(2));
    }

    #[test]
    fn a_leader_that_panics_releases_its_followers_and_the_key() {
        let flight: Flight<u8> = Flight::new();
        let (open, gate) = bounded::<()>(0);
        thread::scope(|scope| {
            let leader = scope.spawn(|| {
                catch_unwind(AssertUnwindSafe(|| {
                    flight.run("k", LONG, || {
                        gate.recv_timeout(LONG).unwrap();
                        panic!("on purpose")
                    })
                }))
            });
            eventually(|| flight.is_led("k"));
            let follower = scope.spawn(|| flight.run("k", LONG, || unreachable!()));
            eventually(|| flight.followers("k") == 1);
            open.send(()).unwrap();
            assert!(leader.join().unwrap().is_err());
            assert_eq!(follower.join().unwrap(), Err(Unanswered::LeaderPanicked));
        });
        assert_eq!(flight.run("k", LONG, || 7), Ok(7));
    }

    #[test]
    fn a_leader_that_asks_for_its_own_key_is_told() {
        let flight: Flight<Result<(), Unanswered>> = Flight::new();
        let inner = flight.run("k", LONG, || match flight.run("k", LONG, || Ok(())) {
            Err(unanswered) => Err(unanswered),
            Ok(_) => Ok(()),
        });
        assert_eq!(inner, Ok(Err(Unanswered::Recursive)));
    }

    #[test]
    fn of_threads_that_would_wait_for_each_other_in_a_circle_one_is_told() {
        let flights: [Flight<Result<(), Unanswered>>; 3] = [(); 3].map(|()| Flight::new());
        let all_lead = std::sync::Barrier::new(3);
        let answers = thread::scope(|scope| {
            let threads = [0, 1, 2].map(|i| {
                let (flights, all_lead) = (&flights, &all_lead);
                let ask_next = move || {
                    all_lead.wait();
                    flights[(i + 1) % 3].run("k", LONG, || unreachable!())
                };
                scope.spawn(move || flights[i].run("k", LONG, || ask_next().map(drop)))
            });
            threads.map(|thread| thread.join().unwrap().unwrap())
        });
        let told = answers.iter().filter(|answer| **answer == Err(Unanswered::Recursive)).count();
        assert!(told > 0, "{answers:?}");
        assert!(!is_leading());
    }

    #[test]
    fn patience_ends() {
        let flight = Flight::new();
        let (open, gate) = bounded(0);
        thread::scope(|scope| {
            let leader = scope.spawn(|| flight.run("k", LONG, || gate.recv_timeout(LONG).unwrap()));
            eventually(|| flight.is_led("k"));
            let impatient = flight.run("k", Duration::from_millis(1), || unreachable!());
            assert_eq!(impatient, Err(Unanswered::TimedOut));
            open.send(()).unwrap();
            assert_eq!(leader.join().unwrap(), Ok(()));
        });
    }

    #[test]
    fn threads_that_lead_follow_and_panic_all_the_time_never_wait_for_nobody() {
        const KEYS: [&str; 3] = ["a", "b", "c"];
        let flight = Flight::new();
        let busy = KEYS.map(|_| AtomicUsize::new(0));
        let runs = AtomicUsize::new(0);
        let work = |key: usize| {
            assert_eq!(busy[key].fetch_add(1, Ordering::SeqCst), 0, "two are at the same work");
            let run = runs.fetch_add(1, Ordering::SeqCst);
            thread::yield_now();
            busy[key].fetch_sub(1, Ordering::SeqCst);
            if run.is_multiple_of(7) {
                resume_unwind(Box::new("on purpose"));
            }
            run
        };
        thread::scope(|scope| {
            for thread in 0..8 {
                let (flight, work) = (&flight, &work);
                scope.spawn(move || {
                    let mut last = KEYS.map(|_| 0);
                    for i in 0..2_000 {
                        let key = (i + thread) % KEYS.len();
                        let run = || flight.run(KEYS[key], LONG, || work(key));
                        match catch_unwind(AssertUnwindSafe(run)) {
                            Err(_) | Ok(Err(Unanswered::LeaderPanicked)) => {}
                            Ok(answer) => {
                                let answer = answer.unwrap();
                                assert!(answer > last[key], "an answer was remembered");
                                last[key] = answer;
                            }
                        }
                    }
                });
            }
        });
        assert!(KEYS.iter().all(|key| !flight.is_led(key)));
    }

    #[test]
    fn what_is_forgotten_answers_its_own_callers_and_nobody_else() {
        let flight = Flight::new();
        let Seat::Leader(first) = flight.join("k") else { panic!("nobody else is here") };
        let Seat::Follower(follower) = flight.join("k") else { panic!("somebody leads") };
        flight.forget("k");
        let Seat::Leader(second) = flight.join("k") else { panic!("the first is forgotten") };
        thread::scope(|scope| {
            let follower = scope.spawn(move || follower.wait(LONG));
            first.finish(&1);
            assert_eq!(follower.join().unwrap(), Ok(1));
        });
        assert!(matches!(flight.join("k"), Seat::Follower(_)), "the first left the second's place");
        second.finish(&2);
        assert_eq!(flight.run("k", LONG, || 3), Ok(3));
    }
}
