//! `Clients`: one request of a client is under way at a time, and the others wait for it in order.
//!
//! A client may send requests without waiting for the answers. If each had a worker, one client
//! would have them all; and tiny_http makes each answer wait until the one before it on the same
//! connection is sent.
//!
//! tiny_http tells the address of a client, and not its connection. A client that gives up a slow
//! request by a reset, as proxies do, may connect again from the same port. Then a request waits
//! for one that is on another connection, and dead. So a request that has waited for a moment is
//! *probed*: a thread waits until it is its turn to be answered on its own connection. If that is
//! so before the earlier request is answered, the connection is another one.
//!
//! The same tells what may be answered after an answer that was sent in part, because the client
//! did not read. Whatever followed it on that connection would be taken for the rest of it. So its
//! writer is kept, and as long as it is nothing else gets its turn on that connection. A later
//! request that does get its turn is on a new one. A later request that does not is dropped, and
//! its own writer kept.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tiny_http::Request;

use super::reply::Sent;
use super::request::{Connection, Writer, client_of};

/// A probe that takes longer is behind an answer that was sent in part.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Clients {
    // Guards the clients that have a request under way or an answer in part.
    clients: Mutex<HashMap<SocketAddr, Client>>,
    /// How many connections have been numbered.
    connections: AtomicU64,
    /// A connection that was silent for so long has been closed.
    idle_timeout: Duration,
}

struct Client {
    /// The number of the connection whose request is under way; a request of an older one, which
    /// still runs, does not count any more.
    connection: u64,
    waiting: VecDeque<Request>,
    probe: Option<Probe>,
    /// The writer of an answer that was sent in part, those of requests behind it that were dropped,
    /// and since when.
    part: Option<(Vec<Writer>, Instant)>,
}

enum Probe {
    /// The request may still be without a thread, or without its body.
    Begun,
    /// Since when it waits for its turn.
    Waits(Instant),
    /// It has its turn only because the part before it was dropped.
    BehindPart,
}

/// What follows an answer.
pub(super) enum Next {
    None,
    /// The client's next request, which is under way now.
    UnderWay(Request),
    /// Requests that must not be answered; their writers are to be [kept](Clients::keep).
    Dropped(VecDeque<Request>),
}

