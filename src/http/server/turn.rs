//! `Turn`: which thread receives requests. At most one does at any time.
//!
//! Two requests of the same client must be accepted in the order in which they were sent, so only
//! one thread may receive: the one that has the turn. It also sends answers, and a client that does
//! not read can hold it up. So it says when it begins to answer and when it is done; if it takes
//! too long, another thread is started and takes the turn over. The two may race:
//!
//! 1. Thread 1 receives a request, says that it [begins to answer](Turn::begin_answer), and is held
//!    up by the client.
//! 2. The standby [finds](Turn::watch) that it is held up, and starts thread 2.
//! 3. The client reads. Thread 1 says that it [is done](Turn::end_answer).
//! 4. Thread 2 [takes the turn](Turn::take).
//!
//! In this order thread 1 still has the turn and receives the next request, so thread 2 is refused
//! in step 4 and ends. If step 4 comes before step 3, thread 2 receives, and thread 1 is told in
//! step 3 that the turn is gone, and ends. Both steps are decided under one mutex, so one of the
//! threads goes on, and never both.
//!
//! The invariant that keeps the order: a thread that answers holds no request that it has received
//! and not accepted. Otherwise thread 2 could accept a later request of the same client first.

use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Turn {
    // Guards who receives.
    state: Mutex<State>,
    /// Wakes the standby.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// The number of the thread that has the turn; `None` before the first, and after a panic.
    holder: Option<Holder>,
    /// Since when the holder has been answering instead of receiving.
    answering_since: Option<Instant>,
    /// How many threads have ever had the turn.
    holders: u64,
    /// The standby sleeps until somebody answers.
    is_quiet: bool,
}

/// A thread that has, or had, the turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Holder(u64);

impl Turn {
    /// Takes the turn if no thread has it, or the one that has it has been answering for
    /// `patience`.
    pub(super) fn take(&self, patience: Duration) -> Option<Holder> {
        let mut state = self.state.lock().unwrap();
        if !state.is_free(patience) {
            return None;
        }
        state.holders += 1;
        state.holder = Some(Holder(state.holders));
        state.answering_since = None;
        state.holder
    }

    /// The holder is about to answer, which may take long.
    pub(super) fn begin_answer(&self, me: Holder) {
        let mut state = self.state.lock().unwrap();
        debug_assert_eq!(state.holder, Some(me));
        state.answering_since = Some(Instant::now());
        self.wake(&mut state);
    }

    /// The answer is sent. `false` if another thread has taken the turn meanwhile: then `me` must
    /// not receive any more.
    pub(super) fn end_answer(&self, me: Holder) -> bool {
        let mut state = self.state.lock().unwrap();
        let is_mine = state.holder == Some(me);
        if is_mine {
            state.answering_since = None;
        }
        is_mine
    }

    /// Gives the turn back, if `me` still has it.
    pub(super) fn release(&self, me: Holder) {
        let mut state = self.state.lock().unwrap();
        if state.holder == Some(me) {
            state.holder = None;
            self.wake(&mut state);
        }
    }

    /// Waits for an answer to begin, unless one is being sent, or for the turn to be given back, though
    /// no longer than `idle`. Returns whether the turn can be [taken](Self::take).
    pub(super) fn watch(&self, patience: Duration, idle: Duration) -> bool {
        let mut state = self.state.lock().unwrap();
        state.is_quiet = state.holder.is_some() && state.answering_since.is_none();
        let waited = self.changed.wait_timeout_while(state, idle, |state| state.is_quiet);
        let mut state = waited.unwrap().0;
        state.is_quiet = false;
        state.is_free(patience)
    }

    fn wake(&self, state: &mut State) {
        if state.is_quiet {
            state.is_quiet = false;
            self.changed.notify_all();
        }
    }
}

impl State {
    fn is_free(&self, patience: Duration) -> bool {
        let is_held_up = |since: Instant| since.elapsed() >= patience;
        self.holder.is_none() || self.answering_since.is_some_and(is_held_up)
    }
}
