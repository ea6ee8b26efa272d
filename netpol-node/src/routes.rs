//! Finds the network devices that routes use. Through these devices, traffic leaves the node or reaches pods (for
//! example through a bridge or a tunnel).

use std::collections::BTreeSet;

use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netpol_common::IfIndex;

use super::netlink::is_link_local;
use super::{Netlink, NetlinkError};

impl Netlink {
    /// Returns the devices of all unicast routes of this network namespace, in all routing tables.
    ///
    /// # Errors
    /// If the dump fails.
    pub fn route_devices(&mut self) -> Result<BTreeSet<IfIndex>, NetlinkError> {
        let mut devices = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut request = RouteMessage::default();
            request.header.address_family = family;
            self.dump("list routes", &RouteNetlinkMessage::GetRoute(request), |message| {
                if let RouteNetlinkMessage::NewRoute(route) = message {
                    devices.extend(devices_of(&route));
                }
            })?;
        }
        Ok(devices)
    }
}

/// Returns the devices of a route. Routes for link-local addresses are ignored, since every interface has such a route.
pub(super) fn devices_of(route: &RouteMessage) -> Vec<IfIndex> {
    let mut devices = Vec::new();
    if route.header.kind != RouteType::Unicast {
        return devices;
    }
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet6(address)) if is_link_local(address) => return Vec::new(),
            RouteAttribute::Oif(index) => devices.push(IfIndex(*index)),
            RouteAttribute::MultiPath(hops) => devices.extend(hops.iter().map(|hop| IfIndex(hop.interface_index))),
            _ => {}
        }
    }
    devices
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(kind: RouteType, attributes: Vec<RouteAttribute>) -> RouteMessage {
        let mut route = RouteMessage::default();
        route.header.kind = kind;
        route.attributes = attributes;
        route
    }

    #[test]
    fn only_unicast_routes_to_addresses_that_are_not_link_local_are_used() {
        let to = |text: &str| RouteAttribute::Destination(RouteAddress::Inet6(text.parse().expect("invalid address")));
        let device = RouteAttribute::Oif(3);
        for (route, devices) in [
            (route(RouteType::Unicast, vec![device.clone()]), vec![IfIndex(3)]),
            (route(RouteType::Unicast, vec![to("fd00::"), device.clone()]), vec![IfIndex(3)]),
            (route(RouteType::Unicast, vec![to("fe80::"), device.clone()]), vec![]),
            (route(RouteType::Local, vec![device.clone()]), vec![]),
            (route(RouteType::Unreachable, vec![device]), vec![]),
        ] {
            assert_eq!(devices_of(&route), devices, "{route:?}");
        }
    }
}
