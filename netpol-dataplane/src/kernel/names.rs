//! The names of the BPF maps, the capacities of the maps, and the options that set the capacities.

use std::fmt;

use netpol_common::Counters;
use netpol_policy::tables::Change;

macro_rules! maps {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $capacity:literal, $field:ident, $option:literal;)*) => {
        /// A map of the eBPF programs.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum MapName { $($(#[$doc])* $variant,)* }

        impl MapName {
            /// All maps.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The map's name in the eBPF object file, in bpftool and in the pin path.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// The option that sets the map's capacity.
            pub const fn option(self) -> &'static str {
                match self { $(Self::$variant => $option),* }
            }
        }

        /// The capacity of every map: entries, or bytes for `EVENTS`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Capacities { $($(#[$doc])* pub $field: u32,)* }

        impl Default for Capacities {
            fn default() -> Self {
                Self { $($field: $capacity),* }
            }
        }

        impl Capacities {
            /// Returns the capacity of one map.
            pub const fn of(&self, map: MapName) -> u32 {
                match map { $(MapName::$variant => self.$field),* }
            }

            /// Returns `max_entries` of one map. This is the map's capacity, except for `ENDPOINTS`: the second half
            /// of this array has the slots to which `ENDPOINTS_OVERFLOW` refers.
            pub const fn entries(&self, map: MapName) -> u32 {
                match map {
                    MapName::Endpoints => self.endpoints + self.endpoints_overflow,
                    _ => self.of(map),
                }
            }

            /// Sets the capacity of one map.
            pub const fn set(&mut self, map: MapName, capacity: u32) {
                match map { $(MapName::$variant => self.$field = capacity),* }
            }
        }
    };
}

// In each line: the variant, the map's name, its default capacity, the field of `Capacities`, and the option.
maps! {
    /// Endpoints by interface.
    Endpoints = "ENDPOINTS", 1024, endpoints, "--max-endpoints";
    /// Slots in `ENDPOINTS` by interface, for endpoints that cannot use their usual slot, because another endpoint uses
    /// it.
    EndpointsOverflow = "ENDPOINTS_OVERFLOW", 1024, endpoints_overflow, "--max-endpoints";
    /// IPv4 addresses of pods, nodes and Services.
    AddressesV4 = "ADDRESSES_V4", 131_072, addresses_v4, "--max-addresses-v4";
    /// IPv6 addresses of pods, nodes and Services.
    AddressesV6 = "ADDRESSES_V6", 65_536, addresses_v6, "--max-addresses-v6";
    /// IPv4 blocks.
    PrefixesV4 = "PREFIXES_V4", 16_777_216, prefixes_v4, "--max-prefixes";
    /// IPv6 blocks.
    PrefixesV6 = "PREFIXES_V6", 16_777_216, prefixes_v6, "--max-prefixes";
    /// Service ports at IPv4 addresses.
    ServicesV4 = "SERVICES_V4", 65_536, services_v4, "--max-services-v4";
    /// Service ports at IPv6 addresses.
    ServicesV6 = "SERVICES_V6", 32_768, services_v6, "--max-services-v6";
    /// What rule sets allow to classes.
    Allow = "ALLOW", 524_288, allow, "--max-allow";
    /// Ports of port sets.
    Ports = "PORTS", 16_777_216, ports, "--max-ports";
    /// IPv4 flows of endpoints that have no table of their own yet.
    FlowsV4 = "FLOWS_V4", 8192, flows_v4, "--max-flows-v4";
    /// IPv6 flows of endpoints that have no table of their own yet.
    FlowsV6 = "FLOWS_V6", 4096, flows_v6, "--max-flows-v6";
    /// IPv4 flow tables by endpoint ID.
    FlowTablesV4 = "FLOW_TABLES_V4", 1025, flow_tables_v4, "--max-endpoints";
    /// IPv6 flow tables by endpoint ID.
    FlowTablesV6 = "FLOW_TABLES_V6", 1025, flow_tables_v6, "--max-endpoints";
    /// Fragmented IPv4 datagrams.
    FragmentsV4 = "FRAGMENTS_V4", 8192, fragments_v4, "--max-fragments";
    /// Fragmented IPv6 datagrams.
    FragmentsV6 = "FRAGMENTS_V6", 4096, fragments_v6, "--max-fragments";
    /// Limits of events for denied flows.
    Denials = "DENIALS", 4096, denials, "--max-denials";
    /// Limits of events for allowed flows.
    AllowedFlows = "ALLOWED_FLOWS", 4096, allowed_flows, "--max-denials";
    /// Limits of events for endpoints, six entries per endpoint.
    EventBudgets = "EVENT_BUDGETS", 6150, event_budgets, "--max-endpoints";
    /// Packets by reason, two entries per endpoint.
    Counters = "COUNTERS", 2050, counters, "--max-endpoints";
    /// Interfaces by endpoint ID.
    EndpointIds = "ENDPOINT_IDS", 1025, endpoint_ids, "--max-endpoints";
    /// Limits of neighbor discovery for endpoints.
    Neighbors = "NEIGHBORS", 1025, neighbors, "--max-endpoints";
    /// Tunnel endpoints of nodes.
    Tunnels = "TUNNELS", 2056, tunnels, "(fixed)";
    /// Settings that the programs read.
    Settings = "SETTINGS", 1, settings, "(fixed)";
    /// Flow events.
    Events = "EVENTS", 262_144, events, "--event-buffer";
    /// Number of events that did not fit into `EVENTS`.
    LostEvents = "LOST_EVENTS", 1, lost_events, "(fixed)";
}

impl MapName {
    /// Returns the map in which a change writes an entry. `None` for deletions. Also `None` for changes of endpoints,
    /// because [`Dataplane::write`](crate::Dataplane::write) ignores them.
    pub fn written_by(change: &Change) -> Option<Self> {
        match change {
            Change::PutPort { .. } => Some(Self::Ports),
            Change::PutAllow(..) => Some(Self::Allow),
            Change::PutAddress(address, _) if address.is_ipv4() => Some(Self::AddressesV4),
            Change::PutAddress(..) => Some(Self::AddressesV6),
            Change::PutPrefix(ipnet::IpNet::V4(_), _) => Some(Self::PrefixesV4),
            Change::PutPrefix(ipnet::IpNet::V6(_), _) => Some(Self::PrefixesV6),
            Change::PutFrontend(frontend, _) if frontend.is_ipv4() => Some(Self::ServicesV4),
            Change::PutFrontend(..) => Some(Self::ServicesV6),
            Change::DeletePort { .. }
            | Change::DeleteAllow(_)
            | Change::DeleteAddress(_)
            | Change::DeletePrefix(_)
            | Change::DeleteFrontend(_)
            | Change::PutEndpoint(..)
            | Change::DeleteEndpoint(_)
            | Change::Reevaluate(_) => None,
        }
    }
}

impl fmt::Display for MapName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// docs/capacity.md states this size of a value of `COUNTERS`.
const _: () = assert!(size_of::<Counters>() == 320);
