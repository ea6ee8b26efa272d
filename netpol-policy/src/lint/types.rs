//! Lint rules for policies in which `policyTypes` does not fit the fields `ingress` and `egress`.

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use crate::explain::yaml;
use crate::manifest::FieldPath;

/// Reports a field `ingress` or `egress` without its type in `policyTypes`. Also reports a type without its field, but
/// only in a policy that has rules for the other direction.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    let Some(source) = context.details.policies.get(&view.policy.key) else { return };
    let spec = &source.value["spec"];
    let rules_of = |direction: Direction| spec[direction.name()].as_array();
    let has_types = spec["policyTypes"].as_array().is_some_and(|types| !types.is_empty());
    let has_rules = |direction| rules_of(direction).is_some_and(|rules| !rules.is_empty());
    let (ingress, egress) = (view.policy.ingress.is_some(), view.policy.egress.is_some());
    for (direction, other, type_name, isolated, other_isolated) in [
        (Direction::Ingress, Direction::Egress, "Ingress", ingress, egress),
        (Direction::Egress, Direction::Ingress, "Egress", egress, ingress),
    ] {
        let field = format!("spec.{}", direction.name());
        if !isolated && rules_of(direction).is_some() {
            drafts.push(rules_without_type(field, type_name, has_types, has_rules(direction)));
        } else if isolated
            && spec[direction.name()].is_null()
            && spec["policyTypes"].as_array().is_some_and(|types| types.iter().any(|item| item == type_name))
            && other_isolated
            && has_rules(other)
        {
            drafts.push(type_without_rules(&field, type_name, direction, other));
        }
    }
}

/// Returns the finding for a field `ingress` or `egress` that has no effect.
fn rules_without_type(field: String, type_name: &str, has_types: bool, has_rules: bool) -> Draft {
    let types = FieldPath::parse("spec.policyTypes");
    let (message, operations) = if has_types {
        let added = Operation::Append(types, yaml::string(type_name));
        (format!("policyTypes does not list {type_name}, so {field} has no effect."), vec![added])
    } else {
        // Without policyTypes, every policy isolates for ingress, and a policy with egress rules also for egress. So
        // only an empty `egress` can have no effect, and the fix must keep the type Ingress.
        let added = ["Ingress", type_name].map(|name| Operation::Append(types.clone(), yaml::string(name)));
        (format!("Without policyTypes, an empty {field} has no effect."), added.to_vec())
    };
    let why = if has_rules {
        "The policy does not isolate pods in this direction, so connections that no rule allows are allowed, too."
    } else {
        "The policy does not isolate pods in this direction, and all connections are allowed."
    };
    let fix = DraftFix::of(format!("add {type_name} to policyTypes, or remove {field}"), operations);
    Draft::new(RuleId::RULES_WITHOUT_TYPE, field, message, why, fix)
}

/// Returns the finding for a policy type without its field, in a policy that has rules for the other direction.
fn type_without_rules(field: &str, type_name: &str, direction: Direction, other: Direction) -> Draft {
    Draft::new(
        RuleId::TYPE_WITHOUT_RULES,
        "spec.policyTypes",
        format!("policyTypes lists {type_name}, but the policy has no {field}."),
        format!("The policy allows no {} of its pods; it has rules for {} only.", direction.name(), other.name()),
        DraftFix::of(
            format!(
                "write `{}: []` if this is intended; otherwise remove {type_name} from policyTypes",
                direction.name()
            ),
            vec![Operation::Add(FieldPath::parse(field), yaml::Node::List(Vec::new()))],
        ),
    )
}