impl Clients {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { clients: Mutex::default(), connections: AtomicU64::default(), idle_timeout }
    }

    /// Takes a request that has been received, and returns it if it is under way now. `None` if it
    /// waits for an earlier one of its client.
    pub(super) fn accept(&self, request: Request) -> Option<(Request, Connection)> {
        let client = client_of(&request);
        match self.clients.lock().unwrap().entry(client) {
            Entry::Vacant(entry) => {
                let number = self.number();
                let waiting = VecDeque::new();
                entry.insert(Client { connection: number, waiting, probe: None, part: None });
                Some((request, Connection { client, number }))
            }
            Entry::Occupied(mut entry) => {
                entry.get_mut().waiting.push_back(request);
                None
            }
        }
    }

    /// Whether nothing may be sent to `client` unless a probe has shown that it may.
    pub(super) fn has_part(&self, client: SocketAddr) -> bool {
        self.clients.lock().unwrap().get(&client).is_some_and(|client| client.part.is_some())
    }

    /// A request has been answered.
    pub(super) fn answered(&self, connection: Connection, sent: Sent) -> Next {
        let mut clients = self.clients.lock().unwrap();
        let Some(client) = clients.get_mut(&connection.client) else { return Next::None };
        if client.connection != connection.number {
            return Next::None;
        }
        if let Sent::Part(writer) = sent {
            client.part = Some((vec![writer], Instant::now()));
            // Those came on the same connection: it is alive, so no other has its address.
            return Next::Dropped(mem::take(&mut client.waiting));
        }
        if client.probe.is_some() {
            return Next::None; // that is the next one, and goes on by itself
        }
        match client.waiting.pop_front() {
            Some(next) => Next::UnderWay(next),
            None => {
                clients.remove(&connection.client);
                Next::None
            }
        }
    }

    /// Keeps the writers of requests that came behind an answer that was sent in part.
    pub(super) fn keep(&self, client: SocketAddr, writers: Vec<Writer>) {
        let mut clients = self.clients.lock().unwrap();
        if let Some((kept, since)) =
            clients.get_mut(&client).and_then(|client| client.part.as_mut())
        {
            kept.extend(writers);
            *since = Instant::now();
        }
    }

    /// The request of `client` that is to be probed.
    pub(super) fn next_to_probe(&self, client: SocketAddr) -> Option<Request> {
        let mut clients = self.clients.lock().unwrap();
        let client = clients.get_mut(&client)?;
        let next = client.waiting.pop_front();
        if next.is_none() {
            // An answer was sent in part meanwhile, and all that waited was dropped.
            client.probe = None;
        }
        next
    }

    /// The request that is probed begins to wait for its turn.
    pub(super) fn waits_for_turn(&self, client: SocketAddr) {
        if let Some(client) = self.clients.lock().unwrap().get_mut(&client) {
            client.probe = Some(Probe::Waits(Instant::now()));
        }
    }

    /// The request that is probed has its turn: returns its connection. `None` if it must not be
    /// answered, since an earlier answer on the same connection was sent in part.
    pub(super) fn has_turn(
        &self,
        client: SocketAddr,
        writer: Writer,
    ) -> Option<(Connection, Writer)> {
        let mut clients = self.clients.lock().unwrap();
        let state = clients.get_mut(&client)?;
        if let Some(Probe::BehindPart) = state.probe.take() {
            state.part = Some((vec![writer], Instant::now()));
            return None;
        }
        let number = self.number();
        state.connection = number;
        let part = state.part.take();
        drop(clients);
        // Its connection is dead: two that are alive never have the same address.
        drop(part);
        Some((Connection { client, number }, writer))
    }

    /// Looks, about once a second, after clients that wait: returns those to be
    /// [probed](Self::next_to_probe).
    pub(super) fn look_after(&self) -> Vec<SocketAddr> {
        let (mut to_probe, mut parts) = (Vec::new(), Vec::new());
        let closed = self.idle_timeout + Duration::from_secs(5);
        let mut clients = self.clients.lock().unwrap();
        for (address, client) in clients.iter_mut() {
            match client.probe {
                Some(Probe::Waits(since))
                    if client.part.is_some() && since.elapsed() >= PROBE_TIMEOUT =>
                {
                    client.probe = Some(Probe::BehindPart);
                    parts.extend(client.part.take());
                }
                None if !client.waiting.is_empty() => {
                    client.probe = Some(Probe::Begun);
                    to_probe.push(*address);
                }
                _ => {}
            }
        }
        clients.retain(|_, client| {
            let part = client.part.as_ref().filter(|_| client.probe.is_none());
            let is_over = part.is_some_and(|(_, since)| since.elapsed() > closed);
            if is_over {
                parts.extend(client.part.take());
            }
            !is_over
        });
        drop(clients);
        drop(parts);
        to_probe
    }

    fn number(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use tiny_http::TestRequest;

    #[test]
    fn a_client_whose_probe_finds_nothing_is_probed_again() {
        let clients = Clients::new(Duration::from_secs(15));
        let request = || Request::from(TestRequest::new());
        let (_, connection) = clients.accept(request()).unwrap();
        let client = connection.client;
        assert!(clients.accept(request()).is_none());
        assert_eq!(clients.look_after(), [client]);
        // Before the probe has a thread, the first answer is sent in part.
        let next = clients.answered(connection, Sent::Part(Box::new(io::sink())));
        assert!(matches!(next, Next::Dropped(requests) if requests.len() == 1));
        assert!(clients.next_to_probe(client).is_none());
        // A new connection from the same address.
        assert!(clients.accept(request()).is_none());
        assert_eq!(clients.look_after(), [client]);
        assert!(clients.next_to_probe(client).is_some());
    }
}
