//! Downloads each kernel once from Debian's archive.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{debian, run, workspace};

/// Metapackage that depends on the suite's current kernel.
const CURRENT: &str = "linux-image-cloud-amd64";

/// A Debian suite, and the version of its kernels.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) version: &'static str,
    pub(super) name: &'static str,
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Output of `uname -r`.
    pub(super) release: String,
    /// The kernel image.
    pub(super) image: PathBuf,
    /// Folder of the kernel's modules.
    pub(super) modules: PathBuf,
    /// Folder with everything about this kernel.
    pub(super) folder: PathBuf,
}

impl Suite {
    /// Returns the kernel that was unpacked before, or downloads one. With `update`, always downloads the newest one.
    pub(super) fn kernel(&self, update: bool) -> Result<Kernel> {
        let folder = workspace::target().join("kernels").join(self.name);
        if update || !folder.join("root").is_dir() {
            run::announce(&format!("downloading Debian's kernel {} ({})", self.version, self.name));
            debian::fetch(self.name, &folder, |packages| {
                let depends = packages.cache("looking up the newest kernel", &["depends", CURRENT])?;
                let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
                package.map(str::to_owned).with_context(|| format!("{CURRENT} of {} depends on no kernel", self.name))
            })
            .with_context(|| format!("cannot get kernel {}", self.version))?;
        }
        Kernel::find(&folder)
    }
}

impl Kernel {
    fn find(folder: &Path) -> Result<Self> {
        let boot = folder.join("root/boot");
        let release = fs::read_dir(&boot)
            .with_context(|| format!("listing {}", boot.display()))?
            .find_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("vmlinuz-").map(str::to_owned))
            .with_context(|| {
                format!("no kernel in {}: remove this folder and run the command again", boot.display())
            })?;
        // Newer packages have the modules below /usr.
        let modules = ["lib/modules", "usr/lib/modules"].map(|path| folder.join("root").join(path).join(&release));
        let modules = modules.into_iter().find(|path| path.is_dir());
        Ok(Self {
            image: boot.join(format!("vmlinuz-{release}")),
            modules: modules.with_context(|| format!("the package of {release} has no modules"))?,
            release,
            folder: folder.to_owned(),
        })
    }
}
