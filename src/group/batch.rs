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
use std::sync::Arc;

use log::debug;

use super::{
    Answer, Group, Hasher, SharedError, Tier, Told, at_once, failed, of_owner, panicked, timed,
    was_attempted,
};
use crate::cache::{Key, Record};
use crate::flight::{LeaderGuard, Seat};
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
        // `None` for this node.
        type Owner = Option<Arc<dyn PeerGetter>>;
        let mut by_owner = HashMap::<Option<String>, (Owner, Vec<usize>), Hasher>::default();
        for (i, key) in keys.iter().enumerate() {
            let owner = self.peers.pick(key.text);
            let name = owner.as_ref().map(|owner| owner.name().into());
            by_owner.entry(name).or_insert((owner, Vec::new())).1.push(i);
        }
        let parts: Vec<_> = by_owner.into_values().collect();
        let loaded = at_once(&parts, |(owner, part)| {
            let keys: Vec<_> = part.iter().map(|&i| keys[i]).collect();
            match owner {
                Some(owner) => self.load_many_from_peer(&**owner, &keys),
                None => self.load_many_locally(&keys, Tier::Main),
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
                Err(PeerError::LoadFailed(text)) if !self.retry_failed_loads => {
                    Some(self.stand_in(key, of_owner(owner, key, text)))
                }
                Err(error) => {
                    self.note_fallback(owner, key, &error);
                    fallen.push(key);
                    None
                }
            });
        }
        complete(answers, self.load_many_locally(&fallen, Tier::Hot))
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

    fn load_many_locally(&self, keys: &[&Key<'_>], tier: Tier) -> Vec<Answer> {
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
        let led_keys: Vec<_> = led.iter().map(|&(i, _)| keys[i]).collect();
        for ((i, guard), answer) in zip(led, self.take_over_or_load(&led_keys, tier)) {
            guard.finish(&answer);
            answers[i] = Some(answer);
        }
        // This thread leads nothing any more, so two batches cannot wait for each other.
        for (i, call) in followed {
            self.counters.shared.add_one();
            answers[i] = Some(self.follow(keys[i], &call));
        }
        answers.into_iter().map(|answer| answer.expect("each key was led or followed")).collect()
    }

    /// Asks the earlier owners, if there are some, and then the getter.
    fn take_over_or_load(&self, keys: &[&Key<'_>], tier: Tier) -> Vec<Answer> {
        let leases: Vec<_> = keys.iter().map(|key| self.cache(tier).lease(key)).collect();
        let taken = match tier {
            Tier::Main => self.take_over_missed(keys, &leases),
            Tier::Hot => vec![None; keys.len()],
        };
        let open = zip(zip(keys, leases), &taken).filter(|(_, taken)| taken.is_none());
        let (keys, leases): (Vec<_>, Vec<_>) = open.map(|(open, _)| open).unzip();
        let loaded = zip(zip(&keys, leases), self.ask_getter_for_many(&keys))
            .map(|((key, lease), loaded)| self.fill(tier, key, loaded, lease))
            .collect();
        let taken = taken.into_iter().map(|taken| taken.map(|(record, _)| Ok(record)));
        complete(taken.collect(), loaded)
    }

    /// One answer for each key, whatever the getter does.
    pub(super) fn ask_getter_for_many(
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
        let load = |keys: &[&Key<'_>]| self.load_many_locally(keys, Tier::Main);
        let answers = complete(found, self.unless_resting_many(&missing, load));
        answers.into_iter().map(|answer| Ok(self.tell(answer?))).collect()
    }

    /// Whether the caches have all `keys` now. Counts nothing.
    pub(crate) fn has_cached(&self, keys: &[&str]) -> bool {
        let mut has = |text: &&str| self.key(text).is_ok_and(|key| self.peek(&key).is_some());
        keys.iter().all(&mut has)
    }

    /// As [`answer_batch`](Self::answer_batch), from the caches alone, and only values that `fit`, which
    /// is given their lengths. The other keys count as not cached, and not as asked for.
    pub(crate) fn answer_batch_cached(
        &self,
        keys: &[&str],
        mut fit: impl FnMut(usize) -> bool,
    ) -> Vec<Result<Told, Error>> {
        let mut answer = |text: &&str| {
            let key = self.key(text)?;
            let fits = match self.peek(&key) {
                Some((record, _)) => record.into_value().is_none_or(|value| fit(value.len())),
                None => false,
            };
            let Some((record, _)) = fits.then(|| self.look_up(&key)).flatten() else {
                return Ok(Told::NotCached);
            };
            self.counters.peer_requests.add_one();
            // The key's new owner may ask. Others keep a copy no longer than theirs live.
            let own_life = record.would_expire();
            Ok(self.tell_until(record, own_life))
        };
        keys.iter().map(&mut answer).collect()
    }
}

/// The answers that there are, and those `loaded` in place of the missing ones, in their order.
pub(super) fn complete(answers: Vec<Option<Answer>>, loaded: Vec<Answer>) -> Vec<Answer> {
    let mut loaded = loaded.into_iter();
    let mut next = || loaded.next().expect("one answer for each that is missing");
    answers.into_iter().map(|answer| answer.unwrap_or_else(&mut next)).collect()
}
