//! Finds rules and policies without an effect: if they are removed, the same connections are allowed.

use std::collections::BTreeMap;

use netpol_common::Direction;

use super::context::Context;
use super::finding::{Draft, DraftFix};
use super::{NotChecked, RuleId, covers};
use crate::manifest::FieldPath;
use crate::model::{Mode, Peers, Policy, PolicyKey, Ports, Rule};
use crate::reference;

/// The maximum number of rules of a namespace in one direction. A namespace with more rules is not checked, because
/// each rule would be compared with each other rule.
const MAX_RULES: usize = 3000;
/// The fix for a policy that allows everything. The policy gets an effect if the user adds a default-deny policy later.
const FIX_OF_ALLOW_ALL: &str = "delete the policy, unless you will add a default deny";

/// A rule, its policy, and its index among the policy's rules of one direction.
#[derive(Clone, Copy)]
struct RulePlace<'a> {
    policy: &'a Policy,
    index: usize,
    rule: &'a Rule,
}

/// Adds the findings to `drafts`. Only the findings about policies that allow everything depend on the pods in the
/// input.
pub(super) fn check(
    context: &Context<'_>,
    drafts: &mut BTreeMap<PolicyKey, Vec<Draft>>,
    not_checked: &mut Vec<NotChecked>,
) {
    let mut namespaces: BTreeMap<&str, Vec<&Policy>> = BTreeMap::new();
    // Policies in shadow mode are not compared: they have no effect yet.
    let enforced = context.policies.iter().filter(|view| context.state.mode(view.policy) == Mode::Enforce);
    for view in enforced {
        namespaces.entry(&view.policy.key.namespace).or_default().push(view.policy);
    }
    for (namespace, policies) in namespaces {
        let too_many = Direction::BOTH.into_iter().any(|direction| {
            policies.iter().map(|policy| reference::rules(policy, direction).len()).sum::<usize>() > MAX_RULES
        });
        if too_many {
            let reason = format!("namespace {namespace} has more than {MAX_RULES} rules in a direction");
            not_checked.push(NotChecked::new(RuleId::SHADOWED_RULE, reason.clone()));
            not_checked.push(NotChecked::new(RuleId::POLICY_CHANGES_NOTHING, reason));
            continue;
        }
        let shadowed = Direction::BOTH.map(|direction| shadowed(&policies, direction));
        let unneeded = unneeded(&policies, &shadowed);
        for (policy, reason) in policies.iter().zip(&unneeded) {
            let covered = reason.clone().map(|why| (why, "delete the policy"));
            let of_allow_all = || Some((needless_allow_all(context, policy)?, FIX_OF_ALLOW_ALL));
            if let Some((why, fix)) = covered.or_else(of_allow_all) {
                let draft = Draft::new(
                    RuleId::POLICY_CHANGES_NOTHING,
                    "spec",
                    "Without this policy, the same connections would be allowed.",
                    why,
                    fix,
                );
                drafts.entry(policy.key.clone()).or_default().push(draft);
                continue;
            }
            for (direction, places) in Direction::BOTH.into_iter().zip(&shadowed) {
                for (index, wide) in
                    places.iter().filter(|((key, _), _)| *key == policy.key).map(|((_, index), wide)| (*index, wide))
                {
                    drafts.entry(policy.key.clone()).or_default().push(shadowed_rule(policy, direction, index, *wide));
                }
            }
        }
    }
}

/// The rules that a wider rule shadows, by policy and index, each with the wider rule. A rule shadows another one if it
/// allows everything that the other one allows. This has nothing to do with shadow mode.
type Shadowed<'a> = BTreeMap<(PolicyKey, usize), RulePlace<'a>>;

/// Finds rules that a wider rule shadows. The rules are checked from the last to the first. A shadowed rule is removed
/// from `kept`, so it shadows no other rule. So of equal rules, the first one is not reported.
fn shadowed<'a>(policies: &[&'a Policy], direction: Direction) -> Shadowed<'a> {
    let rules = policies.iter().flat_map(|policy| {
        let rules = reference::rules(policy, direction).iter().enumerate();
        rules.map(|(index, rule)| RulePlace { policy, index, rule })
    });
    let mut kept: Vec<RulePlace<'a>> = rules.collect();
    let mut shadowed = Shadowed::new();
    for position in (0..kept.len()).rev() {
        let narrow = kept[position];
        let others = kept.iter().enumerate().filter(|(other, _)| *other != position).map(|(_, wide)| wide);
        let is_wider = |wide: &&RulePlace<'_>| {
            (wide.policy.key == narrow.policy.key || covers::selector(&wide.policy.pods, &narrow.policy.pods))
                && covers::rule(wide.rule, narrow.rule, &narrow.policy.key.namespace)
        };
        if let Some(wide) = others.into_iter().find(is_wider).copied() {
            shadowed.insert((narrow.policy.key.clone(), narrow.index), wide);
            kept.remove(position);
        }
    }
    shadowed
}

