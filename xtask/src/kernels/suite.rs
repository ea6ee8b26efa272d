//! Downloads kernels from Debian's archive, and keeps them. `cargo xtask kernels` boots them in virtual machines.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{debian, run, workspace};

/// Metapackage that depends on the package of the suite's current kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-cloud-amd64";

/// A Debian suite (release), and the version of its kernels.
#[derive(Debug)]
pub(super) struct Suite {
    /// Version of the kernels, such as `6.1`.
    pub(super) version: &'static str,
    /// Name of the suite, such as `bookworm`.
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
    /// Folder for all files of this kernel: the unpacked package, the initramfs and the console log.
    pub(super) folder: PathBuf,
}

impl Suite {
    /// Returns the kernel that was unpacked before, or downloads one. With `update`, always downloads the newest one.
    pub(super) fn kernel(&self, update: bool) -> Result<Kernel> {
        let folder = workspace::target().join("kernels").join(self.name);
        if update || !folder.join("root").is_dir() {
            run::announce(&format!("downloading Debian's kernel {} ({})", self.version, self.name));
            debian::fetch(self.name, &folder, |packages| {
                let depends = packages.cache("looking up the newest kernel", &["depends", KERNEL_METAPACKAGE])?;
                let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
                package
                    .map(str::to_owned)
                    .with_context(|| format!("{KERNEL_METAPACKAGE} of {} depends on no kernel", self.name))
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
                format!("no kernel in {}: remove {} and run the command again", boot.display(), folder.display())
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
