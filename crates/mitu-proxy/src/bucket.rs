//! A token bucket, kept as the time at which it is full again (the generic cell rate algorithm, ITU-T I.371).

use std::time::Duration;

/// How fast a bucket fills, and how much it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bucket {
    /// One token comes in this time.
    pub every: Duration,
    /// How long an empty one takes to fill, but for the token that is asked for.
    burst: Duration,
}

impl Bucket {
    /// `burst`: the tokens of a full one, which always has room for one.
    pub fn new(every: Duration, burst: u32) -> Self {
        Self { every, burst: every.saturating_mul(burst.saturating_sub(1)) }
    }

    /// Takes a token from a bucket that is full again in `full_in`, and tells in how long it is now; `Err`: in how long
    /// there is one to take.
    pub fn take(&self, full_in: Duration) -> Result<Duration, Duration> {
        if full_in <= self.burst { Ok(full_in + self.every) } else { Err(full_in - self.burst) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_says_when_the_next_token_comes() {
        let bucket = Bucket::new(Duration::from_secs(12), 3);
        let mut full_in = Duration::ZERO;
        for _ in 0..3 {
            full_in = bucket.take(full_in).unwrap_or_default();
        }
        assert_eq!(full_in, Duration::from_secs(36));
        assert_eq!(bucket.take(full_in), Err(Duration::from_secs(12)));
        assert_eq!(bucket.take(full_in - Duration::from_secs(11)), Err(Duration::from_secs(1)));
        assert_eq!(bucket.take(full_in - Duration::from_secs(12)), Ok(full_in));
    }
}
