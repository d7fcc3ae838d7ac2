//! `Key`: a key and its hash, which is computed once for each get.
//!
//! Which bits of the hash decide what? The shard is chosen by bits that its table does not use; by
//! the same bits, the keys of one shard would all meet in a few chains of its table.
//!
//! | bits of 64 | what |
//! |---|---|
//! | 40 and up | the shard |
//! | 24 to 29 | the counter of removals, see [`Lease`](super::Lease) |
//! | 4 to 31 | the short hash: the chain in the shard's table, and the ghosts |

use std::hash::{BuildHasher, Hasher as _};

pub(crate) type Hasher = foldhash::fast::RandomState;

/// The bits of a short hash.
pub(crate) const SHORT_HASH_BITS: u32 = 28;

pub(crate) struct Key<'k> {
    pub(crate) text: &'k str,
    pub(crate) hash: u64,
}

impl<'k> Key<'k> {
    pub(crate) fn new(text: &'k str, hasher: &Hasher) -> Self {
        // The bytes and nothing else: `hash_one` would add their number.
        let mut state = hasher.build_hasher();
        state.write(text.as_bytes());
        Self { text, hash: state.finish() }
    }

    /// As much of the hash as a shard keeps of each entry.
    #[inline]
    pub(crate) fn short_hash(&self) -> u32 {
        self.hash as u32 >> (u32::BITS - SHORT_HASH_BITS)
    }
}
