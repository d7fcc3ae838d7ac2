//! `FallbackLog`: says why gets fall back, without a line for each.
//!
//! While an owner's origin is down, or a token is wrong, every get of its keys falls back, thousands a
//! minute. The first is logged for each peer and kind of error; then one line every ten seconds says
//! how many there were. Old values that [stand in](super::refresh) for failed loads are counted
//! in the same way.

use std::collections::HashMap;
use std::fmt;
use std::mem;
use std::sync::Mutex;
use std::time::Duration;

use crate::PeerError;

/// At most one line for each peer and kind of error in this time.
const EVERY: Duration = Duration::from_secs(10);
/// From so many peers and kinds on, those that were not logged lately are forgotten.
const MOST: usize = 256;
/// The most characters of a key in a log line.
const KEY_CHARS: usize = 100;

#[derive(Default)]
pub(super) struct FallbackLog {
    // Guards what was logged when, by peer and kind of error.
    logged: Mutex<HashMap<(String, &'static str), Logged>>,
}

#[derive(Default)]
struct Logged {
    at: Option<Duration>,
    /// How many were not logged since.
    silent: u64,
}

impl FallbackLog {
    /// The line to be logged now, if one is due. `hint` says what to do about the error.
    pub(super) fn line(
        &self,
        peer: &str,
        key: &str,
        error: &PeerError,
        now: Duration,
    ) -> Option<String> {
        let (silent, ago) = self.due(peer, error.kind(), now)?;
        let (key, ago) = (Shown(key), ago.as_secs_f64());
        let keys = match silent {
            0 => format!("{key} falls back"),
            _ => format!("{key} and {silent} other gets in the last {ago:.0} s fall back"),
        };
        let hint = match error.kind() {
            "401" => ": this node's token is not one of the peer's",
            "stranger" => ": is the address still the peer's?",
            _ => "",
        };
        Some(format!("peer {peer}: {}{hint}; {keys}", one_line(&error.to_string())))
    }

    /// If a line is due: how many were not logged since the last one, and how long ago that was.
    pub(super) fn due(
        &self,
        peer: &str,
        kind: &'static str,
        now: Duration,
    ) -> Option<(u64, Duration)> {
        let mut logged = self.logged.lock().unwrap();
        if logged.len() >= MOST {
            logged.retain(|_, last| last.at.is_some_and(|at| now < at + EVERY));
        }
        let last = logged.entry((peer.into(), kind)).or_default();
        if last.at.is_some_and(|at| now < at + EVERY) {
            last.silent += 1;
            return None;
        }
        let Logged { at, silent } = mem::replace(last, Logged { at: Some(now), silent: 0 });
        Some((silent, at.map_or(Duration::ZERO, |at| now - at)))
    }
}

/// A key as logs show it: quoted, its control characters escaped, and cut if it is long.
pub(super) struct Shown<'k>(pub(super) &'k str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(KEY_CHARS) {
            None => write!(f, "{:?}", self.0),
            Some((end, _)) => write!(f, "{:?}…", &self.0[..end]),
        }
    }
}

/// The text of an error may come from another machine: no control character of it reaches a log.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_each_peer_is_logged_once_and_then_every_ten_seconds_with_its_number() {
        let log = FallbackLog::default();
        let at = |peer: &str, error: &PeerError, seconds| {
            log.line(peer, "Tom", error, Duration::from_secs(seconds))
        };
        let timeout = PeerError::Timeout;
        let line = "peer b: no answer within the deadline; \"Tom\" falls back";
        assert_eq!(at("b", &timeout, 0).unwrap(), line);
        assert!((0..10).all(|second| at("b", &timeout, second).is_none()));
        assert!(at("c", &timeout, 1).is_some(), "another peer");
        assert!(at("b", &PeerError::OutOfTime, 1).is_some(), "another kind");
        let line = "peer b: no answer within the deadline; \
                    \"Tom\" and 10 other gets in the last 10 s fall back";
        assert_eq!(at("b", &timeout, 10).unwrap(), line);
        let line = "peer b: no answer within the deadline; \"Tom\" falls back";
        assert_eq!(at("b", &timeout, 30).unwrap(), line);
    }

    #[test]
    fn peers_that_fail_no_more_are_forgotten() {
        let log = FallbackLog::default();
        for i in 0..1_000 {
            log.line(&i.to_string(), "Tom", &PeerError::Timeout, Duration::from_secs(i));
        }
        assert!(log.logged.lock().unwrap().len() <= MOST);
    }

    #[test]
    fn what_strangers_send_stays_on_its_line() {
        let log = FallbackLog::default();
        let text = "line\nanother \x1b[2J".to_string();
        let error = PeerError::Status { code: 401, text };
        let line = log.line("b", "a\nb\x1b", &error, Duration::ZERO).unwrap();
        assert!(line.contains("\"a\\nb\\u{1b}\" falls back"), "{line}");
        assert!(line.contains("this node's token"), "{line}");
        assert!(!line.contains(|c: char| c.is_control()), "{line}");
    }

    #[test]
    fn a_long_key_is_cut() {
        let (short, long) = ("ключ".repeat(25), "ключ".repeat(26));
        assert_eq!(Shown(&short).to_string(), format!("{short:?}"));
        assert_eq!(Shown(&long).to_string(), format!("{short:?}…"));
    }
}
