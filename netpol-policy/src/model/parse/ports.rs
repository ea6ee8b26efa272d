//! Parses `ports` of a rule. Other modules also use the functions for one protocol and for one port number.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Diagnostics;
use crate::model::{PortMatch, PortRange, Ports, Protocol};

/// Parses `ports` of a rule; `field` is the path of this list. Invalid items are omitted. If no item is valid, the rule
/// matches no port.
pub(super) fn ports(api: Option<&[NetworkPolicyPort]>, field: &str, diagnostics: &mut Diagnostics) -> Ports {
    let items = api.unwrap_or_default();
    if items.is_empty() {
        return Ports::Any;
    }
    let valid = items
        .iter()
        .enumerate()
        .filter_map(|(index, item)| port_match(item, &format!("{field}[{index}]"), diagnostics));
    Ports::Of(valid.collect())
}

fn port_match(api: &NetworkPolicyPort, field: &str, diagnostics: &mut Diagnostics) -> Option<PortMatch> {
    let protocol = protocol(api.protocol.as_deref(), field, diagnostics);
    let range = port_range(api, field, diagnostics);
    Some(PortMatch { protocol: protocol?, port: range? })
}

/// Parses the protocol of the port at `field`; TCP if absent.
pub(super) fn protocol(name: Option<&str>, field: &str, diagnostics: &mut Diagnostics) -> Option<Protocol> {
    let name = name.unwrap_or("TCP");
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        let upper = name.to_uppercase();
        let advice = if Protocol::from_name(&upper).is_some() { upper } else { "TCP, UDP or SCTP".into() };
        diagnostics.error(format!("{field}.protocol"), format!("unknown protocol `{name}`; write {advice}"));
    }
    protocol
}

fn port_range(api: &NetworkPolicyPort, field: &str, diagnostics: &mut Diagnostics) -> Option<PortRange> {
    let port_field = format!("{field}.port");
    let end_field = format!("{field}.endPort");
    match (&api.port, api.end_port) {
        (None, None) => Some(PortRange::All),
        (None, Some(_)) => {
            diagnostics.error(end_field, "needs a `port`, the first port of the range");
            None
        }
        (Some(IntOrString::String(name)), end) => {
            if let Some(end) = end {
                diagnostics.error(
                    end_field,
                    format!("{end} cannot end a range that starts with a port name; set `port` to a number"),
                );
                return None;
            }
            port_name(name, &port_field, diagnostics)
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = port_number(*first, &port_field, diagnostics);
            let last = end.map_or(first, |end| port_number(end, &end_field, diagnostics));
            let (first, last) = (first?, last?);
            if last < first {
                diagnostics.error(end_field, format!("{last} is less than `port` {first}; swap them"));
                return None;
            }
            Some(PortRange::Range(first, last))
        }
    }
}

/// Parses a port number.
pub(super) fn port_number(value: i32, field: &str, diagnostics: &mut Diagnostics) -> Option<u16> {
    let port = u16::try_from(value).ok().filter(|&port| port != 0);
    if port.is_none() {
        diagnostics.error(field, format!("{value} is not a port; ports are 1 to 65535"));
    }
    port
}

fn port_name(name: &str, field: &str, diagnostics: &mut Diagnostics) -> Option<PortRange> {
    if name.parse::<u16>().is_ok() {
        diagnostics.error(
            field,
            format!("\"{name}\" in quotes is a port name, and a port name must contain a letter; write {name} without quotes"),
        );
        return None;
    }
    // Source: <https://www.rfc-editor.org/rfc/rfc6335#section-5.1>. Kubernetes requires this syntax for port names. The
    // rules for the position of hyphens are not checked here.
    let well_formed = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase());
    if !well_formed {
        diagnostics.error(
            field,
            format!("`{name}` is not a valid port name: use at most 15 of a–z, 0–9 and -, with at least one letter"),
        );
        return None;
    }
    Some(PortRange::Named(name.into()))
}
