//! Pull: a node that gets keys fetches them from their earlier owners before anybody asks.
//!
//! What is handed over [on demand](super::handover) has to be asked for while its earlier owner still
//! runs. So after each change of the list a thread asks the earlier owners which keys they have in
//! their main caches that this node owns now, a page at a time, and fetches those that it lacks, as if
//! they had been asked for. It ends by itself: when it has seen all pages, when the time of the
//! hand-over is over, when the main cache is full, since a guess must not evict what is in use, with
//! the group, and when the list changes again, for which there is another thread.
//!
//! A removal wins as it does on demand: a lease is taken, then the removed keys are looked at, and
//! then the earlier owner is asked. But a pull is in no flight. If it led the flight of a key as a load
//! does, this could happen:
//!
//! 1. The pull takes a lease, asks the earlier owner, and has v1.
//! 2. The origin turns to v2, and a removal ends the lease and returns.
//! 3. The pull leads the key's flight, to keep v1. A get that starts now follows it, and sees v1.
//!
//! So gets never wait for a pull, and one that misses what is on its way asks the earlier owner, too.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use log::debug;

use super::Group;
use crate::cache::{Key, Record};

/// So many keys are fetched by one question, and for so long. Nobody waits for them.
const AT_ONCE: usize = 128;
const PATIENCE: Duration = Duration::from_secs(1);
/// The most that a pull rests between two questions, to leave the processors to the gets.
const LONGEST_REST: Duration = Duration::from_millis(100);

/// A page is made of so many records or a few more: some tens of microseconds.
const PAGE_RECORDS: usize = 768;
const PAGE_BYTES: usize = 512 << 10;

impl Group {
    /// Fetches what this node owns now, on a thread of its own.
    pub(super) fn pull(self: &Arc<Self>) {
        let turn = self.pulls.fetch_add(1, Ordering::SeqCst) + 1;
        let former = self.peers.former_keys(&self.name);
        if former.is_empty() {
            return;
        }
        let own = Arc::downgrade(self);
        let pull = move || {
            let mut since = Instant::now();
            let mut rest = || {
                thread::sleep(since.elapsed().min(LONGEST_REST));
                since = Instant::now();
            };
            for keys in former.into_iter().flatten() {
                rest();
                // An empty page has one part, too.
                for part in keys.chunks(AT_ONCE).chain(keys.is_empty().then_some(&[][..])) {
                    match own.upgrade() {
                        Some(group) if group.pull_part(part, turn) => rest(),
                        _ => return,
                    }
                }
            }
        };
        if let Err(error) = thread::Builder::new().name("geecache-pull".into()).spawn(pull) {
            debug!("no thread to take keys over: {error}");
        }
    }

    /// Fetches some keys; `false` if the pull is over.
    fn pull_part(&self, keys: &[String], turn: usize) -> bool {
        let keys = keys.iter().filter_map(|text| self.key(text).ok());
        // A copy in the hot cache ends soon.
        let keys: Vec<_> = keys.filter(|key| self.main.peek(key).is_none()).collect();
        let keys: Vec<_> = keys.iter().collect();
        let leases: Vec<_> = keys.iter().map(|key| self.main.lease(key)).collect();
        let is_full = Cell::new(false);
        let is_wanted = |key: &Key<'_>, record: &Record| {
            is_full.set(is_full.get() || record.cost() > self.main.room());
            // What was loaded meanwhile is newer.
            !is_full.get() && self.main.peek(key).is_none()
        };
        self.take_over_many(&keys, &leases, PATIENCE, &self.counters.pulled, is_wanted);
        !is_full.get() && self.pulls.load(Ordering::SeqCst) == turn
    }

    /// Answers a peer that owns some of this node's keys now: those of them that are in the main cache
    /// and that `is_wanted`, a page at a time, and where the next page begins; the first one at 0. A key
    /// for which there is no room is left out.
    ///
    /// [`HttpServer`](crate::HttpServer) calls this; a transport of your own would.
    pub fn answer_former_keys(
        &self,
        page: u64,
        is_wanted: impl Fn(&str) -> bool,
    ) -> (Vec<String>, Option<u64>) {
        let (mut keys, mut next) = (Vec::new(), Some(page));
        let (mut visited, mut bytes) = (0, 0);
        while visited < PAGE_RECORDS && bytes < PAGE_BYTES / 2 {
            let Some(at) = next else { break };
            let (records, after) = self.main.records_at(at);
            // An empty shard takes a moment, too.
            visited += records.len().max(1);
            let is_there =
                |record: &&Record| !record.is_absent() && !record.has_expired(self.clock.now());
            for record in records.iter().filter(is_there) {
                let key = record.key();
                if bytes + key.len() <= PAGE_BYTES && is_wanted(key) {
                    bytes += key.len();
                    keys.push(key.into());
                }
            }
            next = after;
        }
        (keys, next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FormerKeys, PeerGetter, PeerPicker};
    use std::convert::Infallible;
    use std::iter;
    use std::sync::Mutex;

    type OnChange = Arc<dyn Fn() -> bool + Send + Sync>;

    /// Has pages without end, each list of which holds the reference, too.
    #[derive(Clone)]
    struct Endless {
        held: Arc<()>,
        on_change: Arc<Mutex<Option<OnChange>>>,
    }

    impl PeerPicker for Endless {
        fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
            None
        }

        fn on_change(&self, changed: OnChange) {
            *self.on_change.lock().unwrap() = Some(changed);
        }

        fn former_keys(&self, _group: &str) -> Vec<FormerKeys> {
            let held = self.held.clone();
            let mut page = vec![Vec::new(), vec!["Tom".to_string()]].into_iter().cycle();
            vec![Box::new(iter::from_fn(move || {
                let _held = &held;
                page.next()
            }))]
        }
    }

    #[test]
    fn a_pull_ends_with_the_next_change_and_with_its_group() {
        let (held, on_change) = (Arc::new(()), Arc::default());
        let are_held = |count| {
            let start = Instant::now();
            while Arc::strong_count(&held) != count {
                assert!(start.elapsed() < Duration::from_secs(30), "a pull does not end");
                thread::yield_now();
            }
        };
        let picker = Endless { held: held.clone(), on_change: Arc::clone(&on_change) };
        let getter = |_: &str| Ok::<_, Infallible>(None::<&str>);
        let group = Group::builder("scores", getter).peers(picker).build().unwrap();
        let changed = on_change.lock().unwrap().take().unwrap();
        for _ in 0..3 {
            assert!(changed());
        }
        // Here, in the picker, and in the last of four pulls.
        are_held(3);
        assert_eq!(group.pulls.load(Ordering::SeqCst), 4);
        drop(group);
        are_held(1);
    }
}
