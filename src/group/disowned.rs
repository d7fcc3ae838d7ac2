//! Disowned keys: what the main cache has of keys that another node owns ends soon.
//!
//! A removal that cannot reach this node leaves an old value here, for
//! [`hot_ttl`](crate::GroupBuilder::hot_ttl) if it is a copy of another node's key. But after the
//! list of peers has changed, the main cache has values of keys that now belong to another node, and
//! these would stay until they are evicted. So whenever the list changes, and whenever a value is
//! put into the main cache, those of other nodes' keys get an end like that of a copy.
//!
//! Neither of the two is enough alone:
//!
//! 1. Thread A wants a key that this node owns, and loads it.
//! 2. Thread B changes the list. Another node owns the key; the main cache does not have it yet.
//! 3. A keeps its value in the main cache, and asks once more who owns the key.

use super::Group;
use crate::cache::{Key, Record};

impl Group {
    /// Limits the life of all values whose keys another node owns.
    pub(super) fn limit_disowned(&self) {
        self.main.visit(|record| self.limit_if_disowned(&Key::new(record.key(), &self.hasher)));
    }

    /// Limits the life of the value of `key`, if another node owns it.
    pub(super) fn limit_if_disowned(&self, key: &Key<'_>) {
        if self.peers.pick(key.text).is_none() {
            return;
        }
        let lease = self.main.lease(key);
        let end = self.clock.now().saturating_add(self.hot_ttl);
        let is_longer = |record: &Record| record.expires().is_none_or(|at| at > end);
        if let Some(record) = self.main.peek(key).filter(is_longer) {
            self.main.insert(key, record.until(end), lease);
        }
    }
}
