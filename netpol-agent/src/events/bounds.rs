//! Bounds the size of flow records. They copy names, rules and lists from Kubernetes objects, where these can have any
//! length.

use std::io::{self, Write};

use netpol_api::{FlowEnd, FlowRecord, FlowRule, FlowSide};
use serde::Serialize;

/// Maximum number of listed policies, Services, conditions and hints.
pub(super) const MAX_LISTED: usize = 16;
/// Maximum length of a text in bytes.
const MAX_TEXT: usize = 1024;
/// Maximum length in bytes of a fix (the YAML of a rule that would allow the flow).
const MAX_FIX: usize = 4096;

/// Bounds `from`, `to` and `hints` of a record. [`bound_side`] bounds its sides (`egress` and `ingress`), which come
/// from an explanation.
pub(super) fn bound_record(record: &mut FlowRecord) {
    for end in [&mut record.from, &mut record.to] {
        bound_end(end);
    }
    bound_texts(&mut record.hints);
}

fn bound_end(end: &mut FlowEnd) {
    for list in [&mut end.services, &mut end.via_services, &mut end.blocks] {
        bound_texts(list);
    }
}

/// Bounds one side of an explanation: the evaluation of the policies at the source or at the destination. A fix longer
/// than [`MAX_FIX`] is omitted. The list of policies is not bounded here, but by [`listed`].
pub(super) fn bound_side(side: &mut FlowSide) {
    let rules = [&mut side.rule, &mut side.nearest].into_iter().flatten();
    rules.for_each(|FlowRule { unmet_conditions, .. }| bound_texts(unmet_conditions));
    if side.fix.as_ref().is_some_and(|fix| fix.yaml.len() > MAX_FIX) {
        side.fix = None;
        side.fix_omitted = true;
    }
}

/// Keeps only the first [`MAX_LISTED`] texts, and truncates long texts.
pub(super) fn bound_texts(texts: &mut Vec<String>) {
    texts.truncate(MAX_LISTED);
    for text in texts.iter_mut().filter(|text| text.len() > MAX_TEXT) {
        text.truncate(text.floor_char_boundary(MAX_TEXT));
        text.push('…');
    }
}

/// Returns the first [`MAX_LISTED`] policies as text. If there are more, also returns the number of all policies.
pub(super) fn listed(policies: &[impl ToString]) -> (Vec<String>, Option<usize>) {
    let count = (policies.len() > MAX_LISTED).then_some(policies.len());
    (policies.iter().take(MAX_LISTED).map(ToString::to_string).collect(), count)
}

/// Counts the bytes that are written to it.
#[derive(Default)]
struct ByteCounter(usize);

impl Write for ByteCounter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the length of a value as JSON, which is about its size in memory.
pub(super) fn json_len(value: &impl Serialize) -> usize {
    let mut counter = ByteCounter::default();
    // Neither the counter nor the serialization of records fails.
    let _ = serde_json::to_writer(&mut counter, value);
    counter.0
}

#[cfg(test)]
mod tests {
    use netpol_api::{Fix, FlowVerdict};

    use super::*;

    #[test]
    fn a_side_is_bounded_and_a_small_one_is_unchanged() {
        let rule = |conditions: usize| FlowRule {
            policy: "shop/web".into(),
            path: "spec.egress[0]".into(),
            unmet_conditions: vec!["é".repeat(1000); conditions],
        };
        let fix =
            |length: usize| Fix { policy: "shop/web".into(), path: "spec.egress".into(), yaml: "x".repeat(length) };
        let policies: Vec<String> = (0..10_000).map(|number| format!("shop/p{number}")).collect();
        let (policies, policy_count) = listed(&policies);
        let side = FlowSide {
            verdict: FlowVerdict::Denied,
            reason: "no-rule".into(),
            policies,
            policy_count,
            rule: None,
            nearest: Some(rule(1000)),
            fix: Some(fix(300_000)),
            fix_omitted: false,
        };
        let mut large = side.clone();
        bound_side(&mut large);
        assert_eq!((large.policies.len(), large.policy_count), (MAX_LISTED, Some(10_000)));
        assert_eq!((&large.fix, large.fix_omitted), (&None, true));
        assert!(json_len(&large) < 32 << 10, "{}", json_len(&large));
        let mut small = FlowSide { nearest: Some(rule(0)), fix: Some(fix(MAX_FIX)), ..side };
        let before = small.clone();
        bound_side(&mut small);
        assert_eq!(small, before);
        assert_eq!(listed(&["shop/web"]), (vec!["shop/web".to_owned()], None));
    }
}
