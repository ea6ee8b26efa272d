//! Recognizes manifest files and reads them safely. Anyone with write access to a directory of manifests can put a
//! FIFO, an endless device or a file larger than memory into it.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use thiserror::Error;

/// Limits for reading files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Maximum size of one file, in bytes.
    pub file: u64,
    /// Maximum size of all files together, in bytes.
    pub all: u64,
}

/// One mebibyte in bytes, the unit of the options `--max-manifest-file` and `--max-manifests`.
pub const MIB: u64 = 1 << 20;

/// The default limits. The objects of about 10,000 pods, as `kubectl get -o yaml` writes them, take 80 MiB.
pub const DEFAULT: Limits = Limits { file: 128 * MIB, all: 256 * MIB };

impl Default for Limits {
    fn default() -> Self {
        DEFAULT
    }
}

/// Why a file was not read. The text of an error follows the name of the file.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file is not a regular file: reading it may block, never end, or have side effects.
    #[error("is {0}; only regular files are read")]
    NotRegular(&'static str),
    /// The file is larger than the limit for one file.
    #[error("is larger than {} MiB, the limit for one file (--max-manifest-file)", .0 / MIB)]
    FileTooLarge(u64),
    /// Together with the files that were read before, the file is larger than the limit for all files.
    #[error("is skipped: with the files before it, more than {} MiB would be read, the limit for all files (--max-manifests)", .0 / MIB)]
    AllTooLarge(u64),
    /// The file system returned an error.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Returns whether a file name has the extension of a manifest.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// Reads a regular file within the limits. `before` is the number of bytes already read from other files.
///
/// # Errors
/// If the path is not a regular file when it is opened, or the file is too large.
pub fn read_regular(path: &Path, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    // The type is checked after opening, because the path may be replaced at any time. So the file can be a FIFO or a
    // device when it is opened. Opening a FIFO for reading normally waits for a writer, and some devices react to being
    // opened. `O_NONBLOCK` prevents the waiting, and does not affect regular files. Source: `open(2)`, `O_NONBLOCK`;
    // `fifo(7)`.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if let Some(other) = other_than_regular(metadata.file_type()) {
        return Err(ReadError::NotRegular(other));
    }
    read(file, &metadata, before, limits)
}

/// Reads a file that the user named explicitly, until its end and within the limits. The file may be a pipe from a
/// shell.
///
/// # Errors
/// If the file cannot be opened, or is too large.
pub fn read_any(path: &Path, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Err(ReadError::NotRegular("a block device"));
    }
    read(file, &metadata, before, limits)
}

/// Reads a stream without a path, such as standard input, within the limits.
///
/// # Errors
/// If reading fails, or the stream is too large.
pub fn read_stream(stream: impl Read, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    read_bounded(stream, 0, before, limits)
}

/// Returns the name of a file type; `None` for a regular file.
pub fn other_than_regular(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_fifo() => Some("a FIFO"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_char_device() => Some("a character device"),
        kind if kind.is_block_device() => Some("a block device"),
        kind if kind.is_dir() => Some("a directory"),
        _ => Some("not a regular file"),
    }
}

fn read(file: File, metadata: &Metadata, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    read_bounded(file, metadata.len(), before, limits)
}

/// Reads a stream within the limits. `size` is the size that the file system reports, or 0. The stream may be longer.
fn read_bounded(stream: impl Read, size: u64, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    let left = limits.all.saturating_sub(before);
    let check = |size: u64| match size {
        size if size > limits.file => Err(ReadError::FileTooLarge(limits.file)),
        size if size > left => Err(ReadError::AllTooLarge(limits.all)),
        _ => Ok(()),
    };
    check(size)?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let length = stream.take(left.min(limits.file) + 1).read_to_end(&mut bytes)?;
    check(length as u64)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SMALL: Limits = Limits { file: 2 * MIB, all: 3 * MIB };

    fn read_error(path: &Path) -> String {
        read_regular(path, 0, SMALL).expect_err("the file is rejected").to_string()
    }

    #[test]
    fn only_regular_files_are_read_from_a_directory() {
        let directory = tempfile::tempdir().expect("cannot create a temporary directory");
        let path = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("cannot create the file");
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).expect("cannot create the file");
        symlink("/dev/zero", path("zero")).expect("cannot create the link");
        symlink(path("fifo"), path("link")).expect("cannot create the link");
        assert_eq!(read_error(&path("fifo")), "is a FIFO; only regular files are read");
        assert_eq!(read_error(&path("link")), "is a FIFO; only regular files are read");
        assert_eq!(read_error(&path("zero")), "is a character device; only regular files are read");
        // Opening a socket fails with ENXIO.
        assert!(read_error(&path("socket")).starts_with("cannot be read: "));
        assert!(read_error(&path("nothing")).starts_with("cannot be read: "));
    }

    #[test]
    fn a_file_beyond_a_limit_is_not_read() {
        let directory = tempfile::tempdir().expect("cannot create a temporary directory");
        let path = directory.path().join("sparse.yaml");
        File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("cannot create the file");
        assert_eq!(read_error(&path), "is larger than 2 MiB, the limit for one file (--max-manifest-file)");
        File::create(&path).and_then(|file| file.set_len(MIB)).expect("cannot create the file");
        assert_eq!(read_regular(&path, 2 * MIB, SMALL).expect("the files are within the limit").len() as u64, MIB);
        let all = read_regular(&path, 2 * MIB + 1, SMALL).expect_err("the files exceed the limit").to_string();
        assert!(all.contains("more than 3 MiB") && all.contains("--max-manifests"), "{all}");
    }

    #[test]
    fn an_endless_stream_is_read_up_to_the_limit() {
        let error = read_any(Path::new("/dev/zero"), 0, SMALL).expect_err("the stream is endless");
        assert!(matches!(error, ReadError::FileTooLarge(_)), "{error}");
        let endless = read_stream(io::repeat(b'a'), 0, SMALL).expect_err("the stream is endless");
        assert!(matches!(endless, ReadError::FileTooLarge(_)), "{endless}");
    }
}
