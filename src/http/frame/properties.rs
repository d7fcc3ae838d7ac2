//! What holds for all frames, those included that nobody wrote.
//!
//! A change of a byte need not be an error: it may lie within a key or a value. What holds is
//! that whatever is read at all is read as the only thing that is written so.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::ByteView;

/// One answer to be written and what is to be read of it.
#[derive(Clone, Debug)]
enum Frame {
    Value(Vec<u8>, Option<u64>),
    Absent,
    Failed(String),
    NotHere,
}

impl Frame {
    fn any() -> impl Strategy<Value = Self> {
        prop_oneof![
            (vec(any::<u8>(), 0..20), proptest::option::of(0..NO_END))
                .prop_map(|(value, ttl)| Self::Value(value, ttl)),
            Just(Self::Absent),
            ".{0,10}".prop_map(Self::Failed),
            Just(Self::NotHere),
        ]
    }

    fn told(&self) -> Result<Told, Error> {
        match self.clone() {
            Self::Value(value, ttl) => {
                Ok(Told::Value(ByteView::from(value), ttl.map(Duration::from_millis)))
            }
            Self::Absent => Ok(Told::Absent),
            Self::Failed(text) => Err(Error::Config(text)),
            Self::NotHere => Ok(Told::NotCached),
        }
    }

    fn heard(&self) -> Option<Answer> {
        match self.clone() {
            Self::Value(value, ttl) => {
                let ttl = ttl.map(Duration::from_millis);
                Some(Ok(Some(Loaded { ttl, ..value.into() })))
            }
            Self::Absent => Some(Ok(None)),
            Self::Failed(text) => Some(Err(PeerError::LoadFailed(text))),
            Self::NotHere => None,
        }
    }

    fn of(heard: &Option<Answer>) -> Self {
        match heard {
            Some(Ok(Some(loaded))) => {
                Self::Value(loaded.value.clone(), loaded.ttl.map(|ttl| ttl.as_millis() as u64))
            }
            Some(Ok(None)) => Self::Absent,
            Some(Err(PeerError::LoadFailed(text))) => Self::Failed(text.clone()),
            Some(Err(error)) => panic!("no answer has this error: {error}"),
            None => Self::NotHere,
        }
    }
}

fn written(frames: &[Frame]) -> Vec<u8> {
    write_answer(&frames.iter().map(Frame::told).collect::<Vec<_>>())
}

fn keys() -> impl Strategy<Value = Vec<String>> {
    vec(prop_oneof![4 => ".{1,10}", 1 => (250..270_usize).prop_map(|n| "k".repeat(n))], 0..10)
}

fn question_of(keys: &[String]) -> Vec<u8> {
    write_question(keys, Wanted::All)
}

/// Some bytes of `body` replaced, by any others or by those that lengths are made of.
fn mutated(mut body: Vec<u8>, changes: &[(Index, u8)]) -> Vec<u8> {
    if !body.is_empty() {
        changes.iter().for_each(|(at, byte)| *at.get_mut(&mut body) = *byte);
    }
    body
}

fn changes() -> impl Strategy<Value = Vec<(Index, u8)>> {
    vec((any::<Index>(), prop_oneof![any::<u8>(), 0..5_u8, Just(0xff)]), 1..4)
}

/// Any bytes; small ones are more often what a status or a length can be.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![vec(any::<u8>(), 0..50), vec(0..5_u8, 0..50)]
}

/// Either an error, or the keys whose question is just this.
fn is_read_well_as_a_question(body: &[u8]) -> Result<(), TestCaseError> {
    if let Ok((keys, wanted)) = read_question(body) {
        prop_assert!(keys.len() <= MAX_KEYS);
        prop_assert!(keys.iter().all(|key| (1..=MAX_KEY_BYTES).contains(&key.len())));
        prop_assert_eq!(write_question(&keys, wanted), body);
    }
    Ok(())
}

/// Either an error, or as many answers as were asked for, written just so; and none took more
/// memory than was received.
fn is_read_well_as_an_answer(body: &[u8], count: usize) -> Result<(), TestCaseError> {
    if let Ok(answers) = read_answer(body, count) {
        prop_assert_eq!(answers.len(), count);
        for answer in &answers {
            if let Some(Ok(Some(loaded))) = answer {
                prop_assert!(loaded.value.capacity() <= body.len());
            }
        }
        // A text that is not UTF-8, or longer than any that is written, is read nonetheless.
        let is_exact = |heard: &Option<Answer>| match heard {
            Some(Err(PeerError::LoadFailed(text))) => {
                !text.contains('\u{fffd}') && text.len() <= MAX_TEXT_BYTES
            }
            _ => true,
        };
        if answers.iter().all(is_exact) {
            prop_assert_eq!(written(&answers.iter().map(Frame::of).collect::<Vec<_>>()), body);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_question_is_read_as_it_was_written(keys in keys()) {
        for wanted in [Wanted::All, Wanted::Cached] {
            let body = write_question(&keys, wanted);
            prop_assert_eq!(read_question(&body).unwrap(), (keys.iter().map(|k| &**k).collect(), wanted));
        }
    }

    #[test]
    fn every_answer_is_read_as_it_was_written(frames in vec(Frame::any(), 0..10)) {
        let heard: Vec<_> = frames.iter().map(Frame::heard).collect();
        prop_assert_eq!(read_answer(&written(&frames), frames.len()).unwrap(), heard);
    }

    #[test]
    fn a_question_that_breaks_off_or_goes_on_is_an_error(
        keys in keys(), at in any::<Index>(), more in vec(any::<u8>(), 1..10),
    ) {
        let body = question_of(&keys);
        prop_assert!(read_question(&body[..at.index(body.len())]).is_err());
        prop_assert!(read_question(&[body, more].concat()).is_err());
    }

    #[test]
    fn an_answer_that_breaks_off_or_goes_on_or_is_to_another_number_of_keys_is_an_error(
        frames in vec(Frame::any(), 1..10), at in any::<Index>(), more in vec(any::<u8>(), 1..10),
    ) {
        let (body, count) = (written(&frames), frames.len());
        prop_assert!(read_answer(&body[..at.index(body.len())], count).is_err());
        prop_assert!(read_answer(&body, count - 1).is_err());
        prop_assert!(read_answer(&body, count + 1).is_err());
        prop_assert!(read_answer(&[body, more].concat(), count).is_err());
    }

    #[test]
    fn a_question_that_was_changed_is_an_error_or_another_question(
        keys in keys(), changes in changes(),
    ) {
        is_read_well_as_a_question(&mutated(question_of(&keys), &changes))?;
    }

    #[test]
    fn an_answer_that_was_changed_is_an_error_or_another_answer(
        frames in vec(Frame::any(), 0..10), changes in changes(),
    ) {
        is_read_well_as_an_answer(&mutated(written(&frames), &changes), frames.len())?;
    }

    #[test]
    fn noise_is_an_error_or_a_question_or_an_answer(
        noise in noise(), count in prop_oneof![0..20_usize, Just(usize::MAX)],
    ) {
        is_read_well_as_a_question(&noise)?;
        is_read_well_as_an_answer(&noise, count)?;
    }
}
