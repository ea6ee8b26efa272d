//! Explanations as text for a terminal.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use netpol_common::{Direction, Reason};

use super::{Cause, Explanation, FamilyPath, FrontendVerdict, Path, PolicyChange, Side, Verdict, describe};
use crate::offline::is_placeholder;
use crate::reference::rule_path;
use crate::text::{Safe, wrap};

/// The maximum number of backends in the text. Denied backends come first.
const BACKENDS_SHOWN: usize = 8;
/// The width of text that is not written to a terminal.
const DEFAULT_WIDTH: usize = 80;

/// Wraps the text at 80 columns, without colors.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(DEFAULT_WIDTH, |_, text| text.to_owned()))
    }
}

impl Explanation {
    /// Renders the explanation as text of at most `width` columns; `paint` colors the words that are verdicts. Words
    /// and lines of YAML are not broken.
    pub fn render(&self, width: usize, paint: impl Fn(Verdict, &str) -> String) -> String {
        let mut writer = Writer { out: String::new(), width, paint: &paint, changes: Vec::new() };
        writer.explanation(self);
        writer.out
    }
}

/// Writes the lines of an explanation.
struct Writer<'a> {
    out: String,
    width: usize,
    paint: &'a dyn Fn(Verdict, &str) -> String,
    /// The changes written so far. Backends often need the same change, which is written once.
    changes: Vec<PolicyChange>,
}

/// The ends of a connection, as text.
#[derive(Clone, Copy)]
struct Ends<'a> {
    /// The end that is evaluated, as `pod shop/web`.
    local: &'a str,
    /// The other end.
    remote: &'a str,
    /// The destination port, as `80/TCP`.
    port: &'a str,
}

