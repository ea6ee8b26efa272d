//! Runs `netpol` on directories of manifests.

#![allow(dead_code, reason = "not every test binary uses all items")]

pub(crate) mod schema;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The result of a command: exit code, standard output and standard error.
pub(crate) struct RunOutput {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A directory of manifests, deleted at the end of the test.
pub(crate) struct Manifests(TempDir);

impl RunOutput {
    /// Returns standard output as one line, without the line breaks and indentation of wrapped text.
    pub(crate) fn unwrapped(&self) -> String {
        self.out.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

impl Manifests {
    pub(crate) fn of(files: &[(&str, &str)]) -> Self {
        let directory = TempDir::new().expect("cannot create a directory");
        for (name, text) in files {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().expect("the path has no parent directory"))
                .expect("cannot create a subdirectory");
            fs::write(path, text).expect("cannot write a manifest");
        }
        Self(directory)
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs `netpol COMMAND -f DIRECTORY …`. In the result, the path of the directory is replaced by `DIR`.
    pub(crate) fn run(&self, command: &str, arguments: &[&str]) -> RunOutput {
        let directory = self.0.path().to_str().expect("the path is not UTF-8");
        let mut output = netpol(&[&[command, "-f", directory], arguments].concat(), "");
        output.out = output.out.replace(directory, "DIR");
        output.err = output.err.replace(directory, "DIR");
        output
    }
}

/// Runs `netpol` with `input` as standard input. Panics if the output of `-o json` does not match its schema.
pub(crate) fn netpol(arguments: &[&str], input: &str) -> RunOutput {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netpol"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("cannot start netpol");
    let mut stdin = child.stdin.take().expect("netpol has no standard input");
    stdin.write_all(input.as_bytes()).expect("cannot write to netpol");
    drop(stdin);
    let output = child.wait_with_output().expect("cannot wait for netpol");
    let text = |bytes| String::from_utf8(bytes).expect("the output is not UTF-8");
    let out = text(output.stdout);
    schema::check_output(arguments, &out);
    RunOutput { code: output.status.code().expect("netpol was killed by a signal"), out, err: text(output.stderr) }
}
