//! `Flight`: of all threads that want the same work at the same time one does it, and the
//! others wait for what it finds. Knows nothing of caching.
//!
//! What keeps a thousand callers of a key that just expired from asking a slow origin a
//! thousand times? One of them, the *leader*, runs; the others, its *followers*, sleep on a
//! condition variable and share its answer. Nothing is remembered: who comes later leads anew.
//!
//! In Go's singleflight of the source a leader that panics leaves its call in the table:
//!
//! 1. A leads for a key, and its work panics; A's thread unwinds.
//! 2. B waits for A. Nobody will wake it.
//! 3. C comes for the same key, finds A's call, and waits as well; so does everybody after it.
//!
//! Here a lead ends when it is dropped, and unwinding drops it: the key is free, B is told.
//!
//! Read on in [`Group`](crate::Group), which has two flights and says why one is not enough.

use std::array;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};
use std::time::Duration;

use foldhash::fast::FixedState;

/// Work under way, by key.
#[doc(alias = "singleflight")]
pub(crate) struct Flight<T> {
    // Several, so that threads with different keys seldom meet.
    tables: [Table<T>; TABLES],
}

const TABLES: usize = 16;

// Guards the calls of some keys alone: the leader works, and followers wait, without it. Shares
// no cache line with its neighbour.
#[repr(align(128))]
struct Table<T>(Mutex<Calls<T>>);

struct Calls<T> {
    by_hash: HashMap<u64, Led<T>, FixedState>,
    // By number: calls that were forgotten, whose followers still wait for their leader.
    forgotten: HashMap<u64, Arc<Call<T>>>,
    // The number of the last lead.
    last: u64,
}

/// A key that is led.
struct Led<T> {
    key: Box<str>,
    // Tells it from the other leads of the same key, before and after it.
    number: u64,
    leader: ThreadId,
    // Made by the first follower: most who lead are alone.
    call: Option<Arc<Call<T>>>,
}

/// Why a follower has no answer to share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unanswered {
    /// The leader panicked.
    LeaderPanicked,
    /// The leader is this very thread, further up its stack: it would wait for itself.
    Recursive,
    /// The leader took longer than this follower wanted to wait.
    TimedOut,
}

/// Work under way that somebody follows.
pub(crate) struct Call<T> {
    leader: ThreadId,
    // Guards what the leader found; `None` while it works.
    outcome: Mutex<Option<Result<T, Unanswered>>>,
    done: Condvar,
}

impl<T: Clone> Flight<T> {
    pub(crate) fn new() -> Self {
        Self { tables: array::from_fn(|_| Table(Mutex::default())) }
    }

    /// Takes part in the work for `key`, whose hash the caller has: leads it, unless another thread
    /// does. Who leads several must land them all before it follows.
    #[doc(alias = "Do")]
    pub(crate) fn join(&self, key: &str, hash: u64) -> Seat<'_, T> {
        let table = self.table(key);
        let calls = &mut *table.lock().unwrap();
        calls.last += 1;
        let number = calls.last;
        match calls.by_hash.entry(hash) {
            Entry::Occupied(mut led) if *led.get().key == *key => {
                return Seat::Follower(led.get_mut().followed());
            }
            // Another key has the same hash, of 64 bits: nobody can follow this one.
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => {
                let leader = thread::current().id();
                place.insert(Led { key: key.into(), number, leader, call: None });
            }
        }
        Seat::Leader(Lead { table, hash, number: Some(number) })
    }

    /// From now on nobody follows the work that is under way for `key`: who comes leads anew.
    pub(crate) fn forget(&self, key: &str, hash: u64) {
        self.table(key).lock().unwrap().forget(hash);
    }

    /// The same for all keys.
    pub(crate) fn forget_all(&self) {
        self.tables.iter().for_each(|Table(calls)| calls.lock().unwrap().forget_all());
    }

    fn table(&self, key: &str) -> &Mutex<Calls<T>> {
        // Not by the hash, which has a seed: a schedule of threads could not be tried again. Whoever
        // chose keys that all come here would gain nothing, since in the table that hash decides.
        &self.tables[FixedState::default().hash_one(key) as usize % TABLES].0
    }
}

/// What [`Flight::join`] gives.
pub(crate) enum Seat<'f, T: Clone> {
    Leader(Lead<'f, T>),
    Follower(Arc<Call<T>>),
}

impl<T> Default for Calls<T> {
    fn default() -> Self {
        Self { by_hash: HashMap::default(), forgotten: HashMap::default(), last: 0 }
    }
}

impl<T> Calls<T> {
    /// Ends a lead. The call, if somebody follows.
    fn end(&mut self, hash: u64, number: u64) -> Option<Arc<Call<T>>> {
        match self.by_hash.entry(hash) {
            Entry::Occupied(led) if led.get().number == number => led.remove().call,
            // Ours was forgotten, and another is led by now.
            _ => self.forgotten.remove(&number),
        }
    }

    fn forget(&mut self, hash: u64) {
        let led = self.by_hash.remove(&hash);
        self.forgotten.extend(led.and_then(|led| Some((led.number, led.call?))));
    }

    fn forget_all(&mut self) {
        let led = self.by_hash.drain();
        self.forgotten.extend(led.filter_map(|(_, led)| Some((led.number, led.call?))));
    }
}

impl<T> Led<T> {
    fn followed(&mut self) -> Arc<Call<T>> {
        let leader = self.leader;
        let call = || Call { leader, outcome: Mutex::default(), done: Condvar::new() };
        self.call.get_or_insert_with(|| Arc::new(call())).clone()
    }
}

