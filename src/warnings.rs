//! `Warnings`: says that gets fall back, or that loads fail, without a line for each.
//!
//! While an owner's origin is down, or a token is wrong, every get of its keys falls back, thousands a
//! minute. The first is logged for each peer and kind of error; then one line every ten seconds says
//! how many there were.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

/// At most one line for each peer and kind of error in this time.
const EVERY: Duration = Duration::from_secs(10);
/// From so many peers and kinds on, those that were not logged lately are forgotten.
const MOST: usize = 256;
/// The most characters of a key in a log line.
const KEY_CHARS: usize = 100;

#[derive(Default)]
pub(crate) struct Warnings {
    // Guards, by peer and kind of error, when a line was logged and how many were left out since.
    logged: Mutex<Logged>,
}

type Logged = HashMap<(String, &'static str), (Duration, u64)>;

impl Warnings {
    /// The line to be logged now, if one is due, with the number of those that were left out.
    pub(crate) fn due(
        &self,
        peer: &str,
        kind: &'static str,
        now: Duration,
        line: impl fmt::Display,
    ) -> Option<String> {
        let key = (peer.into(), kind);
        let mut logged = self.logged.lock().unwrap();
        if logged.len() >= MOST {
            logged.retain(|_, (at, _)| now < *at + EVERY);
        }
        let left_out = match logged.get_mut(&key) {
            Some((at, left_out)) if now < *at + EVERY => {
                *left_out += 1;
                return None;
            }
            Some((_, left_out)) => *left_out,
            None => 0,
        };
        logged.insert(key, (now, 0));
        drop(logged);
        let more = if left_out > 0 { format!(" (and {left_out} more)") } else { String::new() };
        Some(one_line(&format!("{line}{more}")))
    }
}

/// A key as logs show it: quoted, its control characters escaped, and cut if it is long.
pub(crate) struct Shown<'k>(pub(crate) &'k str);

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
        let warnings = Warnings::default();
        let at = |peer, kind, seconds| {
            warnings.due(peer, kind, Duration::from_secs(seconds), "it fell back")
        };
        assert_eq!(at("b", "timeout", 0).unwrap(), "it fell back");
        assert!((0..10).all(|second| at("b", "timeout", second).is_none()));
        assert!(at("c", "timeout", 1).is_some(), "another peer");
        assert!(at("b", "out_of_time", 1).is_some(), "another kind");
        assert_eq!(at("b", "timeout", 10).unwrap(), "it fell back (and 10 more)");
        assert_eq!(at("b", "timeout", 30).unwrap(), "it fell back");
    }

    #[test]
    fn peers_that_fail_no_more_are_forgotten() {
        let warnings = Warnings::default();
        for i in 0..1_000 {
            warnings.due(&i.to_string(), "timeout", Duration::from_secs(i), "it fell back");
        }
        assert!(warnings.logged.lock().unwrap().len() <= MOST);
    }

    #[test]
    fn what_strangers_send_stays_on_its_line() {
        let line = format!("line\nanother \x1b[2J; {} falls back", Shown("a\nb\x1b"));
        let line = Warnings::default().due("b", "401", Duration::ZERO, line).unwrap();
        assert!(line.contains("\"a\\nb\\u{1b}\" falls back"), "{line}");
        assert!(!line.contains(|c: char| c.is_control()), "{line}");
    }

    #[test]
    fn a_long_key_is_cut() {
        let (short, long) = ("ключ".repeat(25), "ключ".repeat(26));
        assert_eq!(Shown(&short).to_string(), format!("{short:?}"));
        assert_eq!(Shown(&long).to_string(), format!("{short:?}…"));
    }
}
