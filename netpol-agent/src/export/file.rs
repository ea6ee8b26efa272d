//! Writes flow records to a file that is rotated. Each record is one line of JSON.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_api::Record;

use super::rotation::RotatedFile;
use super::{DropReason, FileTarget, Input, json};

/// Maximum number of records that are taken from the queue at once.
const BATCH: usize = 256;
/// Time from a failed write to the next attempt. Records that arrive in this time are dropped.
const PAUSE: Duration = Duration::from_secs(1);

/// Writes the records from the queue until the queue is closed. Runs on its own thread.
pub(super) fn run(target: FileTarget, Input { mut records, counters, .. }: Input) {
    let mut writer =
        Writer { path: target.path.display().to_string(), file: RotatedFile::new(target), last_failure: None };
    let mut batch: Vec<Arc<Record>> = Vec::with_capacity(BATCH);
    while records.blocking_recv_many(&mut batch, BATCH) > 0 {
        let written = writer.write(&batch);
        counters.count_exported(written);
        counters.count_dropped(DropReason::WriteFailed, batch.len() - written);
        batch.clear();
    }
}

struct Writer {
    path: String,
    file: RotatedFile,
    /// Time of the last failure, if the last write failed.
    last_failure: Option<Instant>,
}

impl Writer {
    /// Writes records, and returns how many of them were written. Each write contains as many lines as the current file
    /// has room for, because a file is rotated only between two writes.
    fn write(&mut self, records: &[Arc<Record>]) -> usize {
        let (mut lines, mut count, mut written) = (Vec::new(), 0, 0);
        for line in records.iter().filter_map(|record| json(record).ok()) {
            if count > 0 && !self.file.has_room(lines.len() + line.len() + 1) {
                written += self.write_lines(&lines, count);
                lines.clear();
                count = 0;
            }
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
            count += 1;
        }
        written + if count > 0 { self.write_lines(&lines, count) } else { 0 }
    }

    /// Writes `count` lines. Returns `count`, or 0 if the lines were not written.
    fn write_lines(&mut self, lines: &[u8], count: usize) -> usize {
        if self.last_failure.is_some_and(|at| at.elapsed() < PAUSE) {
            return 0;
        }
        match self.file.write(lines) {
            Ok(()) => {
                if self.last_failure.take().is_some() {
                    tracing::info!(path = self.path, "writing flow records again");
                }
                count
            }
            Err(error) => {
                if self.last_failure.replace(Instant::now()).is_none() {
                    tracing::warn!(
                        path = self.path,
                        %error,
                        "cannot write flow records; they are dropped and counted until writing succeeds (policy \
                         enforcement is not affected)"
                    );
                }
                0
            }
        }
    }
}