impl Writer<'_> {
    fn explanation(&mut self, explanation: &Explanation) {
        let Explanation { from, to, port, protocol, verdict, allowed_family, path, families } = explanation;
        let family_suffix = allowed_family.map(|family| format!(" ({} only)", family.name())).unwrap_or_default();
        let connection =
            format!(": {} -> {}, {port}/{}{family_suffix}", describe::end(from), describe::end(to), protocol.name());
        self.heading(0, "", *verdict, &verdict.name().to_uppercase(), &connection);
        self.out.push('\n');
        let Some((first, others)) = families.split_first() else { return self.path(0, explanation, path) };
        if others.iter().all(|other| other.path == first.path) {
            self.paragraph(0, "The verdict is the same for IPv4 and IPv6:");
            return self.path(0, explanation, &first.path);
        }
        for FamilyPath { family, source, destination, verdict, path } in families {
            let is_known = !is_placeholder(*source) && !is_placeholder(*destination);
            let addresses = if is_known { format!(" for {source} -> {destination}") } else { String::new() };
            self.heading(0, &format!("{}: ", family.name()), *verdict, verdict.name(), &addresses);
            self.path(2, explanation, path);
        }
    }

    fn path(&mut self, indent: usize, explanation: &Explanation, path: &Path) {
        let (from, to) = (describe::end(&explanation.from), describe::end(&explanation.to));
        let port = format!("{}/{}", explanation.port, explanation.protocol.name());
        let Path { egress, ingress, frontend } = path;
        self.side(indent, Direction::Egress, Ends { local: &from, remote: &to, port: &port }, egress);
        match frontend {
            Some(frontend) => self.frontend(indent, explanation, &from, frontend),
            None => self.side(indent, Direction::Ingress, Ends { local: &to, remote: &from, port: &port }, ingress),
        }
    }

    fn frontend(&mut self, indent: usize, explanation: &Explanation, from: &str, frontend: &FrontendVerdict) {
        // An owner is `service/shop/db`, `hostPort of shop/web-0`, or `hostPort of deployment/shop/web` for an assumed
        // pod, which represents all pods of a workload.
        let owners = frontend.owners.iter().map(|owner| match owner.split_once('/') {
            Some(("service", key)) => format!("Service {key}"),
            _ if owner.matches('/').count() > 1 => owner.clone(),
            _ => owner.replacen("hostPort of ", "hostPort of pod ", 1),
        });
        let owners = owners.collect::<Vec<_>>().join(" and ");
        self.heading(
            indent,
            &format!("{owners}{}: ", at(frontend.address)),
            frontend.verdict,
            frontend.verdict.name(),
            "",
        );
        let all = frontend.backends.len();
        let count = |verdict| frontend.backends.iter().filter(|backend| backend.verdict == verdict).count();
        for sentence in backend_summary(count(Verdict::Allow), count(Verdict::Unknown), all, frontend.verdict) {
            self.paragraph(indent + 2, &sentence);
        }
        let mut backends: Vec<_> = frontend.backends.iter().collect();
        backends.sort_by_key(|backend| std::cmp::Reverse(backend.verdict));
        for backend in backends.iter().take(BACKENDS_SHOWN) {
            let address = SocketAddr::from((backend.address, backend.port));
            let (name, backend_end) = match &backend.pod {
                Some(pod) if is_placeholder(backend.address) => {
                    (format!("{} at port {}", pod.title(), backend.port), pod.title())
                }
                Some(pod) => (format!("{} at {address}", pod.title()), pod.title()),
                None => (address.to_string(), backend.address.to_string()),
            };
            let port = format!("{}/{}", backend.port, explanation.protocol.name());
            self.heading(indent + 2, &format!("Backend {name}: "), backend.verdict, backend.verdict.name(), "");
            let ends = Ends { local: from, remote: &backend_end, port: &port };
            self.side(indent + 4, Direction::Egress, ends, &backend.egress);
            let ends = Ends { local: &backend_end, remote: from, port: &port };
            self.side(indent + 4, Direction::Ingress, ends, &backend.ingress);
        }
        if all > BACKENDS_SHOWN {
            self.paragraph(indent + 2, &format!("{} more backends: see -o json", all - BACKENDS_SHOWN));
        }
    }

    fn side(&mut self, indent: usize, direction: Direction, ends: Ends<'_>, side: &Side) {
        let label = match direction {
            Direction::Egress => "Egress: ",
            Direction::Ingress => "Ingress: ",
        };
        // With the reason `Service`, the verdict of this side can be `Allow`, but the backends decide the verdict of
        // the connection.
        let verdict = match (side.reason, side.verdict) {
            (Cause::Evaluated(Reason::Service), Verdict::Allow) => "depends on the backend",
            _ => side.verdict.name(),
        };
        self.heading(indent, label, side.verdict, verdict, "");
        for sentence in sentences(direction, ends, side) {
            self.paragraph(indent + 2, &sentence);
        }
        if let Some(until) = &side.suspended_until {
            let text =
                format!("Enforcement of its policies is suspended until {until}: they behave as in shadow mode.");
            self.paragraph(indent + 2, &text);
        }
        self.details(indent, direction, side);
        if let Some(shadow) = &side.shadow {
            self.shadow(indent, direction, side, shadow);
        }
    }

    /// Writes what the verdict would be if policies in shadow mode were enforced. `enforced` and `shadow`: the
    /// evaluation without and with these policies.
    fn shadow(&mut self, indent: usize, direction: Direction, enforced: &Side, shadow: &Side) {
        let in_shadow = shadow.policies.iter().filter(|policy| !enforced.policies.contains(policy));
        let policies = describe::policies(&in_shadow.collect::<Vec<_>>());
        let text = match (shadow.verdict, enforced.verdict) {
            (Verdict::Deny, Verdict::Deny) => return,
            (Verdict::Deny, _) => format!("Policies in shadow mode would deny it: {policies}"),
            (Verdict::Allow, _) => match &shadow.rule {
                Some(rule) => {
                    let path = rule_path(direction, rule.index);
                    format!("Policies in shadow mode would allow it: NetworkPolicy {}, {path}", rule.policy)
                }
                None => format!("Policies in shadow mode would allow it: {policies}"),
            },
            (Verdict::Partial | Verdict::Unknown, _) => {
                format!("The verdict with policies in shadow mode is unknown: {policies}")
            }
        };
        self.paragraph(indent + 2, &text);
        self.details(indent + 2, direction, shadow);
    }

    /// Writes why the verdict is unknown, the nearest rule, the hints, and the changes of policies that would allow the
    /// connection.
    fn details(&mut self, indent: usize, direction: Direction, side: &Side) {
        for cause in &side.unknown_because {
            self.paragraph(indent + 2, &format!("Unknown: {cause}"));
        }
        if let Some(rule) = &side.nearest {
            let path = rule_path(direction, rule.index);
            self.paragraph(indent + 2, &format!("Nearest rule: NetworkPolicy {}, {path}", rule.policy));
            for condition in &rule.unmet_conditions {
                self.paragraph(indent + 4, condition);
            }
        }
        for hint in &side.hints {
            self.paragraph(indent + 2, &format!("Hint: {hint}"));
        }
        for (index, change) in side.changes.iter().enumerate() {
            let first = if index == 0 { "To allow it," } else { "Or" };
            self.paragraph(indent + 2, &format!("{first} {}:", change.instruction()));
            if self.changes.contains(change) {
                self.paragraph(indent + 4, "(the same rule as above)");
                continue;
            }
            for line in change.yaml() {
                self.line(indent + 4, &line);
            }
            self.changes.push(change.clone());
        }
    }

    /// Writes a paragraph with a verdict in its first line: `before`, then the colored `word` for the verdict, then
    /// `after`.
    fn heading(&mut self, indent: usize, before: &str, verdict: Verdict, word: &str, after: &str) {
        let before = Safe(before).to_string();
        let mut lines = wrap(format_args!("{before}{word}{after}"), self.width, indent);
        let prefix = format!("{:indent$}{before}", "");
        if let Some(rest) = lines[0].strip_prefix(&prefix).and_then(|rest| rest.strip_prefix(word)) {
            lines[0] = format!("{prefix}{}{rest}", (self.paint)(verdict, word));
        }
        self.lines(&lines);
    }

    fn paragraph(&mut self, indent: usize, text: &str) {
        let lines = wrap(text, self.width, indent);
        self.lines(&lines);
    }

    /// Writes a line that is not wrapped.
    fn line(&mut self, indent: usize, text: &str) {
        self.lines(&[format!("{:indent$}{}", "", Safe(text))]);
    }

    fn lines(&mut self, lines: &[String]) {
        for line in lines {
            self.out.push_str(line);
            self.out.push('\n');
        }
    }
}

