//! Checks each file in git: its length, its name, and text that should not be committed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{run, workspace};

/// Maximum number of lines in a Rust file.
const MAX_LINES: usize = 500;

/// File names that do not describe the content.
const VAGUE_NAMES: [&str; 4] = ["util.rs", "utils.rs", "helpers.rs", "misc.rs"];

/// Leftovers of unfinished work in Rust files, and what to do instead.
const LEFTOVERS: [(&str, &str); 6] = [
    ("todo!(", "write it"),
    ("unimplemented!(", "write it"),
    ("dbg!(", "remove it"),
    ("#[ignore", "run the test or remove it"),
    ("FIXME", "fix it"),
    ("XXX", "fix it"),
];

/// Parts of paths that exist only on one machine.
const MACHINE_PATHS: [&str; 2] = ["/home/", "/root/"];

pub(super) fn check() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in tracked()? {
        let text = read(&path)?;
        check_file(&path, &text, &mut findings);
    }
    Ok(findings)
}

fn check_file(path: &Path, text: &str, findings: &mut Vec<String>) {
    let shown = path.display();
    let own_checkout = workspace::root().to_string_lossy();
    let is_rust = path.extension().is_some_and(|extension| extension == "rs");
    if is_rust && text.lines().count() > MAX_LINES {
        findings.push(format!("{shown} has {} lines, over {MAX_LINES}: split it", text.lines().count()));
    }
    if path.file_name().is_some_and(|name| VAGUE_NAMES.iter().any(|vague| name == *vague)) {
        findings.push(format!("{shown}: rename the file after what it does"));
    }
    // This file contains the leftovers in its lists.
    if path.ends_with(file!()) {
        return;
    }
    for (number, line) in (1..).zip(text.lines()) {
        for (leftover, advice) in LEFTOVERS.iter().filter(|_| is_rust) {
            if line.contains(leftover) {
                findings.push(format!("{shown}:{number}: `{leftover}`: {advice}"));
            }
        }
        let mut paths = MACHINE_PATHS.iter().copied().chain([&*own_checkout]);
        if paths.any(|path| line.contains(path)) {
            findings.push(format!("{shown}:{number}: a path that exists only on one machine"));
        }
    }
}

/// Returns the paths of the files that are in git and in the working tree, relative to the workspace's root.
pub(super) fn tracked() -> Result<Vec<PathBuf>> {
    let list = run::output("listing the files in git", &mut run::command("git", ["ls-files", "-z"]))?;
    let exists = |path: &PathBuf| workspace::root().join(path).is_file();
    Ok(list.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from).filter(exists).collect())
}

/// Returns the Rust files in git, with their text.
pub(super) fn rust() -> Result<Vec<(PathBuf, String)>> {
    let files = tracked()?.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    files.map(|path| read(&path).map(|text| (path, text))).collect()
}

/// Returns the text of a file.
pub(super) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(workspace::root().join(path)).with_context(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_vague_names_and_machine_paths_are_found() {
        for (path, text, expected) in [
            ("a/src/lib.rs", "fn a() {\n    todo!()\n}\n", "a/src/lib.rs:2: `todo!(`: write it"),
            ("a/src/utils.rs", "", "a/src/utils.rs: rename the file after what it does"),
            ("README.md", "cd /home/me\n", "README.md:1: a path that exists only on one machine"),
        ] {
            let mut findings = Vec::new();
            check_file(Path::new(path), text, &mut findings);
            assert_eq!(findings, [expected]);
        }
    }
}
