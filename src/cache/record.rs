//! `Record`: an entry's expiry, key and value in one allocation.
//!
//! Small entries are the common case, and for them the allocator's own bookkeeping weighs more
//! than the data. One allocation instead of two halves that, and a look-up that compares the key
//! has already fetched the cache line that a short value lies on. And the pointer to it takes one
//! word, since the length is there, too.
//!
//! | bytes | what |
//! |---|---|
//! | 6 | when it expires, in milliseconds of the group's [`Clock`](crate::Clock) (46 bits) |
//! | 2 | the length of the key (15 bits), and a bit for "no such key" |
//! | … | the key |
//! | … | the value |

use std::iter::repeat_n;
use std::time::Duration;

use triomphe::Arc;

use crate::ByteView;
use crate::byte_view::Bytes;

/// The bits of a time.
const TIME: u64 = (1 << 46) - 1; // 2,200 years of milliseconds
const NEVER: u64 = TIME;
const LATEST: u64 = NEVER - 1;
const KEY_LENGTH: u32 = 48;
const ABSENT: u64 = 1 << 63;

/// The bytes that the cache charges for an entry besides its key and value: the record's head (8), its
/// length (8) and reference count (8), the allocator's header and rounding (16 on average), its entry in
/// the slab (24), the head of its chain and its ghosts, and a few to spare. `bench memory` measures how
/// well that describes small entries.
pub(crate) const OVERHEAD: usize = 80;

/// A key with its value, or with the knowledge that it has none. Immutable; clones share it.
#[derive(Clone)]
pub(crate) struct Record(Bytes);

impl Record {
    /// `key` must be no longer than [`MAX_KEY_BYTES`](crate::MAX_KEY_BYTES).
    pub(crate) fn new(key: &str, value: Option<&[u8]>, expires: Option<Duration>) -> Self {
        debug_assert!(key.len() < 1 << 15, "the group checks keys");
        let absent = if value.is_none() { ABSENT } else { 0 };
        let head = millis(expires) | (key.len() as u64) << KEY_LENGTH | absent;
        let value = value.unwrap_or_default();
        let mut bytes = Bytes::from_header_and_iter(head, repeat_n(0, key.len() + value.len()));
        bytes.with_arc_mut(|bytes| {
            let bytes = Arc::get_mut(bytes).expect("not shared yet").slice_mut();
            let (key_part, value_part) = bytes.split_at_mut(key.len());
            key_part.copy_from_slice(key.as_bytes());
            value_part.copy_from_slice(value);
        });
        Self(bytes)
    }

    /// When the entry expires, in the group's time.
    #[inline]
    pub(crate) fn expires(&self) -> Option<Duration> {
        let time = self.head() & TIME;
        (time != NEVER).then(|| Duration::from_millis(time))
    }

    pub(crate) fn key(&self) -> &str {
        let key = &self.0.slice[..self.key_end()];
        std::str::from_utf8(key).expect("it was made of a str")
    }

    #[inline]
    pub(crate) fn has_key(&self, key: &[u8]) -> bool {
        self.key_end() == key.len() && self.0.slice.starts_with(key)
    }

    #[inline]
    pub(crate) fn is_absent(&self) -> bool {
        self.head() & ABSENT != 0
    }

    /// The value; `None` if the record says that there is none.
    #[inline]
    pub(crate) fn into_value(self) -> Option<ByteView> {
        let start = self.key_end();
        (!self.is_absent()).then(|| ByteView::tail(self.0, start))
    }

    /// The bytes that the entry is charged in a cache's budget.
    pub(crate) fn cost(&self) -> usize {
        self.0.slice.len() + OVERHEAD
    }

    #[inline]
    fn key_end(&self) -> usize {
        ((self.head() & !ABSENT) >> KEY_LENGTH) as usize
    }

    #[inline]
    fn head(&self) -> u64 {
        self.0.header.header
    }
}

/// An end as the record has it: in milliseconds, rounded down.
fn millis(end: Option<Duration>) -> u64 {
    let millis = |at: Duration| u64::try_from(at.as_millis()).map_or(LATEST, |ms| ms.min(LATEST));
    end.map_or(NEVER, millis)
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
