//! `SlowClients`: threads that wait for clients, as many as there are clients to wait for.
//!
//! Which thread reads a body that arrives byte by byte, and which writes to a client that does not
//! read? Neither a worker nor the thread that receives requests: a few such clients would hold
//! all of them. A connection has a thread of tiny_http's in any case; one that makes us wait
//! costs a second thread, and nobody else anything.

use std::time::Duration;
use std::{mem, thread};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct SlowClients {
    // Without room: a job goes only to a thread that is waiting for one.
    jobs: Sender<Job>,
    waiting: Receiver<Job>,
}

impl SlowClients {
    pub(super) fn new() -> Self {
        let (jobs, waiting) = bounded(0);
        Self { jobs, waiting }
    }

    /// Runs `job` on an idle thread, or on a new one. Never waits.
    pub(super) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) =
            self.jobs.try_send(Box::new(job))
        else {
            return;
        };
        let (first, received) = bounded::<Job>(1);
        let waiting = self.waiting.clone();
        let thread = thread::Builder::new().name("geecache-slow-client".into()).spawn(move || {
            let mut next = received.recv().ok();
            while let Some(job) = next {
                job();
                next = waiting.recv_timeout(IDLE).ok();
            }
        });
        match thread {
            Ok(_) => drop(first.send(job)),
            Err(error) => {
                log::error!("no thread for a client: {error}");
                // To drop a request would mean to wait for its client.
                mem::forget(job);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::thread::ThreadId;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn jobs_that_wait_hold_up_no_other_and_idle_threads_are_used_again() {
        let slow_clients = SlowClients::new();
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
