//! Writes events as lines of JSON to standard output, on a separate thread. So a reader of standard output that blocks
//! does not block enforcement. If lines arrive faster than they are written, the queue gets full. Then lines of the
//! pods that use the most memory in the queue are dropped first.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use netpol_policy::text;
use serde::Serialize;

use super::queue::KeyedQueue;

/// Maximum number of queued lines.
const MAX_LINES: usize = 4096;
/// Maximum size of the queued lines in bytes.
const MAX_BYTES: usize = 16 << 20;

/// A queue of lines, with a thread that writes them.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    /// Notified when a line is added, and when no more lines will arrive.
    changed: Condvar,
    /// Number of lines that were not written.
    lost: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No thread panics while it changes the queue.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_lost(&self, lines: usize) {
        self.lost.fetch_add(lines as u64, Ordering::Relaxed);
    }
}

#[derive(Debug, Default)]
struct Queue {
    lines: KeyedQueue<Vec<u8>>,
    /// Whether no more lines will arrive.
    ended: bool,
    /// Whether writing has failed.
    failed: bool,
}

impl Queue {
    /// Adds a line. `key` stands for a pod. If the queue is full, drops the newest lines of the key that uses the most
    /// memory. If the new line itself has this key, drops the new line. Returns the number of dropped lines.
    fn push(&mut self, key: u32, line: Vec<u8>) -> usize {
        let mut dropped = 0;
        while self.lines.len() >= MAX_LINES || self.lines.bytes() + line.len() > MAX_BYTES {
            dropped += 1;
            let own_bytes = self.lines.bytes_of(key) + line.len();
            let Some((largest, _)) = self.lines.largest().filter(|(_, bytes)| *bytes > own_bytes) else {
                return dropped;
            };
            self.lines.remove_newest(largest);
        }
        self.lines.push(key, line.len(), line);
        dropped
    }
}

impl Lines {
    /// Starts a thread that writes to `out`. If writing fails, the current line and all later lines count as lost.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Some(line) = wait_for_line(&writer) {
                if let Err(error) = out.write_all(&line).and_then(|()| out.flush()) {
                    tracing::warn!(%error, "cannot write to standard output; denied packets are counted but not reported");
                    let mut queue = writer.lock();
                    queue.failed = true;
                    writer.count_lost(1 + queue.lines.len());
                    *queue = Queue { failed: true, ..Queue::default() };
                    return;
                }
            }
        });
        Self { shared }
    }

    /// Adds a line. `key` identifies the pod that the line is counted for, see [`netpol_common::FlowEvent::budget`].
    pub(super) fn push(&self, key: u32, line: &impl Serialize) {
        let Ok(line) = serde_json::to_string(line) else { return self.shared.count_lost(1) };
        let mut bytes = text::json(&line).into_owned().into_bytes();
        bytes.push(b'\n');
        let mut queue = self.shared.lock();
        let lost = if queue.failed { 1 } else { queue.push(key, bytes) };
        self.shared.count_lost(lost);
        self.shared.changed.notify_one();
    }

    /// Counts one lost line. The agent did not create this line, because of the rate limit.
    pub(super) fn skip(&self) {
        self.shared.count_lost(1);
    }

    /// Returns the number of lines that were not written.
    pub(super) fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

/// Waits for the next line. Returns `None` if no more lines will arrive.
fn wait_for_line(shared: &Shared) -> Option<Vec<u8>> {
    let mut queue = shared.lock();
    loop {
        if let Some(line) = queue.lines.pop() {
            return Some(line);
        }
        if queue.ended {
            return None;
        }
        queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Sender, channel};
    use std::time::{Duration, Instant};

    use super::*;

    /// A pipe that closes after one line. The number counts the writes.
    struct Closing(u32);

    impl Write for Closing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 > 1 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_that_is_not_written_is_counted() {
        let lines = Lines::to(Closing(0));
        for _ in 0..100 {
            lines.push(1, &"a line");
        }
        let start = Instant::now();
        while lines.lost() < 99 && start.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(lines.lost(), 99);
    }

    /// An output that blocks each write forever.
    struct Blocked;

    impl Write for Blocked {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_blocked_reader_does_not_block_the_agent() {
        let lines = Lines::to(Blocked);
        for _ in 0..MAX_LINES + 101 {
            lines.push(1, &"a line");
        }
        // The thread has removed at most one line from the queue.
        assert!((100..=101).contains(&lines.lost()), "{}", lines.lost());
    }

    #[test]
    fn the_size_of_the_queue_is_bounded() {
        let mut queue = Queue::default();
        for _ in 0..100 {
            assert_eq!(queue.push(1, b"victim".to_vec()), 0);
        }
        let mut dropped = 0;
        for _ in 0..200 {
            dropped += queue.push(2, vec![0; MAX_BYTES / 100]);
            assert!(queue.lines.bytes() <= MAX_BYTES);
        }
        // A line of pod 3 replaces large lines of pod 2.
        assert_eq!(queue.push(3, vec![0; MAX_BYTES / 100 * 3]), 3);
        let lines = &mut queue.lines;
        assert_eq!((lines.checked_len_of(1), lines.checked_len_of(2)), (100, 200 - dropped - 3));
        while lines.pop().is_some() {}
        assert_eq!((lines.bytes(), lines.checked_len_of(1)), (0, 0));
    }

    /// An output that blocks until the sender of the channel `started` is dropped. Then it sends all lines to
    /// `written`.
    struct Late {
        started: Option<std::sync::mpsc::Receiver<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Late {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(started) = self.started.take() {
                let _ = started.recv();
            }
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_flood_of_lines_does_not_push_out_the_lines_of_another_pod() {
        let (start, started) = channel();
        let (written, lines_written) = channel();
        let lines = Lines::to(Late { started: Some(started), written });
        for round in 0..3 * MAX_LINES {
            lines.push(1, &"flood");
            if round % 50 == 0 {
                lines.push(2, &"victim");
            }
        }
        let victims = (3 * MAX_LINES).div_ceil(50);
        assert!(lines.lost() >= 2 * MAX_LINES as u64, "{}", lines.lost());
        drop(start);
        drop(lines);
        let received: Vec<Vec<u8>> = lines_written.iter().collect();
        assert!(received.len() <= MAX_LINES + 1, "{}", received.len());
        assert_eq!(received.iter().filter(|line| line.starts_with(b"\"victim")).count(), victims);
    }
}
