//! `Clients`: one request of a client is under way at a time, and its others wait for it in order.
//!
//! A client may send requests without waiting for the answers. If each had a worker, one client would
//! have them all; and tiny_http makes each answer wait until the one before it on the same connection is
//! sent.
//!
//! A client is known by its address, since tiny_http tells no more. If it closes its connection in the
//! middle of a request and connects again from the same port, its new requests wait for the old one.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;

pub(super) struct Clients<R> {
    // Guards, for each client with a request under way, its requests that wait.
    waiting: Mutex<HashMap<SocketAddr, VecDeque<R>>>,
}

impl<R> Clients<R> {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default() }
    }

    /// Returns the request if it is under way now, and keeps it if it has to wait for an earlier one.
    pub(super) fn enter(&self, client: SocketAddr, request: R) -> Option<R> {
        match self.waiting.lock().unwrap().entry(client) {
            Entry::Vacant(entry) => {
                entry.insert(VecDeque::new());
                Some(request)
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().push_back(request);
                None
            }
        }
    }

    /// Called when the request under way is answered: returns the next one, which is under way now.
    pub(super) fn next(&self, client: SocketAddr) -> Option<R> {
        let mut waiting = self.waiting.lock().unwrap();
        let next = waiting.get_mut(&client)?.pop_front();
        if next.is_none() {
            waiting.remove(&client);
        }
        next
    }
}
