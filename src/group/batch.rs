//! Batches: many keys, one request per owner.
//!
//! A page that shows a hundred names would ask a hundred times, one after the other. Here the
//! hits are taken first, and the rest is asked for by one request to each owner, all owners at
//! the same time; what this node owns, or has to load in an owner's place, goes to the origin by
//! one call of [`Getter::get_many`](crate::Getter::get_many). Keys that go to the origin join the
//! same flight as single gets do, so the two share their loads; keys sent to a peer are deduplicated
//! by that peer.

use std::collections::HashMap;
use std::iter::zip;
use std::panic::{AssertUnwindSafe, catch_unwind};

use log::debug;

use super::{
    Answer, Group, Owner, SharedError, Tier, Told, at_once, by_peer, failed, of_owner, panicked,
    timed, was_attempted,
};
use crate::cache::{Key, Record};
use crate::flight::{self, LeaderGuard, Seat};
use crate::{ByteView, Error, Loaded, PeerError, PeerGetter};

impl Group {
    /// The values of many keys, in the order asked, as [`get`](Self::get) would give each. A key may be
    /// there twice, and one that is empty or too long is an error in its own place.
    pub fn get_many(&self, keys: &[&str]) -> Vec<Result<Option<ByteView>, Error>> {
        let mut missing = Vec::new();
        // Collected, so that each answer is written where it stays: to move them there would cost
        // more than a batch of hits saves.
        let answers = keys.iter().enumerate().map(|(i, text)| {
            let key = self.key(text)?;
            let found = self.look_up(&key);
            if found.is_none() {
                missing.push((i, key));
            }
            Ok(found.and_then(|(record, _)| record.into_value()))
        });
        let mut answers: Vec<_> = answers.collect();
        if !missing.is_empty() {
            self.load_missing(missing, &mut answers);
        }
        answers
    }

