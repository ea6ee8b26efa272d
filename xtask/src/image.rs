//! `image`: what a node runs, as an archive that containerd and docker import. Made without either.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cli::ImageArgs;
use crate::{binaries, run, workspace};

/// Builds, packs, and says where it is.
pub(crate) fn run(args: &ImageArgs) -> Result<()> {
    binaries::build()?;
    let release = workspace::target().join("release");
    let programs = [release.join("netpol-agent"), release.join("netpol")];
    let output = args.output.clone().unwrap_or_else(|| workspace::target().join("netpol-image.tar"));
    pack(&programs, &args.tag, &workspace::target().join("image"), &output)?;
    println!("{}: {}", output.display(), args.tag);
    Ok(())
}

/// An archive as `docker save` writes it: one layer, with the programs in `/` and the libraries where they are here.
fn pack(programs: &[PathBuf], tag: &str, folder: &Path, output: &Path) -> Result<()> {
    let (root, archive) = (folder.join("root"), folder.join("archive"));
    // What an earlier attempt left.
    let _ = fs::remove_dir_all(folder);
    for made in [&root, &archive] {
        fs::create_dir_all(made).with_context(|| format!("creating {}", made.display()))?;
    }
    for program in programs {
        copy(program, &root.join(program.file_name().context("a program has a name")?))?;
        for library in libraries(program)? {
            copy(&library, &root.join(library.strip_prefix("/").context("ldd tells whole paths")?))?;
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
    let draft = archive.join("config");
    write(&draft, &config)?;
    let name = format!("{}.json", sha256(&draft)?);
    fs::rename(&draft, archive.join(&name)).with_context(|| format!("naming {name}"))?;
    let manifest = json!([{"Config": name, "RepoTags": [tag], "Layers": ["layer.tar"]}]);
    write(&archive.join("manifest.json"), &manifest)?;
    tar(&archive, output)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let parent = to.parent().context("in a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// What the dynamic linker loads for it, itself included.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let said = run::output("asking for libraries", &mut run::command("ldd", [program]))?;
    if let Some(missing) = said.lines().find(|line| line.contains("not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    Ok(said.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

/// The same bytes for the same files.
fn tar(folder: &Path, archive: &Path) -> Result<()> {
    let words = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=a+rX,go-w"];
    let mut command = run::command("tar", words);
    // Names as people and docker write them, without `./` before them.
    command.args(["--format=ustar", "--transform=s,^\\./,,", "-cf"]).arg(archive);
    command.arg("-C").arg(folder).arg(".");
    run::output("packing", &mut command).map(drop)
}

fn sha256(file: &Path) -> Result<String> {
    let said = run::output("taking a digest", &mut run::command("sha256sum", [file]))?;
    Ok(said.split(' ').next().unwrap_or_default().to_owned())
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
    fn an_image_is_whole_names_its_parts_by_digest_and_is_the_same_each_time() {
        let folder = std::env::temp_dir().join(format!("netpol-image-{}", std::process::id()));
        let own = std::env::current_exe().unwrap();
        let (first, second) = (folder.join("first.tar"), folder.join("second.tar"));
        pack(std::slice::from_ref(&own), "netpol:test", &folder.join("work"), &first).unwrap();
        pack(std::slice::from_ref(&own), "netpol:test", &folder.join("work"), &second).unwrap();
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
        let program = format!("/{}", own.file_name().unwrap().to_string_lossy());
        let mut inside = run::command("chroot", [&root]);
        let said = run::output("running the program inside, as root", inside.args([&program, "--help"]));
        fs::remove_dir_all(&folder).unwrap();
        assert!(said.unwrap().contains("Usage"));
    }
}
