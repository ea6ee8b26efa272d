//! Empty lists of peers, which allow every address.

use netpol_common::Direction;
use serde_json::Value;

use super::RuleId;
use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use crate::manifest::FieldPath;

/// Finds rules of a policy with `from: []`, `from: null`, `to: []` or `to: null`. A rule that is intended to allow all
/// addresses should omit the field.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    let Some(source) = context.details.policies.get(&view.policy.key) else { return };
    for (direction, list) in [(Direction::Ingress, "from"), (Direction::Egress, "to")] {
        let rules = source.value["spec"][direction.name()].as_array().map(Vec::as_slice).unwrap_or_default();
        for (index, rule) in rules.iter().enumerate() {
            let is_null = rule.get(list).is_some_and(Value::is_null);
            let is_empty = rule[list].as_array().is_some_and(Vec::is_empty);
            if is_null || is_empty {
                let rule_list = FieldPath::default().key("spec").key(direction.name());
                let field = rule_list.index(index).key(list);
                let has_ports = rule["ports"].as_array().is_some_and(|ports| !ports.is_empty());
                let draft = |fix: DraftFix| {
                    Draft::new(
                        RuleId::EMPTY_PEER_LIST,
                        field.to_string(),
                        format!("`{list}` is {}.", if is_null { "null" } else { "an empty list" }),
                        "It allows every address, inside and outside the cluster, as if it were missing.",
                        fix,
                    )
                };
                drafts.push(if has_ports {
                    // A rule that is intended to allow nothing usually has no ports. So this rule, which has ports, is
                    // probably intended to allow every address, and the finding is only an info.
                    let fix = format!("omit `{list}` if every address is intended; otherwise add peers");
                    draft(DraftFix::of(fix, vec![Operation::Remove(field.clone())])).into_info()
                } else {
                    let fix = format!("to allow no address, remove the rule; to allow every address, omit `{list}`");
                    draft(DraftFix::without_rule(&fix, rule_list, index, rules.len()))
                });
            }
        }
    }
}
