//! What the load itself costs.

use std::fs;
use std::time::Duration;

/// This thread's time on a CPU, from the scheduler; none where the kernel does not say.
pub fn of_this_thread() -> Option<Duration> {
    let schedstat = fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    schedstat.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}
