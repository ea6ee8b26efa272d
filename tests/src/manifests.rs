//! The directory of manifests that an agent watches.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cleanup::{PathGuard, temporary_root, unique};

/// A directory of manifests, removed when dropped. Files are replaced atomically.
#[derive(Debug)]
pub struct Manifests(PathGuard);

impl Manifests {
    /// Creates an empty directory.
    ///
    /// # Errors
    /// Returns an error if it cannot be created.
    pub fn new() -> Result<Self> {
        let guard = PathGuard::new(temporary_root().join(unique("manifests")));
        fs::create_dir_all(guard.path()).with_context(|| format!("creating {}", guard.path().display()))?;
        Ok(Self(guard))
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, or replaces it atomically.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let (path, partial) = (self.path().join(file), self.path().join(format!(".{file}.partial")));
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Overwrites a file in place, so that a reader may see a part of it.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn write_in_place(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.path().join(file), text).with_context(|| format!("writing {file} in place"))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Returns an error if it does not exist.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.path().join(file)).with_context(|| format!("removing {file}"))
    }
}
