//! `Elastic`: threads for jobs that may take long, as many as there is work for.
//!
//! A job gets an idle thread or a new one. If there are as many threads as there may be, or the system
//! has no more, it waits for one of those that work. If too many wait already, or there is no thread at
//! all, it comes back to the caller: nothing is dropped in silence.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{io, thread};

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(5);

pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Its threads end when it is dropped, each after the job that it is doing.
pub(crate) struct Elastic {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    most_threads: usize,
    /// How many jobs may wait while no thread is idle.
    room: usize,
    // Guards the jobs that no thread has taken yet, and how many threads there are.
    state: Mutex<State>,
    /// Notified for each job, and at the end.
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    /// Threads that wait for a job, or have been woken for one and not yet taken it.
    idle: usize,
    /// So many threads stay without a job.
    kept: usize,
    /// The last attempt to start a thread failed.
    lacks_threads: bool,
    is_over: bool,
}

impl Elastic {
    /// Up to `most_threads`, which bear `name`, and up to `room` jobs that wait for one of them.
    pub(crate) fn new(name: &'static str, most_threads: usize, room: usize) -> Self {
        let (state, arrived) = (Mutex::default(), Condvar::new());
        Self { shared: Arc::new(Shared { name, most_threads, room, state, arrived }) }
    }

    /// Starts a thread that stays, so that no job comes back for want of one.
    pub(crate) fn keep_one(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock().unwrap();
        (state.kept, state.threads) = (1, state.threads + 1);
        drop(state);
        self.shared.start()
    }

    /// Starts a thread for each job that could not have one. To be called now and then: all threads may
    /// have jobs that take long.
    pub(crate) fn catch_up(&self) {
        let mut state = self.shared.state.lock().unwrap();
        let lacking = if state.lacks_threads { state.jobs.len() } else { 0 };
        state.threads += lacking;
        drop(state);
        // Each that fails is no longer counted.
        (0..lacking).for_each(|_| drop(self.shared.start()));
    }

    /// Leaves `job` to a thread. Never waits.
    pub(crate) fn run(&self, job: Job) -> Result<(), Job> {
        let shared = &self.shared;
        let mut state = shared.state.lock().unwrap();
        let mut is_started = false;
        if state.jobs.len() >= state.idle && state.threads < shared.most_threads {
            state.threads += 1;
            drop(state);
            is_started = shared.start().is_ok();
            state = shared.state.lock().unwrap();
        }
        // Each of these threads looks for a job, under this lock, before it ends.
        let has_room =
            state.threads > 0 && state.jobs.len().saturating_sub(state.idle) < shared.room;
        if !is_started && !has_room {
            return Err(job);
        }
        state.jobs.push_back(job);
        drop(state);
        shared.arrived.notify_one();
        Ok(())
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock().unwrap();
        state.is_over = true;
        let jobs = mem::take(&mut state.jobs);
        drop(state);
        self.shared.arrived.notify_all();
        drop(jobs);
    }
}

impl Shared {
    /// Starts a thread that has been counted. The first failure, and the first success after it, are
    /// logged.
    fn start(self: &Arc<Self>) -> io::Result<()> {
        let shared = self.clone();
        let thread = thread::Builder::new().name(self.name.into());
        let started = thread.spawn(move || shared.work());
        let mut state = self.state.lock().unwrap();
        state.threads -= usize::from(started.is_err());
        let has_lacked = mem::replace(&mut state.lacks_threads, started.is_err());
        drop(state);
        match &started {
            Err(error) if !has_lacked => log::error!("no thread for {}: {error}", self.name),
            Ok(_) if has_lacked => log::info!("there are threads for {} again", self.name),
            _ => {}
        }
        started.map(drop)
    }

