//! A clock that counts the time this machine was suspended. Tokio's does not on Linux.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since some fixed moment before this process began, suspend included.
#[must_use]
pub fn since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let id = ClockId::Boottime;
    // Elsewhere, macOS included, the monotonic clock is the best there is.
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let id = ClockId::Monotonic;
    let now = clock_gettime(id);
    // Neither part is ever negative on these clocks.
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or_default(),
        u32::try_from(now.tv_nsec).unwrap_or_default(),
    )
}
