//! `Elastic`: threads for jobs that may take long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use libtest_mimic::Trial;

use super::{many, together};
use crate::elastic::Elastic;

pub(super) fn all() -> Vec<Trial> {
    vec![
        many(each_job_is_done_once_or_comes_back::<1, 0>),
        many(each_job_is_done_once_or_comes_back::<1, 2>),
        many(each_job_is_done_once_or_comes_back::<2, 1>),
        many(each_job_is_done_where_there_is_room),
        many(at_the_end_a_job_is_done_or_dropped),
    ]
}

/// Counts, and wakes whoever waits for the count.
#[derive(Default)]
struct Count(Mutex<usize>, Condvar);

impl Count {
    fn add_one(&self) {
        *self.0.lock().unwrap() += 1;
        self.1.notify_all();
    }

    fn wait_for(&self, n: usize) {
        drop(self.1.wait_while(self.0.lock().unwrap(), |count| *count < n).unwrap());
    }
}

/// Counts when it is dropped, in a job or with it.
struct Dropped(Arc<Count>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.add_one();
    }
}

/// A job that no thread takes would be a deadlock.
fn each_job_is_done_once_or_comes_back<const THREADS: usize, const ROOM: usize>() {
    let elastic = Elastic::new("a scenario", THREADS, ROOM);
    let (done, let_in) = (Arc::new(Count::default()), AtomicUsize::new(0));
    together(2, |_| {
        for _ in 0..2 {
            let done = done.clone();
            if elastic.run(Box::new(move || done.add_one())).is_ok() {
                let_in.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let let_in = let_in.into_inner();
    assert!(let_in >= THREADS.min(4), "the threads take one each");
    done.wait_for(let_in);
    drop(elastic);
    assert_eq!(*done.0.lock().unwrap(), let_in);
}

fn each_job_is_done_where_there_is_room() {
    let elastic = Elastic::new("a scenario", 2, usize::MAX);
    elastic.keep_one().unwrap();
    let done = Arc::new(Count::default());
    together(2, |_| {
        let done = done.clone();
        assert!(elastic.run(Box::new(move || done.add_one())).is_ok());
    });
    done.wait_for(2);
}

/// Either way it is gone in the end, and so are the threads, or the scenario would not end.
fn at_the_end_a_job_is_done_or_dropped() {
    let elastic = Elastic::new("a scenario", 1, 1);
    let gone = Arc::new(Count::default());
    for _ in 0..2 {
        let job = Dropped(gone.clone());
        drop(elastic.run(Box::new(move || drop(job))));
    }
    drop(elastic);
    gone.wait_for(2);
}
