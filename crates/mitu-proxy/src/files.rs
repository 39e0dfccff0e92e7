//! File descriptors: some of those that the process may have are kept from clients and upstreams, so that they cannot
//! leave none for a reload and the admin socket.
//!
//! The kernel hands out the lowest number that is free. A high one therefore says that all below are taken.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;

/// Of the process, as its limit is.
static KEPT: AtomicI32 = AtomicI32::new(i32::MAX);

/// Keeps the descriptors from `first` on; none: no descriptor is kept.
pub fn keep(first: Option<i32>) {
    KEPT.store(first.unwrap_or(i32::MAX), Ordering::Relaxed);
}

/// `socket`, unless its descriptor is one of those kept: then it is closed.
pub fn admit<S: AsRawFd>(socket: S) -> io::Result<S> {
    if socket.as_raw_fd() < KEPT.load(Ordering::Relaxed) { Ok(socket) } else { Err(io::Error::other(Kept)) }
}

#[derive(Debug, thiserror::Error)]
#[error("too many open files: the last ones are kept for the gateway itself")]
struct Kept;

/// Whether a connection failed because this side has nothing left to make it with: descriptors, or ports.
pub fn is_exhausted(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::EADDRNOTAVAIL | Errno::ENOBUFS | Errno::ENOMEM))
        || error.get_ref().is_some_and(|source| source.is::<Kept>())
}
