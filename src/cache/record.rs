//! `Record`: an entry's expiry, key and value in one allocation.
//!
//! Small entries are the common case, and for them the allocator's own bookkeeping weighs more
//! than the data. One allocation instead of two halves that, and a look-up that compares the key
//! has already fetched the cache line that a short value lies on.
//!
//! | bytes | what |
//! |---|---|
//! | 6 | 46 bits: when a look-up has to look closer, in milliseconds of the group's [`Clock`](crate::Clock); a bit: whether another time follows the key |
//! | 2 | the length of the key (15 bits), and a bit for "no such key" |
//! | … | the key |
//! | 0 or 8 | when it expires, if that is later than the first time; or when it would have expired, if its life was limited |
//! | … | the value |
//!
//! A record that is to be renewed ahead has two times: from the first on it is *due*, at the second
//! it expires. A hit compares one of them with the clock, so that it pays for a second one only when it
//! has to look at it.

use std::iter::repeat_n;
use std::sync::Arc;
use std::time::Duration;

use crate::ByteView;

const HEAD: usize = 8;
/// The bits of a time.
const TIME: u64 = (1 << 46) - 1; // 2,200 years of milliseconds
const NEVER: u64 = TIME;
/// In place of a time: the value was past its time when this record was made of it.
const STALE: u64 = NEVER - 1;
const LATEST: u64 = NEVER - 2;
/// The second time is the record's end.
const ENDS_LATER: u64 = 1 << 46;
const KEY_LENGTH: u32 = 48;
const ABSENT: u64 = 1 << 63;

/// What the cache charges for an entry besides its key and value, in bytes: the record's head (8),
/// its reference counts (16), the allocator's header and rounding (16 on average), its entry in the
/// slab (32), the head of its chain and its ghosts. `bench memory` measures how well that describes
/// small entries.
pub(crate) const OVERHEAD: usize = 80;

/// A key with its value, or with the knowledge that it has none. Immutable; clones share it.
#[derive(Clone)]
pub(crate) struct Record(Arc<[u8]>);

