//! Downloads packages of any Debian suite (release) and unpacks them to a folder of the project. The package sources
//! and the packages of the system stay unchanged.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// Environment variable with the URL of a Debian mirror to use instead of those in apt's configuration. Debian moves
/// old suites to another mirror.
const MIRROR: &str = "NETPOL_DEBIAN_MIRROR";
/// Keys that sign every suite. Every Debian system has this file.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The packages of one suite. For them, apt uses a private folder with separate sources and lists.
pub(crate) struct Packages {
    private_folder: PathBuf,
}

impl Packages {
    /// Runs `apt-cache` and returns its output. `what`: the purpose, for an error message.
    pub(crate) fn cache(&self, what: &str, arguments: &[&str]) -> Result<String> {
        run::output(what, &mut self.apt("apt-cache", arguments))
    }

    /// Downloads the package lists of a suite from a mirror.
    fn update(suite: &str, folder: &Path, mirror: &str) -> Result<Self> {
        let private_folder = folder.join("apt");
        for part in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(private_folder.join(part))
                .with_context(|| format!("creating {}", private_folder.display()))?;
        }
        // The lists of old suites have passed their `Valid-Until` date.
        let source = format!("deb [signed-by={KEYRING} check-valid-until=no] {mirror} {suite} main\n");
        fs::write(private_folder.join("sources.list"), source).context("writing a private sources.list")?;
        let packages = Self { private_folder };
        run::output("updating package lists", &mut packages.apt("apt-get", &["-qq", "update"]))?;
        Ok(packages)
    }

    /// Returns a command for one of apt's programs, with private sources and lists.
    fn apt(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = run::command::<&str>(program, []);
        let private_folder = self.private_folder.display();
        for option in [
            format!("Dir::Etc::SourceList={private_folder}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State={private_folder}"),
            format!("Dir::State::Lists={private_folder}/lists"),
            "Dir::State::status=/dev/null".into(),
            format!("Dir::Cache={private_folder}"),
            "APT::Architecture=amd64".into(),
            // apt's own user, `_apt`, cannot access the download folder.
            "APT::Sandbox::User=root".into(),
        ] {
            command.arg("-o").arg(option);
        }
        command.args(arguments);
        command
    }

    /// Downloads a package, and replaces the directory `root` in `folder` with the files of the package.
    fn download(&self, package: &str, folder: &Path) -> Result<()> {
        let downloads = folder.join("download");
        // An earlier download may have been interrupted.
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

/// Downloads a package of a suite from the first mirror that has it, and unpacks the package to `root` in `folder`.
/// `choose` returns the name of the package.
pub(crate) fn fetch(suite: &str, folder: &Path, choose: impl Fn(&Packages) -> Result<String>) -> Result<()> {
    let mut errors = Vec::new();
    for mirror in mirrors()? {
        let packages = Packages::update(suite, folder, &mirror);
        match packages.and_then(|packages| packages.download(&choose(&packages)?, folder)) {
            Ok(()) => return Ok(()),
            Err(error) => errors.push(format!("{mirror}: {error:#}")),
        }
    }
    let tried = errors.join("\n");
    bail!(
        "download failed from all mirrors. Check the network, or set {MIRROR} to a mirror of Debian's {suite}:\n{tried}"
    )
}

/// Returns the mirror in [`MIRROR`], or else the Debian mirrors that apt uses on this machine.
fn mirrors() -> Result<Vec<String>> {
    if let Ok(mirror) = std::env::var(MIRROR) {
        return Ok(vec![mirror]);
    }
    let mut query = run::command("apt-get", ["indextargets", "--format", "$(REPO_URI)"]);
    query.args(["Created-By: Packages", "Origin: Debian", "Label: Debian"]);
    let output = run::output("listing apt's Debian mirrors", &mut query)?;
    let mirrors: BTreeSet<String> = output.lines().map(str::to_owned).collect();
    if mirrors.is_empty() {
        bail!("apt has no Debian mirror: run `apt-get update`, or set {MIRROR} to a mirror");
    }
    Ok(mirrors.into_iter().collect())
}
