//! `Record`: an entry's expiry, key and value in one allocation.
//!
//! Small entries are the common case, and for them the allocator's own bookkeeping weighs more
//! than the data. One allocation instead of two halves that, and a look-up that compares the key
//! has already fetched the cache line that a short value lies on.
//!
//! | bytes | what |
//! |---|---|
//! | 6 | when it expires, in milliseconds of the group's [`Clock`](crate::Clock); all ones: never |
//! | 2 | the length of the key (15 bits), and a bit for "no such key" |
//! | … | the key |
//! | … | the value |

use std::iter::repeat_n;
use std::sync::Arc;
use std::time::Duration;

use crate::ByteView;

const HEAD: usize = 8;
const NEVER: u64 = (1 << 48) - 1; // 8,900 years of milliseconds
const KEY_LENGTH: u32 = 48;
const ABSENT: u64 = 1 << 63;

/// What the cache charges for an entry besides its key and value, in bytes: the record's head (8),
/// its reference counts (16), the allocator's header and rounding (16 on average), its entry in the
/// slab (32), the head of its chain and its ghosts. `bench memory` measures how well that describes
/// small entries.
pub(crate) const OVERHEAD: usize = 80;

/// What an entry that expires is charged in addition: its place in the order of expiry.
pub(crate) const EXPIRY_OVERHEAD: usize = 32;

/// A key with its value, or with the knowledge that it has none. Immutable; clones share it.
#[derive(Clone)]
pub(crate) struct Record(Arc<[u8]>);

impl Record {
    /// `key` must be no longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    pub(crate) fn new(key: &str, value: Option<&[u8]>, expires: Option<Duration>) -> Self {
        let millis =
            |at: Duration| u64::try_from(at.as_millis()).map_or(NEVER - 1, |ms| ms.min(NEVER - 1));
        let expires = expires.map_or(NEVER, millis);
        debug_assert!(key.len() < 1 << 15, "the group checks keys");
        let absent = if value.is_none() { ABSENT } else { 0 };
        let value = value.unwrap_or_default();
        let mut bytes: Arc<[u8]> = repeat_n(0, HEAD + key.len() + value.len()).collect();
        let (head, rest) = Arc::get_mut(&mut bytes).expect("not shared yet").split_at_mut(HEAD);
        head.copy_from_slice(&(expires | (key.len() as u64) << KEY_LENGTH | absent).to_le_bytes());
        rest[..key.len()].copy_from_slice(key.as_bytes());
        rest[key.len()..].copy_from_slice(value);
        Self(bytes)
    }

    /// The same key and value, with another end.
    pub(crate) fn until(&self, expires: Duration) -> Self {
        let value = self.clone().into_value();
        Self::new(self.key(), value.as_deref(), Some(expires))
    }

    /// When the entry expires, in the group's time.
    #[inline]
    pub(crate) fn expires(&self) -> Option<Duration> {
        self.expires_millis().map(Duration::from_millis)
    }

    /// The same in milliseconds.
    #[inline]
    pub(crate) fn expires_millis(&self) -> Option<u64> {
        let millis = self.head() & NEVER;
        (millis != NEVER).then_some(millis)
    }

    pub(crate) fn key(&self) -> &str {
        let key = &self.0[HEAD..self.value_start()];
        std::str::from_utf8(key).expect("it was made of a str")
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.value_start() == HEAD + key.len() && self.0[HEAD..].starts_with(key)
    }

    /// The value; `None` if the record says that there is none.
    #[inline]
    pub(crate) fn into_value(self) -> Option<ByteView> {
        let start = self.value_start();
        (self.head() & ABSENT == 0).then(|| ByteView::tail(self.0, start))
    }

    /// The bytes that the entry is charged in a cache's budget.
    pub(crate) fn cost(&self) -> usize {
        let expiry = if self.expires().is_some() { EXPIRY_OVERHEAD } else { 0 };
        self.0.len() - HEAD + OVERHEAD + expiry
    }

    #[inline]
    fn value_start(&self) -> usize {
        HEAD + ((self.head() & !ABSENT) >> KEY_LENGTH) as usize
    }

    #[inline]
    fn head(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("every record has a head"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_what_it_was_made_of() {
        for (key, value) in [("Tom", "630"), ("é", ""), (&*"k".repeat(16_384), "v")] {
            for expires in [None, Some(Duration::ZERO), Some(Duration::from_millis(1 << 47))] {
                let record = Record::new(key, Some(value.as_bytes()), expires);
                let overhead = OVERHEAD + if expires.is_some() { EXPIRY_OVERHEAD } else { 0 };
                assert_eq!(record.key(), key);
                assert_eq!(record.expires(), expires);
                assert_eq!(record.cost(), key.len() + value.len() + overhead);
                assert_eq!(record.into_value().unwrap(), value);
            }
        }
    }

    #[test]
    fn an_absent_key_is_not_an_empty_value() {
        assert_eq!(Record::new("kkk", None, None).into_value(), None);
        assert_eq!(Record::new("kkk", None, None).key(), "kkk");
        assert_eq!(Record::new("kkk", Some(b""), None).into_value().unwrap(), "");
    }

    #[test]
    fn an_expiry_is_never_late() {
        let at = |expires| Record::new("k", None, Some(expires)).expires().unwrap();
        assert_eq!(at(Duration::from_micros(1_999)), Duration::from_millis(1));
        assert!(at(Duration::MAX) < Duration::MAX);
    }
}
