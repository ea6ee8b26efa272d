//! Diagnostics that depend on all files of the input.

use std::collections::BTreeMap;

use super::diagnostics::Diagnostics;
use super::{Located, ManifestError, Parsed};
use crate::lint::RuleId;
use crate::model::{MAX_ALL_ORDINALS, Severity, Workload};

/// The diagnostics of each file.
type Files<'p> = BTreeMap<&'p str, Diagnostics>;

/// Returns warnings about the input as a whole: objects that are defined more than once, and `StatefulSets` beyond the
/// limit on the number of pods. For each file, the first few warnings are listed and the others are counted.
pub fn report(parsed: &Parsed) -> Vec<ManifestError> {
    let mut files = Files::new();
    add_duplicates(&mut files, &parsed.objects, |object| (object.key(), object.key().to_string()));
    add_duplicates(&mut files, &parsed.workloads, |workload| (workload.key.clone(), workload.key.title()));
    for located in beyond_pod_limit(&parsed.workloads) {
        let message = format!(
            "the StatefulSets of the input have more than {MAX_ALL_ORDINALS} pods; \
             one pod stands for all pods of this StatefulSet"
        );
        add(&mut files, RuleId::UNUSUAL_VALUE, located, &located.object.key.title(), &message);
    }
    files.into_values().flat_map(Diagnostics::finish).collect()
}

/// Adds a warning for each definition of an object after its first definition. The last definition is used. `identify`
/// returns the key and the title of an object.
fn add_duplicates<'p, T, K: Ord>(
    files: &mut Files<'p>,
    objects: &'p [Located<T>],
    identify: impl Fn(&T) -> (K, String),
) {
    let mut last: BTreeMap<K, usize> = BTreeMap::new();
    last.extend(objects.iter().enumerate().map(|(index, located)| (identify(&located.object).0, index)));
    let mut earlier: BTreeMap<K, &Located<T>> = BTreeMap::new();
    for (index, located) in objects.iter().enumerate() {
        let (key, title) = identify(&located.object);
        let used = if last.get(&key) == Some(&index) { "this definition" } else { "the last definition" };
        if let Some(other) = earlier.insert(key, located) {
            let message = format!("is also defined in {}:{}; {used} is used", other.file, other.line);
            add(files, RuleId::DUPLICATE_OBJECT, located, &title, &message);
        }
    }
}

fn add<'p, T>(files: &mut Files<'p>, rule: RuleId, located: &'p Located<T>, title: &str, message: &str) {
    let diagnostics = files.entry(&located.file).or_insert_with(|| Diagnostics::new(&located.file));
    diagnostics.add((rule, Severity::Warning), located.document, Some(title), message, || (located.line, None));
}

/// Returns the `StatefulSets` with which the number of pods would exceed [`MAX_ALL_ORDINALS`]. One pod stands for all
/// pods of such a `StatefulSet`.
pub(crate) fn beyond_pod_limit(workloads: &[Located<Workload>]) -> impl Iterator<Item = &Located<Workload>> {
    let mut pods = 0;
    workloads.iter().filter(move |located| {
        let count = located.object.ordinals.as_ref().map_or(0, ExactSizeIterator::len);
        let is_beyond = pods + count > MAX_ALL_ORDINALS;
        if !is_beyond {
            pods += count;
        }
        is_beyond
    })
}
