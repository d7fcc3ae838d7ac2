//! `ByteView`: immutable bytes, cheap to clone.
//!
//! What does a cache hand out? Not a reference into itself, which would keep it locked, and
//! not a copy, which would cost as much as the value is long: a view that shares the bytes.
//! The [`cache`](crate#reading-order) stores key and value in one allocation, and hands out views of the part
//! after the key.

use std::fmt;
use std::ops::Deref;

use triomphe::ThinArc;

/// Shared bytes behind a pointer of one word, with a number in front, of which a cache makes use.
pub(crate) type Bytes = ThinArc<u64, u8>;

/// Immutable bytes with shared ownership.
///
/// A clone copies no bytes, it counts a reference. A view is `Send + Sync`, dereferences to
/// `[u8]` and compares with byte slices and strings.
///
/// ```
/// let score = geecache::ByteView::from("630");
/// assert_eq!(score, "630");
/// assert_eq!(score.to_string(), "630");
/// assert_eq!(score.len(), 3);
/// ```
///
/// As the body of an answer in async programs: `bytes::Bytes::from_owner(view)` copies nothing.
#[derive(Clone)]
pub struct ByteView {
    bytes: Bytes,
    // Where this view begins: the cache keeps an entry's key in front of its value.
    start: usize,
}

impl ByteView {
    /// The part of `bytes` from `start` to the end.
    pub(crate) fn tail(bytes: Bytes, start: usize) -> Self {
        debug_assert!(start <= bytes.slice.len());
        Self { bytes, start }
    }

    /// The bytes as text.
    ///
    /// # Errors
    /// If they are not UTF-8.
    pub fn as_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(self)
    }
}

impl Deref for ByteView {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes.slice[self.start..]
    }
}

impl AsRef<[u8]> for ByteView {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for ByteView {
    fn from(bytes: Vec<u8>) -> Self {
        Self::tail(Bytes::from_header_and_slice(0, &bytes), 0)
    }
}

impl From<&str> for ByteView {
    fn from(text: &str) -> Self {
        Self::tail(Bytes::from_header_and_slice(0, text.as_bytes()), 0)
    }
}

impl From<ByteView> for Vec<u8> {
    fn from(view: ByteView) -> Self {
        view.to_vec()
    }
}

/// Shows bytes that are not UTF-8 as the replacement character.
impl fmt::Display for ByteView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        String::from_utf8_lossy(self).fmt(f)
    }
}

impl fmt::Debug for ByteView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.escape_ascii())
    }
}

impl Eq for ByteView {}

impl<B: AsRef<[u8]> + ?Sized> PartialEq<B> for ByteView {
    fn eq(&self, other: &B) -> bool {
        **self == *other.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_shares_the_bytes() {
        let view = ByteView::from(vec![1, 2, 3]);
        assert_eq!(view.as_ptr(), view.clone().as_ptr());
    }

    #[test]
    fn a_tail_sees_only_its_part() {
        let view = ByteView::tail(Bytes::from_header_and_slice(0, b"Tom630"), 3);
        assert_eq!(view, "630");
        assert_eq!(view.as_str(), Ok("630"));
        assert_eq!(format!("{view:?}"), "b\"630\"");
        assert_eq!(ByteView::tail(Bytes::from_header_and_slice(0, b"Tom"), 3).len(), 0);
    }

    #[test]
    fn a_view_can_be_shared_between_threads() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<ByteView>();
    }
}
