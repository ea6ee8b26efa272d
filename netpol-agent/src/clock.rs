//! Clocks of the kernel.

use std::time::{Duration, SystemTime};

/// Returns the CPU time of this thread. It measures what a computation costs: unlike the elapsed time, it excludes the
/// time in which the thread waits for a CPU on a busy node.
pub(crate) fn thread_time() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

/// Returns when the node started, by the wall clock.
pub(crate) fn boot_time() -> SystemTime {
    SystemTime::now() - boot_clock()
}

/// Returns the time since the node started, as in the `time_ns` of events.
pub(crate) fn boot_clock() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local variable. All clocks that this file uses exist since Linux 2.6.39.
    unsafe { libc::clock_gettime(id, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
