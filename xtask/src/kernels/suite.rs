//! Kernels from Debian's archive, downloaded once.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{debian, run, workspace};

/// Depends on the suite's current kernel.
const CURRENT: &str = "linux-image-cloud-amd64";

/// A suite of Debian, and the series of its kernels.
#[derive(Debug)]
pub(super) struct Suite {
    pub(super) version: &'static str,
    pub(super) name: &'static str,
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// As `uname -r` tells it.
    pub(super) release: String,
    /// What to boot.
    pub(super) image: PathBuf,
    /// Its modules.
    pub(super) modules: PathBuf,
    /// Where everything about it is kept.
    pub(super) folder: PathBuf,
}

impl Suite {
    /// The kernel: what was unpacked before, or else downloaded; the newest one if `update`.
    pub(super) fn kernel(&self, update: bool) -> Result<Kernel> {
        let folder = workspace::target().join("kernels").join(self.name);
        if update || !folder.join("root").is_dir() {
            run::say(&format!("downloading Debian's kernel {} ({})", self.version, self.name));
            debian::fetch(self.name, &folder, |packages| {
                let depends = packages.ask("asking for the newest kernel", &["depends", CURRENT])?;
                let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
                package.map(str::to_owned).with_context(|| format!("{CURRENT} of {} depends on no kernel", self.name))
            })
            .with_context(|| format!("no kernel {}", self.version))?;
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
            .with_context(|| format!("no kernel in {}: remove that folder and run this again", boot.display()))?;
        // Of late it is below /usr.
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
