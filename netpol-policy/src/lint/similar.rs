//! Finds typos: if a value in a policy matches nothing, but an existing value is similar, the existing value was
//! probably intended.

use super::finding::DraftFix;
use super::patch::Operation;
use crate::explain::yaml;
use crate::manifest::FieldPath;
use crate::model::{Labels, Requirement, Selector};

/// The maximum number of edits between similar values, see [`distance`].
const MAX_DISTANCE: usize = 2;
/// For values with fewer characters, no value counts as similar: too many are only one edit away.
const MIN_LENGTH: usize = 3;

/// Returns the candidate that is most similar to a text; `None` if no candidate is similar.
pub(super) fn closest<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = if text.chars().count() < MIN_LENGTH { 0 } else { MAX_DISTANCE.min(text.len() / 3) };
    // Equal candidates often follow each other, for example the names of the same port of several pods. Only the first
    // of them is compared.
    let mut last = text;
    let candidates =
        candidates.into_iter().filter(|other| std::mem::replace(&mut last, other) != *other && *other != text);
    // `len` counts bytes, and a character has up to 4 bytes. So `limit` edits change `len` by at most `limit * 4`.
    let with_similar_length = candidates.filter(|other| other.len().abs_diff(text.len()) <= limit * 4);
    let distances = with_similar_length.map(|other| (distance(text, other), other));
    distances.filter(|(distance, _)| (1..=limit).contains(distance)).min().map(|(_, other)| other)
}

/// Returns a fix that replaces the scalar at `path` by `value`.
pub(super) fn replacement(path: FieldPath, value: &str) -> DraftFix {
    let description = format!("set {path} to `{value}`, if that is the intended one");
    DraftFix::of(description, vec![Operation::Replace(path, yaml::string(value))])
}

/// Returns a fix for a typo in one value of `matchLabels`. `candidates`: the labels of existing pods. Pods that do not
/// meet all other requirements of the selector are ignored. The new value is the most similar value that the label has
/// in the remaining pods.
pub(super) fn label_fix(field: &str, selector: &Selector, candidates: &[&Labels]) -> Option<DraftFix> {
    selector.requirements.iter().enumerate().find_map(|(index, requirement)| {
        let Requirement::In(key, values) = requirement else { return None };
        let [value] = values.as_slice() else { return None };
        let other_requirements =
            || selector.requirements.iter().enumerate().filter(|(other_index, _)| *other_index != index);
        let matching = candidates.iter().filter(|labels| other_requirements().all(|(_, other)| other.holds(labels)));
        let similar = closest(value, matching.filter_map(|labels| labels.get(key)).map(|value| &**value))?;
        Some(replacement(FieldPath::parse(field).key("matchLabels").key(key), similar))
    })
}

/// Returns the minimum number of edits that change one text into the other (the optimal string alignment distance). An
/// edit inserts, deletes or replaces a character, or swaps it with the next one.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    // `rows[i][j]` is the distance between the first `i` characters of `one` and the first `j` characters of `other`.
    let mut rows: Vec<Vec<usize>> = vec![(0..=other.len()).collect()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let substituted = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let is_swapped = i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
            let swapped = if is_swapped { rows[i - 2][j - 2] + 1 } else { usize::MAX };
            row.push(substituted.min(rows[i - 1][j] + 1).min(row[j - 1] + 1).min(swapped));
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_typo_is_similar() {
        for (text, expected) in [
            ("backnd", Some("backend")),
            ("kubedns", Some("kube-dns")),
            ("web", None),
            ("frontend", None),
            // Too short.
            ("db", None),
            // The same as a candidate, so not a typo.
            ("backend", None),
            ("aip", Some("api")),
        ] {
            assert_eq!(closest(text, ["backend", "kube-dns", "dbx", "api"]), expected, "{text}");
        }
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }
}