impl<T: Clone> Call<T> {
    /// The leader's answer, waited for no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) -> Result<T, Unanswered> {
        let outcome = self.outcome.lock().unwrap();
        if outcome.is_none() && self.leader == thread::current().id() {
            return Err(Unanswered::Recursive);
        }
        // No wake-up can be missed: the outcome is looked at under the lock under which the
        // leader sets it, and the wait releases that lock only once this thread is listed.
        let (outcome, _) =
            self.done.wait_timeout_while(outcome, patience, |outcome| outcome.is_none()).unwrap();
        outcome.clone().unwrap_or(Err(Unanswered::TimedOut))
    }
}

/// The lead of a call. The leader always publishes: the lead ends when it is dropped, so that if
/// the leader unwinds, the followers are told and the key is free again.
#[must_use]
pub(crate) struct Lead<'f, T: Clone> {
    table: &'f Mutex<Calls<T>>,
    hash: u64,
    // `None` once it has ended.
    number: Option<u64>,
}

impl<T: Clone> Lead<'_, T> {
    /// Publishes the answer.
    pub(crate) fn land(mut self, answer: &T) {
        self.end(|| Ok(answer.clone()));
    }

    fn end(&mut self, outcome: impl FnOnce() -> Result<T, Unanswered>) {
        let Some(number) = self.number.take() else { return };
        // Off the table first: who comes from now on leads anew and is not told of a panic
        // that was not his.
        let call = self.table.lock().unwrap().end(self.hash, number);
        let Some(call) = call else { return };
        *call.outcome.lock().unwrap() = Some(outcome());
        call.done.notify_all();
    }
}

impl<T: Clone> Drop for Lead<'_, T> {
    fn drop(&mut self) {
        self.end(|| Err(Unanswered::LeaderPanicked));
    }
}

/// A hash of `key`, the same each time.
#[cfg(test)]
pub(crate) fn hash(key: &str) -> u64 {
    FixedState::default().hash_one(key)
}

#[cfg(test)]
impl<T: Clone> Flight<T> {
    /// Leads or follows, whichever it is.
    pub(crate) fn run(
        &self,
        key: &str,
        patience: Duration,
        work: impl FnOnce() -> T,
    ) -> Result<T, Unanswered> {
        match self.join(key, hash(key)) {
            Seat::Leader(lead) => {
                let answer = work();
                lead.land(&answer);
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
    use std::ptr;
    use std::sync::atomic::{AtomicUsize, Ordering};
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

    fn followers<T: Clone>(flight: &Flight<T>, key: &str) -> usize {
        let calls = flight.table(key).lock().unwrap();
        let call = calls.by_hash.get(&hash(key)).and_then(|led| led.call.as_ref());
        // The table holds one.
        call.map_or(0, |call| Arc::strong_count(call) - 1)
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
            eventually(|| flight.table("k").lock().unwrap().by_hash.contains_key(&hash("k")));
            let others: Vec<_> =
                (0..10).map(|_| scope.spawn(|| flight.run("k", LONG, || unreachable!()))).collect();
            eventually(|| followers(&flight, "k") == 10);
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
            eventually(|| flight.table("k").lock().unwrap().by_hash.contains_key(&hash("k")));
            let follower = scope.spawn(|| flight.run("k", LONG, || unreachable!()));
            eventually(|| followers(&flight, "k") == 1);
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
    fn patience_ends() {
        let flight = Flight::new();
        let (open, gate) = bounded(0);
        thread::scope(|scope| {
            let leader = scope.spawn(|| flight.run("k", LONG, || gate.recv_timeout(LONG).unwrap()));
            eventually(|| flight.table("k").lock().unwrap().by_hash.contains_key(&hash("k")));
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
        assert!(KEYS.iter().all(|key| flight.table(key).lock().unwrap().by_hash.is_empty()));
    }

    #[test]
    fn what_is_forgotten_answers_its_own_callers_and_nobody_else() {
        let flight = Flight::new();
        let Seat::Leader(first) = flight.join("k", hash("k")) else {
            panic!("nobody else is here")
        };
        let Seat::Follower(follower) = flight.join("k", hash("k")) else {
            panic!("somebody leads")
        };
        flight.forget("k", hash("k"));
        let Seat::Leader(second) = flight.join("k", hash("k")) else {
            panic!("the first is forgotten")
        };
        thread::scope(|scope| {
            let follower = scope.spawn(move || follower.wait(LONG));
            first.land(&1);
            assert_eq!(follower.join().unwrap(), Ok(1));
        });
        assert!(
            matches!(flight.join("k", hash("k")), Seat::Follower(_)),
            "the first left the second's place"
        );
        second.land(&2);
        assert_eq!(flight.run("k", LONG, || 3), Ok(3));
    }

    #[test]
    fn keys_of_the_same_hash_are_each_led_and_followed_only_by_their_own() {
        let flight = Flight::new();
        let is_near = |key: &String| ptr::eq(flight.table(key), flight.table("a"));
        let another = (0..).map(|i| i.to_string()).find(is_near).unwrap();
        let Seat::Leader(first) = flight.join("a", 7) else { panic!("nobody else is here") };
        let Seat::Leader(other) = flight.join(&another, 7) else { panic!("nobody leads it") };
        other.land(&2);
        let Seat::Follower(follower) = flight.join("a", 7) else { panic!("it is led still") };
        thread::scope(|scope| {
            let follower = scope.spawn(move || follower.wait(LONG));
            first.land(&1);
            assert_eq!(follower.join().unwrap(), Ok(1));
        });
        assert!(matches!(flight.join("a", 7), Seat::Leader(_)));
    }
}
