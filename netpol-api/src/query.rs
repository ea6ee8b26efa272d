//! The query of `/v1/flows`: which records a client requests.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::condition::is_name;
use crate::{FlowEnd, FlowRecord, FlowSide, FlowTotalsRecord, FlowVerdict, Record, format_duration, parse_duration};

/// The parameters of a request for records of flows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowQuery {
    /// Whether the response continues with new records.
    pub follow: bool,
    /// Only records that are not older than this.
    pub since: Option<Duration>,
    /// At most this number of the records that exist already: the latest ones.
    pub last: Option<usize>,
    /// Only these verdicts. Empty: all verdicts.
    pub verdicts: Vec<FlowVerdict>,
    /// Only from this source.
    pub from: Option<EndFilter>,
    /// Only to this destination.
    pub to: Option<EndFilter>,
    /// Only to this port.
    pub port: Option<PortFilter>,
    /// Only records that list this policy (`namespace/name`) or one of its rules.
    pub policy: Option<String>,
    /// Only flows from or to a pod of this namespace. This includes spoofed packets that such a pod sent.
    pub namespace: Option<String>,
    /// Whether records have the labels of pods.
    pub labels: bool,
}

/// A filter for one end of a flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndFilter {
    /// A pod. In the parameter `from`, also matches packets that this pod sent from an address that is not the pod's.
    Pod {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// All pods of a namespace.
    Namespace(String),
    /// Addresses.
    Addresses(IpNet),
}

/// A filter for the destination port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFilter {
    /// The port.
    pub port: u16,
    /// The protocol, such as `TCP`; `None`: any protocol.
    pub protocol: Option<String>,
}

/// The parameters of a query, for error messages.
const PARAMETERS: &str = "follow, since, last, verdict, from, to, port, policy, namespace, labels";

