//! Finds items in the list `ports` of a rule that have no `port`, probably by mistake.
//!
//! In YAML, one item with `port` and `protocol` differs by only one `-` from two items with one field each. Both forms
//! are valid, and an item without a port allows all ports of its protocol.

use netpol_common::Direction;
use serde_json::Value;

use super::RuleId;
use super::context::{Context, PolicyView};
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use crate::explain::yaml::{self, Node, entry};
use crate::manifest::FieldPath;

/// Finds items without a port in two cases. In the first case, a neighbor of the item has a port and no protocol: the
/// item and this neighbor are probably halves of one intended item. In the second case, the item allows everything that
/// another item allows.
pub(super) fn check(context: &Context<'_>, view: &PolicyView<'_>, drafts: &mut Vec<Draft>) {
    let Some(source) = context.details.policies.get(&view.policy.key) else { return };
    for direction in Direction::BOTH {
        let rules = source.value["spec"][direction.name()].as_array().map(Vec::as_slice).unwrap_or_default();
        for (rule_index, rule) in rules.iter().enumerate() {
            let items = rule["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
            let list = FieldPath::default().key("spec").key(direction.name()).index(rule_index).key("ports");
            drafts.extend((0..items.len()).filter_map(|index| check_item(&list, items, index)));
        }
    }
}

/// Checks one item. `list`: the path of the list `ports`.
fn check_item(list: &FieldPath, items: &[Value], index: usize) -> Option<Draft> {
    let item = items[index].as_object().filter(|_| !has_port(&items[index]))?;
    let protocol = protocol(&items[index])?;
    // A neighbor that has a port and no protocol is probably the other half of the intended item.
    let is_half = |other: &usize| items.get(*other).is_some_and(|item| has_port(item) && item["protocol"].is_null());
    let neighbors = [index.checked_sub(1), Some(index + 1)].into_iter().flatten();
    let half = neighbors.filter(|_| item.contains_key("protocol")).find(is_half);
    let mut others = (0..items.len()).filter(|other| *other != index && has_port(&items[*other]));
    let (why, fix) = if let Some(half) = half {
        let (path, fix) = (list.index(half), joined_item(list, &items[half], (half, index), protocol));
        (format!("{path} is another item, which has the port. Two list items are alternatives."), fix)
    } else {
        let useless = others.find(|other| self::protocol(&items[*other]) == Some(protocol))?;
        let fix =
            format!("add the port to the item, or remove the item if the other ports for {protocol} are sufficient");
        (format!("{} has no effect.", list.index(useless)), fix.into())
    };
    let message = format!("The item has no port, so it allows all {protocol} ports.");
    Some(Draft::new(RuleId::SPLIT_PORT, list.index(index).to_string(), message, why, fix))
}

/// Returns the fix that writes both halves of an item in one item. `port_half` is the half with the port; `port_index`
/// and `protocol_index` are the positions of the halves.
fn joined_item(
    list: &FieldPath,
    port_half: &Value,
    (port_index, protocol_index): (usize, usize),
    protocol: &str,
) -> DraftFix {
    let number = match &port_half["port"] {
        Value::String(name) => yaml::string(name),
        number => Node::Scalar(number.to_string()),
    };
    let joined = Node::Map(vec![entry("port", number), entry("protocol", yaml::string(protocol))]);
    let operations =
        vec![Operation::Replace(list.index(port_index), joined), Operation::Remove(list.index(protocol_index))];
    let description = "write `port` and `protocol` in one item, without the second `-`";
    // `joined` has no `endPort`, so for a range of ports the fix has no operations.
    DraftFix::of(description, if port_half["endPort"].is_null() { operations } else { Vec::new() })
}

fn has_port(item: &Value) -> bool {
    !item["port"].is_null()
}

/// Returns the protocol of an item; `None` if the protocol is not a string.
fn protocol(item: &Value) -> Option<&str> {
    match &item["protocol"] {
        Value::Null => Some("TCP"),
        protocol => protocol.as_str(),
    }
}
