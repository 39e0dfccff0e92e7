//! The `Date` of responses.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

thread_local! {
    /// The second since the epoch, and how it is written.
    static DATE: Cell<(u64, [u8; 29])> = const { Cell::new((0, [b' '; 29])) };
}

/// This second, written once for all responses in it (RFC 9110, section 5.6.7).
pub fn now() -> [u8; 29] {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (second, text) = DATE.get();
    if second == now {
        return text;
    }
    let formatted = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
    let text = formatted.as_bytes().try_into().unwrap_or(text);
    DATE.set((now, text));
    text
}
