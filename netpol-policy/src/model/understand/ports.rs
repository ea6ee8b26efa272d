//! `ports` of a rule.

use k8s_openapi::api::networking::v1::NetworkPolicyPort;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::Problems;
use crate::model::{PortMatch, PortRange, Ports, Protocol};

/// The ports at `field`; items that are not understood are left out.
pub(super) fn ports(api: Option<&[NetworkPolicyPort]>, field: &str, problems: &mut Problems) -> Ports {
    let items = api.unwrap_or_default();
    if items.is_empty() {
        return Ports::Any;
    }
    let understood =
        items.iter().enumerate().filter_map(|(index, item)| port(item, &format!("{field}[{index}]"), problems));
    Ports::Of(understood.collect())
}

fn port(api: &NetworkPolicyPort, field: &str, problems: &mut Problems) -> Option<PortMatch> {
    let protocol = protocol(api.protocol.as_deref(), field, problems);
    let range = range(api, field, problems);
    Some(PortMatch { protocol: protocol?, port: range? })
}

/// The protocol of this name at `field`; absent is TCP.
pub(super) fn protocol(name: Option<&str>, field: &str, problems: &mut Problems) -> Option<Protocol> {
    let name = name.unwrap_or("TCP");
    let protocol = Protocol::from_name(name);
    if protocol.is_none() {
        let upper = name.to_uppercase();
        let advice = if Protocol::from_name(&upper).is_some() { upper } else { "TCP, UDP or SCTP".into() };
        problems.error(format!("{field}.protocol"), format!("unknown protocol `{name}`; write {advice}"));
    }
    protocol
}

fn range(api: &NetworkPolicyPort, field: &str, problems: &mut Problems) -> Option<PortRange> {
    let port_field = format!("{field}.port");
    let end_field = format!("{field}.endPort");
    match (&api.port, api.end_port) {
        (None, None) => Some(PortRange::All),
        (None, Some(_)) => {
            problems.error(end_field, "needs a `port` that the range begins with");
            None
        }
        (Some(IntOrString::String(name)), end) => {
            if let Some(end) = end {
                problems.error(
                    end_field,
                    format!("{end} cannot end a range that begins with a name; give `port` a number"),
                );
                return None;
            }
            named(name, &port_field, problems)
        }
        (Some(IntOrString::Int(first)), end) => {
            let first = number(*first, &port_field, problems);
            let last = end.map_or(first, |end| number(end, &end_field, problems));
            let (first, last) = (first?, last?);
            if last < first {
                problems.error(end_field, format!("{last} is below the `port` {first}; swap them"));
                return None;
            }
            Some(PortRange::Range(first, last))
        }
    }
}

/// The port of this number.
pub(super) fn number(value: i32, field: &str, problems: &mut Problems) -> Option<u16> {
    let port = u16::try_from(value).ok().filter(|&port| port != 0);
    if port.is_none() {
        problems.error(field, format!("{value} is not a port; ports are 1 to 65535"));
    }
    port
}

fn named(name: &str, field: &str, problems: &mut Problems) -> Option<PortRange> {
    if name.parse::<u16>().is_ok() {
        problems.error(
            field,
            format!("\"{name}\" in quotes is a port name, and no name is all digits; write {name} without quotes"),
        );
        return None;
    }
    // Source: <https://www.rfc-editor.org/rfc/rfc6335#section-5.1>, which Kubernetes holds port names to.
    let well_formed = (1..=15).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
        && name.bytes().any(|byte| byte.is_ascii_lowercase());
    if !well_formed {
        problems.error(
            field,
            format!("`{name}` cannot be a port name: those are up to 15 of a–z, 0–9 and -, with a letter among them"),
        );
        return None;
    }
    Some(PortRange::Named(name.into()))
}
