//! `Addresses`: where a peer's name leads.
//!
//! A look-up by the system's resolver blocks for as long as that likes, and what it found holds for a
//! while only. So it is made on a thread of its own, for all callers together. A get waits for it if
//! no address is known; once one is, it is looked up again in the background: every
//! [`LOOK_UP_AGAIN`], and after a failure.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{fmt, io, thread};

use log::{debug, info};

use crate::clock::Clock;

/// A name whose address is in use is looked up again after this time.
pub(super) const LOOK_UP_AGAIN: Duration = Duration::from_secs(30);

/// What a look-up returns.
type Found = io::Result<Vec<SocketAddr>>;

/// Looks up `host:port` by the system's resolver.
pub(super) fn by_system(name: &str) -> Found {
    Ok(name.to_socket_addrs()?.collect())
}

/// The addresses of one peer. Clones share them.
#[derive(Clone)]
pub(super) struct Addresses(Arc<Shared>);

impl fmt::Debug for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Addresses of {}", self.0.name)
    }
}

struct Shared {
    /// `host:port`.
    name: String,
    is_numeric: bool,
    look_up: Box<dyn Fn(&str) -> Found + Send + Sync>,
    when_changed: Box<dyn Fn() + Send + Sync>,
    clock: Clock,
    // Guards what is known. Not held during a look-up.
    state: Mutex<State>,
    looked_up: Condvar,
}

#[derive(Default)]
struct State {
    /// IPv4 first, where a node called `localhost` listens first. Empty: nothing is known.
    known: Vec<SocketAddr>,
    /// When the name is looked up again, if it is in use.
    due: Duration,
    is_looking: bool,
    /// Why the last look-up found nothing.
    error: String,
}

impl Addresses {
    /// The addresses of `host:port`, as `look_up` finds them. `when_changed` is called after they have
    /// changed.
    pub(super) fn new(
        name: String,
        clock: Clock,
        look_up: impl Fn(&str) -> Found + Send + Sync + 'static,
        when_changed: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let known: Vec<SocketAddr> = name.parse().into_iter().collect();
        Self(Arc::new(Shared {
            is_numeric: !known.is_empty(),
            name,
            look_up: Box::new(look_up),
            when_changed: Box::new(when_changed),
            clock,
            state: Mutex::new(State { known, ..State::default() }),
            looked_up: Condvar::new(),
        }))
    }

    /// The addresses. Waits for up to `patience` if none is known.
    pub(super) fn get(&self, patience: Duration) -> io::Result<Vec<SocketAddr>> {
        let shared = &self.0;
        let mut state = shared.state.lock().unwrap();
        let is_due = state.known.is_empty() || shared.clock.now() >= state.due;
        if is_due && !shared.is_numeric && !state.is_looking {
            let looking = self.0.clone();
            let thread = thread::Builder::new().name("geecache-look-up".into());
            match thread.spawn(move || looking.look_up()) {
                Ok(_) => state.is_looking = true,
                // For want of a thread. What is known serves on, and the next get tries again.
                Err(error) if state.known.is_empty() => return Err(error),
                Err(_) => {}
            }
        }
        let is_waiting = |state: &mut State| state.known.is_empty() && state.is_looking;
        let (state, _) = shared.looked_up.wait_timeout_while(state, patience, is_waiting).unwrap();
        if !state.known.is_empty() {
            return Ok(state.known.clone());
        }
        let kind = if state.is_looking { io::ErrorKind::TimedOut } else { io::ErrorKind::NotFound };
        Err(io::Error::new(kind, format!("looking up {}: {}", shared.name, state.error)))
    }

    /// A question to these addresses has failed: the name is looked up again when it is next used.
    pub(super) fn doubt(&self) {
        self.0.state.lock().unwrap().due = Duration::ZERO;
    }
}

impl Shared {
    fn look_up(&self) {
        let found = (self.look_up)(&self.name).and_then(|mut found| {
            found.sort_by_key(|address| (address.is_ipv6(), *address));
            found.dedup();
            if found.is_empty() { Err(io::Error::other("no address")) } else { Ok(found) }
        });
        let mut state = self.state.lock().unwrap();
        state.is_looking = false;
        state.due = self.clock.now() + LOOK_UP_AGAIN;
        let mut has_changed = false;
        match found {
            Ok(found) => {
                has_changed = !state.known.is_empty() && state.known != found;
                if has_changed {
                    info!("{} leads to {found:?} now, before to {:?}", self.name, state.known);
                }
                state.known = found;
            }
            Err(error) => {
                debug!("looking up {}: {error}", self.name);
                state.error = error.to_string();
            }
        }
        drop(state);
        self.looked_up.notify_all();
        if has_changed {
            (self.when_changed)();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    const LONG: Duration = Duration::from_secs(30);

    /// Looks up what the sender is given, one after the other. The receiver hears of changes.
    fn by_hand() -> (Addresses, Clock, Sender<Found>, Receiver<()>) {
        let (clock, (give, given), (tell, told)) = (Clock::by_hand(), bounded(0), unbounded());
        let look_up = move |_: &str| given.recv_timeout(LONG).unwrap();
        let changed = move || tell.send(()).unwrap();
        let addresses = Addresses::new("b:8001".into(), clock.clone(), look_up, changed);
        (addresses, clock, give, told)
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_numeric_address_is_not_looked_up() {
        for name in ["127.0.0.1:8001", "[::1]:8001"] {
            let look_up = |_: &str| unreachable!();
            let addresses = Addresses::new(name.into(), Clock::by_hand(), look_up, || {});
            addresses.doubt();
            assert_eq!(addresses.get(Duration::ZERO).unwrap(), [name.parse().unwrap()]);
        }
    }

    #[test]
    fn only_the_first_get_waits_and_later_changes_are_followed() {
        let (addresses, clock, give, changes) = by_hand();
        let error = addresses.get(Duration::from_millis(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| addresses.get(LONG).unwrap());
            give.send_timeout(Ok(vec![address(1)]), LONG).unwrap();
            assert_eq!(waiting.join().unwrap(), [address(1)]);
        });
        clock.advance(LOOK_UP_AGAIN - Duration::from_millis(1));
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(1)]);
        let nobody_looks = give.send_timeout(Ok(vec![]), Duration::from_millis(1));
        assert!(nobody_looks.is_err(), "it is not due yet");
        clock.advance(Duration::from_millis(1));
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(1)], "nobody waits");
        give.send_timeout(Ok(vec![address(2)]), LONG).unwrap();
        changes.recv_timeout(LONG).unwrap();
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(2)]);
    }

    #[test]
    fn after_a_failure_it_is_looked_up_again_and_what_is_known_serves_until_something_is_found() {
        let (addresses, _, give, changes) = by_hand();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| addresses.get(LONG));
            give.send_timeout(Err(io::Error::other("no such host")), LONG).unwrap();
            let error = waiting.join().unwrap().unwrap_err();
            assert_eq!(error.to_string(), "looking up b:8001: no such host");
            let waiting = scope.spawn(|| addresses.get(LONG));
            give.send_timeout(Ok(vec![address(1)]), LONG).unwrap();
            waiting.join().unwrap().unwrap();
        });
        for found in [Ok(vec![]), Ok(vec![address(1)]), Ok(vec![address(2)])] {
            addresses.doubt();
            assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(1)]);
            give.send_timeout(found, LONG).unwrap();
            // The look-up has ended when the next one can begin.
            while addresses.0.state.lock().unwrap().is_looking {
                thread::yield_now();
            }
        }
        changes.recv_timeout(LONG).unwrap();
        assert!(changes.is_empty(), "the same address is no change");
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(2)]);
    }
}
