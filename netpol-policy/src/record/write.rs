//! Writes recorded policies as YAML with comments, and as JSON.

use std::fmt::Write as _;

// The macro gets another name, because this module has a function `json`.
use serde_json::{Value, json as value};

use super::edges::counted;
use super::{RecordedPeer, RecordedPolicy, RecordedPort, RecordedRule, Recording, SelectorLabels};
use crate::model::{MODE_ANNOTATION, NAMESPACE_NAME_LABEL};
use crate::text::{self, wrap};

/// The number of columns after which comments are wrapped.
const WIDTH: usize = 110;

/// Returns the policies as YAML. `remarks`: more lines for the comment at the top.
pub fn yaml(recording: &Recording, remarks: &[String]) -> String {
    let mut out = Yaml::default();
    for line in header(recording).iter().chain(remarks) {
        out.comment(0, line);
    }
    for policy in &recording.policies {
        out.policy(policy);
    }
    out.0
}

/// Returns the policies as a Kubernetes `List` in JSON, without comments.
pub fn json(recording: &Recording) -> Value {
    let items: Vec<Value> = recording.policies.iter().map(policy_json).collect();
    value!({"apiVersion": "v1", "kind": "List", "items": items})
}

/// Returns the lines of the comment at the top.
fn header(recording: &Recording) -> Vec<String> {
    let range = match recording.range {
        Some((first, last)) => format!(", from {first:.0} to {last:.0}"),
        None => String::new(),
    };
    let mut lines = vec![format!("Recorded by netpol: {}{range}", counted(recording.flows))];
    if !recording.nodes.is_empty() {
        let nodes: Vec<&str> = recording.nodes.iter().map(|node| &**node).collect();
        lines.push(format!("Nodes: {}", nodes.join(", ")));
    }
    lines.push("Connections that were not observed in this time are denied".to_owned());
    if !recording.unseen.is_empty() {
        let names: Vec<String> = recording.unseen.iter().map(ToString::to_string).collect();
        lines.push(format!("No flow was observed, so all traffic is denied: {}", names.join(", ")));
    }
    lines.extend(recording.notes.iter().map(|note| format!("Note: {note}")));
    lines.extend(recording.unresolved.iter().map(|cause| format!("Not complete: {cause}")));
    lines
}

/// A YAML text that is being written. It contains names from objects and files that anyone may have written, so values
/// are quoted and comments are escaped.
#[derive(Default)]
struct Yaml(String);

impl Yaml {
    fn line(&mut self, indent: usize, line: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{:indent$}{line}", "");
    }

    fn comment(&mut self, indent: usize, comment: &str) {
        for line in wrap(comment, WIDTH.saturating_sub(indent), 0) {
            self.line(indent, &format!("# {line}"));
        }
    }

    fn policy(&mut self, policy: &RecordedPolicy) {
        self.line(0, "---");
        for comment in &policy.comments {
            self.comment(0, comment);
        }
        self.line(0, "apiVersion: networking.k8s.io/v1");
        self.line(0, "kind: NetworkPolicy");
        self.line(0, "metadata:");
        self.line(2, &format!("name: {}", scalar(&policy.name)));
        self.line(2, &format!("namespace: {}", scalar(&policy.namespace)));
        if policy.shadow {
            self.line(2, "annotations:");
            self.line(4, &format!("{MODE_ANNOTATION}: shadow"));
        }
        self.line(0, "spec:");
        self.selector(2, "podSelector", &policy.pods);
        self.line(2, "policyTypes: [Ingress, Egress]");
        self.rules("ingress", "from", &policy.ingress);
        self.rules("egress", "to", &policy.egress);
    }

    /// Writes the field `name` with a selector. If the field is the first one of a list item, `name` starts with `- `.
    fn selector(&mut self, indent: usize, name: &str, labels: &SelectorLabels) {
        if labels.is_empty() {
            self.line(indent, &format!("{name}: {{}}"));
            return;
        }
        self.line(indent, &format!("{name}:"));
        // After the `- ` of a list item, fields start two columns further to the right.
        let indent = indent + if name.starts_with("- ") { 4 } else { 2 };
        self.line(indent, "matchLabels:");
        for (name, value) in labels {
            self.line(indent + 2, &format!("{}: {}", scalar(name), scalar(value)));
        }
    }

