//! Reads from the pinned maps what the kernel enforces now. Works without a running agent.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use netpol_common::{Direction, Endpoint, IfIndex, LAYOUT_VERSION, Reason, endpoint_flags};
use serde::Serialize;
use thiserror::Error;

use super::maps::{Maps, pinned_capacity};
use super::names::MapName;
use super::pins::Pins;
use super::{KernelError, WriteError};

/// Why the status cannot be read.
#[derive(Debug, Error)]
pub enum StatusError {
    /// Nothing is pinned at the path.
    #[error(
        "nothing of layout version {LAYOUT_VERSION} is pinned below {0}: no agent has run here, or it was uninstalled"
    )]
    Nothing(PathBuf),
    /// A pinned object cannot be opened.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// A map cannot be read.
    #[error(transparent)]
    Map(#[from] WriteError),
}

/// The complete status.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Layout version of the maps.
    pub layout_version: u32,
    /// Pod interfaces.
    pub endpoints: Vec<EndpointStatus>,
    /// Node devices on which traffic is rechecked post-DNAT.
    pub devices: Vec<String>,
    /// Entries and capacity of every map.
    pub maps: BTreeMap<&'static str, MapStatus>,
    /// Events that did not fit into the ring buffer.
    pub lost_events: u64,
}

/// The status of one endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Interface index.
    pub ifindex: u32,
    /// Interface name, if the interface exists.
    pub interface: Option<String>,
    /// Whether programs are attached, according to the pins.
    pub attached: bool,
    /// Whether these programs enforce nothing, because an agent with `--observe` attached them.
    pub observing: bool,
    /// The pod's IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Version of the endpoint. It increases with each change of the endpoint's policies.
    pub version: u32,
    /// The rule set that isolates ingress; 0: none.
    pub ingress_rule_set: u32,
    /// The rule set that isolates egress; 0: none.
    pub egress_rule_set: u32,
    /// Names of the endpoint flags.
    pub flags: Vec<&'static str>,
    /// Packets by direction and reason.
    pub packets: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
}

/// The status of one map.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MapStatus {
    /// Number of entries, if they can be counted.
    pub entries: Option<usize>,
    /// Capacity.
    pub capacity: u32,
}

/// Reads the status from the pins below a path.
///
/// # Errors
/// If nothing is pinned, or a map cannot be read.
pub fn read_status(pin_path: &Path) -> Result<Status, StatusError> {
    let pins = Pins::new(pin_path);
    if pinned_capacity(&pins, MapName::Endpoints).is_none() {
        return Err(StatusError::Nothing(pin_path.to_owned()));
    }
    let maps = Maps::open(&pins)?;
    let snapshot = maps.snapshot()?;
    let endpoints = maps.read_endpoints()?;
    let mut attached = pins.interfaces_with_links();
    attached.extend(pins.interfaces_with_filters());
    let mut status = Status {
        layout_version: LAYOUT_VERSION,
        endpoints: Vec::new(),
        devices: pins.interfaces().into_iter().filter_map(|ifindex| device(&pins, ifindex)).collect(),
        maps: BTreeMap::new(),
        lost_events: maps.lost_events.get(&0, 0).map_or(0, |per_cpu| per_cpu.iter().sum()),
    };
    for endpoint in endpoints.values() {
        let (attached, observing) = (attached.contains(&endpoint.ifindex), pins.is_observing(endpoint.ifindex));
        status.endpoints.push(EndpointStatus { attached, observing, ..endpoint_status(&maps, endpoint)? });
    }
    let addresses_v4 = snapshot.addresses.keys().filter(|address| address.is_ipv4()).count();
    let prefixes_v4 = snapshot.prefixes.keys().filter(|net| net.addr().is_ipv4()).count();
    let services_v4 = snapshot.frontends.keys().filter(|frontend| frontend.is_ipv4()).count();
    for &map in MapName::ALL {
        let entries = match map {
            MapName::Endpoints => Some(endpoints.len()),
            MapName::AddressesV4 => Some(addresses_v4),
            MapName::AddressesV6 => Some(snapshot.addresses.len() - addresses_v4),
            MapName::PrefixesV4 => Some(prefixes_v4),
            MapName::PrefixesV6 => Some(snapshot.prefixes.len() - prefixes_v4),
            MapName::ServicesV4 => Some(services_v4),
            MapName::ServicesV6 => Some(snapshot.frontends.len() - services_v4),
            MapName::Allow => Some(snapshot.allow.len()),
            MapName::Ports => Some(snapshot.ports.len()),
            MapName::EndpointsOverflow
            | MapName::FlowsV4
            | MapName::FlowsV6
            | MapName::FlowTablesV4
            | MapName::FlowTablesV6
            | MapName::FragmentsV4
            | MapName::FragmentsV6
            | MapName::Denials
            | MapName::AllowedFlows
            | MapName::EventBudgets
            | MapName::Counters
            | MapName::EndpointIds
            | MapName::Neighbors
            | MapName::Tunnels
            | MapName::Events
            | MapName::LostEvents
            | MapName::Settings => None,
        };
        let capacity = pinned_capacity(&pins, map).unwrap_or(0);
        status.maps.insert(map.name(), MapStatus { entries, capacity });
    }
    Ok(status)
}

/// Returns the name of an interface if it is a device on which traffic is rechecked post-DNAT.
fn device(pins: &Pins, ifindex: IfIndex) -> Option<String> {
    super::attach::name_of(ifindex).filter(|_| pins.role(ifindex).is_device())
}

/// Returns what the maps contain about an endpoint.
fn endpoint_status(maps: &Maps, endpoint: &Endpoint) -> Result<EndpointStatus, WriteError> {
    let mut packets = BTreeMap::new();
    for direction in Direction::BOTH {
        let counted = maps.counted(endpoint.id, direction)?;
        let by_reason: BTreeMap<&'static str, u64> = Reason::ALL
            .iter()
            .map(|reason| (reason.name(), counted.packets[*reason as usize]))
            .filter(|(_, packets)| *packets > 0)
            .collect();
        packets.insert(direction.name(), by_reason);
    }
    let flags = [
        (endpoint_flags::ANTI_SPOOFING, "anti-spoofing"),
        (endpoint_flags::UNKNOWN, "unknown"),
        (endpoint_flags::INCOMPLETE, "incomplete"),
    ];
    Ok(EndpointStatus {
        ifindex: endpoint.ifindex.0,
        interface: super::attach::name_of(endpoint.ifindex),
        attached: false,
        observing: false,
        ipv4: (endpoint.address_v4 != [0; 4]).then(|| endpoint.address_v4.into()),
        ipv6: (endpoint.address_v6 != [0; 16]).then(|| endpoint.address_v6.into()),
        version: endpoint.version.0,
        ingress_rule_set: endpoint.ingress.rule_set.0,
        egress_rule_set: endpoint.egress.rule_set.0,
        flags: flags.into_iter().filter(|(flag, _)| endpoint.has(*flag)).map(|(_, name)| name).collect(),
        packets,
    })
}
