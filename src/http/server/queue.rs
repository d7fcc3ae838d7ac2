//! `Queue`: what waits for a worker, and who is let in.
//!
//! What happens if more is asked than can be answered? A server that queues without a bound
//! answers everyone too late. Here an item is refused if too many are waiting, or if it would wait
//! for much longer than one item takes. Its client is told immediately, and can go elsewhere.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::stats::Counter;

/// The longest acceptable wait for a worker, unless one item takes longer.
const PATIENCE: Duration = Duration::from_millis(50);

pub(super) struct Queue<T> {
    workers: usize,
    /// How many items may wait while no worker is idle.
    room: usize,
    // Guards what waits. Not a channel: its receivers spin before they sleep, and take a processor
    // from threads that have something to do.
    state: Mutex<State<T>>,
    arrived: Condvar,
    /// How long a worker takes for an item: a moving mean, in nanoseconds.
    pace: AtomicU64,
    /// Counts the requests that are refused.
    pub(super) shed: Counter,
}

struct State<T> {
    /// Up to one for each idle worker, and `room` more.
    items: VecDeque<T>,
    /// Workers that wait for an item, or have been woken for one and not yet taken it.
    idle: usize,
    is_open: bool,
}

impl<T> Queue<T> {
    pub(super) fn new(workers: usize, room: usize) -> Self {
        let state = State { items: VecDeque::new(), idle: 0, is_open: true };
        let (state, arrived) = (Mutex::new(state), Condvar::new());
        Self { workers, room, state, arrived, pace: AtomicU64::new(0), shed: Counter::default() }
    }

    /// Adds an item. If there is no room for it, or the queue is closed, it comes back.
    pub(super) fn push(&self, item: T) -> Result<(), T> {
        self.push_if(item, |state| match state.items.len().checked_sub(state.idle) {
            None => true, // a worker is idle
            Some(waiting) => waiting < self.room && !self.is_long(waiting),
        })
    }

    /// Adds an item for a worker that is idle. If there is none, it comes back.
    pub(super) fn offer(&self, item: T) -> Result<(), T> {
        self.push_if(item, |state| state.items.len() < state.idle)
    }

    fn push_if(&self, item: T, fits: impl FnOnce(&State<T>) -> bool) -> Result<(), T> {
        let mut state = self.state.lock().unwrap();
        if !state.is_open || !fits(&state) {
            return Err(item);
        }
        state.items.push_back(item);
        drop(state);
        self.arrived.notify_one();
        Ok(())
    }

    /// The item that has waited longest; waits for one. `None` once the queue is closed and empty.
    pub(super) fn pop(&self) -> Option<T> {
        let mut state = self.state.lock().unwrap();
        state.idle += 1;
        let is_waiting = |state: &mut State<T>| state.is_open && state.items.is_empty();
        let mut state = self.arrived.wait_while(state, is_waiting).unwrap();
        state.idle -= 1;
        state.items.pop_front()
    }

    /// How many items wait for a worker, beyond those that idle ones are about to take.
    pub(super) fn waiting(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.items.len().saturating_sub(state.idle)
    }

    /// Whether a worker has nothing to do.
    pub(super) fn has_idle(&self) -> bool {
        let state = self.state.lock().unwrap();
        state.idle > state.items.len()
    }

    /// Lets nothing more in. Workers take what is left, then get `None`.
    pub(super) fn close(&self) {
        self.state.lock().unwrap().is_open = false;
        self.arrived.notify_all();
    }

    /// Notes how long an item took. If two workers do so at once, one may be lost.
    pub(super) fn took(&self, time: Duration) {
        let mean = self.pace.load(Ordering::Relaxed);
        // One that was held up says little of the others: many in a row must be slow.
        let time = (time.as_nanos() as u64).min(4 * mean + 1_000_000);
        self.pace.store(mean - mean / 8 + time / 8, Ordering::Relaxed);
    }

    /// Whether one more behind `waiting` others would wait too long. As many as there are workers
    /// wait about as long as one item takes, so those are always let in.
    fn is_long(&self, waiting: usize) -> bool {
        let (waiting, workers) = (waiting as u64, self.workers as u64);
        let wait = Duration::from_nanos(self.pace.load(Ordering::Relaxed) * waiting / workers);
        waiting >= workers && wait > PATIENCE
    }
}
