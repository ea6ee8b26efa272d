//! Parses a file of expectations (docs/assert.md).

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use netpol_common::Direction;
use netpol_policy::model::Protocol;
use netpol_policy::offline::PortSet;
use serde::Deserialize;
use serde_saphyr::Spanned;

use crate::ends::EndArgument;

/// The largest file that is read, in bytes.
const MAX_SIZE: u64 = 16 << 20;

/// One expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expectation {
    /// The name that the file gives to the expectation. Without a name: the expectation in words.
    pub(super) title: String,
    /// The line in the file at which the expectation starts.
    pub(super) line: u64,
    /// The namespace of ends that are written without a namespace.
    pub(super) namespace: String,
    pub(super) check: Check,
}

/// The condition that must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// Each connection is allowed at all of the `ports`.
    Allow(Connections),
    /// No connection is allowed at any of the `ports`.
    Deny(Connections),
    /// No connection from an end outside `from` is allowed at any of the `ports`. Connections from `from` may be
    /// allowed or denied.
    Only(Connections),
    /// Each of these pods is isolated in each of these directions.
    Isolated(Ends, Vec<Direction>),
}

/// Connections between two sets of ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Connections {
    pub(super) from: Ends,
    pub(super) to: Ends,
    pub(super) ports: Ports,
}

/// The ports of an expectation. Empty: all ports. If the destination is a Service, they are ports of the Service, not
/// target ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ports(Vec<PortRange>);

/// A protocol, the first port, and the last port.
type PortRange = (Protocol, u16, u16);

impl Ports {
    /// Returns the ranges. Empty: all ports.
    pub(super) fn ranges(&self) -> impl Iterator<Item = PortRange> {
        self.0.iter().copied()
    }

    pub(super) fn set(&self) -> PortSet {
        if self.0.is_empty() { PortSet::all() } else { PortSet::of_ranges(self.ranges()) }
    }
}

/// The sources or the destinations of an expectation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ends(pub(super) Vec<ExpectedEnd>);

/// One end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExpectedEnd {
    /// `*/*`.
    AllPods,
    /// `shop/*`.
    Namespace(String),
    /// An end in the syntax of `netpol explain`.
    End(EndArgument),
}

impl Expectation {
    /// Returns the namespaces of the ends.
    pub(super) fn namespaces(&self) -> Vec<String> {
        let ends = match &self.check {
            Check::Allow(connections) | Check::Deny(connections) | Check::Only(connections) => {
                vec![&connections.from, &connections.to]
            }
            Check::Isolated(ends, _) => vec![ends],
        };
        let of_end = |end: &ExpectedEnd| match end {
            ExpectedEnd::AllPods => None,
            ExpectedEnd::Namespace(namespace) => Some(namespace.clone()),
            ExpectedEnd::End(end) => end.namespace(&self.namespace).map(str::to_owned),
        };
        ends.into_iter().flat_map(|ends| &ends.0).filter_map(of_end).collect()
    }
}

/// The file as it is written. [`expectation`] checks the combinations of fields.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    namespace: Option<String>,
    expectations: Vec<Spanned<RawExpectation>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct RawExpectation {
    name: Option<String>,
    namespace: Option<String>,
    allow: Option<OneOrMore>,
    deny: Option<OneOrMore>,
    to: Option<OneOrMore>,
    only: Option<OneOrMore>,
    can_reach: Option<OneOrMore>,
    nothing_outside: Option<OneOrMore>,
    reaches: Option<OneOrMore>,
    isolated: Option<OneOrMore>,
    direction: Option<RawDirection>,
    ports: Option<Vec<RawPort>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "camelCase")]
