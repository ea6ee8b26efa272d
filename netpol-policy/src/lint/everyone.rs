//! Empty lists of peers, which allow every address.

use netpol_common::Direction;
use serde_json::Value;

use super::RuleId;
use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use crate::manifest::FieldPath;

/// Finds `from: []` and `to: []`, also as null. A rule without the field is how to write that all addresses are allowed.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    let Some(source) = context.details.policies.get(&view.policy.key) else { return };
    for (direction, list) in [(Direction::Ingress, "from"), (Direction::Egress, "to")] {
        let rules = source.value["spec"][direction.name()].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            let is_empty = match rule.get(list) {
                Some(Value::Null) => true,
                Some(Value::Array(items)) => items.is_empty(),
                _ => false,
            };
            if is_empty {
                let rule_list = FieldPath::default().key("spec").key(direction.name());
                let fix = format!("to allow no address, remove the rule; to allow every address, omit `{list}`");
                drafts.push(Draft::new(
                    RuleId::OPEN_TO_EVERYONE,
                    rule_list.index(index).key(list).to_string(),
                    format!("`{list}` is an empty list."),
                    "It allows every address, inside and outside the cluster, as if it were missing.",
                    DraftFix::without_rule(&fix, rule_list, index, rules.len()),
                ));
            }
        }
    }
}
