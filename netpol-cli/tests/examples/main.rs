//! Commands in the READMEs of `examples/` print what the READMEs show; files for CI and kubectl are valid.
//!
//! `UPDATE_EXPECT=1 cargo test -p netpol-cli --test examples` updates the output in the READMEs. Review the difference.

mod ci;
#[path = "../common/mod.rs"]
mod common;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect_file;

/// The start of a block with a command and its output. [`END`] is the end of the block.
const BEGIN: &str = "```console\n$ netpol ";
const END: &str = "```\n";

#[test]
fn every_readme_shows_the_output_of_its_commands() {
    let readmes = readmes();
    assert!(readmes.len() > 15, "only {} READMEs were found", readmes.len());
    for path in readmes {
        let text = fs::read_to_string(&path).expect("the README is readable");
        assert!(text.contains(BEGIN), "{} shows no command", path.display());
        expect_file![&path].assert_eq(&with_output(&text));
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns `examples/README.md` and the README of each example.
fn readmes() -> Vec<PathBuf> {
    let examples = root().join("examples");
    let entries = fs::read_dir(&examples).expect("examples/ is a directory");
    let folders = entries.map(|entry| entry.expect("examples/ is readable").path()).filter(|path| path.is_dir());
    folders.chain([examples.clone()]).map(|folder| folder.join("README.md")).collect()
}

/// Returns the text of a README with the current output of each command.
fn with_output(text: &str) -> String {
    let mut blocks = text.split(BEGIN);
    let mut result = blocks.next().unwrap_or_default().to_owned();
    for block in blocks {
        let (command, rest) = block.split_once('\n').expect("the command has a line");
        let (_, after) = rest.split_once(END).expect("the block ends");
        // Writing to a string does not fail.
        let _ = write!(result, "{BEGIN}{command}\n{}{END}{after}", netpol(command));
    }
    result
}

/// Runs `netpol` in the root of the repository. Returns its output.
fn netpol(arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    command.args(arguments.split_whitespace()).current_dir(root());
    let output = command.output().expect("netpol starts");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "netpol {arguments}");
    // 0 and 1 are verdicts: allowed and denied. Any other exit code is a failure.
    assert!(matches!(output.status.code(), Some(0 | 1)), "netpol {arguments}: {}", output.status);
    String::from_utf8(output.stdout).expect("the output is text")
}
