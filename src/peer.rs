//! `PeerPicker` and `PeerGetter`: the seam between a group and the network.
//!
//! What does a group need to know of the other processes? Which of them owns a key, and how to
//! ask it. [`HttpPool`](crate::HttpPool) implements both over HTTP; `examples/by_hand.rs` does so
//! without a network.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::{Loaded, PeerError};

/// A removal reaches all nodes that are in the list from so long before it until so long after it. Twice
/// as long as an earlier owner is asked for a key, since lists do not change everywhere at the same
/// time: no node may take a value over from one that removals no longer reach.
pub(crate) const LATELY: Duration = Duration::from_secs(60);

/// Knows which peer owns a key.
pub trait PeerPicker: Send + Sync {
    /// The peer that owns `key`; `None` if this process does, or if there are no peers.
    #[doc(alias = "PickPeer")]
    fn pick(&self, key: &str) -> Option<Arc<dyn PeerGetter>>;

    /// Takes a function that is to be called after each change of the list of peers, without locks. The
    /// group keeps it for as long as it lives. By it a group repeats its last removals and parts with
    /// values whose keys it no longer owns. Default: not called, as is right if the list never changes.
    fn on_change(&self, changed: Weak<dyn Fn() + Send + Sync>) {
        drop(changed);
    }

    /// The peers other than its owner that owned `key` by the lists of the last
    /// [30 seconds](crate::PoolOptions::handover), up to three of them, the last one first; also those that
    /// have left.
    /// Before this process loads a key as its owner, it asks them for the values in their
    /// [caches](PeerGetter::get_cached). Default: none.
    fn former(&self, key: &str) -> Vec<Arc<dyn PeerGetter>> {
        let _ = key;
        Vec::new()
    }

    /// The peers that a removal has to reach: all except this process, and those that have left the list
    /// in the last minute. Default: none.
    fn others(&self) -> Vec<Arc<dyn PeerGetter>> {
        Vec::new()
    }
}

/// Asks one peer.
///
/// An implementation must return within a bounded time, with an error if need be: every caller of
/// the key waits for it.
pub trait PeerGetter: Send + Sync {
    /// The peer's name, as logs, errors and metrics show it.
    fn name(&self) -> &str;

    /// The value of `key` in `group`, with its remaining time to live as the peer told it; `Ok(None)` if the peer knows
    /// that there is no such key. After an error the group falls back to its own getter.
    fn get(&self, group: &str, key: &str) -> Result<Option<Loaded>, PeerError>;

    /// The same for many keys, in their order, one answer for each. Default: one after the other.
    fn get_many(&self, group: &str, keys: &[&str]) -> Vec<Result<Option<Loaded>, PeerError>> {
        keys.iter().map(|key| self.get(group, key)).collect()
    }

    /// The values of those keys that the peer has in its cache, within `timeout`: see
    /// [`Group::answer_cached`]. Default: nothing.
    ///
    /// [`Group::answer_cached`]: crate::Group::answer_cached
    fn get_cached(&self, group: &str, keys: &[&str], timeout: Duration) -> Vec<Option<Loaded>> {
        let _ = (group, timeout);
        keys.iter().map(|_| None).collect()
    }

    /// Whether the peer answered when it was last asked, or was never asked; for
    /// [`Group::stats`](crate::Group::stats). Default: `true`.
    fn is_up(&self) -> bool {
        true
    }

    /// Drops the peer's own copies of `key`; see [`Group::answer_removal`]. Default: an error.
    ///
    /// [`Group::answer_removal`]: crate::Group::answer_removal
    fn remove(&self, group: &str, key: &str) -> Result<(), PeerError> {
        let _ = (group, key);
        Err(PeerError::Unsupported)
    }

    /// Drops everything that the peer keeps of `group`; see [`Group::answer_clear`]. Default: an error.
    ///
    /// [`Group::answer_clear`]: crate::Group::answer_clear
    fn clear(&self, group: &str) -> Result<(), PeerError> {
        let _ = group;
        Err(PeerError::Unsupported)
    }
}

/// The picker of a group without peers: this process owns every key.
pub(crate) struct NoPeers;

impl PeerPicker for NoPeers {
    fn pick(&self, _key: &str) -> Option<Arc<dyn PeerGetter>> {
        None
    }
}