/// Returns ` at 10.0.0.1`; an empty text for an unknown address.
fn at(address: IpAddr) -> String {
    if is_placeholder(address) { String::new() } else { format!(" at {address}") }
}

fn backend_summary(allowed: usize, unknown: usize, all: usize, verdict: Verdict) -> Vec<String> {
    match (allowed, all) {
        (_, 1..) if unknown > 0 => {
            vec![format!("{allowed} of {all} backends are allowed, and the verdict on {unknown} is unknown.")]
        }
        (_, 0) => {
            vec!["There is no backend now.".into(), "A backend is evaluated when a connection reaches it.".into()]
        }
        (0, 1) => vec!["The only backend is denied.".into()],
        (1, 1) => vec!["The only backend is allowed.".into()],
        (0, all) => vec![format!("None of {all} backends is allowed.")],
        (allowed, all) if allowed == all => vec![format!("All {all} backends are allowed.")],
        (allowed, all) => {
            let is = if allowed == 1 { "is" } else { "are" };
            let consequence = if verdict == Verdict::Deny {
                "All backends must be allowed."
            } else {
                "Connections to other backends are denied."
            };
            vec![format!("{allowed} of {all} backends {is} allowed."), consequence.to_owned()]
        }
    }
}

/// Returns the reason for the verdict of one side (egress or ingress), in one or two sentences.
fn sentences(direction: Direction, ends: Ends<'_>, side: &Side) -> Vec<String> {
    let (Ends { local, remote, port }, name) = (ends, direction.name());
    let policies = || describe::policies(&side.policies);
    let isolates = if side.policies.len() == 1 { "isolates" } else { "isolate" };
    let isolated = || format!("{} {isolates} {local} for {name}.", policies());
    let reason = match side.reason {
        Cause::NoPod => return vec![format!("{local} is not a pod, so no NetworkPolicy applies to it.")],
        Cause::Evaluated(reason) => reason,
    };
    match reason {
        Reason::NotIsolated => vec![format!("No NetworkPolicy isolates {local} for {name}.")],
        Reason::Rule => vec![match &side.rule {
            Some(rule) => {
                let path = rule_path(direction, rule.index);
                format!("NetworkPolicy {}, {path} allows {}, {}.", rule.policy, rule.peer, rule.port)
            }
            None => format!("A rule of {} allows it.", policies()),
        }],
        Reason::Hairpin => {
            vec![format!("The connection is from {local} to itself (hairpin), which is always allowed.")]
        }
        Reason::LocalNode => vec![format!("Traffic between {local} and its node is always allowed.")],
        Reason::NoRule if side.nearest.is_none() => {
            let (has, subject) = if side.policies.len() == 1 { ("has", "It") } else { ("have", "They") };
            vec![isolated(), format!("{subject} {has} no {name} rule.")]
        }
        Reason::NoRule => {
            let preposition = if direction == Direction::Egress { "to" } else { "from" };
            vec![isolated(), format!("No rule allows {name} {preposition} {remote} at {port}.")]
        }
        Reason::Service => vec![isolated(), "Each backend is evaluated by its own address and port.".to_owned()],
        Reason::NoAllowedBackend => vec![isolated(), "No rule allows any of the backends.".to_owned()],
        Reason::NotAllBackendsAllowed => {
            vec![isolated(), "Only some backends are allowed, and another node selects the backend.".to_owned()]
        }
        other @ (Reason::Flow
        | Reason::BackendDenied
        | Reason::SourceEndpointGone
        | Reason::NeighborDiscovery
        | Reason::IcmpError
        | Reason::Revoked
        | Reason::SpoofedSource
        | Reason::UnknownPod
        | Reason::NoEndpoint
        | Reason::Malformed
        | Reason::NotIp
        | Reason::TooManyHeaders
        | Reason::OrphanFragment
        | Reason::FlowTableFull
        | Reason::TunnelEndpoint
        | Reason::UnverifiedSource
        | Reason::SpoofedNeighbor
        | Reason::NeighborLimit
        | Reason::OtherHost
        | Reason::TablesIncomplete) => vec![other.name().to_owned()],
    }
}
