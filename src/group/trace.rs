//! `Trace`: how one get was answered, for a log or a page.

use std::fmt;
use std::time::Duration;

use crate::PeerError;

/// How one get was answered: which branches of the [flow](crate#one-get) it took.
///
/// A step that a get did not take is `None`. If an owner was asked and did not answer, `asked` says
/// why, beside the fields of the steps that were taken instead. [`Display`](fmt::Display) gives the text of
/// the log line, which is not all ASCII.
///
/// ```
/// use geecache::{Group, Tier};
///
/// let scores = Group::builder("scores", |_: &str| Ok::<_, std::io::Error>(Some("630"))).build()?;
/// let (_, trace) = scores.get_traced("Tom");
/// assert!(trace.loaded.is_some());
/// let (_, trace) = scores.get_traced("Tom");
/// assert_eq!(trace.hit, Some(Tier::Main));
/// assert_eq!(trace.to_string(), "main hit");
/// # Ok::<(), geecache::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Trace {
    /// The cache that had the answer, at the start or when this get was about to load.
    pub hit: Option<Tier>,
    /// The owner that was asked, or was [not asked](PeerError::was_attempted), since it cools down.
    pub asked: Option<Asked>,
    /// The earlier owner that handed the value over, after the list of peers had changed.
    pub handed_over: Option<Asked>,
    /// How long this process's own getter took.
    pub loaded: Option<Duration>,
    /// How long this get waited for another one that was loading the same key.
    pub waited: Option<Duration>,
    /// The value is about to expire, and is due to be
    /// [loaded anew](crate::GroupBuilder::refresh_ahead) in the background, once a second at the most.
    pub renews: bool,
    /// Why the value is past its time: the load that failed, of this get or shortly before. If the owner
    /// gave a value past its time, only the owner's trace and log say so.
    pub stale: Option<String>,
}

/// One of a group's two caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The keys that this process owns.
    Main,
    /// Copies of other processes' keys.
    Hot,
}

/// A question to a key's owner, or to an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Asked {
    /// The owner's name.
    pub peer: String,
    /// How long the question took.
    pub took: Duration,
    /// Why the owner did not answer, so that this process fell back, unless the get
    /// [ends with it](crate::GroupBuilder::retry_failed_loads); `None` if it answered.
    pub error: Option<PeerError>,
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut steps = Vec::new();
        if let Some(Asked { peer, took, error }) = &self.asked {
            steps.push(match error {
                None => format!("asked {peer} in {took:.1?}"),
                Some(error) => format!("{peer} failed in {took:.1?}: {error}"),
            });
        }
        steps.extend(self.waited.map(|took| format!("waited {took:.1?} for another caller")));
        if let Some(Asked { peer, took, .. }) = &self.handed_over {
            steps.push(format!("handed over by {peer} in {took:.1?}"));
        }
        steps.extend(self.hit.map(|tier| format!("{tier} hit")));
        steps.extend(self.renews.then(|| "due for renewal".into()));
        steps.extend(self.loaded.map(|took| format!("searched the origin in {took:.1?}")));
        steps.extend(self.stale.as_ref().map(|why| format!("stale: {why}")));
        f.write_str(&steps.join(", "))
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Main => "main",
            Self::Hot => "hot",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_reads_as_what_happened_in_its_order() {
        let (peer, took) = ("http://b:8001".to_string(), Duration::from_micros(1_250));
        let asked = Asked { peer, took, error: Some(PeerError::Timeout) };
        let loaded = Some(Duration::from_millis(20));
        assert_eq!(
            Trace { asked: Some(asked.clone()), loaded, ..Trace::default() }.to_string(),
            "http://b:8001 failed in 1.2ms: no answer within the deadline, \
             searched the origin in 20.0ms"
        );
        let asked = Some(Asked { error: None, ..asked });
        let answered = Trace { asked, ..Trace::default() };
        assert_eq!(answered.to_string(), "asked http://b:8001 in 1.2ms");
        let handed_over = Trace { handed_over: answered.asked, ..Trace::default() };
        assert_eq!(handed_over.to_string(), "handed over by http://b:8001 in 1.2ms");
        let hit = Trace { hit: Some(Tier::Hot), ..Trace::default() };
        assert_eq!(hit.to_string(), "hot hit");
        let hit = Trace { renews: true, ..hit };
        assert_eq!(hit.to_string(), "hot hit, due for renewal");
        let stale = Trace { loaded, stale: Some("disk full".into()), ..Trace::default() };
        assert_eq!(stale.to_string(), "searched the origin in 20.0ms, stale: disk full");
    }
}
