//! `image`: builds a container image with the agent, the CLI and the CNI plugin. Writes an archive that containerd and
//! Docker can import. Needs neither containerd nor Docker.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::ImageArgs;
use crate::{binaries, run, workspace};

/// Builds the programs, packs the image and prints its path and tag.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    binaries::build_all()?;
    let release = workspace::target().join("release");
    let programs = ["netpol-agent", "netpol", "netpol-cni"].map(|name| release.join(name));
    let output = args.output.clone().unwrap_or_else(|| workspace::target().join("netpol-image.tar"));
    pack(&programs, &args.tag, &workspace::target().join("image"), &output)?;
    println!("{}: {}", output.display(), args.tag);
    Ok(())
}

/// Writes an archive in the format of `docker save`. Its only layer has the programs in `/`, and their libraries at the
/// same paths as on this machine.
fn pack(programs: &[PathBuf], tag: &str, folder: &Path, output: &Path) -> Result<()> {
    let (root, archive) = (folder.join("root"), folder.join("archive"));
    // Remove the files of an earlier run.
    let _ = fs::remove_dir_all(folder);
    for folder in [&root, &archive] {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    for program in programs {
        copy(program, &root.join(program.file_name().context("the program has no file name")?))?;
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/").context("ldd printed a relative path")?))?;
        }
    }
    let layer = archive.join("layer.tar");
    tar(&root, &layer)?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": ["/netpol-agent"], "Env": ["PATH=/"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", sha256(&layer)?)]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image"}],
    });
    // The name of the configuration is its digest, which is known only after the file was written.
    let unnamed = archive.join("config");
    write(&unnamed, &config)?;
    let name = format!("{}.json", sha256(&unnamed)?);
    fs::rename(&unnamed, archive.join(&name)).with_context(|| format!("renaming the configuration to {name}"))?;
    let manifest = json!([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    write(&archive.join("manifest.json"), &manifest)?;
    tar(&archive, output)
}

/// Copies a file, and creates its folder.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("the path has no folder")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Returns the libraries that a program needs, and the dynamic linker.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = run::output("listing libraries", &mut run::command("ldd", [program]))?;
    if let Some(missing) = output.lines().find(|line| line.contains("not found")) {
        bail!("a library of {} is missing: {}", program.display(), missing.trim());
    }
    Ok(output.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// Packs a folder. The same files give the same bytes.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let options = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=a+rX,go-w"];
    let mut command = run::command("tar", options);
    // Removes the `./` before each name, because archives by Docker do not have it.
    command.args(["--format=ustar", "--transform=s,^\\./,,", "-cf"]).arg(archive);
    command.arg("-C").arg(folder).arg(".");
    run::output("packing the image", &mut command).map(drop)
}

/// Returns the digest of a file, in hexadecimal.
pub(crate) fn sha256(file: &Path) -> Result<String> {
    let output = run::output("computing a digest", &mut run::command("sha256sum", [file]))?;
    Ok(output.split(' ').next().unwrap_or_default().to_owned())
}

fn write(file: &Path, value: &Value) -> Result<()> {
    fs::write(file, value.to_string()).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unpack(archive: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        let mut command = run::command("tar", ["-xf"]);
        run::output("unpacking", command.arg(archive).arg("-C").arg(to)).unwrap();
    }

    #[test]
    fn an_image_is_complete_and_reproducible_and_its_digests_are_correct() {
        let folder = std::env::temp_dir().join(format!("netpol-image-{}", std::process::id()));
        // The image has this test's own program instead of netpol's. The program prints its usage with `--help`.
        let test_program = std::env::current_exe().unwrap();
        let (first, second) = (folder.join("first.tar"), folder.join("second.tar"));
        pack(std::slice::from_ref(&test_program), "netpol:test", &folder.join("work"), &first).unwrap();
        pack(std::slice::from_ref(&test_program), "netpol:test", &folder.join("work"), &second).unwrap();
        assert_eq!(sha256(&first).unwrap(), sha256(&second).unwrap());

        let image = folder.join("image");
        unpack(&first, &image);
        let read = |name: &str| serde_json::from_slice::<Value>(&fs::read(image.join(name)).unwrap()).unwrap();
        let manifest = read("manifest.json");
        assert_eq!(manifest[0]["RepoTags"], json!(["netpol:test"]));
        let name = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(name, format!("{}.json", sha256(&image.join(name)).unwrap()));
        let layer = image.join(manifest[0]["Layers"][0].as_str().unwrap());
        let digest = format!("sha256:{}", sha256(&layer).unwrap());
        assert_eq!(read(name)["rootfs"]["diff_ids"], json!([digest]));

        let root = folder.join("unpacked");
        unpack(&layer, &root);
        let program = format!("/{}", test_program.file_name().unwrap().to_string_lossy());
        let mut chroot = run::command("chroot", [&root]);
        let output = run::output("running the program in the image (needs root)", chroot.args([&program, "--help"]));
        fs::remove_dir_all(&folder).unwrap();
        assert!(output.unwrap().contains("Usage"));
    }
}
