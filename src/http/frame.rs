//! Frames: how a batch of keys, and the answers to it, are written as bytes.
//!
//! `guide::protocol` has the bytes as two tables.
//!
//! A length is compared with the bytes that were received before it is used.

use std::time::Duration;

use crate::group::Told;
use crate::{Error, Loaded, MAX_KEY_BYTES, PeerError};

/// The most keys in one batch.
pub(super) const MAX_KEYS: usize = 1024;
/// The longest body of a question.
pub(super) const MAX_QUESTION_BYTES: usize = 1 << 20;
/// The most bytes of values in one answer; the others are asked for by the next question, or singly.
pub(super) const MAX_VALUE_BYTES: usize = 16 << 20;
/// The most bytes of several values in an answer from the caches alone: small values do not wait for large
/// ones.
const MAX_CACHED_BYTES: usize = 256 << 10;
/// The most bytes of an error's text; longer ones are cut.
pub(super) const MAX_TEXT_BYTES: usize = 1 << 10;
/// The longest body of an answer.
pub(super) const MAX_ANSWER_BYTES: usize = MAX_VALUE_BYTES + MAX_KEYS * (3 + MAX_TEXT_BYTES);
const NO_END: u64 = u64::MAX;

const VALUE: u8 = 0;
const ABSENT: u8 = 1;
const FAILED: u8 = 2;
const NOT_HERE: u8 = 3;

/// In the number of keys of a question: only cached values are asked for. A node that does not know
/// this bit takes it for too many keys, and refuses the question instead of loading the keys.
const ONLY_CACHED: u32 = 1 << 31;

/// For which of its keys a question is to be answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// For all.
    All,
    /// For those that the peer has in its caches: no load is waited for.
    Cached,
}

/// A peer's answer for one key.
pub(super) type Answer = Result<Option<Loaded>, PeerError>;

/// Whether this many keys, with this many bytes together, fit into one question.
pub(super) fn fit(keys: usize, key_bytes: usize) -> bool {
    keys <= MAX_KEYS && 4 + 2 * keys + key_bytes <= MAX_QUESTION_BYTES
}

/// How many of `keys` fit into one question; at least one.
pub(super) fn fitting(keys: &[&str]) -> usize {
    let mut bytes = 0;
    let fits = |&(i, key): &(usize, &&str)| {
        bytes += key.len();
        fit(i + 1, bytes)
    };
    keys.iter().enumerate().take_while(fits).count().max(1)
}

/// Decides which values, by their lengths, fit into an answer from the caches alone to a question for so
/// many keys. The others are asked for singly, or by the next question.
pub(super) fn cached_budget(keys: usize) -> impl FnMut(usize) -> bool {
    budget(if keys == 1 { MAX_VALUE_BYTES } else { MAX_CACHED_BYTES })
}

fn budget(mut room: usize) -> impl FnMut(usize) -> bool {
    move |length| {
        let fits = length <= room;
        if fits {
            room -= length;
        }
        fits
    }
}

pub(super) fn write_question(keys: &[impl AsRef<str>], wanted: Wanted) -> Vec<u8> {
    let mut body = Vec::with_capacity(4 + 32 * keys.len());
    let only_cached = if wanted == Wanted::Cached { ONLY_CACHED } else { 0 };
    body.extend((keys.len() as u32 | only_cached).to_be_bytes());
    for key in keys {
        let key = key.as_ref();
        body.extend((key.len() as u16).to_be_bytes());
        body.extend(key.as_bytes());
    }
    body
}

pub(super) fn read_question(body: &[u8]) -> Result<(Vec<&str>, Wanted), &'static str> {
    let mut rest = Rest(body);
    let count = u32::from_be_bytes(rest.take()?);
    let wanted = if count & ONLY_CACHED == 0 { Wanted::All } else { Wanted::Cached };
    let count = (count & !ONLY_CACHED) as usize;
    // A key takes three bytes at the least.
    if count > MAX_KEYS || count > rest.0.len() / 3 {
        return Err("more keys than there can be");
    }
    let keys: Result<Vec<_>, _> = (0..count)
        .map(|_| {
            let length = u16::from_be_bytes(rest.take()?).into();
            let key = std::str::from_utf8(rest.bytes(length)?).map_err(|_| "a key is not UTF-8")?;
            if (1..=MAX_KEY_BYTES).contains(&length) {
                Ok(key)
            } else {
                Err("a key is empty or too long")
            }
        })
        .collect();
    rest.end()?;
    Ok((keys?, wanted))
}

/// Values beyond [`MAX_VALUE_BYTES`] are left out, as those that are not cached.
pub(super) fn write_answer(answers: &[Result<Told, Error>]) -> Vec<u8> {
    let mut body = Vec::with_capacity(16 * answers.len());
    let mut fit = budget(MAX_VALUE_BYTES);
    for answer in answers {
        match answer {
            Ok(Told::Value(value, ttl)) if fit(value.len()) => {
                let millis = ttl.map_or(NO_END, |ttl| (ttl.as_millis() as u64).min(NO_END - 1));
                body.push(VALUE);
                body.extend(millis.to_be_bytes());
                body.extend((value.len() as u32).to_be_bytes());
                body.extend_from_slice(value);
            }
            Ok(Told::Value(..) | Told::NotCached) => body.push(NOT_HERE),
            Ok(Told::Absent) => body.push(ABSENT),
            Err(error) => {
                let text = error.to_string();
                let text = &text.as_bytes()[..text.len().min(MAX_TEXT_BYTES)];
                body.push(FAILED);
                body.extend((text.len() as u16).to_be_bytes());
                body.extend(text);
            }
        }
    }
    body
}

