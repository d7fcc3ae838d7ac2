//! `Doorkeeper`: admits a key to the hot cache when it is fetched for the second time.
//!
//! Most of the keys that are fetched from a peer are not asked for again soon, and to keep all of
//! them would push out the few that are. groupcache tosses a coin; this remembers.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many keys are remembered, in 16 KiB. A key is forgotten after about as many others.
const KEYS: usize = 4096;
/// Which keys share a bucket is chance. In one of several places, a few that do forget nothing.
const BUCKET: usize = 4;

pub(crate) struct Doorkeeper {
    // The fingerprints of the last keys of each bucket, 32 bits of their hashes, the last one first;
    // 0: none yet. Two threads at once may note only one of their keys.
    buckets: Box<[[AtomicU32; BUCKET]]>,
}

impl Doorkeeper {
    pub(crate) fn new() -> Self {
        Self { buckets: (0..KEYS / BUCKET).map(|_| Default::default()).collect() }
    }

    /// Notes the key of this hash; `true` if it was seen shortly before.
    pub(crate) fn note_and_was_seen(&self, hash: u64) -> bool {
        let bucket = &self.buckets[(hash >> 32) as usize % self.buckets.len()];
        let fingerprint = hash as u32 | 1; // never 0
        if bucket.iter().any(|seen| seen.load(Ordering::Relaxed) == fingerprint) {
            return true;
        }
        // Each moves on by one place.
        bucket.iter().fold(fingerprint, |new, seen| seen.swap(new, Ordering::Relaxed));
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_sight_admits_and_enough_other_keys_of_the_bucket_make_it_forget() {
        let doorkeeper = Doorkeeper::new();
        let of_bucket = |i: u64| 7 << 32 | i << 1;
        assert!(!doorkeeper.note_and_was_seen(of_bucket(0)));
        assert!((1..BUCKET as u64).all(|i| !doorkeeper.note_and_was_seen(of_bucket(i))));
        assert!((0..BUCKET as u64).all(|i| doorkeeper.note_and_was_seen(of_bucket(i))));
        assert!(!doorkeeper.note_and_was_seen(of_bucket(BUCKET as u64)));
        assert!(!doorkeeper.note_and_was_seen(of_bucket(0)), "the oldest is forgotten");
        assert!(doorkeeper.note_and_was_seen(of_bucket(BUCKET as u64)));
        assert!(!doorkeeper.note_and_was_seen(0), "an empty place is nobody's");
    }
}
