//! `std::thread`, as far as it starts and names threads: shuttle's.

use std::io;

pub use ::real::thread::*;
pub use shuttle::thread::{
    JoinHandle, Scope, ScopedJoinHandle, ThreadId, current, scope, yield_now,
};

#[derive(Debug)]
pub struct Builder;

impl Builder {
    pub fn new() -> Self {
        Self
    }

    pub fn name(self, _name: String) -> Self {
        self
    }

    pub fn spawn<T: Send + 'static>(
        self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<JoinHandle<T>> {
        Ok(shuttle::thread::spawn(work))
    }

    pub fn spawn_scoped<'s, T: Send + 's>(
        self,
        scope: &'s Scope<'s, '_>,
        work: impl FnOnce() -> T + Send + 's,
    ) -> io::Result<ScopedJoinHandle<'s, T>> {
        Ok(scope.spawn(work))
    }
}
