//! `Error`: why a call failed; `PeerError`: why a peer did not answer.
//!
//! Which failures does a caller see? Those of its own key and of the origin. A peer that does not
//! answer a get is replaced by the group's own getter, so its error is in logs, traces and counters
//! alone. A removal, which nothing can replace, returns it; so does a get whose owner could not load
//! the key, if the group [does not try as well](crate::GroupBuilder::retry_failed_loads).

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// The longest key in bytes. Also, a key has at least one.
pub const MAX_KEY_BYTES: usize = 16 << 10;

/// Why a call was refused or a get could not be answered.
///
/// "No such key" is not an error but `Ok(None)`. All callers that waited for a load share its error,
/// so it is `Clone`.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// A key has 1 to [`MAX_KEY_BYTES`] bytes; this many were given.
    KeyLength(usize),
    /// The getter failed. `source()` is its error.
    Getter {
        /// The key that was to be loaded.
        key: String,
        /// The getter's error.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The getter panicked. The key is not poisoned: the next get calls it again.
    GetterPanicked {
        /// The key that was to be loaded.
        key: String,
        /// The message of the panic, where it was text.
        message: String,
    },
    /// The load of the key's owner failed, and this process
    /// [does not try as well](crate::GroupBuilder::retry_failed_loads).
    Owner {
        /// The key that was to be loaded.
        key: String,
        /// The owner's name.
        peer: String,
        /// The text of the owner's error, up to 1,024 bytes.
        message: String,
    },
    /// A getter asked for the key that it is loading, or for one whose getter waits for it.
    Recursive {
        /// The key that is being loaded.
        key: String,
    },
    /// Another thread has been loading the key for longer than
    /// [`load_timeout`](crate::GroupBuilder::load_timeout).
    LoadTimeout {
        /// The key that is being loaded.
        key: String,
        /// How long this caller waited.
        waited: Duration,
    },
    /// A key was removed, or a group cleared, but not everywhere: these peers did not confirm it, and
    /// may serve old values until those expire there.
    RemoveIncomplete {
        /// The peers that were not reached, and why.
        failed: Vec<(String, PeerError)>,
    },
    /// A setting that cannot work, and what to do about it.
    Config(String),
    /// The listener could not be set up, or a thread could not be started.
    Io(Arc<std::io::Error>),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyLength(0) => write!(f, "the key is empty: a key is required"),
            Self::KeyLength(n) => {
                write!(f, "a key of {n} bytes: the longest key is {MAX_KEY_BYTES} bytes")
            }
            Self::Getter { key, source } => write!(f, "loading {key:?}: {source}"),
            Self::GetterPanicked { key, message } => {
                write!(f, "loading {key:?}: the getter panicked: {message}")
            }
            Self::Owner { key, peer, message } => {
                write!(f, "loading {key:?}: its owner {peer}: {message}")
            }
            Self::Recursive { key } => {
                write!(f, "loading {key:?}: the getter waits for its own answer")
            }
            Self::LoadTimeout { key, waited } => {
                write!(f, "loading {key:?}: another thread is still at it after {waited:?}")
            }
            Self::RemoveIncomplete { failed } => {
                write!(f, "removed, but not from")?;
                let peers = failed.iter().map(|(peer, why)| format!(" {peer} ({why})"));
                f.write_str(&peers.collect::<Vec<_>>().join(","))
            }
            Self::Config(what) => f.write_str(what),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Getter { source, .. } => Some(&**source),
            Self::Io(error) => Some(&**error),
            _ => None,
        }
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}

