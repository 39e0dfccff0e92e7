//! File descriptors: some of those that the process may have are kept from clients and upstreams, so that they cannot
//! leave none for a reload and the admin socket.
//!
//! The kernel hands out the lowest number that is free. A high one therefore says that all below are taken.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// Of the process, as its limit is.
static KEPT: AtomicI32 = AtomicI32::new(i32::MAX);

/// Keeps the descriptors from `first` on; none: no descriptor is kept.
pub fn keep(first: Option<i32>) {
    KEPT.store(first.unwrap_or(i32::MAX), Ordering::Relaxed);
}

/// `socket`, unless its descriptor is one of those kept: then it is closed.
pub fn admit<S: AsRawFd>(socket: S) -> io::Result<S> {
    if socket.as_raw_fd() < KEPT.load(Ordering::Relaxed) {
        Ok(socket)
    } else {
        Err(io::Error::other("too many open files: the last ones are kept for the gateway itself"))
    }
}