impl FlowQuery {
    /// Parses a query string, such as `follow=true&verdict=denied`.
    ///
    /// # Errors
    /// If a parameter is not known or has an invalid value. The message lists the accepted values.
    pub fn parse(query: &str) -> Result<Self, String> {
        let mut parsed = Self::default();
        for (name, value) in parameters(query)? {
            parsed.set(&name, &value)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let in_parameter = |error: String| format!("{name}: {error}");
        match name {
            "follow" => self.follow = boolean(value).map_err(in_parameter)?,
            "labels" => self.labels = boolean(value).map_err(in_parameter)?,
            "since" => self.since = Some(parse_duration(value).map_err(in_parameter)?),
            "last" => {
                let number = value.parse().map_err(|_| format!("last: `{value}` is not a number of records"))?;
                self.last = Some(number);
            }
            "verdict" => {
                for verdict in value.split(',') {
                    self.verdicts.push(FlowVerdict::parse(verdict).map_err(in_parameter)?);
                }
            }
            "from" => self.from = Some(value.parse().map_err(in_parameter)?),
            "to" => self.to = Some(value.parse().map_err(in_parameter)?),
            "port" => self.port = Some(value.parse().map_err(in_parameter)?),
            "policy" => match value.split_once('/') {
                Some((namespace, name)) if is_name(namespace) && is_name(name) => self.policy = Some(value.to_owned()),
                _ => return Err(format!("policy: `{value}` is not NAMESPACE/NAME")),
            },
            "namespace" if is_name(value) => self.namespace = Some(value.to_owned()),
            "namespace" => return Err(format!("namespace: `{value}` is not the name of a namespace")),
            _ => return Err(format!("`{name}` is not a parameter; use {PARAMETERS}")),
        }
        Ok(())
    }

    /// Returns the query string. [`Self::parse`] reads it.
    pub fn to_query(&self) -> String {
        let mut parts = Vec::new();
        let mut add = |name: &str, value: String| parts.push(format!("{name}={value}"));
        if self.follow {
            add("follow", "true".to_owned());
        }
        if self.labels {
            add("labels", "true".to_owned());
        }
        if let Some(since) = self.since {
            add("since", format_duration(since));
        }
        if let Some(last) = self.last {
            add("last", last.to_string());
        }
        if !self.verdicts.is_empty() {
            add("verdict", self.verdicts.iter().map(|verdict| verdict.name()).collect::<Vec<_>>().join(","));
        }
        for (name, end) in [("from", &self.from), ("to", &self.to)] {
            if let Some(end) = end {
                add(name, end.to_string());
            }
        }
        if let Some(port) = &self.port {
            add("port", port.to_string());
        }
        for (name, value) in [("policy", &self.policy), ("namespace", &self.namespace)] {
            if let Some(value) = value {
                add(name, value.clone());
            }
        }
        parts.join("&")
    }

    /// Returns whether the client requested a record. [`Record::Lost`] is always requested. [`Record::Multicast`] and
    /// [`Record::RateLimited`] summarize several packets or flows. They are not requested if the query filters by a
    /// field that these records do not have, such as `policy`. A [`Record::Multicast`] matches a filter by `from` or
    /// `namespace` if one of its listed senders matches.
    pub fn matches(&self, record: &Record) -> bool {
        match record {
            Record::Flow(flow) => self.matches_flow(flow),
            Record::FlowTotals(totals) => self.matches_totals(totals),
            Record::Lost(_) => true,
            Record::Multicast(summary) => {
                let port = self.port.as_ref().is_none_or(|port| port.matches(summary.port, &summary.protocol));
                let to = self.to.as_ref().is_none_or(|to| to.matches(&summary.to));
                let lists_sender = |from: &EndFilter| summary.senders.iter().any(|sender| from.matches_sender(sender));
                let from = self.from.as_ref().is_none_or(lists_sender);
                let namespace = self.namespace.as_ref().is_none_or(|namespace| {
                    let mut senders = summary.senders.iter().filter_map(|sender| sender.split_once('/'));
                    senders.any(|(sender_namespace, _)| sender_namespace == namespace)
                });
                port && to && namespace && from && self.has_verdict(summary.verdict) && self.policy.is_none()
            }
            Record::RateLimited(limited) => {
                let namespace = self.namespace.as_ref().is_none_or(|namespace| {
                    limited.pod.split_once('/').is_some_and(|(pod_namespace, _)| pod_namespace == namespace)
                });
                namespace
                    && self.has_verdict(limited.verdict)
                    && self.from.is_none()
                    && self.to.is_none()
                    && self.port.is_none()
                    && self.policy.is_none()
            }
        }
    }

    fn matches_flow(&self, flow: &FlowRecord) -> bool {
        // `sender`: the local pod that sent the packet, if the source address is not that pod's.
        let in_namespace = |namespace: &String| {
            let sender = flow.sender.as_ref().and_then(|sender| sender.split_once('/'));
            let sender_namespace = sender.map(|(namespace, _)| namespace);
            [flow.from.namespace.as_deref(), flow.to.namespace.as_deref(), sender_namespace].contains(&Some(namespace))
        };
        self.has_verdict(flow.verdict)
            && self.from.as_ref().is_none_or(|from| {
                from.matches(&flow.from) || flow.sender.as_ref().is_some_and(|sender| from.matches_sender(sender))
            })
            && self.to.as_ref().is_none_or(|to| to.matches(&flow.to))
            && self.port.as_ref().is_none_or(|port| port.matches(flow.port, &flow.protocol))
            && self.namespace.as_ref().is_none_or(in_namespace)
            && self.policy.as_ref().is_none_or(|policy| {
                [&flow.egress, &flow.ingress].into_iter().flatten().any(|side| names_policy(side, policy))
            })
    }

    /// Records of totals (the packets and bytes of a flow) are only written for allowed flows, and name no policies.
    fn matches_totals(&self, totals: &FlowTotalsRecord) -> bool {
        let in_namespace =
            |namespace: &String| [&totals.from.namespace, &totals.to.namespace].contains(&&Some(namespace.clone()));
        self.has_verdict(FlowVerdict::Allowed)
            && self.from.as_ref().is_none_or(|from| from.matches(&totals.from))
            && self.to.as_ref().is_none_or(|to| to.matches(&totals.to))
            && self.port.as_ref().is_none_or(|port| port.matches(totals.port, &totals.protocol))
            && self.namespace.as_ref().is_none_or(in_namespace)
            && self.policy.is_none()
    }

    fn has_verdict(&self, verdict: FlowVerdict) -> bool {
        self.verdicts.is_empty() || self.verdicts.contains(&verdict)
    }
}

/// Returns whether the egress or ingress evaluation of a flow lists this policy, or a rule of this policy.
fn names_policy(side: &FlowSide, policy: &str) -> bool {
    side.policies.iter().any(|name| name == policy)
        || [&side.rule, &side.nearest].into_iter().flatten().any(|rule| rule.policy == policy)
}

/// Parses the value of a parameter that is true or false. An empty value is true.
///
/// # Errors
/// If the value is neither true nor false.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("`{text}` is not true or false")),
    }
}

