//! `Idle`: the connections to one peer that no question uses at the moment.
//!
//! A connection that was open is not open for ever, and nobody says so: a box on the way forgets it,
//! the peer's address is given to another host. Which of the kept ones may carry the next question?
//! The one that was used last, as long as nothing speaks against it:
//!
//! - Each is closed after [`MAX_IDLE`]. Since the newest is taken first, what a burst opened and
//!   nobody needs any more reaches that age, however many questions follow the burst.
//! - After a failure only those are [trusted](Idle::distrust) that have answered since the question
//!   that failed began.
//! - When the peer's name leads elsewhere, [all](Idle::reopen) are closed.

use std::mem;
use std::sync::Mutex;
use std::time::Duration;

/// How long a connection is kept that no question uses. Shorter than the time after which a server
/// closes it, [`ServerOptions::idle_timeout`](crate::ServerOptions::idle_timeout).
pub(super) const MAX_IDLE: Duration = Duration::from_secs(15);

/// Times are handed in.
#[derive(Debug)]
pub(super) struct Idle<T> {
    max: usize,
    // Guards the connections and which of them are trusted. Connections are closed outside of it.
    state: Mutex<State<T>>,
}

#[derive(Debug)]
struct State<T> {
    /// The one that was used last is last.
    connections: Vec<Connection<T>>,
    opened_since: Duration,
    answered_since: Duration,
}

#[derive(Debug)]
pub(super) struct Connection<T> {
    pub(super) transport: T,
    /// When it was opened.
    pub(super) opened: Duration,
    /// When it last brought something; at first, when it was opened.
    pub(super) answered: Duration,
}

impl<T> Idle<T> {
    /// Keeps up to `max` connections.
    pub(super) fn new(max: usize) -> Self {
        let (opened_since, answered_since) = (Duration::ZERO, Duration::ZERO);
        let state = State { connections: Vec::new(), opened_since, answered_since };
        Self { max, state: Mutex::new(state) }
    }

    /// The connection that was used last, if it is trusted.
    pub(super) fn take(&self, now: Duration) -> Option<Connection<T>> {
        let mut state = self.state.lock().unwrap();
        let closed = state.purge(now);
        let taken = state.connections.pop();
        drop(state);
        drop(closed);
        taken
    }

    /// Keeps a connection that has carried a whole answer.
    pub(super) fn put(&self, connection: Connection<T>, now: Duration) {
        let mut state = self.state.lock().unwrap();
        state.connections.push(connection);
        let mut closed = state.purge(now);
        if state.connections.len() > self.max {
            closed.push(state.connections.remove(0));
        }
        drop(state);
    }

    /// A question that began at `since` has failed: closes the connections that have brought nothing
    /// since then, and when they are given back those that are in use.
    pub(super) fn distrust(&self, since: Duration) {
        self.close(|state| state.answered_since = state.answered_since.max(since));
    }

    /// Closes all connections that were opened until `now`.
    pub(super) fn reopen(&self, now: Duration) {
        self.close(|state| state.opened_since = now);
    }

    /// Closes those that are too old.
    pub(super) fn sweep(&self, now: Duration) {
        let closed = self.state.lock().unwrap().purge(now);
        drop(closed);
    }

    fn close(&self, change: impl FnOnce(&mut State<T>)) {
        let mut state = self.state.lock().unwrap();
        change(&mut state);
        let closed = state.purge(Duration::ZERO);
        drop(state);
        drop(closed);
    }
}

impl<T> State<T> {
    /// Takes out those that are not trusted or too old, to be dropped outside of the lock.
    fn purge(&mut self, now: Duration) -> Vec<Connection<T>> {
        let (opened_since, answered_since) = (self.opened_since, self.answered_since);
        let is_good = |connection: &Connection<T>| {
            connection.opened >= opened_since
                && connection.answered >= answered_since
                && now.saturating_sub(connection.answered) < MAX_IDLE
        };
        if self.connections.iter().all(is_good) {
            return Vec::new();
        }
        let (good, closed) = mem::take(&mut self.connections).into_iter().partition(is_good);
        self.connections = good;
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    /// Connections that were opened and have answered at these times.
    fn idle_of(connections: &[(&'static str, u64, u64)]) -> Idle<&'static str> {
        let idle = Idle::new(3);
        for &(transport, opened, answered) in connections {
            let (opened, answered) = (seconds(opened), seconds(answered));
            idle.put(Connection { transport, opened, answered }, answered);
        }
        idle
    }

    fn taken(idle: &Idle<&'static str>, now: u64) -> Vec<&'static str> {
        let take = || Some(idle.take(seconds(now))?.transport);
        std::iter::from_fn(take).collect()
    }

    #[test]
    fn the_one_that_was_used_last_is_taken_first_and_no_more_than_the_limit_are_kept() {
        let idle = idle_of(&[("a", 0, 1), ("b", 0, 2), ("c", 0, 3), ("d", 0, 4)]);
        assert_eq!(taken(&idle, 4), ["d", "c", "b"]);
    }

    #[test]
    fn what_nobody_uses_is_closed_though_others_are_used() {
        let idle = idle_of(&[("a", 0, 1), ("b", 0, 2)]);
        for now in 3..=15 {
            let used = idle.take(seconds(now)).unwrap();
            assert_eq!(used.transport, "b");
            idle.put(Connection { answered: seconds(now), ..used }, seconds(now));
        }
        idle.sweep(seconds(16));
        assert_eq!(taken(&idle, 16), ["b"]);
        let idle = idle_of(&[("a", 0, 1)]);
        assert_eq!(taken(&idle, 16), [""; 0]);
    }

    #[test]
    fn after_a_failure_only_those_are_used_that_have_answered_since() {
        let idle = idle_of(&[("a", 0, 1), ("b", 0, 3)]);
        let in_use = idle_of(&[("c", 0, 1)]).take(seconds(1)).unwrap();
        idle.distrust(seconds(2));
        idle.put(in_use, seconds(3));
        idle.distrust(seconds(1));
        assert_eq!(taken(&idle, 3), ["b"]);
    }

    #[test]
    fn when_the_name_leads_elsewhere_all_are_closed() {
        let idle = idle_of(&[("a", 1, 9)]);
        let in_use = idle_of(&[("b", 1, 9)]).take(seconds(9)).unwrap();
        idle.reopen(seconds(5));
        idle.put(Connection { answered: seconds(10), ..in_use }, seconds(10));
        assert_eq!(taken(&idle, 10), [""; 0]);
    }
}