    /// Loads keys, some of which may be the same, and writes each answer to its index.
    fn load_missing(
        &self,
        mut missing: Vec<(usize, Key<'_>)>,
        answers: &mut [Result<Option<ByteView>, Error>],
    ) {
        // Where each key comes first; what comes again has the answer of the first.
        let (mut firsts, mut repeated) = (HashMap::new(), Vec::new());
        missing.retain(|&(i, ref key)| {
            self.counters.misses.add_one();
            let first = *firsts.entry(key.text).or_insert(i);
            if first != i {
                self.counters.shared.add_one();
                repeated.push((i, first));
            }
            first == i
        });
        let keys: Vec<_> = missing.iter().map(|(_, key)| key).collect();
        let loaded = self.unless_resting_many(&keys, |keys| self.load_many(keys));
        for (&(i, _), answer) in zip(&missing, loaded) {
            answers[i] = answer.map(Record::into_value);
        }
        for (i, first) in repeated {
            answers[i] = answers[first].clone();
        }
    }

    fn load_many(&self, keys: &[&Key<'_>]) -> Vec<Answer> {
        let owners: Vec<_> = keys.iter().map(|key| self.peers.pick(key.text)).collect();
        if flight::is_leading() {
            // A batch inside a getter stays on this thread, which may lead one of these keys.
            return self.load_many_here(keys, &owners);
        }
        let parts = by_peer(zip(owners, 0..));
        let loaded = at_once(&parts, |(owner, part)| {
            let keys: Vec<_> = part.iter().map(|&i| keys[i]).collect();
            match owner {
                Some(owner) => self.load_many_from_peer(&**owner, &keys),
                None => self.load_many_here(&keys, &vec![None; keys.len()]),
            }
        });
        let mut answers: Vec<Option<Answer>> = vec![None; keys.len()];
        for ((_, part), loaded) in zip(parts, loaded) {
            zip(part, loaded).for_each(|(i, answer)| answers[i] = Some(answer));
        }
        answers.into_iter().map(|answer| answer.expect("each key is in one part")).collect()
    }

    fn load_many_from_peer(&self, owner: &dyn PeerGetter, keys: &[&Key<'_>]) -> Vec<Answer> {
        debug!("[{}] {} keys: asking {}", self.name, keys.len(), owner.name());
        let leases: Vec<_> = keys.iter().map(|key| self.hot.lease(key)).collect();
        let asked_at = self.clock.now();
        let counters = self.counters.of_peer(owner.name());
        let mut fallen = Vec::new();
        let mut answers = Vec::new();
        for ((&key, lease), answer) in zip(zip(keys, leases), self.ask_owner_for_many(owner, keys))
        {
            answers.push(match self.keep_copy(key, answer, lease, asked_at, &counters) {
                Ok(record) => Some(Ok(record)),
                Err(error) if self.is_final(&error) => {
                    Some(self.stand_in(key, of_owner(owner, key, &error)))
                }
                Err(error) => {
                    self.note_fallback(owner, key, &error);
                    fallen.push(key);
                    None
                }
            });
        }
        let ask_getter = |led: &[usize]| {
            self.ask_getter_for_many(&led.iter().map(|&i| fallen[i]).collect::<Vec<_>>())
        };
        complete(answers, self.load_many_locally(&fallen, |_| Tier::Hot, ask_getter))
    }

    /// Loads without waiting for a load of another node. `owners` are those of the keys.
    fn load_many_here(&self, keys: &[&Key<'_>], owners: &[Owner]) -> Vec<Answer> {
        let tier = |i: usize| if owners[i].is_none() { Tier::Main } else { Tier::Hot };
        self.load_many_locally(keys, tier, |led| {
            let led = led.iter().map(|&i| (keys[i], &owners[i]));
            let (keys, owners): (Vec<_>, Vec<_>) = led.unzip();
            self.source_many(&keys, &owners)
        })
    }

    /// One answer for each key, whatever the peer does.
    pub(super) fn ask_owner_for_many(
        &self,
        owner: &dyn PeerGetter,
        keys: &[&Key<'_>],
    ) -> Vec<Result<Option<Loaded>, PeerError>> {
        let texts: Vec<&str> = keys.iter().map(|key| key.text).collect();
        let (answers, took) = timed(|| owner.get_many(&self.name, &texts));
        if answers.iter().any(was_attempted) {
            self.counters.of_peer(owner.name()).times.record(took);
        }
        if answers.len() != keys.len() {
            let wrong = format!("get_many gave {} answers for {} keys", answers.len(), keys.len());
            return vec![Err(PeerError::Transport(wrong)); keys.len()];
        }
        answers
    }

    /// Loads those keys that this thread leads from `source`, which is given their indices.
    fn load_many_locally(
        &self,
        keys: &[&Key<'_>],
        tier: impl Fn(usize) -> Tier,
        source: impl FnOnce(&[usize]) -> Vec<Result<Option<Loaded>, Error>>,
    ) -> Vec<Answer> {
        let mut answers: Vec<Option<Answer>> = vec![None; keys.len()];
        let mut led: Vec<(usize, LeaderGuard<'_, Answer>)> = Vec::new();
        let mut followed = Vec::new();
        for (i, key) in keys.iter().enumerate() {
            match self.loading.join(key.text) {
                Seat::Follower(call) => followed.push((i, call)),
                Seat::Leader(guard) => match self.settled(key) {
                    None => led.push((i, guard)),
                    Some((record, _)) => {
                        self.counters.shared.add_one();
                        let answer = Ok(record);
                        guard.finish(&answer);
                        answers[i] = Some(answer);
                    }
                },
            }
        }
        let leases: Vec<_> = led.iter().map(|&(i, _)| self.cache(tier(i)).lease(keys[i])).collect();
        let loaded = source(&led.iter().map(|&(i, _)| i).collect::<Vec<_>>());
        for (((i, guard), lease), loaded) in zip(zip(led, leases), loaded) {
            let answer = match loaded {
                Ok(loaded) => Ok(self.keep(tier(i), keys[i], loaded, lease)),
                Err(error) => self.stand_in(keys[i], error),
            };
            guard.finish(&answer);
            answers[i] = Some(answer);
        }
        // Of these keys this thread leads none any more, so two batches cannot wait for each other.
        for (i, call) in followed {
            self.counters.shared.add_one();
            answers[i] = Some(self.follow(keys[i], &call));
        }
        answers.into_iter().map(|answer| answer.expect("each key was led or followed")).collect()
    }

    /// One answer for each key, whatever the getter does.
    pub(super) fn ask_getter_for_many(
        &self,
        keys: &[&Key<'_>],
    ) -> Vec<Result<Option<Loaded>, Error>> {
        let loaded = self.call_getter_for_many(keys);
        loaded.iter().for_each(|loaded| self.counters.note_local_load(loaded));
        loaded
    }

    pub(super) fn call_getter_for_many(
        &self,
        keys: &[&Key<'_>],
    ) -> Vec<Result<Option<Loaded>, Error>> {
        if keys.is_empty() {
            return Vec::new();
        }
        debug!("[{}] {} keys: loading from the origin", self.name, keys.len());
        let texts: Vec<&str> = keys.iter().map(|key| key.text).collect();
        let get_many = AssertUnwindSafe(|| self.getter.get_many(&texts));
        let (loaded, took) = timed(|| catch_unwind(get_many));
        self.counters.getter_times.record(took);
        let loaded = loaded.map(|loaded| match loaded {
            Ok(loaded) if loaded.len() != keys.len() => {
                let (answers, keys) = (loaded.len(), keys.len());
                Err(format!("get_many gave {answers} answers for {keys} keys").into())
            }
            loaded => loaded,
        });
        match loaded {
            Ok(Ok(loaded)) => zip(keys, loaded)
                .map(|(key, loaded)| loaded.map_err(|error| failed(key, error.into())))
                .collect(),
            Ok(Err(error)) => {
                let source = SharedError::from(error);
                keys.iter().map(|key| Err(failed(key, source.clone()))).collect()
            }
            Err(panic) => keys.iter().map(|key| Err(panicked(key, &*panic))).collect(),
        }
    }

    /// Answers a peer that takes this node for the owner of all `keys`.
    pub(crate) fn answer_batch(&self, keys: &[&str]) -> Vec<Result<Told, Error>> {
        let mut missing = Vec::new();
        let found = keys.iter().map(|text| {
            let key = self.key(text)?;
            self.counters.peer_requests.add_one();
            let found = self.look_up(&key);
            if found.is_none() {
                self.counters.misses.add_one();
                missing.push(key);
            }
            Ok(found.map(|(record, _)| record))
        });
        let found: Vec<_> = found.map(Result::transpose).collect();
        let missing: Vec<_> = missing.iter().collect();
        let load = |keys: &[&Key<'_>]| {
            let owners: Vec<_> = keys.iter().map(|key| self.peers.pick(key.text)).collect();
            self.load_many_here(keys, &owners)
        };
        let answers = complete(found, self.unless_resting_many(&missing, load));
        answers.into_iter().map(|answer| Ok(self.tell(answer?))).collect()
    }
}

/// The answers that there are, and those `loaded` in place of the missing ones, in their order.
pub(super) fn complete(answers: Vec<Option<Answer>>, loaded: Vec<Answer>) -> Vec<Answer> {
    let mut loaded = loaded.into_iter();
    let mut next = || loaded.next().expect("one answer for each that is missing");
    answers.into_iter().map(|answer| answer.unwrap_or_else(&mut next)).collect()
}
