//! A file for exported records. It is renamed when it reaches its maximum size, and a new file is created. The size of
//! all files together is bounded.

use std::ffi::OsString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use super::{FileTarget, MAX_FILES};

/// Number of bytes at the end of an existing file that are searched for an incomplete last line. Every line has fewer
/// bytes.
const TAIL: u64 = 1 << 20;

/// The files of an export target: the current file `PATH`, and the earlier files `PATH.1`, `PATH.2` and so on.
#[derive(Debug)]
pub(super) struct RotatedFile {
    target: FileTarget,
    open: Option<OpenFile>,
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    size: u64,
    /// Device and inode.
    identity: (u64, u64),
}

impl RotatedFile {
    /// Creates the state, and removes the files with too high numbers, which an earlier agent may have kept. The first
    /// write opens the file.
    pub(super) fn new(target: FileTarget) -> Self {
        let file = Self { target, open: None };
        // There may be gaps in the numbers.
        for number in file.target.files.max(1)..=MAX_FILES {
            let _ = fs::remove_file(file.path(number));
        }
        file
    }

    /// Returns whether this number of bytes fits into the current file.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        let size = self.open.as_ref().map_or(0, |open| open.size);
        size + bytes as u64 <= self.target.max_size
    }

    /// Writes whole lines. If they do not fit, rotates the files first. If writing fails, removes the part that was
    /// written.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|open| !self.is_current(open)) {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(self.open()?);
        }
        if !self.has_room(lines.len()) && self.open.as_ref().is_some_and(|open| open.size > 0) {
            self.rotate()?;
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        match open.file.write_all(lines) {
            Ok(()) => {
                open.size += lines.len() as u64;
                Ok(())
            }
            Err(error) => {
                // Some of the bytes may have been written. If they cannot be removed now, the next call of `open`
                // removes at least the incomplete line.
                let _ = open.file.set_len(open.size);
                self.open = None;
                Err(error)
            }
        }
    }

    /// Returns whether the path still leads to the open file: another program may have renamed or deleted it.
    fn is_current(&self, open: &OpenFile) -> bool {
        fs::symlink_metadata(&self.target.path).is_ok_and(|found| identity(&found) == open.identity)
    }

    /// Opens or creates the file.
    fn open(&self) -> io::Result<OpenFile> {
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o640);
        // A FIFO must not block, and a symbolic link must not lead to another file of the node.
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let mut file = options.open(&self.target.path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is not a regular file"));
        }
        let size = remove_incomplete_line(&mut file, metadata.len())?;
        Ok(OpenFile { file, size, identity: identity(&metadata) })
    }

    /// Renames `PATH.1` to `PATH.2` and so on, then the current file to `PATH.1`, and creates a new file. Renaming
    /// replaces the oldest file.
    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        if self.target.files < 2 {
            fs::remove_file(&self.target.path)?;
        }
        for number in (1..self.target.files).rev() {
            match fs::rename(self.path(number - 1), self.path(number)) {
                // An agent that ended during a rotation leaves a gap in the numbers.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result?,
            }
        }
        self.open = Some(self.open()?);
        Ok(())
    }

    /// Returns the path of a file: `PATH` for 0, else `PATH.1` and so on.
    fn path(&self, number: u32) -> PathBuf {
        if number == 0 {
            return self.target.path.clone();
        }
        let mut path = OsString::from(&self.target.path);
        path.push(format!(".{number}"));
        path.into()
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Removes an incomplete line at the end of a file, which a crash can leave. Returns the new size.
fn remove_incomplete_line(file: &mut File, size: u64) -> io::Result<u64> {
    let tail = size.min(TAIL);
    file.seek(SeekFrom::Start(size - tail))?;
    let mut bytes = Vec::new();
    file.take(tail).read_to_end(&mut bytes)?;
    let incomplete = bytes.iter().rev().take_while(|byte| **byte != b'\n').count() as u64;
    if incomplete > 0 {
        file.set_len(size - incomplete)?;
    }
    Ok(size - incomplete)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn target(folder: &Path, max_size: u64, files: u32) -> FileTarget {
        FileTarget { path: folder.join("flows"), max_size, files }
    }

    /// Returns the names and contents of all files.
    fn files(folder: &Path) -> Vec<(String, String)> {
        let entries = fs::read_dir(folder).expect("cannot list").map(|entry| entry.expect("cannot list").path());
        let name = |path: &Path| path.file_name().expect("no name").to_string_lossy().into_owned();
        let mut files: Vec<_> =
            entries.map(|path| (name(&path), fs::read_to_string(path).expect("cannot read"))).collect();
        files.sort();
        files
    }

    fn check(folder: &Path, expected: &[(&str, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
        assert_eq!(files(folder), expected);
    }

    #[test]
    fn the_number_and_the_size_of_files_are_bounded() {
        let folder = tempfile::tempdir().expect("no folder");
        let mut file = RotatedFile::new(target(folder.path(), 4, 3));
        for line in ["a\n", "b\n", "c\n", "d\n", "e\n", "f\n", "g\n"] {
            file.write(line.as_bytes()).expect("cannot write");
        }
        check(folder.path(), &[("flows", "g\n"), ("flows.1", "e\nf\n"), ("flows.2", "c\nd\n")]);
        // A line that is larger than the maximum size gets its own file.
        file.write(b"longer\n").expect("cannot write");
        check(folder.path(), &[("flows", "longer\n"), ("flows.1", "g\n"), ("flows.2", "e\nf\n")]);
    }

    #[test]
    fn a_single_file_is_replaced_by_an_empty_one() {
        let folder = tempfile::tempdir().expect("no folder");
        let mut file = RotatedFile::new(target(folder.path(), 4, 1));
        for line in ["a\n", "b\n", "c\n"] {
            file.write(line.as_bytes()).expect("cannot write");
        }
        check(folder.path(), &[("flows", "c\n")]);
    }

    #[test]
    fn a_later_agent_continues_the_file_without_its_incomplete_line() {
        let folder = tempfile::tempdir().expect("no folder");
        // The earlier agent ended during a rotation, so `flows.3` is missing. `flows.old` and `flows.05` are not files
        // of the agent.
        let existing = [("flows", "a\n{\"ty"), ("flows.1", "old\n"), ("flows.2", "older\n"), ("flows.4", "x\n")];
        for (name, text) in [&existing[..], &[("flows.old", "y\n"), ("flows.05", "z\n")]].concat() {
            fs::write(folder.path().join(name), text).expect("cannot write");
        }
        // This agent keeps fewer files than the earlier one.
        let mut file = RotatedFile::new(target(folder.path(), 100, 2));
        file.write(b"b\n").expect("cannot write");
        let kept = [("flows", "a\nb\n"), ("flows.05", "z\n"), ("flows.1", "old\n"), ("flows.old", "y\n")];
        check(folder.path(), &kept);
    }

    #[test]
    fn a_file_that_another_program_has_renamed_is_created_again() {
        let folder = tempfile::tempdir().expect("no folder");
        let mut file = RotatedFile::new(target(folder.path(), 100, 2));
        file.write(b"a\n").expect("cannot write");
        fs::rename(folder.path().join("flows"), folder.path().join("moved")).expect("cannot rename");
        file.write(b"b\n").expect("cannot write");
        check(folder.path(), &[("flows", "b\n"), ("moved", "a\n")]);
    }

    #[test]
    fn links_and_fifos_are_rejected_without_blocking() {
        let folder = tempfile::tempdir().expect("no folder");
        let path = folder.path().join("flows");
        std::os::unix::fs::symlink(folder.path().join("other"), &path).expect("cannot link");
        RotatedFile::new(target(folder.path(), 100, 2)).write(b"a\n").expect_err("a link was followed");
        fs::remove_file(&path).expect("cannot remove");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("cannot create a FIFO");
        RotatedFile::new(target(folder.path(), 100, 2)).write(b"a\n").expect_err("a FIFO was written");
    }
}
