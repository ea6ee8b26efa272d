//! `cargo xtask krew`: packs the CLI as a plugin of kubectl, and writes the manifest with which krew (kubectl's plugin
//! manager) installs the plugin.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::cli::KrewArgs;
use crate::image::{copy, sha256};
use crate::{run, workspace};

/// The template of the krew manifest. Placeholders have the form `@NAME@`.
const TEMPLATE: &str = include_str!("../../packaging/krew/netpol.yaml");
const ARCHIVE: &str = "kubectl-netpol-linux-amd64.tar.gz";

/// Builds the CLI, packs it, and writes the manifest to target/krew.
pub(crate) fn run(args: &KrewArgs) -> Result<()> {
    ensure!(args.url.ends_with(&format!("/{ARCHIVE}")), "--url must end with the file name of the archive, /{ARCHIVE}");
    run::step(
        "building target/release/netpol",
        &mut run::cargo(["build", "--release", "--locked", "--package", "netpol-cli"]),
    )?;
    let (folder, root) = (workspace::target().join("krew"), workspace::target().join("krew/root"));
    // Remove the files of an earlier run.
    let _ = fs::remove_dir_all(&folder);
    copy(&workspace::target().join("release/netpol"), &root.join("kubectl-netpol"))?;
    copy(&workspace::root().join("LICENSE"), &root.join("LICENSE"))?;
    let (archive, manifest) = (folder.join(ARCHIVE), folder.join("netpol.yaml"));
    pack(&root, &archive)?;
    let text = fill(TEMPLATE, env!("CARGO_PKG_VERSION"), &args.homepage, &args.url, &sha256(&archive)?)?;
    fs::write(&manifest, text).with_context(|| format!("writing {}", manifest.display()))?;
    println!("{}\n{}", archive.display(), manifest.display());
    Ok(())
}

/// Packs the plugin's files, which are in the folder `root`, into `archive`. The same files always result in the same
/// bytes of the archive.
fn pack(root: &Path, archive: &Path) -> Result<()> {
    let mut command = run::command("tar", ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"]);
    command.args(["--mode=a+rX,go-w", "--format=ustar", "-I", "gzip -n", "-cf"]).arg(archive);
    command.arg("-C").arg(root).args(["kubectl-netpol", "LICENSE"]);
    run::output("packing the plugin", &mut command).map(drop)
}

/// Fills the template of the manifest with the values of a release, and removes its comments. Fails if a placeholder
/// has no value.
fn fill(template: &str, version: &str, homepage: &str, uri: &str, sha256: &str) -> Result<String> {
    let version = format!("v{version}");
    let values = [("@VERSION@", &*version), ("@HOMEPAGE@", homepage), ("@URI@", uri), ("@SHA256@", sha256)];
    let mut text: String =
        template.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    for (placeholder, value) in values {
        if value.contains(['"', '\\', '\n', '@']) {
            bail!("`{value}` has a character that the manifest cannot contain");
        }
        ensure!(text.contains(placeholder), "packaging/krew/netpol.yaml has no {placeholder}");
        text = text.replace(placeholder, value);
    }
    ensure!(!text.contains('@'), "packaging/krew/netpol.yaml has a placeholder without a value");
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_has_a_value_for_each_placeholder() {
        let digest = "0f".repeat(32);
        let text = fill(TEMPLATE, "1.2.3", "https://example.org", "https://example.org/a.tar.gz", &digest).unwrap();
        for line in [
            "  version: \"v1.2.3\"",
            "  homepage: \"https://example.org\"",
            "    uri: \"https://example.org/a.tar.gz\"",
            &format!("    sha256: \"{digest}\""),
        ] {
            assert!(text.lines().any(|other| other == line), "{line}: {text}");
        }
        assert!(fill("@VERSION@ @URI@ @SHA256@", "1", "h", "u", "s").is_err(), "no error without @HOMEPAGE@");
        assert!(fill(&format!("{TEMPLATE}@OTHER@\n"), "1", "h", "u", "s").is_err(), "no error for an unknown @OTHER@");
        assert!(fill(TEMPLATE, "1", "\"", "u", "s").is_err(), "no error for a quotation mark in a value");
    }

    #[test]
    fn the_archive_is_reproducible_and_has_the_plugin() {
        let folder = std::env::temp_dir().join(format!("netpol-krew-{}", std::process::id()));
        let root = folder.join("root");
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("kubectl-netpol"), "program").unwrap();
        fs::write(root.join("LICENSE"), "text").unwrap();
        let digests = ["a.tar.gz", "b.tar.gz"].map(|name| {
            pack(&root, &folder.join(name)).unwrap();
            sha256(&folder.join(name)).unwrap()
        });
        let listed = run::output("listing", run::command("tar", ["-tzf"]).arg(folder.join("a.tar.gz"))).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!((listed.as_str(), &digests[0]), ("kubectl-netpol\nLICENSE\n", &digests[1]));
    }
}