/// Why a peer did not answer a get, or did not confirm a removal.
///
/// After a get the group falls back to its own getter; a removal returns it in
/// [`Error::RemoveIncomplete`]. A get or a removal that ends in an error for which
/// [`is_transport`](Self::is_transport) holds also sends an [`HttpPool`](crate::HttpPool)'s peer into
/// a cool-down.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerError {
    /// No connection, a broken one, or something that is not HTTP.
    Transport(String),
    /// The deadline of the whole exchange passed, and the peer answered nobody meanwhile.
    Timeout,
    /// The deadline of the whole exchange passed, though the peer answers others: most likely it waits
    /// for the origin.
    Slow,
    /// The caller's time ran out, but the peer had less than half of it to answer, or was not asked:
    /// the rest went into waiting for a request that other callers share, or for earlier keys of a
    /// batch that were asked for one by one.
    #[doc(alias = "NoTimeLeft")]
    OutOfTime,
    /// The peer failed shortly before and is not asked again until its cool-down ends.
    CoolingDown,
    /// The peer's own load failed, with this text. A group falls back,
    /// [or does not](crate::GroupBuilder::retry_failed_loads).
    LoadFailed(String),
    /// The peer, or a proxy in front of it, answered with this status, which is none of the above.
    Status {
        /// The HTTP status code.
        code: u16,
        /// The beginning of the answer's text.
        text: String,
    },
    /// A server answered that is none of the cluster's nodes: its address may have been given to
    /// another program. Says how that showed.
    Stranger(String),
    /// The peer cannot do this: its [`PeerGetter`](crate::PeerGetter) does not implement removals.
    Unsupported,
    /// The value is larger than the limit between nodes.
    TooLarge {
        /// The limit in bytes.
        limit: u64,
    },
}

impl PeerError {
    /// Whether the peer could not be reached, or answered nobody in time.
    pub fn is_transport(&self) -> bool {
        matches!(self, Self::Transport(_) | Self::Timeout)
    }

    /// Whether the peer refused because it is overloaded or shutting down.
    pub fn is_overload(&self) -> bool {
        matches!(self, Self::Status { code: 503, .. })
    }

    /// Whether the outcome says anything about the peer: `false` if it was not asked, because it
    /// cools down, or was asked with too little time left.
    #[doc(alias = "was_asked")]
    pub fn was_attempted(&self) -> bool {
        !matches!(self, Self::CoolingDown | Self::OutOfTime)
    }
}

impl PeerError {
    /// A word for the kind of error, for logs and metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Transport(_) => "connection",
            Self::Timeout => "timeout",
            Self::Slow => "slow",
            Self::OutOfTime => "out_of_time",
            Self::CoolingDown => "cooling_down",
            Self::LoadFailed(_) => "load_failed",
            Self::Status { code: 401, .. } => "401",
            Self::Status { code: 404, .. } => "404",
            Self::Status { code: 503, .. } => "503",
            Self::Status { .. } => "status",
            Self::Stranger(_) => "stranger",
            Self::Unsupported => "unsupported",
            Self::TooLarge { .. } => "too_large",
        }
    }
}

impl fmt::Display for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(what) => f.write_str(what),
            Self::Timeout => write!(f, "no answer within the deadline"),
            Self::Slow => write!(f, "no answer within the deadline, though it answers others"),
            Self::OutOfTime => write!(f, "too little time was left to ask"),
            Self::CoolingDown => write!(f, "failed shortly before, cooling down"),
            Self::LoadFailed(text) => f.write_str(text),
            Self::Status { code: 401, text } => {
                write!(f, "answered 401: {text}: this node's token is not one of the peer's")
            }
            Self::Status { code, text } => write!(f, "answered {code}: {text}"),
            Self::Stranger(what) => write!(
                f,
                "{what}: not an answer of a geecache node; is the address still the peer's?"
            ),
            Self::Unsupported => write!(f, "does not know this kind of request"),
            Self::TooLarge { limit } => {
                write!(f, "the value is larger than the limit of {limit} bytes")
            }
        }
    }
}

impl std::error::Error for PeerError {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::error::Error as _;

    #[test]
    fn the_error_of_a_getter_keeps_its_source() {
        let error = Error::Getter { key: "Tom".into(), source: Arc::from(Box::from("disk full")) };
        assert_eq!(error.to_string(), "loading \"Tom\": disk full");
        assert_eq!(error.source().unwrap().to_string(), "disk full");
    }

    #[test]
    fn only_an_unreachable_peer_is_a_transport_error() {
        assert!(PeerError::Timeout.is_transport());
        assert!(PeerError::Transport("refused".into()).is_transport());
        assert!(!PeerError::CoolingDown.is_transport() && !PeerError::Slow.is_transport());
        assert!(!PeerError::Status { code: 503, text: String::new() }.is_transport());
        assert!(!PeerError::TooLarge { limit: 1 }.is_transport());
        assert!(PeerError::Status { code: 503, text: String::new() }.is_overload());
        assert!(!PeerError::Status { code: 502, text: String::new() }.is_overload());
    }
}