/// Splits a query string into names and values, and decodes their percent-encoding.
///
/// # Errors
/// If the percent-encoding is not valid.
pub fn parameters(query: &str) -> Result<Vec<(String, String)>, String> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((percent_decoded(name)?, percent_decoded(value)?))
        })
        .collect()
}

fn percent_decoded(text: &str) -> Result<String, String> {
    let invalid = || format!("`{text}` is not percent-encoded UTF-8");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
        let (Some(high), Some(low)) = (digit(), digit()) else { return Err(invalid()) };
        bytes.push(u8::try_from(high << 4 | low).map_err(|_| invalid())?);
    }
    String::from_utf8(bytes).map_err(|_| invalid())
}

impl EndFilter {
    fn matches(&self, end: &FlowEnd) -> bool {
        match self {
            Self::Pod { namespace, name } => {
                end.namespace.as_ref() == Some(namespace) && end.pod.as_ref() == Some(name)
            }
            Self::Namespace(namespace) => end.namespace.as_ref() == Some(namespace),
            Self::Addresses(addresses) => end.address.is_some_and(|address| addresses.contains(&address)),
        }
    }

    /// Returns whether the filter selects a sender: a pod (`namespace/name`), or an address.
    fn matches_sender(&self, sender: &str) -> bool {
        match (self, sender.split_once('/')) {
            (Self::Pod { namespace, name }, Some(pod)) => (namespace.as_str(), name.as_str()) == pod,
            (Self::Namespace(namespace), Some((sender_namespace, _))) => namespace == sender_namespace,
            (Self::Addresses(addresses), None) => {
                sender.parse().is_ok_and(|address: IpAddr| addresses.contains(&address))
            }
            _ => false,
        }
    }
}

impl FromStr for EndFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Addresses(address.into()));
        }
        if let Ok(addresses) = text.parse::<IpNet>() {
            return Ok(Self::Addresses(addresses.trunc()));
        }
        match text.split_once('/') {
            Some((namespace, "*")) if is_name(namespace) => Ok(Self::Namespace(namespace.to_owned())),
            Some((namespace, name)) if is_name(namespace) && is_name(name) => {
                Ok(Self::Pod { namespace: namespace.to_owned(), name: name.to_owned() })
            }
            _ => Err(format!("`{text}` is not NAMESPACE/POD, NAMESPACE/*, an address or a CIDR")),
        }
    }
}

impl fmt::Display for EndFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Namespace(namespace) => write!(f, "{namespace}/*"),
            Self::Addresses(addresses) => addresses.fmt(f),
        }
    }
}

impl PortFilter {
    fn matches(&self, port: Option<u16>, protocol: &str) -> bool {
        port == Some(self.port) && self.protocol.as_ref().is_none_or(|wanted| wanted == protocol)
    }
}

impl FromStr for PortFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = text.split_once('/').map_or((text, None), |(port, protocol)| (port, Some(protocol)));
        let protocol = protocol.map(str::to_ascii_uppercase);
        let known = protocol.as_ref().is_none_or(|protocol| ["TCP", "UDP", "SCTP"].contains(&protocol.as_str()));
        match port.parse() {
            Ok(port) if known => Ok(Self { port, protocol }),
            _ => Err(format!("`{text}` is not a port; write 53, 53/TCP, 53/UDP or 53/SCTP")),
        }
    }
}

impl fmt::Display for PortFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.protocol {
            Some(protocol) => write!(f, "{}/{protocol}", self.port),
            None => self.port.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests;