/// Returns for each policy why it is not needed; `None` if it is needed. A policy is not needed if other policies
/// isolate its pods, and rules of other policies shadow all its rules. Of equal policies, the first one is not
/// reported.
fn unneeded(policies: &[&Policy], shadowed: &[Shadowed<'_>; 2]) -> Vec<Option<String>> {
    let mut result: Vec<Option<String>> = vec![None; policies.len()];
    for (position, policy) in policies.iter().enumerate().rev() {
        let kept: Vec<&&Policy> = policies
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != position && result[*other].is_none())
            .map(|(_, other)| other)
            .collect();
        let mut isolating_names = Vec::new();
        let is_unneeded = Direction::BOTH.into_iter().zip(shadowed).all(|(direction, shadowed)| {
            if !policy.isolates_in(direction) {
                return true;
            }
            let isolating =
                kept.iter().find(|other| other.isolates_in(direction) && covers::selector(&other.pods, &policy.pods));
            isolating_names.extend(isolating.map(|other| other.key.to_string()));
            isolating.is_some()
                && (0..reference::rules(policy, direction).len()).all(|index| {
                    let wide = shadowed.get(&(policy.key.clone(), index));
                    wide.is_some_and(|wide| {
                        wide.policy.key != policy.key && kept.iter().any(|other| other.key == wide.policy.key)
                    })
                })
        });
        if is_unneeded && !isolating_names.is_empty() && !policy.pods.invalid && !is_default_deny(policy) {
            isolating_names.dedup();
            let isolating = match &isolating_names[..] {
                [only] => format!("NetworkPolicy {only} isolates"),
                _ => format!("NetworkPolicies {} isolate", isolating_names.join(" and ")),
            };
            result[position] = Some(format!("{isolating} the same pods, and other policies allow at least as much."));
        }
    }
    result
}

/// Returns whether a policy isolates all pods of its namespace and allows nothing. Such a policy is never reported: it
/// states the intention, even if another policy has the same effect.
fn is_default_deny(policy: &Policy) -> bool {
    let has_no_rule = |direction| reference::rules(policy, direction).is_empty();
    policy.pods.requirements.is_empty() && Direction::BOTH.into_iter().all(has_no_rule)
}

/// Returns why a policy is not needed: it allows all connections of its pods, and no other policy isolates these pods.
/// Returns `None` for all other policies.
fn needless_allow_all(context: &Context<'_>, policy: &Policy) -> Option<String> {
    let allows_all = |rule: &Rule| rule.peers == Peers::Any && rule.ports == Ports::Any;
    let directions = || Direction::BOTH.into_iter().filter(|direction| policy.isolates_in(*direction));
    // Most policies have no such rule, and the other checks are slower.
    if !directions().all(|direction| reference::rules(policy, direction).iter().any(allows_all)) {
        return None;
    }
    let view = context.policies.iter().find(|view| view.policy.key == policy.key)?;
    let selected = context.selected(view);
    let only_this = |direction: Direction| {
        selected.iter().all(|group| {
            // All pods of a group have the same labels. Policies in shadow mode count, because they may be enforced
            // later.
            reference::isolating_in(context.state, group.pods[0], direction, Mode::Shadow)
                .all(|other| other.key == policy.key)
        })
    };
    (!selected.is_empty() && directions().next().is_some() && directions().all(only_this))
        .then(|| "It allows everything, and no other policy isolates its pods.".to_owned())
}

fn shadowed_rule(policy: &Policy, direction: Direction, index: usize, wide: RulePlace<'_>) -> Draft {
    let list = FieldPath::default().key("spec").key(direction.name());
    let of_other =
        if wide.policy.key == policy.key { String::new() } else { format!(" of NetworkPolicy {}", wide.policy.key) };
    let count = reference::rules(policy, direction).len();
    Draft::new(
        RuleId::SHADOWED_RULE,
        list.index(index).to_string(),
        format!("{}{of_other} allows everything that this rule allows.", list.index(wide.index)),
        "The rule has no effect.",
        DraftFix::without_rule("remove the rule, or make the other one narrower", list, index, count),
    )
}
