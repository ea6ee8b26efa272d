//! Writes lines to standard output on its own thread, so that a blocked reader does not block enforcement. If lines
//! arrive faster than they are read, lines of the pods with the most queued lines are dropped first.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use netpol_policy::text;
use serde::Serialize;

/// Maximum number of queued lines.
const QUEUE: usize = 4096;

/// The output.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
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

/// Lines in the order of their arrival, and the lines of each key.
#[derive(Debug, Default)]
struct Queue {
    lines: BTreeMap<u64, (u32, Vec<u8>)>,
    by_key: HashMap<u32, VecDeque<u64>>,
    next: u64,
    /// Whether no more lines will arrive.
    ended: bool,
    /// Whether writing has failed.
    failed: bool,
}

impl Queue {
    /// Adds a line. Returns false if a line was dropped.
    fn push(&mut self, key: u32, line: Vec<u8>) -> bool {
        let full = self.lines.len() >= QUEUE;
        if full {
            let own = self.by_key.get(&key).map_or(0, VecDeque::len);
            let longest = self.by_key.iter().max_by_key(|(_, lines)| lines.len());
            let Some((&longest, _)) = longest.filter(|(_, lines)| lines.len() > own + 1) else { return false };
            let newest = self.by_key.get_mut(&longest).and_then(VecDeque::pop_back);
            newest.map(|number| self.lines.remove(&number));
        }
        self.lines.insert(self.next, (key, line));
        self.by_key.entry(key).or_default().push_back(self.next);
        self.next += 1;
        !full
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let (_, (key, line)) = self.lines.pop_first()?;
        if let Some(lines) = self.by_key.get_mut(&key) {
            lines.pop_front();
            if lines.is_empty() {
                self.by_key.remove(&key);
            }
        }
        Some(line)
    }
}

impl Lines {
    /// Starts a thread that writes to `out`. If writing fails, that line and all later ones count as lost.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Some(line) = wait(&writer) {
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
        if queue.failed || !queue.push(key, bytes) {
            self.shared.count_lost(1);
        }
        self.shared.changed.notify_one();
    }

    /// Counts a line that was not even created as lost.
    pub(super) fn skip(&self) {
        self.shared.count_lost(1);
    }

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

/// Waits for the next line. `None` if there will be no more.
fn wait(shared: &Shared) -> Option<Vec<u8>> {
    let mut queue = shared.lock();
    loop {
        if let Some(line) = queue.pop() {
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

    /// A pipe that closes after one line.
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

    /// A reader that never continues.
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
    fn a_blocked_reader_does_not_block_the_writer() {
        let lines = Lines::to(Blocked);
        for _ in 0..QUEUE + 101 {
            lines.push(1, &"a line");
        }
        // The thread has taken one line, or none yet.
        assert!((100..=101).contains(&lines.lost()), "{}", lines.lost());
    }

    /// A reader that starts late.
    struct Late(Option<std::sync::mpsc::Receiver<()>>, Sender<Vec<u8>>);

    impl Write for Late {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if let Some(start) = self.0.take() {
                let _ = start.recv();
            }
            let _ = self.1.send(bytes.to_vec());
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
        let lines = Lines::to(Late(Some(started), written));
        for round in 0..3 * QUEUE {
            lines.push(1, &"flood");
            if round % 50 == 0 {
                lines.push(2, &"victim");
            }
        }
        let victims = (3 * QUEUE).div_ceil(50);
        assert!(lines.lost() >= 2 * QUEUE as u64, "{}", lines.lost());
        drop(start);
        drop(lines);
        let all: Vec<Vec<u8>> = lines_written.iter().collect();
        assert!(all.len() <= QUEUE + 1, "{}", all.len());
        assert_eq!(all.iter().filter(|line| line.starts_with(b"\"victim")).count(), victims);
    }
}
