//! `Addresses`: where a peer's name leads.
//!
//! A look-up by the system's resolver blocks for as long as that likes, and its result holds for a while
//! only. So it is made on a thread of its own, for all callers together. A get waits for it for a
//! moment, and only if no address is known; once one is, it is looked up again in the background: every
//! [`LOOK_UP_AGAIN`], and after a failure. A numeric address is never looked up.

use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;
use std::{fmt, io, thread};

use log::debug;
use ureq::http::Uri;

use crate::clock::Clock;

/// A name whose address is in use is looked up again after this time.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(30);

/// The result of a look-up.
type Found = io::Result<Vec<SocketAddr>>;

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
    look_up: Box<dyn Fn(&str) -> Found + Send + Sync>,
    clock: Clock,
    // Guards the known addresses. Not held during a look-up.
    state: Mutex<State>,
    looked_up: Condvar,
}

#[derive(Default)]
struct State {
    /// IPv4 first, where a node called `localhost` listens first. Empty: nothing is known.
    known: Vec<SocketAddr>,
    /// When the name is looked up again, if it is in use. `None`: never, since it is numeric.
    due: Option<Duration>,
    is_looking: bool,
    /// Why the last look-up found nothing.
    error: String,
}

impl Addresses {
    /// The addresses of the host of `url`, as the system's resolver finds them.
    pub(super) fn of(url: &str, clock: Clock) -> Self {
        let uri: Uri = url.parse().expect("the pool checks it");
        let authority = uri.authority().expect("the pool checks it");
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let name = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(default));
        Self::new(name, clock, |name| Ok(name.to_socket_addrs()?.collect()))
    }

    /// The addresses of `host:port`, as `look_up` finds them.
    fn new(
        name: String,
        clock: Clock,
        look_up: impl Fn(&str) -> Found + Send + Sync + 'static,
    ) -> Self {
        let known: Vec<SocketAddr> = name.parse().into_iter().collect();
        let state = Mutex::new(State { known, ..State::default() });
        let look_up = Box::new(look_up);
        Self(Arc::new(Shared { name, look_up, clock, state, looked_up: Condvar::new() }))
    }

    /// The addresses. Waits for up to `patience` if none is known.
    pub(super) fn get(&self, patience: Duration) -> io::Result<Vec<SocketAddr>> {
        let shared = &self.0;
        let mut state = shared.state.lock().unwrap();
        let now = shared.clock.now();
        let is_due = state.known.is_empty() || state.due.is_some_and(|due| now >= due);
        if is_due && !state.is_looking {
            let looking = self.0.clone();
            let thread = thread::Builder::new().name("geecache-look-up".into());
            match thread.spawn(move || looking.look_up()) {
                Ok(_) => state.is_looking = true,
                // For want of a thread. The known addresses serve on, and the next get tries again.
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
        let mut state = self.0.state.lock().unwrap();
        state.due = state.due.and(Some(Duration::ZERO));
    }
}

impl Shared {
    fn look_up(&self) {
        let found = (self.look_up)(&self.name).and_then(|mut found| {
            found.sort_by_key(|address| (address.is_ipv6(), *address));
            found.dedup();
            if found.is_empty() { Err(io::Error::other("no address")) } else { Ok(found) }
        });
        debug!("looking up {}: {found:?}", self.name);
        let mut state = self.state.lock().unwrap();
        state.is_looking = false;
        state.due = Some(self.clock.now() + LOOK_UP_AGAIN);
        match found {
            Ok(found) => state.known = found,
            Err(error) => state.error = error.to_string(),
        }
        drop(state);
        self.looked_up.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{Sender, bounded};

    const LONG: Duration = Duration::from_secs(30);

    /// Looks up what the sender is given, one after the other.
    fn by_hand() -> (Addresses, Clock, Sender<Found>) {
        let (clock, (give, given)) = (Clock::by_hand(), bounded(0));
        let look_up = move |_: &str| given.recv_timeout(LONG).unwrap();
        (Addresses::new("b:8001".into(), clock.clone(), look_up), clock, give)
    }

    impl Addresses {
        /// Waits until no look-up is under way.
        fn rest(&self) {
            while self.0.state.lock().unwrap().is_looking {
                thread::yield_now();
            }
        }
    }

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    #[test]
    fn a_numeric_address_is_not_looked_up() {
        for name in ["127.0.0.1:8001", "[::1]:8001"] {
            let look_up = |_: &str| unreachable!();
            let addresses = Addresses::new(name.into(), Clock::by_hand(), look_up);
            addresses.doubt();
            assert_eq!(addresses.get(Duration::ZERO).unwrap(), [name.parse().unwrap()]);
        }
    }

    #[test]
    fn only_the_first_get_waits_and_later_changes_are_followed() {
        let (addresses, clock, give) = by_hand();
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
        addresses.rest();
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(2)]);
    }

    #[test]
    fn after_a_failure_it_is_looked_up_again_and_what_is_known_serves_until_something_is_found() {
        let (addresses, _, give) = by_hand();
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
            addresses.rest();
        }
        assert_eq!(addresses.get(Duration::ZERO).unwrap(), [address(2)]);
    }
}
