//! `Sparing`: ureq's connections with a fifth of the system calls.
//!
//! For each request ureq sets both time-outs of the socket anew, since a little less time is
//! left than for the last one, and asks twice whether the connection is still open, with three
//! calls each. A small request takes one write and one read; the other eight calls cost as much.
//! So the time that is left is rounded up, which makes it the same as before, and a connection
//! on which something came a moment ago is taken to be open.
//!
//! A request with a body takes two writes, and the peer is woken by the first for nothing. So what
//! is written is held back until an answer is awaited; above TLS, so that it is one record too.

use std::time::{Duration, Instant};

use ureq::Error;
use ureq::unversioned::transport::time::Duration as Left;
use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// A connection that was in use this shortly before is not tested. Not longer: a peer that restarts
/// closes connections that were just in use.
const A_MOMENT: Duration = Duration::from_millis(1);

/// Wraps the connection that the connector before it in the chain has made.
#[derive(Debug)]
pub(super) struct Sparing {
    /// To what a time that is left is rounded up: by so much may a deadline be late.
    pub(super) step: Duration,
}

#[derive(Debug)]
pub(super) struct Spared<T> {
    inner: T,
    step: Duration,
    last_use: Instant,
}

impl<T: Transport> Connector<T> for Sparing {
    type Out = Spared<T>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Spared<T>>, Error> {
        let spare = |inner| Spared { inner, step: self.step, last_use: Instant::now() };
        Ok(chained.map(spare))
    }
}

impl<T: Transport> Spared<T> {
    fn rounded(&self, timeout: NextTimeout) -> NextTimeout {
        let after = match timeout.after {
            Left::Exact(left) if !left.is_zero() => Left::Exact(round_up(left, self.step)),
            after => after,
        };
        NextTimeout { after, ..timeout }
    }
}

impl<T: Transport> Transport for Spared<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        self.inner.transmit_output(amount, self.rounded(timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let progress = self.inner.await_input(self.rounded(timeout))?;
        self.last_use = Instant::now();
        Ok(progress)
    }

    fn is_open(&mut self) -> bool {
        self.last_use.elapsed() < A_MOMENT || self.inner.is_open()
    }
}

fn round_up(left: Duration, step: Duration) -> Duration {
    let steps = left.as_nanos().div_ceil(step.as_nanos());
    step.saturating_mul(u32::try_from(steps).unwrap_or(u32::MAX))
}

/// Wraps the last connection of the chain.
#[derive(Debug)]
pub(super) struct Holding;

/// So many bytes are held back at the most.
const MOST_HELD: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Held<T> {
    inner: T,
    // Written and not sent.
    held: Vec<u8>,
}

impl<T: Transport> Connector<T> for Holding {
    type Out = Held<T>;

    fn connect(
        &self,
        _details: &ConnectionDetails<'_>,
        chained: Option<T>,
    ) -> Result<Option<Held<T>>, Error> {
        Ok(chained.map(|inner| Held { inner, held: Vec::new() }))
    }
}

impl<T: Transport> Held<T> {
    fn send_held(&mut self, timeout: NextTimeout) -> Result<(), Error> {
        let length = self.held.len();
        if length == 0 {
            return Ok(());
        }
        self.inner.buffers().output()[..length].copy_from_slice(&self.held);
        self.held.clear();
        self.inner.transmit_output(length, timeout)
    }
}

impl<T: Transport> Transport for Held<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let output = &self.inner.buffers().output()[..amount];
        if self.held.len() + amount <= MOST_HELD {
            self.held.extend_from_slice(output);
            return Ok(());
        }
        // What is held is sent through the same buffer.
        let output = output.to_vec();
        self.send_held(timeout)?;
        self.inner.buffers().output()[..amount].copy_from_slice(&output);
        self.inner.transmit_output(amount, timeout)
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        self.send_held(timeout)?;
        self.inner.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::unversioned::transport::LazyBuffers;

    #[derive(Debug)]
    struct Wire {
        buffers: LazyBuffers,
        sent: Vec<Vec<u8>>,
    }

    impl Transport for Wire {
        fn buffers(&mut self) -> &mut dyn Buffers {
            &mut self.buffers
        }

        fn transmit_output(&mut self, amount: usize, _: NextTimeout) -> Result<(), Error> {
            self.sent.push(self.buffers.output()[..amount].to_vec());
            Ok(())
        }

        fn await_input(&mut self, _: NextTimeout) -> Result<bool, Error> {
            Ok(true)
        }

        fn is_open(&mut self) -> bool {
            true
        }
    }

    impl Held<Wire> {
        fn write(&mut self, bytes: &[u8]) {
            self.buffers().output()[..bytes.len()].copy_from_slice(bytes);
            self.transmit_output(bytes.len(), NextTimeout::default()).unwrap();
        }

        fn read(&mut self) -> Vec<Vec<u8>> {
            assert!(self.await_input(NextTimeout::default()).unwrap());
            std::mem::take(&mut self.inner.sent)
        }
    }

    #[test]
    fn what_is_written_leaves_together_when_an_answer_is_awaited() {
        let wire = Wire { buffers: LazyBuffers::new(1 << 10, 2 * MOST_HELD), sent: vec![] };
        let mut held = Held { inner: wire, held: vec![] };
        held.write(b"head, ");
        held.write(b"body");
        assert!(held.inner.sent.is_empty());
        assert_eq!(held.read(), [b"head, body"]);
        assert_eq!(held.read(), [[0; 0]; 0], "nothing is sent twice");

        // What is long leaves in time, and in order.
        let long = vec![b'x'; 2 * MOST_HELD];
        held.write(b"head");
        held.write(&long);
        held.write(b"end");
        assert_eq!(held.inner.sent.concat(), [b"head", &long[..]].concat());
        assert_eq!(held.read().concat(), [b"head", &long[..], b"end"].concat());
    }

    #[test]
    fn what_is_left_is_rounded_up_by_less_than_a_step() {
        let millis = Duration::from_millis;
        for (left, rounded) in
            [(3_000, 3_000), (2_999, 3_000), (2_801, 3_000), (2_800, 2_800), (1, 200)]
        {
            assert_eq!(round_up(millis(left), millis(200)), millis(rounded));
        }
    }
}
