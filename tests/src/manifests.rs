//! The directory of manifests an agent watches.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::cleanup::{PathGuard, temporary_root, unique};

/// A directory of manifests, gone when dropped. Files are replaced at once, as editors and kubectl's siblings do.
#[derive(Debug)]
pub struct Manifests(PathGuard);

impl Manifests {
    /// A new, empty one.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new() -> Result<Self> {
        let guard = PathGuard::new(temporary_root().join(unique("manifests")));
        fs::create_dir_all(guard.path()).with_context(|| format!("making {}", guard.path().display()))?;
        Ok(Self(guard))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file, or replaces it in one step.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let (path, partial) = (self.path().join(file), self.path().join(format!(".{file}.partial")));
        fs::write(&partial, text)
            .and_then(|()| fs::rename(&partial, &path))
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Overwrites a file in place, so that a reader may see half of it.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn write_in_place(&self, file: &str, text: &str) -> Result<()> {
        fs::write(self.path().join(file), text).with_context(|| format!("writing {file} in place"))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// Where there is none.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.path().join(file)).with_context(|| format!("removing {file}"))
    }
}
