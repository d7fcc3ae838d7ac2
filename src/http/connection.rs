//! `Sparing`: ureq's connections with a fifth of the system calls.
//!
//! For each request ureq sets both time-outs of the socket anew, since a little less time is
//! left than for the last one, and asks twice whether the connection is still open, with three
//! calls each. A small request takes one write and one read; the other eight calls cost as much.
//! So the time that is left is rounded up, which makes it the same as before, and a connection
//! on which something came a moment ago is taken to be open.

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

#[cfg(test)]
mod tests {
    use super::*;

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
