//! Writes rules of policies as YAML: in block style, to paste into a manifest, or in flow style, on one line.

use netpol_common::Direction;

use crate::model::{IpBlock, Peer, Peers, PortMatch, PortRange, Ports, Requirement, Rule, Selector};
use crate::offline::is_pod_placeholder_range;
use crate::text;

/// A YAML node. Scalars are stored as they are written in YAML, with quotes if they need any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Scalar(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Returns the lines of a YAML list with this rule, in block style. Returns `None` if the rule's peers or ports have no
/// valid item: an empty list in YAML would allow everything.
pub(super) fn in_block_style(rule: &Rule, direction: Direction) -> Option<Vec<String>> {
    Some(Node::List(vec![of_rule(rule, direction)?]).block())
}

/// Returns the rule in flow style. Returns `None` in the same cases as [`in_block_style`].
pub(super) fn in_flow_style(rule: &Rule, direction: Direction) -> Option<String> {
    Some(of_rule(rule, direction)?.flow())
}

/// Returns whether [`in_block_style`] and [`in_flow_style`] return YAML for this rule. Faster than calling them: the
/// agent needs the answer for each denied network flow.
pub(super) fn has_yaml_form(rule: &Rule) -> bool {
    let has_peer = match &rule.peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(is_valid),
    };
    has_peer && rule.ports != Ports::Of(Vec::new())
}

/// Returns whether a peer can be written as YAML with the same meaning. A peer with an invalid selector matches
/// nothing; YAML without the invalid part would match more.
pub(crate) fn is_valid(peer: &Peer) -> bool {
    match peer {
        Peer::Pods { namespaces, pods } => {
            !pods.invalid && namespaces.as_ref().is_none_or(|selector| !selector.invalid)
        }
        Peer::Block(_) => true,
    }
}

/// Returns whether a peer is a block of placeholders for unknown pod addresses. Such a peer is not in the manifest:
/// `offline::addresses::resolve_blocks` adds it to a rule with an `ipBlock` that contains addresses of pods. So a rule
/// with such a peer always has another peer: this `ipBlock`.
fn is_placeholder_peer(peer: &Peer) -> bool {
    matches!(peer, Peer::Block(block) if is_pod_placeholder_range(&block.cidr))
}

/// Returns the rule as a YAML map. Returns `None` in the same cases as [`in_block_style`].
pub(crate) fn of_rule(rule: &Rule, direction: Direction) -> Option<Node> {
    let mut entries = Vec::new();
    if let Peers::Of(peers) = &rule.peers {
        let name = match direction {
            Direction::Ingress => "from",
            Direction::Egress => "to",
        };
        let peers: Vec<Node> =
            peers.iter().filter(|peer| is_valid(peer) && !is_placeholder_peer(peer)).map(of_peer).collect();
        (!peers.is_empty()).then(|| entries.push((name.to_owned(), Node::List(peers))))?;
    }
    if let Ports::Of(ports) = &rule.ports {
        let ports: Vec<Node> = ports.iter().map(of_port).collect();
        (!ports.is_empty()).then(|| entries.push(("ports".to_owned(), Node::List(ports))))?;
    }
    Some(Node::Map(entries))
}

pub(crate) fn of_peer(peer: &Peer) -> Node {
    let entries = match peer {
        Peer::Block(IpBlock { cidr, except }) => {
            let mut entries = vec![entry("cidr", string(&cidr.to_string()))];
            // `resolve_blocks` also adds placeholders to `except`.
            let written = except.iter().filter(|except| !is_pod_placeholder_range(except));
            let except: Vec<Node> = written.map(|cidr| string(&cidr.to_string())).collect();
            if !except.is_empty() {
                entries.push(entry("except", Node::List(except)));
            }
            vec![entry("ipBlock", Node::Map(entries))]
        }
        Peer::Pods { namespaces, pods } => {
            let namespaces = namespaces.as_ref().map(|selector| entry("namespaceSelector", of_selector(selector)));
            let pods = (namespaces.is_none() || !pods.requirements.is_empty())
                .then(|| entry("podSelector", of_selector(pods)));
            namespaces.into_iter().chain(pods).collect()
        }
    };
    Node::Map(entries)
}

pub(crate) fn of_selector(selector: &Selector) -> Node {
    let (mut labels, mut expressions): (Vec<(String, Node)>, Vec<Node>) = (Vec::new(), Vec::new());
    for requirement in &selector.requirements {
        let (key, operator, values) = match requirement {
            Requirement::In(key, values) => (key, "In", values.as_slice()),
            Requirement::NotIn(key, values) => (key, "NotIn", values.as_slice()),
            Requirement::Exists(key) => (key, "Exists", &[][..]),
            Requirement::DoesNotExist(key) => (key, "DoesNotExist", &[][..]),
        };
        let name = quoted(key);
        match values {
            [value] if operator == "In" && labels.iter().all(|(other, _)| *other != name) => {
                labels.push((name, string(value)));
            }
            values => {
                let mut entries = vec![entry("key", Node::Scalar(name)), entry("operator", string(operator))];
                if !values.is_empty() {
                    entries.push(entry("values", Node::List(values.iter().map(|value| string(value)).collect())));
                }
                expressions.push(Node::Map(entries));
            }
        }
    }
    let labels = (!labels.is_empty()).then(|| entry("matchLabels", Node::Map(labels)));
    let expressions = (!expressions.is_empty()).then(|| entry("matchExpressions", Node::List(expressions)));
    Node::Map(labels.into_iter().chain(expressions).collect())
}