enum RawDirection {
    Ingress,
    Egress,
    Both,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawPort {
    Number(u16),
    Text(String),
}

/// Reads a file of expectations. `namespace`: the namespace of ends that are written without one, if the file does not
/// set a namespace.
pub(super) fn read(path: &Path, namespace: &str) -> Result<Vec<Expectation>> {
    let limits = netpol_files::Limits { file: MAX_SIZE, all: MAX_SIZE };
    let bytes =
        netpol_files::read_any(path, 0, limits).map_err(|error| anyhow::anyhow!("{} {error}", path.display()))?;
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8 text", path.display()))?;
    parse(&text, &path.display().to_string(), namespace)
}

fn parse(text: &str, file: &str, namespace: &str) -> Result<Vec<Expectation>> {
    let raw: RawFile = serde_saphyr::from_str(text).map_err(|error| {
        let position = error.location().map(|location| format!(":{}", location.line())).unwrap_or_default();
        let message = error.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default().to_owned();
        anyhow::anyhow!("{file}{position}: {message}")
    })?;
    if raw.expectations.is_empty() {
        bail!("{file}: no expectations");
    }
    let default_namespace = raw.namespace.unwrap_or_else(|| namespace.to_owned());
    let parsed = raw.expectations.into_iter().map(|spanned| {
        let line = spanned.referenced.line();
        expectation(&spanned.value, line, &default_namespace).map_err(|error| anyhow::anyhow!("{file}:{line}: {error}"))
    });
    parsed.collect()
}

fn expectation(raw: &RawExpectation, line: u64, default_namespace: &str) -> Result<Expectation, String> {
    let RawExpectation { name, namespace, ports, direction, to, .. } = raw;
    let ports = ports.as_deref().map(port_ranges).transpose()?;
    let at = ports.as_ref().map(|ports| format!(" at {}", ports.set())).unwrap_or_default();
    let kinds = [&raw.allow, &raw.deny, &raw.only, &raw.nothing_outside, &raw.isolated];
    if kinds.iter().filter(|kind| kind.is_some()).count() != 1 {
        return Err("write exactly one of allow, deny, only, nothingOutside and isolated".to_owned());
    }
    // `to_key`: the key of the destinations in the file.
    let connections = |from: &OneOrMore, to: &Option<OneOrMore>, to_key: &str| {
        let to = to.as_ref().ok_or_else(|| format!("`{to_key}` is missing"))?;
        let (from, to) = (from.ends_without_services()?, to.ends()?);
        Ok::<_, String>(Connections { from, to, ports: ports.clone().unwrap_or_default() })
    };
    let (in_words, check, keys): (String, Check, &[&str]) = if let Some(from) = &raw.allow {
        let check = Check::Allow(connections(from, to, "to")?);
        (format!("allow {from} to {}{at}", ends_text(to.as_ref())), check, &["to", "ports"])
    } else if let Some(from) = &raw.deny {
        let check = Check::Deny(connections(from, to, "to")?);
        (format!("deny {from} to {}{at}", ends_text(to.as_ref())), check, &["to", "ports"])
    } else if let Some(from) = &raw.only {
        let check = Check::Only(connections(from, &raw.can_reach, "canReach")?);
        (format!("only {from} can reach {}{at}", ends_text(raw.can_reach.as_ref())), check, &["canReach", "ports"])
    } else if let Some(from) = &raw.nothing_outside {
        let check = Check::Only(connections(from, &raw.reaches, "reaches")?);
        let reaches = ends_text(raw.reaches.as_ref());
        (format!("nothing outside {from} reaches {reaches}{at}"), check, &["reaches", "ports"])
    } else if let Some(pods) = &raw.isolated {
        let directions = match direction {
            Some(RawDirection::Ingress) => vec![Direction::Ingress],
            Some(RawDirection::Egress) => vec![Direction::Egress],
            Some(RawDirection::Both) | None => Direction::BOTH.to_vec(),
        };
        let for_what = directions.iter().map(|direction| direction.name()).collect::<Vec<_>>().join(" and ");
        let check = Check::Isolated(pods.ends_without_services()?, directions);
        (format!("every pod of {pods} is isolated for {for_what}"), check, &["direction"])
    } else {
        return Err("the expectation is empty".to_owned());
    };
    check_keys(raw, keys)?;
    let namespace = namespace.clone().unwrap_or_else(|| default_namespace.to_owned());
    Ok(Expectation { title: name.clone().unwrap_or(in_words), line, namespace, check })
}

/// Returns an error if the expectation has a field that is not in `used` and so has no effect.
fn check_keys(raw: &RawExpectation, used: &[&str]) -> Result<(), String> {
    let keys = [
        ("to", raw.to.is_some()),
        ("canReach", raw.can_reach.is_some()),
        ("reaches", raw.reaches.is_some()),
        ("direction", raw.direction.is_some()),
        ("ports", raw.ports.is_some()),
    ];
    match keys.iter().find(|(key, is_set)| *is_set && !used.contains(key)) {
        Some((key, _)) => Err(format!("`{key}` has no meaning here; use {}", used.join(", "))),
        None => Ok(()),
    }
}

fn ends_text(ends: Option<&OneOrMore>) -> String {
    ends.map(ToString::to_string).unwrap_or_default()
}

impl std::fmt::Display for OneOrMore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(text) => f.write_str(text),
            Self::More(texts) => f.write_str(&texts.join(", ")),
        }
    }
}