    /// Does one job after the other, until none has come for a while.
    fn work(self: &Arc<Self>) {
        while let Some(job) = self.next() {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                log::error!("a panic in {}", self.name);
            }
        }
    }

    /// The next job. `None` if this thread is to end: it is no longer counted.
    fn next(&self) -> Option<Job> {
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                return Some(job);
            }
            state.idle += 1;
            let is_idle = |state: &mut State| state.jobs.is_empty() && !state.is_over;
            (state, _) = self.arrived.wait_timeout_while(state, IDLE, is_idle).unwrap();
            state.idle -= 1;
            let is_kept = state.threads <= state.kept && !state.is_over;
            if state.jobs.is_empty() && !is_kept {
                state.threads -= 1;
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, bounded, unbounded};
    use std::collections::HashSet;
    use std::thread::ThreadId;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(30);

    fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < LONG, "waited in vain: {what}");
            thread::yield_now();
        }
    }

    /// A job that waits for its gate, if it has one, and then tells which thread did it.
    fn job(gate: Option<&Receiver<()>>, done: &crossbeam_channel::Sender<ThreadId>) -> Job {
        let (gate, done) = (gate.cloned(), done.clone());
        Box::new(move || {
            let _ = gate.map(|gate| gate.recv_timeout(LONG));
            let _ = done.send(thread::current().id());
        })
    }

    #[test]
    fn jobs_that_take_long_hold_up_no_other_and_idle_threads_are_used_again() {
        let elastic = Elastic::new("a test", usize::MAX, usize::MAX);
        let (open, gate) = bounded::<()>(0);
        let (done, dones) = unbounded();
        assert!((0..20).all(|_| elastic.run(job(Some(&gate), &done)).is_ok()));
        assert!(elastic.run(job(None, &done)).is_ok());
        dones.recv_timeout(LONG).expect("the twenty hold up nobody");
        drop(open);
        let threads: HashSet<_> = (0..20).map(|_| dones.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(threads.len(), 20);

        let again: HashSet<_> = (0..1000)
            .map(|_| {
                assert!(elastic.run(job(None, &done)).is_ok());
                dones.recv_timeout(LONG).unwrap()
            })
            .collect();
        assert!(again.len() < 1000);
    }

    #[test]
    fn beyond_the_threads_some_jobs_wait_and_the_next_one_comes_back() {
        let elastic = Elastic::new("a test", 2, 3);
        let (open, gate) = bounded::<()>(0);
        let (done, dones) = unbounded();
        assert!((0..2).all(|_| elastic.run(job(Some(&gate), &done)).is_ok()));
        eventually("both are under way", || elastic.shared.state.lock().unwrap().jobs.is_empty());
        assert!((0..3).all(|_| elastic.run(job(None, &done)).is_ok()));
        let (other, others) = unbounded();
        let back = elastic.run(job(None, &other)).expect_err("there is no room");
        back();
        others.try_recv().expect("it is the same job");
        drop(open);
        let threads: HashSet<_> = (0..5).map(|_| dones.recv_timeout(LONG).unwrap()).collect();
        assert!(threads.len() <= 2);
    }

    #[test]
    fn a_panic_ends_no_thread() {
        let elastic = Elastic::new("a test", 1, 10);
        let (done, dones) = unbounded();
        for _ in 0..3 {
            assert!(elastic.run(Box::new(|| panic!("on purpose"))).is_ok());
            assert!(elastic.run(job(None, &done)).is_ok());
        }
        let threads: HashSet<_> = (0..3).map(|_| dones.recv_timeout(LONG).unwrap()).collect();
        assert_eq!(threads.len(), 1);
    }

    #[test]
    fn at_the_end_jobs_that_wait_are_dropped_and_all_threads_end() {
        let elastic = Elastic::new("a test", 1, 10);
        elastic.keep_one().unwrap();
        let shared = elastic.shared.clone();
        let (open, gate) = bounded::<()>(0);
        let (done, dones) = unbounded();
        let (unused, waiting) = unbounded();
        assert!(elastic.run(job(Some(&gate), &done)).is_ok());
        eventually("it is under way", || shared.state.lock().unwrap().jobs.is_empty());
        assert!(elastic.run(job(None, &unused)).is_ok());
        drop((elastic, unused));
        assert!(waiting.recv_timeout(LONG).is_err(), "it was dropped");
        drop(open);
        dones.recv_timeout(LONG).expect("what was begun is done");
        eventually("the thread ends", || Arc::strong_count(&shared) == 1);
        assert_eq!(shared.state.lock().unwrap().threads, 0);
    }
}
