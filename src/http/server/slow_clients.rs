//! `SlowClients`: threads that wait for clients, as many as there are clients to wait for.
//!
//! Which thread reads a body that arrives byte by byte, and which writes to a client that does not
//! read? Neither a worker nor the thread that receives requests: a few such clients would hold
//! all of them. A connection has a thread of tiny_http's in any case; one that makes us wait
//! costs a second thread, and nobody else anything.
//!
//! If no thread can be started, a job waits for one: it has the request, its share of the memory
//! and its place before the client's next request, and all of that must be given back.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{mem, thread};

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
pub(super) struct SlowClients {
    // Guards the jobs that have no thread yet.
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    /// Up to one for each idle thread, and those for which no thread could be started.
    jobs: VecDeque<Job>,
    /// Threads that wait for a job, or have been woken for one and not yet taken it.
    idle: usize,
    has_failed: bool,
}

impl SlowClients {
    /// Runs `job` on an idle thread, or on a new one. Never waits.
    pub(super) fn run(self: &Arc<Self>, job: impl FnOnce() + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.jobs.push_back(Box::new(job));
        if state.jobs.len() <= state.idle {
            drop(state);
            self.arrived.notify_one();
        } else if !state.has_failed {
            drop(state);
            self.start();
        }
    }

    /// Starts threads for the jobs that have none.
    pub(super) fn start_missing(self: &Arc<Self>) {
        let missing = {
            let state = self.state.lock().unwrap();
            state.jobs.len().saturating_sub(state.idle)
        };
        for _ in 0..missing {
            if !self.start() {
                break;
            }
        }
    }

    /// Starts a thread; `false` if there is none to be had.
    fn start(self: &Arc<Self>) -> bool {
        let slow_clients = self.clone();
        let thread = thread::Builder::new().name("geecache-slow-client".into());
        let started = thread.spawn(move || {
            while let Some(job) = slow_clients.next() {
                job()
            }
        });
        let has_failed = started.is_err();
        let had_failed = mem::replace(&mut self.state.lock().unwrap().has_failed, has_failed);
        match started {
            Ok(_) if had_failed => log::info!("there are threads for clients again"),
            Err(error) if !had_failed => log::error!("no thread for a client: {error}"),
            _ => {}
        }
        !has_failed
    }

    /// The next job; waits for one for a while.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap();
        state.idle += 1;
        let is_idle = |state: &mut State| state.jobs.is_empty();
        let (mut state, _) = self.arrived.wait_timeout_while(state, IDLE, is_idle).unwrap();
        state.idle -= 1;
        state.jobs.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, bounded};
    use std::collections::HashSet;
    use std::thread::ThreadId;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn jobs_that_wait_hold_up_no_other_and_idle_threads_are_used_again() {
        let slow_clients = Arc::new(SlowClients::default());
        let (open, gate) = bounded::<()>(0);
        let (ran, runs) = bounded::<ThreadId>(100);
        let job = |gate: Option<Receiver<()>>| {
            let ran = ran.clone();
            move || {
                gate.map(|gate| gate.recv());
                ran.send(thread::current().id()).unwrap();
            }
        };
        (0..20).for_each(|_| slow_clients.run(job(Some(gate.clone()))));
        slow_clients.run(job(None));
        runs.recv_timeout(LONG).expect("the twenty hold up nobody");
        drop(open);
        let threads: HashSet<_> = (0..20).map(|_| runs.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(threads.len(), 20);

        let threads: HashSet<_> = (0..1000)
            .map(|_| {
                slow_clients.run(job(None));
                runs.recv_timeout(LONG).unwrap()
            })
            .collect();
        assert!(threads.len() < 1000);
    }
}