impl OneOrMore {
    fn ends(&self) -> Result<Ends, String> {
        let texts = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::More(texts) => texts,
        };
        if texts.is_empty() {
            return Err("an empty list of ends".to_owned());
        }
        Ok(Ends(texts.iter().map(|text| text.parse()).collect::<Result<_, _>>()?))
    }

    /// Returns the ends. A Service is an error, because it is never the source of a connection, and policies do not
    /// isolate Services.
    fn ends_without_services(&self) -> Result<Ends, String> {
        let ends = self.ends()?;
        let is_service = |end: &ExpectedEnd| matches!(end, ExpectedEnd::End(EndArgument::Service(..)));
        if ends.0.iter().any(is_service) {
            return Err(format!("`{self}`: a Service is only a destination; write the pods that it selects"));
        }
        Ok(ends)
    }
}

impl FromStr for ExpectedEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*/*" {
            return Ok(Self::AllPods);
        }
        if let Some(namespace) = text.strip_suffix("/*").filter(|namespace| !namespace.contains('/')) {
            return Ok(Self::Namespace(namespace.to_owned()));
        }
        Ok(Self::End(text.parse()?))
    }
}

fn port_ranges(ports: &[RawPort]) -> Result<Ports, String> {
    let mut ranges = Vec::new();
    for port in ports {
        match port {
            RawPort::Number(port) => ranges.push((Protocol::Tcp, *port, *port)),
            RawPort::Text(text) => ranges.push(port_range(text)?),
        }
    }
    if ranges.is_empty() {
        return Err("an empty list of ports".to_owned());
    }
    Ok(Ports(ranges))
}

/// Parses `5432`, `53/UDP`, `8000-8999/TCP`, or a protocol such as `UDP`, which means all of its ports.
fn port_range(text: &str) -> Result<PortRange, String> {
    let usage = || format!("`{text}` is not a port; write 5432, 53/UDP, 8000-8999/TCP or UDP");
    if let Some(protocol) = Protocol::from_name(text) {
        return Ok((protocol, 0, u16::MAX));
    }
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    let protocol = Protocol::from_name(protocol).ok_or_else(usage)?;
    let (first, last) = ports.split_once('-').unwrap_or((ports, ports));
    let number = |text: &str| text.parse::<u16>().map_err(|_| usage());
    let (first, last) = (number(first)?, number(last)?);
    if first <= last { Ok((protocol, first, last)) } else { Err(usage()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expectations_are_parsed_with_their_lines() {
        let text = "namespace: shop\nexpectations:\n- allow: deploy/web\n  to: [sts/db, 'app=x']\n  ports: [5432, 53/UDP, 80-90/TCP, SCTP]\n\
                    - name: closed\n  isolated: shop/*\n  namespace: ops\n";
        let parsed = parse(text, "f", "default").expect("expectations");
        let titles: Vec<(u64, &str, &str)> =
            parsed.iter().map(|it| (it.line, it.title.as_str(), it.namespace.as_str())).collect();
        let allow = "allow deploy/web to sts/db, app=x at TCP 80-90, 5432; UDP 53; SCTP all";
        assert_eq!(titles, [(3, allow, "shop"), (6, "closed", "ops")]);
        let Check::Isolated(ends, directions) = &parsed[1].check else { panic!("{parsed:?}") };
        assert_eq!((&ends.0[..], directions.len()), (&[ExpectedEnd::Namespace("shop".to_owned())][..], 2));
    }

    #[test]
    fn an_error_names_the_line() {
        // Each message starts with the file name `f`. The next number is the line. `form` is not a field.
        for (expectation, message) in [
            ("- allow: a/b\n  form: c/d", "f:3: "),
            ("- {allow: a/b, deny: a/b, to: c/d}", "f:2: write exactly one of"),
            ("- {to: c/d}", "f:2: write exactly one of"),
            ("- {allow: a/b}", "f:2: `to` is missing"),
            ("- {only: a/b, to: c/d, canReach: c/d}", "f:2: `to` has no meaning here; use canReach, ports"),
            ("- {deny: [a/b, svc/x], to: c/d}", "f:2: `a/b, svc/x`: a Service is only a destination"),
            ("- {isolated: svc/x}", "f:2: `svc/x`: a Service is only a destination"),
            ("- {deny: a/b, to: web}", "f:2: `web` is not an end"),
            ("- {deny: a/b, to: c/d, ports: [http]}", "f:2: `http` is not a port"),
            ("- {deny: a/b, to: c/d, ports: [9-8]}", "f:2: `9-8` is not a port"),
            ("- {deny: a/b, to: c/d, ports: []}", "f:2: an empty list of ports"),
            ("- {deny: [], to: c/d}", "f:2: an empty list of ends"),
            (" []", "f: no expectations"),
            ("- [", "f:"),
        ] {
            let error = parse(&format!("expectations:\n{expectation}\n"), "f", "x").expect_err(expectation).to_string();
            assert!(error.starts_with(message) && !error.contains('\n'), "{expectation}: {error}");
        }
    }
}
