//! Which files are manifests, and how are they read without harm? What stands in a directory may be put there by anyone who
//! can write to it: a FIFO or a device that never ends, or a file larger than memory.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use thiserror::Error;

/// How much is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file: u64,
    /// Bytes of all files together.
    pub all: u64,
}

/// Bytes of a mebibyte, the unit of options.
pub const MIB: u64 = 1 << 20;

/// The objects of some ten thousand pods, as `kubectl get -o yaml` writes them, are 80 MiB.
pub const DEFAULT: Limits = Limits { file: 128 * MIB, all: 256 * MIB };

impl Default for Limits {
    fn default() -> Self {
        DEFAULT
    }
}

/// Why a file is not read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// It may block, never end, or change what it is about.
    #[error("is {0}, and only regular files are read")]
    NotRegular(&'static str),
    /// It is larger than the limit for one file.
    #[error("is larger than {} MiB, the limit for one file (--max-manifest-file)", .0 / MIB)]
    FileTooLarge(u64),
    /// With the files before it, it is larger than the limit for all.
    #[error("is not read: with the files before it there are more than {} MiB, the limit for all files (--max-manifests)", .0 / MIB)]
    AllTooLarge(u64),
    /// The filesystem refuses.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Whether a file in a directory is a manifest by its name.
pub fn is_manifest(path: &Path) -> bool {
    path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

/// Opens a file, whatever stands at its path by now, and reads it if it is a regular file within the limits. `before` bytes were
/// read of other files.
///
/// # Errors
/// Where it is anything else, or too large.
pub fn read_regular(path: &Path, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    // Opening a FIFO for reading waits for a writer, and some devices act on being opened. Checked after it is open: what is at
    // the path may be replaced at any time. Regular files do not heed the flag. Source: `open(2)`, `O_NONBLOCK`; `fifo(7)`.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if let Some(other) = other_than_regular(metadata.file_type()) {
        return Err(ReadError::NotRegular(other));
    }
    read(file, &metadata, before, limits)
}

/// Reads a file that was named itself, which may be a pipe of a shell: until its end, within the limits.
///
/// # Errors
/// Where it cannot be opened or is too large.
pub fn read_any(path: &Path, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if metadata.file_type().is_block_device() {
        return Err(ReadError::NotRegular("a block device"));
    }
    read(file, &metadata, before, limits)
}

/// Reads what has no path, such as standard input, within the limits.
///
/// # Errors
/// Where reading fails or there is too much.
pub fn read_stream(stream: impl Read, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    bounded(stream, 0, before, limits)
}

/// What a path leads to, if that is neither a regular file nor a directory.
pub fn other_than_regular(kind: FileType) -> Option<&'static str> {
    match kind {
        kind if kind.is_file() => None,
        kind if kind.is_fifo() => Some("a FIFO"),
        kind if kind.is_socket() => Some("a socket"),
        kind if kind.is_char_device() => Some("a character device"),
        kind if kind.is_block_device() => Some("a block device"),
        kind if kind.is_dir() => Some("a directory"),
        _ => Some("no regular file"),
    }
}

fn read(file: File, metadata: &Metadata, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    bounded(file, metadata.len(), before, limits)
}

/// `size` is what is known before; the stream may have more, or grow meanwhile.
fn bounded(stream: impl Read, size: u64, before: u64, limits: Limits) -> Result<Vec<u8>, ReadError> {
    let left = limits.all.saturating_sub(before);
    let check = |size: u64| match size {
        size if size > limits.file => Err(ReadError::FileTooLarge(limits.file)),
        size if size > left => Err(ReadError::AllTooLarge(limits.all)),
        _ => Ok(()),
    };
    check(size)?;
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let taken = stream.take(left.min(limits.file) + 1).read_to_end(&mut bytes)?;
    check(taken as u64)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const SMALL: Limits = Limits { file: 2 * MIB, all: 3 * MIB };

    fn error(path: &Path) -> String {
        read_regular(path, 0, SMALL).expect_err("it is refused").to_string()
    }

    #[test]
    fn only_regular_files_are_read_from_a_directory() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("it can be made");
        let _listener = std::os::unix::net::UnixListener::bind(path("socket")).expect("it can be made");
        symlink("/dev/zero", path("zero")).expect("it can be linked");
        symlink(path("fifo"), path("link")).expect("it can be linked");
        assert_eq!(error(&path("fifo")), "is a FIFO, and only regular files are read");
        assert_eq!(error(&path("link")), "is a FIFO, and only regular files are read");
        assert_eq!(error(&path("zero")), "is a character device, and only regular files are read");
        // A socket cannot be opened at all: ENXIO.
        assert!(error(&path("socket")).starts_with("cannot be read: "));
        assert!(error(&path("nothing")).starts_with("cannot be read: "));
    }

    #[test]
    fn a_file_beyond_a_limit_is_not_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sparse.yaml");
        File::create(&path).and_then(|file| file.set_len(1 << 30)).expect("it can be made");
        assert_eq!(error(&path), "is larger than 2 MiB, the limit for one file (--max-manifest-file)");
        File::create(&path).and_then(|file| file.set_len(MIB)).expect("it can be made");
        assert_eq!(read_regular(&path, 2 * MIB, SMALL).expect("it fits").len() as u64, MIB);
        let all = read_regular(&path, 2 * MIB + 1, SMALL).expect_err("it does not fit").to_string();
        assert!(all.contains("more than 3 MiB") && all.contains("--max-manifests"), "{all}");
    }

    #[test]
    fn what_never_ends_is_read_up_to_the_limit() {
        let error = read_any(Path::new("/dev/zero"), 0, SMALL).expect_err("it never ends");
        assert!(matches!(error, ReadError::FileTooLarge(_)), "{error}");
        let endless = read_stream(io::repeat(b'a'), 0, SMALL).expect_err("it never ends");
        assert!(matches!(endless, ReadError::FileTooLarge(_)), "{endless}");
    }
}
