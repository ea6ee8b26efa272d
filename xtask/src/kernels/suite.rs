//! Kernels from Debian's archive, downloaded once, without touching the system's own package sources.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{run, workspace};

/// A mirror of Debian to use instead of this machine's own; old suites move to another one than new ones.
const MIRROR: &str = "NETPOL_DEBIAN_MIRROR";
/// Signs every suite; part of every Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
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
        let root = folder.join("root");
        if update || !root.is_dir() {
            run::say(&format!("downloading Debian's kernel {} ({})", self.version, self.name));
            let mut errors = Vec::new();
            for mirror in mirrors()? {
                match self.download(&folder, &mirror) {
                    Ok(()) => return Kernel::find(&folder),
                    Err(error) => errors.push(format!("{mirror}: {error:#}")),
                }
            }
            let (version, tried) = (self.version, errors.join("\n"));
            bail!(
                "no kernel {version} from any mirror; is the network up? Or name a mirror that has it in {MIRROR}\n{tried}"
            );
        }
        Kernel::find(&folder)
    }

    fn download(&self, folder: &Path, mirror: &str) -> Result<()> {
        let private = folder.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(private.join(part)).with_context(|| format!("creating {}", private.display()))?;
        }
        // Lists of old suites are not renewed any more.
        let source = format!("deb [signed-by={KEYRING} check-valid-until=no] {mirror} {} main\n", self.name);
        fs::write(private.join("sources.list"), source).context("writing a private sources.list")?;

        run::output("updating package lists", &mut apt("apt-get", &private, &["-qq", "update"]))?;
        let depends =
            run::output("asking for the newest kernel", &mut apt("apt-cache", &private, &["depends", CURRENT]))?;
        let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
        let package = package.with_context(|| format!("{CURRENT} of {} depends on no kernel", self.name))?;
        let downloads = folder.join("download");
        // An earlier attempt may have been cut short.
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        run::output(
            &format!("downloading {package}"),
            apt("apt-get", &private, &["-qq", "download", package]).current_dir(&downloads),
        )?;
        let archive = fs::read_dir(&downloads)?.next().context("apt-get download left no file")??.path();
        let unpacked = downloads.join("root");
        let mut unpack = run::command("dpkg", ["-x"]);
        run::output(&format!("unpacking {package}"), unpack.arg(&archive).arg(&unpacked))?;
        let root = folder.join("root");
        let _ = fs::remove_dir_all(&root);
        fs::rename(&unpacked, &root).with_context(|| format!("moving the kernel to {}", root.display()))?;
        fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))
    }
}

/// Where Debian's packages come from: where apt on this machine gets them.
fn mirrors() -> Result<Vec<String>> {
    if let Ok(mirror) = std::env::var(MIRROR) {
        return Ok(vec![mirror]);
    }
    let mut ask = run::command("apt-get", ["indextargets", "--format", "$(REPO_URI)"]);
    ask.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
    let answer = run::output("asking apt for its mirrors of Debian", &mut ask)?;
    let mirrors: BTreeSet<String> = answer.lines().map(str::to_owned).collect();
    if mirrors.is_empty() {
        bail!("apt knows no mirror of Debian: run `apt-get update`, or name one in {MIRROR}");
    }
    Ok(mirrors.into_iter().collect())
}

/// One of apt's programs, with sources and lists of its own.
fn apt(program: &str, private: &Path, words: &[&str]) -> Command {
    let mut command = run::command::<&str>(program, []);
    let own = private.display();
    for option in [
        format!("Dir::Etc::SourceList={own}/sources.list"),
        "Dir::Etc::SourceParts=/dev/null".into(),
        format!("Dir::State={own}"),
        format!("Dir::State::Lists={own}/lists"),
        "Dir::State::status=/dev/null".into(),
        format!("Dir::Cache={own}"),
        "APT::Architecture=amd64".into(),
        // Root's downloads go to a folder that is not apt's own.
        "APT::Sandbox::User=root".into(),
    ] {
        command.arg("-o").arg(option);
    }
    command.args(words);
    command
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