fn of_port(port: &PortMatch) -> Node {
    let number = |number: u16| Node::Scalar(number.to_string());
    let mut entries = match &port.port {
        PortRange::All => Vec::new(),
        PortRange::Range(first, last) if first == last => vec![entry("port", number(*first))],
        PortRange::Range(first, last) => vec![entry("port", number(*first)), entry("endPort", number(*last))],
        PortRange::Named(name) => vec![entry("port", string(name))],
    };
    entries.push(entry("protocol", string(port.protocol.name())));
    Node::Map(entries)
}

pub(crate) fn entry(key: &str, value: Node) -> (String, Node) {
    (key.to_owned(), value)
}

pub(crate) fn string(text: &str) -> Node {
    Node::Scalar(quoted(text))
}

/// Returns a string as YAML. It is quoted if a parser could read the unquoted string as another type, such as a number
/// or a Boolean.
fn quoted(text: &str) -> String {
    const RESERVED: [&str; 9] = ["true", "false", "yes", "no", "on", "off", "null", "y", "n"];
    let is_cidr = text.contains('/') && text.bytes().all(|byte| byte.is_ascii_digit() || b"./".contains(&byte));
    let is_word = text.starts_with(|first: char| first.is_ascii_alphabetic())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
        && !RESERVED.contains(&text.to_ascii_lowercase().as_str());
    if is_cidr || is_word {
        return text.to_owned();
    }
    // A JSON string is also a YAML string in double quotes. `text::json` escapes invisible characters.
    text::json(&serde_json::Value::from(text).to_string()).into_owned()
}

impl Node {
    /// Returns whether the node is on one line even in block style.
    fn is_inline(&self) -> bool {
        match self {
            Self::Scalar(_) => true,
            Self::List(items) => items.is_empty(),
            Self::Map(entries) => entries.is_empty(),
        }
    }

    /// Returns the lines in block style.
    pub(crate) fn block(&self) -> Vec<String> {
        match self {
            inline if inline.is_inline() => vec![inline.flow()],
            Self::Scalar(text) => vec![text.clone()],
            Self::List(items) => {
                let of_item = |item: &Self| {
                    let lines = item.block().into_iter().enumerate();
                    lines.map(|(index, line)| if index == 0 { format!("- {line}") } else { format!("  {line}") })
                };
                items.iter().flat_map(|item| of_item(item).collect::<Vec<_>>()).collect()
            }
            Self::Map(entries) => entries.iter().flat_map(|(key, value)| value.block_entry(key)).collect(),
        }
    }

    /// Returns the lines of a map entry with this node as its value. List items are not indented below their key.
    fn block_entry(&self, key: &str) -> Vec<String> {
        if self.is_inline() {
            return vec![format!("{key}: {}", self.flow())];
        }
        let indent = if matches!(self, Self::Map(_)) { "  " } else { "" };
        let below = self.block().into_iter().map(|line| format!("{indent}{line}"));
        std::iter::once(format!("{key}:")).chain(below).collect()
    }

    /// Returns the text in flow style.
    pub(crate) fn flow(&self) -> String {
        match self {
            Self::Scalar(text) => text.clone(),
            Self::List(items) => format!("[{}]", items.iter().map(Self::flow).collect::<Vec<_>>().join(", ")),
            Self::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| format!("{key}: {}", value.flow()));
                format!("{{{}}}", entries.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_that_yaml_reads_as_another_type_are_quoted() {
        for (text, expected) in [
            ("web", "web"),
            ("app.kubernetes.io/name", "app.kubernetes.io/name"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("fd00::/8", "\"fd00::/8\""),
            ("1.5", "\"1.5\""),
            ("true", "\"true\""),
            ("No", "\"No\""),
            ("", "\"\""),
            ("a: b", "\"a: b\""),
            ("a\n\u{202e}", "\"a\\n\\u202e\""),
        ] {
            assert_eq!(quoted(text), expected);
        }
    }

    #[test]
    fn a_rule_without_valid_items_is_not_written() {
        let valid = Peer::Pods { namespaces: None, pods: Selector::everything() };
        let invalid = Peer::Pods { namespaces: None, pods: Selector { requirements: Vec::new(), invalid: true } };
        for (peers, ports, expected) in [
            (Peers::Any, Ports::Any, Some("{}")),
            (Peers::Of(vec![valid, invalid.clone()]), Ports::Any, Some("{from: [{podSelector: {}}]}")),
            (Peers::Of(vec![invalid]), Ports::Any, None),
            (Peers::Of(Vec::new()), Ports::Any, None),
            (Peers::Any, Ports::Of(Vec::new()), None),
        ] {
            let rule = Rule { peers, ports };
            assert_eq!(in_flow_style(&rule, Direction::Ingress).as_deref(), expected);
            assert_eq!(has_yaml_form(&rule), expected.is_some());
        }
    }
}
