//! Reads the manifests of a git revision with the program git.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use netpol_files::{Limits, ReadError, is_manifest};

use crate::input::TextFile;

/// A file in a git tree.
struct TreeEntry {
    /// The type and the permissions of the file, such as `100644`.
    mode: String,
    /// The ID of the git object with the content.
    id: String,
    size: u64,
    path: String,
}

/// The mode of a symbolic link. Source of the modes: `git-fast-import(1)`.
const LINK: &str = "120000";
/// The mode of a submodule.
const SUBMODULE: &str = "160000";

/// Reads the manifests of `REVISION:PATH`, which is a file or a directory. Returns the files, and an error for each
/// file that cannot be read.
pub(super) fn read(spec: &str, limits: Limits) -> Result<(Vec<TextFile>, Vec<String>)> {
    // Git would parse this argument as an option.
    if spec.starts_with('-') {
        bail!("`{spec}` is not a git revision");
    }
    let id = git_text(&["rev-parse", "--verify", "--quiet", spec]).with_context(|| {
        format!("{spec} not found: neither a file nor a path of a git revision; write REVISION:PATH")
    })?;
    let id = id.trim();
    match git_text(&["cat-file", "-t", id])?.trim() {
        "blob" => {
            let size = git_text(&["cat-file", "-s", id])?.trim().parse()?;
            let path = spec.split_once(':').map_or(spec, |(_, path)| path).to_owned();
            // The mode is unknown: `git rev-parse` prints only the ID.
            let entry = TreeEntry { mode: String::new(), id: id.to_owned(), size, path };
            read_all(vec![entry], limits, |_| spec.to_owned(), true)
        }
        "tree" => {
            let entries = parse_tree(&git_output(&["ls-tree", "-r", "-z", "--long", id])?)?;
            let directory = spec.trim_end_matches('/');
            let separator = if directory.ends_with(':') { "" } else { "/" };
            read_all(entries, limits, |path| format!("{directory}{separator}{path}"), false)
        }
        "commit" => bail!("{spec} is a git revision; add the path: {spec}:PATH"),
        other => bail!("{spec} is a git {other}; write REVISION:PATH of a file or a directory"),
    }
}

/// Parses the output of `git ls-tree`: records of the form `MODE TYPE ID SIZE<tab>PATH`, each terminated by a zero
/// byte.
fn parse_tree(output: &[u8]) -> Result<Vec<TreeEntry>> {
    let mut entries = Vec::new();
    for record in output.split(|byte| *byte == 0).filter(|record| !record.is_empty()) {
        let record = String::from_utf8_lossy(record);
        let (fields, path) = record.split_once('\t').context("the output of git ls-tree has no path")?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [mode, _, id, size] = fields[..] else { bail!("the output of git ls-tree has other fields: {record}") };
        let entry = TreeEntry {
            mode: mode.to_owned(),
            id: id.to_owned(),
            // The size of a submodule is `-`.
            size: size.parse().unwrap_or_default(),
            path: path.to_owned(),
        };
        // Hidden files are not read, as in a directory on disk.
        let is_hidden = path.split('/').any(|part| part.starts_with('.'));
        if !is_hidden && (is_manifest(Path::new(path)) || entry.mode == SUBMODULE) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Reads the content of entries, within the limits. Returns the files, and an error for each entry that is not read.
/// `name_of`: returns the name of a file for messages, by its path. `named`: whether the user passed the file itself,
/// not its directory, as an argument.
fn read_all(
    entries: Vec<TreeEntry>,
    limits: Limits,
    name_of: impl Fn(&str) -> String,
    named: bool,
) -> Result<(Vec<TextFile>, Vec<String>)> {
    let (mut files, mut unreadable, mut total) = (Vec::new(), Vec::new(), 0);
    let mut reader = BlobReader::start()?;
    for TreeEntry { mode, id, size, path } in entries {
        let name = name_of(&path);
        let error = match mode.as_str() {
            LINK => Some("is a symbolic link, which is not followed in a git revision".to_owned()),
            SUBMODULE => Some("is a submodule, which is not read".to_owned()),
            _ if size > limits.file => Some(ReadError::FileTooLarge(limits.file).to_string()),
            _ if size > limits.all - total => Some(ReadError::AllTooLarge(limits.all).to_string()),
            _ => None,
        };
        if let Some(error) = error {
            unreadable.push(format!("{name} {error}"));
            continue;
        }
        total += size;
        let bytes = reader.blob(&id, size).with_context(|| format!("cannot read {name} with git cat-file"))?;
        files.push(TextFile { name, bytes, named });
    }
    Ok((files, unreadable))
}

/// The process `git cat-file --batch`. It reads object IDs from its input, and writes the content of each object.
struct BlobReader {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl BlobReader {
    fn start() -> Result<Self> {
        let mut command = git(&["cat-file", "--batch"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(not_started)?;
        let output = BufReader::new(child.stdout.take().context("git has no output")?);
        Ok(Self { child, output })
    }

    /// Returns the content of a blob (a file).
    fn blob(&mut self, id: &str, size: u64) -> Result<Vec<u8>> {
        let input = self.child.stdin.as_mut().context("git has no input")?;
        writeln!(input, "{id}")?;
        input.flush()?;
        let mut header = String::new();
        self.output.read_line(&mut header)?;
        if header.trim() != format!("{id} blob {size}") {
            bail!("git wrote `{}`", header.trim());
        }
        let mut bytes = vec![0; usize::try_from(size)?];
        self.output.read_exact(&mut bytes)?;
        // git writes a newline after the content.
        self.output.read_exact(&mut [0])?;
        Ok(bytes)
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        // The process ends when its input is closed. Errors are ignored: all content was read before.
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

fn git(arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    // With these variables, git does not write to the repository and does not fetch missing objects from another host.
    command.args(arguments).env("GIT_OPTIONAL_LOCKS", "0").env("GIT_NO_LAZY_FETCH", "1").stdin(Stdio::null());
    command
}

fn git_output(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = git(arguments).output().map_err(not_started)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        let command = format!("git {}", arguments.join(" "));
        // `rev-parse --quiet` writes no message if the object does not exist.
        bail!("{command} failed: {}", if message.trim().is_empty() { "not found" } else { message.trim() });
    }
    Ok(output.stdout)
}

fn git_text(arguments: &[&str]) -> Result<String> {
    Ok(String::from_utf8(git_output(arguments)?)?)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn not_started(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow::anyhow!("git not found; install git to compare revisions, or pass directories")
        }
        _ => anyhow::anyhow!("cannot start git: {error}"),
    }
}