/// The answers to a question of `count` keys. `None` for the keys that are not here.
pub(super) fn read_answer(body: &[u8], count: usize) -> Result<Vec<Option<Answer>>, &'static str> {
    let mut rest = Rest(body);
    if count > body.len() {
        return Err("fewer answers than keys");
    }
    let answers: Result<Vec<_>, _> = (0..count)
        .map(|_| match rest.take::<1>()? {
            [VALUE] => {
                let ttl = u64::from_be_bytes(rest.take()?);
                let ttl = (ttl != NO_END).then(|| Duration::from_millis(ttl));
                let length = u32::from_be_bytes(rest.take()?) as usize;
                Ok(Some(Ok(Some(Loaded { ttl, ..rest.bytes(length)?.into() }))))
            }
            [ABSENT] => Ok(Some(Ok(None))),
            [FAILED] => {
                let length = u16::from_be_bytes(rest.take()?).into();
                let text = String::from_utf8_lossy(rest.bytes(length)?).into_owned();
                Ok(Some(Err(PeerError::LoadFailed(text))))
            }
            [NOT_HERE] => Ok(None),
            _ => Err("an unknown status"),
        })
        .collect();
    rest.end()?;
    answers
}

/// The bytes that are not read yet.
struct Rest<'b>(&'b [u8]);

impl<'b> Rest<'b> {
    fn bytes(&mut self, length: usize) -> Result<&'b [u8], &'static str> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or("it ends too early")?;
        self.0 = rest;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], &'static str> {
        Ok(self.bytes(N)?.try_into().expect("N bytes"))
    }

    fn end(&self) -> Result<(), &'static str> {
        if self.0.is_empty() { Ok(()) } else { Err("something follows the end") }
    }
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ByteView;

    #[test]
    fn a_question_is_read_as_it_was_written() {
        for keys in [&[][..], &["Tom"], &["a/b", "键", "Tom", "Tom"]] {
            for wanted in [Wanted::All, Wanted::Cached] {
                let body = write_question(keys, wanted);
                assert_eq!(read_question(&body).unwrap(), (keys.to_vec(), wanted));
            }
        }
    }

    #[test]
    fn an_answer_is_read_as_it_was_written() {
        let ttl = Duration::from_millis(1_500);
        let body = write_answer(&[
            Ok(Told::Value(ByteView::from("630"), None)),
            Ok(Told::Value(ByteView::from(""), Some(ttl))),
            Ok(Told::Absent),
            Ok(Told::NotCached),
            Err(Error::Config("disk full".into())),
            Ok(Told::Value(ByteView::from("589"), Some(Duration::ZERO))),
        ]);
        let heard = [
            Some(Ok(Some("630".into()))),
            Some(Ok(Some(Loaded::from("").ttl(ttl)))),
            Some(Ok(None)),
            None,
            Some(Err(PeerError::LoadFailed("disk full".into()))),
            Some(Ok(Some(Loaded::from("589").ttl(Duration::ZERO)))),
        ];
        assert_eq!(read_answer(&body, 6).unwrap(), heard);
    }

    #[test]
    fn values_that_do_not_fit_are_to_be_asked_for_singly() {
        let large = || Ok(Told::Value(ByteView::from(vec![0; MAX_VALUE_BYTES / 2 + 1]), None));
        let body = write_answer(&[large(), large(), Ok(Told::Absent)]);
        let heard = read_answer(&body, 3).unwrap();
        assert!(matches!(heard[..], [Some(Ok(Some(_))), None, Some(Ok(None))]));
        assert!(body.len() <= MAX_ANSWER_BYTES);
    }

    #[test]
    fn an_answer_from_the_caches_has_room_for_small_values() {
        let mut fits = cached_budget(2);
        assert!(!fits(MAX_CACHED_BYTES + 1), "a large value makes small ones wait");
        assert!((0..4).all(|_| fits(MAX_CACHED_BYTES / 4)));
        assert!(!fits(1) && fits(0));
        assert!(cached_budget(1)(MAX_VALUE_BYTES), "alone it makes nobody wait");
    }

    #[test]
    fn bodies_that_lie_are_refused() {
        let lies: &[&[u8]] = &[
            b"",
            b"\0\0\0",
            b"\0\0\0\x01",
            b"\xff\xff\xff\xff",
            b"\0\0\0\x01\0\x05Tom",
            b"\0\0\0\x01\0\x03Tom!",
            b"\0\0\0\x01\0\0abc",
            b"\0\0\0\x01\0\x02\xc3\x28",
        ];
        for body in lies {
            assert!(read_question(body).is_err(), "{body:?}");
        }
        let value = b"\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff630";
        for (body, count) in
            [(&b""[..], 1), (&value[..], 1), (b"\x01\x01", 1), (b"\x04", 1), (b"\x02\0\x09x", 1)]
        {
            assert!(read_answer(body, count).is_err(), "{body:?}");
        }
    }

    #[test]
    fn a_batch_over_the_limits_is_split() {
        let keys = vec!["k"; 2 * MAX_KEYS + 1];
        assert_eq!(fitting(&keys), MAX_KEYS);
        assert_eq!(fitting(&keys[2 * MAX_KEYS..]), 1);
        let long = "k".repeat(MAX_KEY_BYTES);
        let keys = vec![&*long; 100];
        let fits = fitting(&keys);
        assert!(write_question(&keys[..fits], Wanted::All).len() <= MAX_QUESTION_BYTES);
        assert!(write_question(&keys[..fits + 1], Wanted::All).len() > MAX_QUESTION_BYTES);
    }
}
