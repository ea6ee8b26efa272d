//! Finds a value that was probably intended instead of one that matches nothing.

use super::finding::DraftFix;
use super::patch::Operation;
use crate::explain::yaml;
use crate::manifest::FieldPath;
use crate::model::{Labels, Requirement, Selector};

/// The maximum number of edits between similar names.
const MAX_DISTANCE: usize = 2;
/// Names shorter than this are too similar to many others.
const MIN_LENGTH: usize = 3;

/// Returns the candidate that is most similar to a text; `None` if no candidate is similar.
pub(super) fn closest<'c>(text: &str, candidates: impl IntoIterator<Item = &'c str>) -> Option<&'c str> {
    let limit = if text.chars().count() < MIN_LENGTH { 0 } else { MAX_DISTANCE.min(text.len() / 3) };
    // Pods of one workload have equal labels, so equal candidates follow each other. Each is compared only once.
    let mut last = text;
    let candidates =
        candidates.into_iter().filter(|other| std::mem::replace(&mut last, other) != *other && *other != text);
    let close = candidates.filter(|other| other.len().abs_diff(text.len()) <= limit * 4);
    let distances = close.map(|other| (distance(text, other), other));
    distances.filter(|(distance, _)| (1..=limit).contains(distance)).min().map(|(_, other)| other)
}

/// Returns a fix that replaces a scalar.
pub(super) fn replacement(path: FieldPath, value: &str) -> DraftFix {
    let description = format!("set {path} to `{value}`, if that is the intended one");
    DraftFix::of(description, vec![Operation::Replace(path, yaml::string(value))])
}

/// Returns a fix for a typo in one value of `matchLabels`. `candidates`: the labels of existing pods. The fix is the
/// most similar value among the candidates that meet all other requirements of the selector.
pub(super) fn label_fix(field: &str, selector: &Selector, candidates: &[&Labels]) -> Option<DraftFix> {
    selector.requirements.iter().enumerate().find_map(|(index, requirement)| {
        let Requirement::In(key, values) = requirement else { return None };
        let [value] = values.as_slice() else { return None };
        let others = || selector.requirements.iter().enumerate().filter(|(other, _)| *other != index);
        let matching = candidates.iter().filter(|labels| others().all(|(_, other)| other.holds(labels)));
        let value = closest(value, matching.filter_map(|labels| labels.get(key)).map(|value| &**value))?;
        Some(replacement(FieldPath::parse(field).key("matchLabels").key(key), value))
    })
}

/// Returns the number of characters to insert, delete, replace or swap with the next one: the optimal string alignment
/// distance.
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
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
            ("db", None),
            ("backend", None),
            ("aip", Some("api")),
        ] {
            assert_eq!(closest(text, ["backend", "kube-dns", "dbx", "api"]), expected, "{text}");
        }
        assert_eq!((distance("kitten", "sitting"), distance("", "ab"), distance("ab", "")), (3, 2, 2));
    }
}
