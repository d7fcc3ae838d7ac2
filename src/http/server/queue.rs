//! `Queue`: the items that wait for a worker, and which are let in.
//!
//! What happens if more is asked than can be answered? A server that queues without a bound answers
//! everyone too late. So an item is refused at once if too many wait, or if as many as there are workers
//! wait and the oldest of them has waited for a while: the workers take long, and each of those takes one.
//! The items of clients that can go elsewhere have a limit to their wait, after which they are taken out.

use std::collections::VecDeque;
use std::sync::atomic::AtomicU64;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// How long the oldest item waits before others are refused.
const PATIENCE: Duration = Duration::from_millis(20);

pub(super) struct Queue<T> {
    workers: usize,
    /// How many items may wait while no worker is idle.
    room: usize,
    /// How long an item waits for a worker at the most; `None`: as long as it takes.
    longest_wait: Option<Duration>,
    // Guards the items that wait. Not a channel: its receivers spin before they sleep, and take a
    // processor from threads that have something to do.
    state: Mutex<State<T>>,
    /// Wakes a worker.
    arrived: Condvar,
    /// Wakes the thread that takes out the items that have waited too long.
    waits: Condvar,
    /// Counts the requests that are refused.
    pub(super) shed: AtomicU64,
}

struct State<T> {
    /// Up to one for each idle worker, and `room` more; each since when.
    items: VecDeque<(Instant, T)>,
    /// Workers that wait for an item, or have been woken for one and not yet taken it.
    idle: usize,
    is_open: bool,
}

impl<T> State<T> {
    /// How many items no idle worker is about to take.
    fn waiting(&self) -> usize {
        self.items.len().saturating_sub(self.idle)
    }

    /// How long the oldest item has waited.
    fn longest(&self) -> Duration {
        self.items.front().map_or(Duration::ZERO, |(since, _)| since.elapsed())
    }
}

impl<T> Queue<T> {
    pub(super) fn new(workers: usize, room: usize, longest_wait: Option<Duration>) -> Self {
        let state = Mutex::new(State { items: VecDeque::new(), idle: 0, is_open: true });
        let (arrived, waits, shed) = (Condvar::new(), Condvar::new(), AtomicU64::new(0));
        Self { workers, room, longest_wait, state, arrived, waits, shed }
    }

    /// Adds an item. If there is no room for it, or the queue is closed, it comes back.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        self.push_if(item, |state| {
            let waiting = state.waiting();
            let is_slow = || waiting >= self.workers && state.longest() >= PATIENCE;
            waiting < self.room && !is_slow()
        })
    }

    /// Adds an item for a worker that is idle. If there is none, it comes back.
    pub(super) fn offer(&self, item: T) -> Result<(), T> {
        self.push_if(item, |_| false)
    }

    fn push_if(&self, item: T, may_wait: impl FnOnce(&State<T>) -> bool) -> Result<(), T> {
        let mut state = self.state.lock().unwrap();
        let has_place = state.items.len() < state.idle || may_wait(&state);
        if !state.is_open || !has_place {
            return Err(item);
        }
        state.items.push_back((Instant::now(), item));
        let is_limited = state.waiting() > 0 && self.longest_wait.is_some();
        drop(state);
        self.arrived.notify_one();
        if is_limited {
            self.waits.notify_one();
        }
        Ok(())
    }

    /// The item that has waited longest; waits for one. `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap();
        state.idle += 1;
        let is_waiting = |state: &mut State<T>| state.is_open && state.items.is_empty();
        let mut state = self.arrived.wait_while(state, is_waiting).unwrap();
        state.idle -= 1;
        state.items.pop_front().map(|(_, item)| item)
    }

    /// An item that has waited too long; waits for one. `None` once the queue is closed, or if items may
    /// wait as long as it takes.
    pub(super) fn pop_overdue(&self) -> Option<T> {
        let longest = self.longest_wait?;
        let mut state = self.state.lock().unwrap();
        loop {
            let is_idle = |state: &mut State<T>| state.is_open && state.waiting() == 0;
            state = self.waits.wait_while(state, is_idle).unwrap();
            if !state.is_open {
                return None;
            }
            let left = longest.saturating_sub(state.longest());
            if left.is_zero() {
                return state.items.pop_front().map(|(_, item)| item);
            }
            // Items that come meanwhile have more time left.
            let is_open = |state: &mut State<T>| state.is_open;
            state = self.waits.wait_timeout_while(state, left, is_open).unwrap().0;
        }
    }

    /// How many items wait for a worker, beyond those that idle ones are about to take.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().unwrap().waiting()
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.idle > state.items.len()
    }

    /// Lets nothing more in. Workers take the items that are left, then get `None`.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().is_open = false;
        self.arrived.notify_all();
        self.waits.notify_all();
    }
}
