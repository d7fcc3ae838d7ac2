//! `std::sync`, as far as threads wait in it: shuttle's.

pub use shuttle::sync::MutexGuard;
use std::time::Duration;

pub use ::real::sync::*;

#[derive(Debug, Default)]
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub fn new(value: T) -> Self {
        Self(shuttle::sync::Mutex::new(value))
    }

    /// Never poisoned: to std all threads here are one, so that where one unwinds all seem to.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        Ok(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self::default()
    }

    /// There is no time here. A wait lasts until it is notified, or, with no patience at all, ends
    /// at once; since others run before it as long as the scheduler likes, that stands for every
    /// moment at which patience can end.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        patience: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        if patience.is_zero() {
            let timed_out = condition(&mut guard);
            return Ok((guard, timed_out));
        }
        // Not shuttle's own loop, which ends when it finds the mutex poisoned.
        while condition(&mut guard) {
            guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        Ok((guard, false))
    }

    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
