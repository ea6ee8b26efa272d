//! Runs `kubectl kustomize`, without a cluster.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use netpol_tests::kubectl;
use serde_json::Value;

/// Returns the path of deploy/.
pub(crate) fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").canonicalize().expect("no deploy/ next to tests/")
}

/// Returns the objects that `kubectl kustomize` prints for a folder of deploy/. `components`: folders of Kustomize
/// components in deploy/. If there are any, the objects are those of a user's overlay that adds the components to the
/// folder.
pub(crate) fn build(folder: &str, components: &[&str]) -> Result<Vec<Value>> {
    let path = deploy().join(folder);
    if components.is_empty() {
        return run(&path);
    }
    let temporary = tempfile::Builder::new().prefix("netpol-").tempdir().context("cannot create a folder")?;
    // kustomize accepts only relative paths, and resolves symbolic links before it counts `..`. So the path of the
    // overlay's folder must have no links.
    let directory = temporary.path().canonicalize()?;
    let relative = |path: &Path| {
        let up = "../".repeat(directory.components().count() - 1);
        format!("{up}{}", path.display().to_string().trim_start_matches('/'))
    };
    let list: Vec<_> = components.iter().map(|name| format!("  - {}\n", relative(&deploy().join(name)))).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources:\n  - {}\ncomponents:\n{}",
        relative(&path),
        list.concat()
    );
    std::fs::write(directory.join("kustomization.yaml"), text)?;
    run(&directory)
}

fn run(folder: &Path) -> Result<Vec<Value>> {
    let output = kubectl::run([OsStr::new("kustomize"), folder.as_os_str()])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "kubectl kustomize {}: {stderr}", folder.display());
    ensure!(stderr.trim().is_empty(), "kustomize prints warnings for {}: {stderr}", folder.display());
    let text = String::from_utf8(output.stdout).context("kustomize did not write UTF-8")?;
    serde_saphyr::from_multiple(&text).with_context(|| format!("cannot parse the output for {}", folder.display()))
}
