//! Batches: many keys, one request per owner.
//!
//! A page that shows a hundred names would ask a hundred times, one after the other. Here the
//! hits are taken first, and the rest is asked for by one request to each owner, all owners at
//! the same time; the keys that this node owns, or has to load in an owner's place, go to the origin by
//! one call of [`Getter::get_many`](crate::Getter::get_many). They join the same flight as single gets
//! do, so the two share their loads; keys sent to a peer are deduplicated by that peer.

use std::sync::Mutex;
use std::thread;

use super::{Group, Misses, Owner, SharedError, Step, Tier, Told, failed, panicked};
use crate::cache::Record;
use crate::{BoxError, ByteView, Error};

impl Group {
    /// The values of many keys, in the order asked, as [`get`](Self::get) would give each. A key may be
    /// there twice, and one that is empty or too long is an error in its own place.
    pub fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<ByteView>, Error>> {
        self.look_up_many(keys, Self::load, |record, _| record.into_value())
    }

    /// Answers a peer that takes this node for the owner of all `keys`.
    pub(crate) fn answer_batch(&self, keys: &[&str]) -> Vec<Result<Told, Error>> {
        self.counters.add(|stats| stats.peer_requests += keys.len() as u64);
        self.look_up_many(keys, Self::load_here, |record, tier| self.tell(record, tier))
    }

    /// One call of the getter for all misses that no other node has answered.
    pub(super) fn ask_getter_for_many(&self, misses: &mut Misses<'_, '_>) {
        let mut open: Vec<_> = misses.iter_mut().filter(|miss| miss.loaded.is_none()).collect();
        let keys: Vec<&str> = open.iter().map(|miss| miss.key.text).collect();
        if keys.is_empty() {
            return;
        }
        let (called, took) = self.time_getter(|| self.settings.getter.get_many(&keys));
        let mut called = called.map(|loaded| match loaded {
            Ok(loaded) if loaded.len() == keys.len() => Ok(loaded.into_iter()),
            Ok(loaded) => {
                let (answers, keys) = (loaded.len(), keys.len());
                let wrong = format!("get_many gave {answers} answers for {keys} keys");
                Err(SharedError::from(BoxError::from(wrong)))
            }
            Err(error) => Err(error.into()),
        });
        for miss in &mut open {
            let key = miss.key.text;
            miss.trace.loaded = Some(took);
            miss.loaded = Some(match &mut called {
                Ok(Ok(loaded)) => {
                    let loaded = loaded.next().expect("there are as many as keys");
                    loaded.map_err(|error| failed(key, error.into()))
                }
                Ok(Err(error)) => Err(failed(key, error.clone())),
                Err(panic) => Err(panicked(key, &**panic)),
            });
        }
    }

    fn look_up_many<T>(
        &self,
        keys: &[&str],
        load: Step,
        give: impl Fn(Record, Tier) -> T,
    ) -> Vec<Result<T, Error>> {
        let mut misses = Vec::new();
        let look_up = |&text| {
            let key = self.key(text)?;
            let found = self.look_up(&key).map(|(record, tier)| give(record, tier));
            if found.is_none() {
                misses.push(self.miss(key));
            }
            Ok(found)
        };
        let found: Vec<Result<Option<T>, Error>> = keys.iter().map(look_up).collect();
        if !misses.is_empty() {
            self.answer_many(&mut misses.iter_mut().collect::<Vec<_>>(), load);
        }
        let mut answers = misses.into_iter().map(|miss| miss.answer.expect("each is answered"));
        let give_loaded = |record| give(record, Tier::Main);
        let mut next = || answers.next().expect("there is one for each miss").map(give_loaded);
        found.into_iter().map(|found| found.transpose().unwrap_or_else(&mut next)).collect()
    }
}

/// Groups items by the peer that is to be asked for them; `None` is this node.
pub(super) fn by_peer<T>(items: impl Iterator<Item = (Owner, T)>) -> Vec<(Owner, Vec<T>)> {
    fn name(peer: &Owner) -> Option<&str> {
        peer.as_ref().map(|peer| peer.name())
    }
    let mut parts: Vec<(Owner, Vec<T>)> = Vec::new();
    for (peer, item) in items {
        match parts.iter_mut().find(|(other, _)| name(other) == name(&peer)) {
            Some((_, part)) => part.push(item),
            None => parts.push((peer, vec![item])),
        }
    }
    parts
}

/// How many peers are asked at the same time, by one removal or one batch.
pub(super) const AT_ONCE: usize = 16;

/// Does `work` on all items, on this thread and others beside it: [`AT_ONCE`] in all, or fewer if no
/// more can be started. Each takes the next item when it has done one.
pub(super) fn at_once<T: Send>(items: Vec<T>, work: impl Fn(T) + Sync) {
    let helpers = items.len().min(AT_ONCE).saturating_sub(1);
    // Guards the items that no thread has taken yet.
    let items = Mutex::new(items.into_iter());
    let take_items = || {
        let next = || items.lock().unwrap().next();
        while let Some(item) = next() {
            work(item);
        }
    };
    if helpers == 0 {
        return take_items();
    }
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().spawn_scoped(scope, take_items).ok();
        (0..helpers).map_while(start).for_each(drop);
        take_items();
    });
}
