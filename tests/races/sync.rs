//! `std::sync`, as far as threads wait in it: shuttle's.

use std::ops::{Deref, DerefMut};
use std::thread;
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
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(MutexGuard { mutex: self, guard })
    }
}

/// Knows its mutex, to lock it once more.
pub struct MutexGuard<'a, T> {
    mutex: &'a Mutex<T>,
    guard: shuttle::sync::MutexGuard<'a, T>,
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[derive(Debug, Default)]
pub struct Condvar(shuttle::sync::Condvar);

impl Condvar {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn wait_while<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        let (guard, _) = self.wait_timeout_while(guard, Duration::MAX, condition).unwrap();
        Ok(guard)
    }

    /// There is no time here. A wait lasts until it is notified, or, with no patience to speak of,
    /// ends when it comes to its turn again; since others run before that as long as the scheduler
    /// likes, it stands for every moment at which patience can end.
    pub fn wait_timeout_while<'a, T>(
        &self,
        mut guard: MutexGuard<'a, T>,
        patience: Duration,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<(MutexGuard<'a, T>, bool)> {
        let mutex = guard.mutex;
        if patience <= Duration::from_nanos(1) {
            drop(guard);
            thread::yield_now();
            let mut guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
            let timed_out = condition(&mut guard);
            return Ok((guard, timed_out));
        }
        // Not shuttle's own loop, which ends when it finds the mutex poisoned.
        while condition(&mut guard) {
            let waited = self.0.wait(guard.guard).unwrap_or_else(PoisonError::into_inner);
            guard = MutexGuard { mutex, guard: waited };
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
