//! Packages of any suite of Debian, unpacked to a folder of ours, without touching the system's own sources or packages.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// A mirror of Debian to use instead of this machine's own; old suites move to another one than new ones.
const MIRROR: &str = "NETPOL_DEBIAN_MIRROR";
/// Signs every suite; part of every Debian.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What one suite has, by lists of our own.
pub(crate) struct Packages {
    private: PathBuf,
}

impl Packages {
    /// What apt-cache says.
    pub(crate) fn ask(&self, what: &str, words: &[&str]) -> Result<String> {
        run::output(what, &mut self.apt("apt-cache", words))
    }

    fn of(suite: &str, folder: &Path, mirror: &str) -> Result<Self> {
        let private = folder.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(private.join(part)).with_context(|| format!("creating {}", private.display()))?;
        }
        // Lists of old suites are not renewed any more.
        let source = format!("deb [signed-by={KEYRING} check-valid-until=no] {mirror} {suite} main\n");
        fs::write(private.join("sources.list"), source).context("writing a private sources.list")?;
        let packages = Self { private };
        run::output("updating package lists", &mut packages.apt("apt-get", &["-qq", "update"]))?;
        Ok(packages)
    }

    /// One of apt's programs, with sources and lists of its own.
    fn apt(&self, program: &str, words: &[&str]) -> Command {
        let mut command = run::command::<&str>(program, []);
        let own = self.private.display();
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

    fn unpack(&self, package: &str, folder: &Path) -> Result<()> {
        let downloads = folder.join("download");
        // An earlier attempt may have been cut short.
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        run::output(
            &format!("downloading {package}"),
            self.apt("apt-get", &["-qq", "download", package]).current_dir(&downloads),
        )?;
        let archive = fs::read_dir(&downloads)?.next().context("apt-get download left no file")??.path();
        let unpacked = downloads.join("root");
        let mut unpack = run::command("dpkg", ["-x"]);
        run::output(&format!("unpacking {package}"), unpack.arg(&archive).arg(&unpacked))?;
        let root = folder.join("root");
        let _ = fs::remove_dir_all(&root);
        fs::rename(&unpacked, &root).with_context(|| format!("moving {package} to {}", root.display()))?;
        fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))
    }
}

/// Unpacks a package of a suite to `root` in the folder, from the first mirror that has it.
pub(crate) fn fetch(suite: &str, folder: &Path, choose: impl Fn(&Packages) -> Result<String>) -> Result<()> {
    let mut errors = Vec::new();
    for mirror in mirrors()? {
        let packages = Packages::of(suite, folder, &mirror);
        match packages.and_then(|packages| packages.unpack(&choose(&packages)?, folder)) {
            Ok(()) => return Ok(()),
            Err(error) => errors.push(format!("{mirror}: {error:#}")),
        }
    }
    let tried = errors.join("\n");
    bail!("no mirror gave it; is the network up? Or name a mirror of Debian's {suite} in {MIRROR}\n{tried}")
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