impl Record {
    /// `key` must be no longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    pub(crate) fn new(key: &str, value: Option<&[u8]>, expires: Option<Duration>) -> Self {
        Self::build(key, value, millis(expires), None)
    }

    /// A value that is to be renewed from `due` on and expires after that.
    pub(crate) fn renewable(key: &str, value: &[u8], due: Duration, expires: Duration) -> Self {
        Self::build(key, Some(value), millis(Some(due)), Some((ENDS_LATER, millis(Some(expires)))))
    }

    fn build(key: &str, value: Option<&[u8]>, time: u64, second: Option<(u64, u64)>) -> Self {
        debug_assert!(key.len() < 1 << 15, "the group checks keys");
        let absent = if value.is_none() { ABSENT } else { 0 };
        let which = second.map_or(0, |(which, _)| which);
        let second = second.map(|(_, time)| time.to_le_bytes());
        let second = second.as_ref().map_or(&[][..], |second| second);
        let value = value.unwrap_or_default();
        let length = HEAD + key.len() + second.len() + value.len();
        let mut bytes: Arc<[u8]> = repeat_n(0, length).collect();
        let (head, rest) = Arc::get_mut(&mut bytes).expect("not shared yet").split_at_mut(HEAD);
        let bits = time | which | (key.len() as u64) << KEY_LENGTH | absent;
        head.copy_from_slice(&bits.to_le_bytes());
        let (key_part, rest) = rest.split_at_mut(key.len());
        key_part.copy_from_slice(key.as_bytes());
        let (second_part, value_part) = rest.split_at_mut(second.len());
        second_part.copy_from_slice(second);
        value_part.copy_from_slice(value);
        Self(bytes)
    }

    /// The same key and value, as an answer that is past its time. Not for a cache.
    pub(crate) fn stale(&self) -> Self {
        self.with_time(STALE)
    }

    fn with_time(&self, time: u64) -> Self {
        let value = self.clone().into_value();
        Self::build(self.key(), value.as_deref(), time, None)
    }

    /// Whether this is an answer that is [past its time](Self::stale).
    pub(crate) fn is_stale(&self) -> bool {
        self.head() & TIME == STALE
    }

    /// When a look-up has to look closer: the value is due, or expires.
    #[inline]
    pub(crate) fn watched_from(&self) -> Option<Duration> {
        duration(self.head() & TIME)
    }

    /// When the entry expires, in the group's time.
    pub(crate) fn expires(&self) -> Option<Duration> {
        self.expires_millis().map(Duration::from_millis)
    }

    /// The same in milliseconds.
    pub(crate) fn expires_millis(&self) -> Option<u64> {
        let time = if self.head() & ENDS_LATER == 0 { self.head() & TIME } else { self.second() };
        (time != NEVER).then_some(time)
    }

    pub(crate) fn has_expired(&self, now: Duration) -> bool {
        self.expires().is_some_and(|at| at <= now)
    }

    /// Whether the value is to be renewed, and has not expired.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        self.watched_from().is_some_and(|at| at <= now) && !self.has_expired(now)
    }

    pub(crate) fn key(&self) -> &str {
        let key = &self.0[HEAD..self.key_end()];
        std::str::from_utf8(key).expect("it was made of a str")
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.key_end() == HEAD + key.len() && self.0[HEAD..].starts_with(key)
    }

    pub(crate) fn is_absent(&self) -> bool {
        self.head() & ABSENT != 0
    }

    /// The value; `None` if the record says that there is none.
    #[inline]
    pub(crate) fn into_value(self) -> Option<ByteView> {
        let head = self.head();
        // 8 or 0, without a branch.
        let has_second = head >> 46 & 1;
        let start = self.key_end() + 8 * has_second as usize;
        (head & ABSENT == 0).then(|| ByteView::tail(self.0, start))
    }

    /// The bytes that the entry is charged in a cache's budget.
    pub(crate) fn cost(&self) -> usize {
        self.0.len() - HEAD + OVERHEAD
    }

    #[inline]
    fn key_end(&self) -> usize {
        HEAD + ((self.head() & !ABSENT) >> KEY_LENGTH) as usize
    }

    /// The time that follows the key.
    fn second(&self) -> u64 {
        u64::from_le_bytes(*self.0[self.key_end()..].first_chunk().expect("it follows the key"))
    }

    #[inline]
    fn head(&self) -> u64 {
        u64::from_le_bytes(*self.0.first_chunk().expect("every record has a head"))
    }
}

/// An end as the record has it: in milliseconds, rounded down.
fn millis(end: Option<Duration>) -> u64 {
    let millis = |at: Duration| u64::try_from(at.as_millis()).map_or(LATEST, |ms| ms.min(LATEST));
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
            for expires in [None, Some(Duration::ZERO), Some(Duration::from_millis(1 << 45))] {
                let record = Record::new(key, Some(value.as_bytes()), expires);
                assert_eq!(record.key(), key);
                assert_eq!(record.expires(), expires);
                assert_eq!(record.cost(), key.len() + value.len() + OVERHEAD);
                assert_eq!(record.into_value().unwrap(), value);
            }
        }
    }

    #[test]
    fn a_record_to_be_renewed_has_two_times_and_takes_8_bytes_more() {
        let at = Duration::from_millis;
        for (key, value) in [("Tom", "630"), ("é", ""), (&*"k".repeat(16_384), "v")] {
            let record = Record::renewable(key, value.as_bytes(), at(80), at(100));
            assert_eq!(record.key(), key);
            assert!(record.has_key(key.as_bytes()) && !record.has_key(b"Jack"));
            assert_eq!((record.watched_from(), record.expires()), (Some(at(80)), Some(at(100))));
            let due = [79, 80, 99, 100].map(|now| record.is_due(at(now)));
            assert_eq!(due, [false, true, true, false]);
            assert_eq!(
                record.cost(),
                Record::new(key, Some(value.as_bytes()), Some(at(9))).cost() + 8
            );
            assert!(!record.is_stale() && record.stale().is_stale());
            assert_eq!(record.stale().into_value().unwrap(), value);
            assert_eq!(record.into_value().unwrap(), value);
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
        assert!(!Record::new("k", None, Some(Duration::MAX)).is_stale());
    }
}