    /// Writes the field `name` (`ingress` or `egress`) with rules. `peers` is `from` or `to`.
    fn rules(&mut self, name: &str, peers: &str, rules: &[RecordedRule]) {
        if rules.is_empty() {
            return;
        }
        self.line(2, &format!("{name}:"));
        for rule in rules {
            for comment in &rule.comments {
                self.comment(4, comment);
            }
            self.line(4, &format!("- {peers}:"));
            for peer in &rule.peers {
                self.peer(peer);
            }
            if let Some(ports) = &rule.ports {
                self.line(6, "ports:");
                for RecordedPort { protocol, port, end } in ports {
                    self.line(8, &format!("- protocol: {}", protocol.name()));
                    self.line(10, &format!("port: {port}"));
                    if let Some(end) = end {
                        self.line(10, &format!("endPort: {end}"));
                    }
                }
            }
        }
    }

    fn peer(&mut self, peer: &RecordedPeer) {
        match peer {
            RecordedPeer::Block(block) => {
                self.line(8, "- ipBlock:");
                self.line(12, &format!("cidr: {}", quoted(&block.to_string())));
            }
            RecordedPeer::Pods { namespace: None, labels } => self.selector(8, "- podSelector", labels),
            RecordedPeer::Pods { namespace: Some(namespace), labels } => {
                let name = vec![(NAMESPACE_NAME_LABEL.into(), namespace.clone())];
                self.selector(8, "- namespaceSelector", &name);
                if !labels.is_empty() {
                    self.selector(10, "podSelector", labels);
                }
            }
        }
    }
}

/// Returns a YAML scalar. It is quoted, unless it is a plain name that every parser reads as a string.
fn scalar(text: &str) -> String {
    const OTHER_TYPES: [&str; 8] = ["true", "false", "yes", "no", "on", "off", "null", "nan"];
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./".contains(character);
    // Text of one character is quoted, because some parsers read `y` and `n` as Booleans.
    let is_name =
        text.len() > 1 && text.starts_with(|first: char| first.is_ascii_alphabetic()) && text.chars().all(is_plain);
    let is_other_type = OTHER_TYPES.iter().any(|other| text.eq_ignore_ascii_case(other));
    if is_name && !is_other_type { text.to_owned() } else { quoted(text) }
}

/// Returns a string in double quotes, in JSON syntax, which is also valid YAML. Invisible characters are escaped.
fn quoted(text: &str) -> String {
    let quoted = Value::from(text).to_string();
    text::json(&quoted).into_owned()
}

fn selector_json(labels: &SelectorLabels) -> Value {
    if labels.is_empty() {
        return value!({});
    }
    let labels: serde_json::Map<String, Value> =
        labels.iter().map(|(name, value)| (name.to_string(), Value::from(&**value))).collect();
    value!({"matchLabels": labels})
}

fn policy_json(policy: &RecordedPolicy) -> Value {
    let mut metadata = value!({"name": policy.name, "namespace": &*policy.namespace});
    if policy.shadow {
        metadata["annotations"] = value!({MODE_ANNOTATION: "shadow"});
    }
    let mut spec = value!({"podSelector": selector_json(&policy.pods), "policyTypes": ["Ingress", "Egress"]});
    for (name, peers, rules) in [("ingress", "from", &policy.ingress), ("egress", "to", &policy.egress)] {
        if !rules.is_empty() {
            spec[name] = rules.iter().map(|rule| rule_json(rule, peers)).collect();
        }
    }
    value!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec})
}

/// Returns a rule as JSON. `peers` is the name of the field with the peers: `from` or `to`.
fn rule_json(rule: &RecordedRule, peers: &str) -> Value {
    let peer = |peer: &RecordedPeer| match peer {
        RecordedPeer::Block(block) => value!({"ipBlock": {"cidr": block.to_string()}}),
        RecordedPeer::Pods { namespace: None, labels } => value!({"podSelector": selector_json(labels)}),
        RecordedPeer::Pods { namespace: Some(namespace), labels } => {
            let name = vec![(NAMESPACE_NAME_LABEL.into(), namespace.clone())];
            value!({"namespaceSelector": selector_json(&name), "podSelector": selector_json(labels)})
        }
    };
    let port = |RecordedPort { protocol, port, end }: &RecordedPort| {
        let mut item = value!({"protocol": protocol.name(), "port": port});
        if let Some(end) = end {
            item["endPort"] = (*end).into();
        }
        item
    };
    let mut written = value!({});
    written[peers] = rule.peers.iter().map(peer).collect();
    if let Some(ports) = &rule.ports {
        written["ports"] = ports.iter().map(port).collect();
    }
    written
}
