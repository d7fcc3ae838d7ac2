//! `Record`: an entry's expiry, key and value in one allocation.
//!
//! Small entries are the common case, and for them the allocator's own bookkeeping weighs more
//! than the data. One allocation instead of two halves that, and a look-up that compares the key
//! has already fetched the cache line that a short value lies on.
//!
//! | bytes | what |
//! |---|---|
//! | 6 | when it expires, in milliseconds of the group's [`Clock`](crate::Clock) (47 bits; all ones: never), and a bit for a life that was limited |
//! | 2 | the length of the key (15 bits), and a bit for "no such key" |
//! | … | the key |
//! | 0 or 8 | only if its life was limited: when it would have expired, as above |
//! | … | the value |

use std::iter::repeat_n;
use std::sync::Arc;
use std::time::Duration;

use crate::ByteView;

const HEAD: usize = 8;
const NEVER: u64 = (1 << 47) - 1; // 4,400 years of milliseconds
const LIMITED: u64 = 1 << 47;
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
        Self::write(key, value, millis(expires), &[])
    }

    fn write(key: &str, value: Option<&[u8]>, end: u64, would_end: &[u8]) -> Self {
        debug_assert!(key.len() < 1 << 15, "the group checks keys");
        let absent = if value.is_none() { ABSENT } else { 0 };
        let limited = if would_end.is_empty() { 0 } else { LIMITED };
        let value = value.unwrap_or_default();
        let length = HEAD + key.len() + would_end.len() + value.len();
        let mut bytes: Arc<[u8]> = repeat_n(0, length).collect();
        let (head, rest) = Arc::get_mut(&mut bytes).expect("not shared yet").split_at_mut(HEAD);
        let flags = limited | absent;
        head.copy_from_slice(&(end | (key.len() as u64) << KEY_LENGTH | flags).to_le_bytes());
        let (key_bytes, rest) = rest.split_at_mut(key.len());
        key_bytes.copy_from_slice(key.as_bytes());
        let (would_end_bytes, rest) = rest.split_at_mut(would_end.len());
        would_end_bytes.copy_from_slice(would_end);
        rest.copy_from_slice(value);
        Self(bytes)
    }

    /// The same key and value, with an earlier end. It [remembers](Self::would_expire) the other.
    pub(crate) fn until(&self, expires: Duration) -> Self {
        let value = self.clone().into_value();
        let would_end = millis(self.would_expire()).to_le_bytes();
        Self::write(self.key(), value.as_deref(), millis(Some(expires)), &would_end)
    }

    /// When the entry would expire if its life had not been limited.
    pub(crate) fn would_expire(&self) -> Option<Duration> {
        if self.head() & LIMITED == 0 {
            return self.expires();
        }
        let end = &self.0[HEAD + self.key_length()..];
        duration(u64::from_le_bytes(*end.first_chunk().expect("a limited record has it")))
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
        let key = &self.0[HEAD..HEAD + self.key_length()];
        std::str::from_utf8(key).expect("it was made of a str")
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.key_length() == key.len() && self.0[HEAD..].starts_with(key)
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
        HEAD + self.key_length() + if self.head() & LIMITED == 0 { 0 } else { 8 }
    }

    #[inline]
    fn key_length(&self) -> usize {
        ((self.head() & !ABSENT) >> KEY_LENGTH) as usize
    }

    #[inline]
    fn head(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("every record has a head"))
    }
}

/// An end as the record has it: in milliseconds, rounded down.
fn millis(end: Option<Duration>) -> u64 {
    let millis =
        |at: Duration| u64::try_from(at.as_millis()).map_or(NEVER - 1, |ms| ms.min(NEVER - 1));
    end.map_or(NEVER, millis)
}

#[inline]
fn duration(millis: u64) -> Option<Duration> {
    (millis != NEVER).then(|| Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_back_what_it_was_made_of() {
        for (key, value) in [("Tom", "630"), ("é", ""), (&*"k".repeat(16_384), "v")] {
            for expires in [None, Some(Duration::ZERO), Some(Duration::from_millis(1 << 46))] {
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
    fn a_record_whose_life_was_limited_remembers_its_own_end() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3_600));
        for own in [None, Some(hour)] {
            for value in [Some(&b"630"[..]), None] {
                let record = Record::new("Tom", value, own);
                assert_eq!(record.would_expire(), own);
                let limited = record.until(minute).until(minute / 2);
                assert_eq!(limited.expires(), Some(minute / 2));
                assert_eq!(limited.would_expire(), own);
                assert_eq!(limited.key(), "Tom");
                assert!(limited.has_key(b"Tom") && !limited.has_key(b"To"));
                assert_eq!(limited.into_value().as_deref(), value);
            }
        }
    }

    #[test]
    fn an_expiry_is_never_late() {
        let at = |expires| Record::new("k", None, Some(expires)).expires().unwrap();
        assert_eq!(at(Duration::from_micros(1_999)), Duration::from_millis(1));
        assert!(at(Duration::MAX) < Duration::MAX);
    }
}
