//! Checks that sources and docs use the current names of concepts, and that commit subjects are short. See section
//! "Words" of CONTRIBUTING.md.

use std::path::Path;

use anyhow::Result;

use super::sources;
use crate::run;

/// Words that earlier versions used, and the terms that replace them.
const REPLACED: [(&str, &str); 21] = [
    ("judge", "evaluate"),
    ("judged", "evaluated"),
    ("judgement", "verdict"),
    ("nobody", "no pod, no process"),
    ("somebody", "another process, another component"),
    ("whom", "a noun"),
    ("whose", "\"with\", \"of\", or a separate sentence"),
    ("tells", "reports, logs, returns"),
    ("hears", "receives"),
    ("behind it", "its backends"),
    ("misunderstood", "invalid or unsupported"),
    ("understood", "parsed, valid"),
    ("taken off", "detached"),
    ("put on again", "reattached"),
    ("detour", "slow path"),
    ("surroundings", "context"),
    ("atom", "peer selector"),
    ("lookout", "interface watcher"),
    ("foreign source", "spoofed source"),
    ("meant", "expected"),
    ("neighbour", "neighbor"),
];

/// Maximum length of a commit subject in characters.
const MAX_SUBJECT: usize = 72;
/// Option of `git log`: only the subjects of the last 20 commits are checked, because older commits cannot be changed.
const LAST_COMMITS: &str = "-20";

/// Finds replaced words in docs, and in the comments and strings of Rust sources.
pub(super) fn replaced_words() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for path in sources::tracked()? {
        let text = sources::read(&path)?;
        // This file and CONTRIBUTING.md list the replaced words.
        if path.ends_with(file!()) || path == Path::new("CONTRIBUTING.md") {
            continue;
        }
        let is_rust = path.extension().is_some_and(|extension| extension == "rs");
        if !is_rust && path.extension().is_none_or(|extension| extension != "md") {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            let prose = if is_rust { prose(line) } else { line.to_lowercase() };
            for (word, term) in REPLACED.iter().filter(|(word, _)| has_word(&prose, word)) {
                findings.push(format!("{}:{number}: write {term} instead of `{word}`", path.display()));
            }
        }
    }
    Ok(findings)
}

/// Finds commits with a long subject.
pub(super) fn subjects() -> Result<Vec<String>> {
    let log = run::output("reading commits", &mut run::command("git", ["log", LAST_COMMITS, "--format=%h %s"]))?;
    let length = |line: &str| line.split_once(' ').map_or(0, |(_, subject)| subject.chars().count());
    let long = log.lines().filter(|line| length(line) > MAX_SUBJECT);
    Ok(long.map(|line| format!("{line}: the subject has {} characters, over {MAX_SUBJECT}", length(line))).collect())
}

/// Returns the comment and the strings of a line of Rust, in lower case. For strings that contain quotes or `//`, only
/// a part of the string is returned.
fn prose(line: &str) -> String {
    let (code, comment) = line.split_once("//").unwrap_or((line, ""));
    let strings = code.split('"').skip(1).step_by(2);
    strings.chain([comment]).collect::<Vec<_>>().join(" ").to_lowercase()
}

/// Returns whether the text contains a word or a phrase. A part of a longer word does not count. The last part of a
/// name like `shop:nobody` does not count either.
fn has_word(text: &str, word: &str) -> bool {
    let is_part = |character: char| character.is_alphanumeric() || character == '_';
    text.match_indices(word).any(|(start, _)| {
        let (before, after) = (&text[..start], &text[start + word.len()..]);
        !before.chars().next_back().is_some_and(|character| is_part(character) || character == ':')
            && !after.chars().next().is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_comments_and_strings_only() {
        assert!(has_word(&prose("let x = 1; // Tells it."), "tells"));
        assert!(has_word(&prose("println!(\"nobody\");"), "nobody"));
        assert!(!has_word(&prose("atom.judge(meant)"), "atom"));
        assert!(!has_word(&prose("// atomic"), "atom"));
        assert!(!has_word(&prose("// whomever"), "whom"));
        assert!(!has_word(&prose("// serviceaccount:shop:nobody"), "nobody"));
        assert!(has_word(&prose("// nobody: x"), "nobody"));
    }
}
