//! Checks that the docs are complete and that their references exist.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Result, ensure};
use clap::CommandFactory;

use super::sources;
use crate::cli::Cli;
use crate::workspace;

/// Checks that docs/ explains every reason.
pub(super) fn reasons() -> Result<Vec<String>> {
    let list = sources::read(Path::new("netpol-common/src/reason.rs"))?;
    let reasons: Vec<_> = list.lines().filter_map(reason).collect();
    ensure!(reasons.len() > 10, "netpol-common/src/reason.rs no longer lists reasons as `Name = 1, \"name\", true;`");
    let docs = docs()?;
    let undocumented = reasons.into_iter().filter(|reason| !docs.contains(&format!("`{reason}`")));
    Ok(undocumented.map(|reason| format!("docs/ does not explain `{reason}`")).collect())
}

/// Checks that docs/ describes every option of the agent.
pub(super) fn options() -> Result<Vec<String>> {
    let names = options_of(&sources::read(Path::new("netpol-agent/src/cli/mod.rs"))?);
    ensure!(names.len() > 10, "netpol-agent/src/cli/mod.rs no longer has its options as `#[arg(long…)]`");
    let docs = docs()?;
    let undocumented = names.into_iter().filter(|name| !docs.contains(&format!("`{name}`")));
    Ok(undocumented.map(|name| format!("docs/ does not describe `{name}`")).collect())
}

/// Returns the options in a source file: `--pin-path` for `#[arg(long)]` with `pin_path: PathBuf,` in the next line.
fn options_of(text: &str) -> BTreeSet<String> {
    let is_long = |line: &str| line.trim_start().starts_with("#[arg(") && line.contains("long");
    let pairs = text.lines().zip(text.lines().skip(1)).filter(|(line, _)| is_long(line));
    pairs.filter_map(|(_, field)| Some(format!("--{}", field.trim().split_once(':')?.0.replace('_', "-")))).collect()
}

/// Returns the text of all files in docs/.
pub(super) fn docs() -> Result<String> {
    let files = sources::tracked()?.into_iter().filter(|path| path.starts_with("docs"));
    files.map(|path| sources::read(&path)).collect()
}

/// Returns the name of the reason that a line of reason.rs defines: `no-rule` for `NoRule = 16, "no-rule", false;`.
fn reason(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once(" = ")?;
    let mut parts = rest.strip_suffix(';')?.split(", ");
    parts.next()?.parse::<u8>().ok()?;
    parts.next()?.strip_prefix('"')?.strip_suffix('"')
}

/// Checks that each item of docs/semantics.md has a test: a test of item 17 has `s17_` in its name.
pub(super) fn semantics() -> Result<Vec<String>> {
    let text = sources::read(Path::new("docs/semantics.md"))?;
    let mut tested = BTreeSet::new();
    for (_, text) in sources::rust()? {
        let rests = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn s"));
        tested.extend(rests.flat_map(items_of));
    }
    let items: Vec<u32> =
        text.lines().filter_map(|line| line.split_once(". ")).filter_map(|(number, _)| number.parse().ok()).collect();
    ensure!(items.len() > 10, "docs/semantics.md no longer has numbered items");
    let untested = items.iter().filter(|item| !tested.contains(item));
    Ok(untested.map(|item| format!("no test is named s{item}_…")).collect())
}

/// Returns the items in the name of a test: 11 and 12 for `11_and_s12_excepts()`. `rest`: the text after `fn s`.
fn items_of(rest: &str) -> Vec<u32> {
    rest.split('_')
        .map_while(|part| if part == "and" { Some(None) } else { number(part).map(Some) })
        .flatten()
        .collect()
}

/// Returns the number in `12` or `s12`.
fn number(part: &str) -> Option<u32> {
    part.strip_prefix('s').unwrap_or(part).parse().ok()
}

/// Checks that the links in all Markdown files lead to existing files, and that examples/README.md lists all examples.
pub(super) fn links() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    let tracked = sources::tracked()?;
    for path in tracked.iter().filter(|path| path.extension().is_some_and(|extension| extension == "md")) {
        let folder = workspace::root().join(path.parent().unwrap_or(Path::new("")));
        for target in sources::read(path)?.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            if !target.is_empty() && !target.contains("://") && !folder.join(target).exists() {
                findings.push(format!("{}: {target} does not exist", path.display()));
            }
        }
    }
    let list = sources::read(Path::new("examples/README.md"))?;
    for path in tracked.iter().filter(|path| path.ends_with("policies.yaml")) {
        let Some(name) = path.strip_prefix("examples").ok().and_then(Path::parent).and_then(Path::to_str) else {
            continue;
        };
        if !list.contains(&format!("({name})")) {
            findings.push(format!("examples/README.md does not list {name}"));
        }
    }
    Ok(findings)
}

/// Checks that tests named in the threat model exist. Names in backticks with many underscores are names of tests.
pub(super) fn threat_model() -> Result<Vec<String>> {
    let text = sources::read(Path::new("docs/threat-model.md"))?;
    let names: BTreeSet<&str> = text.split('`').skip(1).step_by(2).filter(|word| is_test_name(word)).collect();
    ensure!(names.len() > 10, "docs/threat-model.md no longer names tests in backticks");
    let tests: BTreeSet<String> = sources::rust()?
        .iter()
        .flat_map(|(_, text)| text.lines())
        .filter_map(|line| line.trim_start().trim_start_matches("async ").strip_prefix("fn ")?.split('(').next())
        .map(str::to_owned)
        .collect();
    let missing = names.into_iter().filter(|name| !tests.contains(*name));
    Ok(missing.map(|name| format!("docs/threat-model.md names a test that does not exist: {name}")).collect())
}

fn is_test_name(word: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    word.matches('_').count() > 4 && word.bytes().all(plain)
}

/// Checks that CONTRIBUTING.md describes every command of `cargo xtask`.
pub(super) fn commands() -> Result<Vec<String>> {
    let text = sources::read(Path::new("CONTRIBUTING.md"))?;
    let cli = Cli::command();
    let undocumented =
        cli.get_subcommands().map(clap::Command::get_name).filter(|command| !text.contains(&format!("`{command}`")));
    Ok(undocumented.map(|command| format!("CONTRIBUTING.md does not describe `{command}`")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn item_numbers_are_read_from_test_names() {
        for (name, items) in [
            ("17_rules() {", &[17][..]),
            ("07_x() {", &[7]),
            ("11_and_s12_excepts() {", &[11, 12]),
            // Not a test: the rest of `fn settles(&self) {`.
            ("ettles(&self) {", &[]),
        ] {
            assert_eq!(items_of(name), items, "{name}");
        }
    }

    #[test]
    fn options_are_read_from_the_agent() {
        let options =
            options_of("    /// Here\n    #[arg(long, short)]\n    pin_path: PathBuf,\n    command: Command,\n");
        assert_eq!(options, ["--pin-path".to_owned()].into());
    }

    #[test]
    fn reasons_are_read_from_their_list() {
        assert_eq!(reason("    NoRule = 16, \"no-rule\", false;"), Some("no-rule"));
        assert_eq!(reason("pub const REASONS: usize = 32;"), None);
    }
}
