//! Tunnel endpoints: the UDP ports and IP protocols of packets that a node's devices decapsulate.
//!
//! A pod that reaches a tunnel endpoint could inject inner packets with any source address: these packets would leave
//! the tunnel device as if they came from the network. So no pod may send to tunnel endpoints; see
//! [`evaluate`](netpol_common::evaluate()).

use std::collections::BTreeSet;

use netlink_packet_route::link::{
    InfoAmt, InfoBareUdp, InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoKind, InfoVxlan, LinkAttribute,
    LinkInfo, LinkMessage,
};

/// IP protocol numbers. Source: <https://www.iana.org/assignments/protocol-numbers/>.
mod protocol {
    /// IPv4 in IP, RFC 2003.
    pub(super) const IPIP: u8 = 4;
    /// IPv6 in IP, RFC 4213: `sit`, `ip6tnl`.
    pub(super) const IPV6: u8 = 41;
    /// RFC 2784: `gre`, `gretap`, `erspan` and their IPv6 forms.
    pub(super) const GRE: u8 = 47;
    /// `L2TPv3` over IP, RFC 3931.
    pub(super) const L2TP: u8 = 115;
    /// MPLS in IP, RFC 4023: `ipip` and `sit` accept it, too.
    pub(super) const MPLS: u8 = 137;
}

/// UDP ports. Source, unless noted: <https://www.iana.org/assignments/service-names-port-numbers/>.
mod port {
    /// L2TP over UDP.
    pub(super) const L2TP: u16 = 1701;
    /// AMT, RFC 7450.
    pub(super) const AMT: u16 = 2268;
    /// GTP-U.
    pub(super) const GTP: u16 = 2152;
    /// `GTPv0`.
    pub(super) const GTP_V0: u16 = 3386;
    /// VXLAN, RFC 7348.
    pub(super) const VXLAN: u16 = 4789;
    /// GUE (IP in UDP).
    pub(super) const GUE: u16 = 6080;
    /// Geneve, RFC 8926.
    pub(super) const GENEVE: u16 = 6081;
    /// MPLS in UDP, RFC 7510: `bareudp`.
    pub(super) const MPLS: u16 = 6635;
    /// Flannel's `udp` backend. Source: <https://github.com/flannel-io/flannel/blob/master/Documentation/backends.md>.
    pub(super) const FLANNEL_UDP: u16 = 8285;
    /// VXLAN port of Linux before RFC 7348; the default of Flannel and Cilium.
    pub(super) const VXLAN_LINUX: u16 = 8472;
    /// Default `WireGuard` ports: 51820 (Flannel, Calico), 51821 (Flannel and Calico, for IPv6), 51871 (Cilium).
    pub(super) const WIREGUARD: [u16; 3] = [51_820, 51_821, 51_871];
}

/// The tunnel endpoints of one or more nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TunnelEndpoints {
    /// UDP ports.
    pub ports: BTreeSet<u16>,
    /// IP protocol numbers.
    pub protocols: BTreeSet<u8>,
}

impl TunnelEndpoints {
    /// Returns the standard tunnel endpoints, which are used for other nodes: their devices cannot be read from here.
    pub fn standard() -> Self {
        let ports =
            [port::L2TP, port::VXLAN, port::GUE, port::GENEVE, port::MPLS, port::FLANNEL_UDP, port::VXLAN_LINUX];
        Self {
            ports: ports.into_iter().chain(port::WIREGUARD).collect(),
            protocols: [protocol::IPIP, protocol::IPV6, protocol::GRE, protocol::L2TP, protocol::MPLS].into(),
        }
    }

    /// Adds another set.
    pub fn extend(&mut self, other: &Self) {
        self.ports.extend(&other.ports);
        self.protocols.extend(&other.protocols);
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.protocols.is_empty()
    }
}

/// Returns the tunnel endpoints of a device of this node. Devices that are down count, too, because they may come up at
/// any time. ESP (`IPsec`) is not included, because it decapsulates nothing without a key.
pub(super) fn opened_by(link: &LinkMessage) -> TunnelEndpoints {
    let mut found = TunnelEndpoints::default();
    let mut name = "";
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = value,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(kind) => add_of_kind(kind, &mut found),
                        LinkInfo::Data(data) => add_from_data(data, &mut found),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    // L2TP devices have no link kind. Source: `net/l2tp/l2tp_eth.c`, L2TP_ETH_DEV_NAME.
    if name.starts_with("l2tpeth") {
        found.protocols.insert(protocol::L2TP);
        found.ports.insert(port::L2TP);
    }
    // A device `flannel…` without a port so far is the `tun` device of Flannel's `udp` backend, for which a process
    // decapsulates in user space. The port of Flannel's VXLAN device was found above.
    if name.starts_with("flannel") && found.is_empty() {
        found.ports.insert(port::FLANNEL_UDP);
    }
    found
}

/// Adds the protocols that a device of this kind can decapsulate. Also adds the standard ports of kinds for which
/// rtnetlink reports no port.
fn add_of_kind(kind: &InfoKind, found: &mut TunnelEndpoints) {
    match kind {
        InfoKind::IpIp | InfoKind::SitTun | InfoKind::Ip6Tnl | InfoKind::Vti | InfoKind::Vti6 => {
            // A device of these kinds may decapsulate one of these protocols or all of them.
            found.protocols.extend([protocol::IPIP, protocol::IPV6, protocol::MPLS]);
        }
        InfoKind::GreTap
        | InfoKind::GreTap6
        | InfoKind::GreTun
        | InfoKind::GreTun6
        | InfoKind::ErSpan
        | InfoKind::Ip6ErSpan => {
            found.protocols.insert(protocol::GRE);
        }
        // Only generic netlink reports the port, in a message that also contains the keys. The agent does not read
        // keys, so it assumes the usual ports.
        InfoKind::Wireguard => found.ports.extend(port::WIREGUARD),
        InfoKind::Gtp => found.ports.extend([port::GTP, port::GTP_V0]),
        InfoKind::Amt => {
            found.ports.insert(port::AMT);
        }
        _ => {}
    }
}

/// Adds the ports in the parameters of a device.
fn add_from_data(data: &InfoData, found: &mut TunnelEndpoints) {
    let mut ports: Vec<u16> = Vec::new();
    match data {
        InfoData::Vxlan(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        })),
        InfoData::Geneve(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        })),
        InfoData::BareUdp(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoBareUdp::Port(port) => Some(*port),
            _ => None,
        })),
        InfoData::Amt(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoAmt::RelayPort(port) | InfoAmt::GatewayPort(port) => Some(*port),
            _ => None,
        })),
        // FOU and GUE: the device sends to this port, and usually receives on the same port.
        InfoData::IpTunnel(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoIpTunnel::EncapSPort(port) | InfoIpTunnel::EncapDPort(port) => Some(*port),
            _ => None,
        })),
        InfoData::GreTun(data) | InfoData::GreTap(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoGre::SourcePort(port) | InfoGre::DestinationPort(port) => Some(*port),
            _ => None,
        })),
        InfoData::GreTun6(data) | InfoData::GreTap6(data) => ports.extend(data.iter().filter_map(|info| match info {
            InfoGre6::SourcePort(port) | InfoGre6::DestinationPort(port) => Some(*port),
            _ => None,
        })),
        _ => {}
    }
    found.ports.extend(ports.into_iter().filter(|port| *port != 0));
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::InfoVxlan;

    use super::*;

    fn link(name: &str, kind: InfoKind, data: Option<InfoData>) -> LinkMessage {
        let mut link = LinkMessage::default();
        let infos = std::iter::once(LinkInfo::Kind(kind)).chain(data.map(LinkInfo::Data)).collect();
        link.attributes = vec![LinkAttribute::IfName(name.to_owned()), LinkAttribute::LinkInfo(infos)];
        link
    }

    #[test]
    fn devices_open_the_ports_and_protocols_they_decapsulate() {
        let vxlan = InfoData::Vxlan(vec![InfoVxlan::Id(1), InfoVxlan::Port(8472)]);
        let geneve = InfoData::Geneve(vec![InfoGeneve::Port(6081)]);
        let bareudp = InfoData::BareUdp(vec![InfoBareUdp::Port(7000)]);
        let fou = || InfoData::IpTunnel(vec![InfoIpTunnel::EncapSPort(0), InfoIpTunnel::EncapDPort(5555)]);
        let gre_fou = InfoData::GreTun(vec![InfoGre::SourcePort(0), InfoGre::DestinationPort(5556)]);
        for (link, ports, protocols) in [
            (link("flannel.1", InfoKind::Vxlan, Some(vxlan)), &[8472_u16][..], &[][..]),
            (link("gnv0", InfoKind::Geneve, Some(geneve)), &[6081], &[]),
            (link("bare0", InfoKind::BareUdp, Some(bareudp)), &[7000], &[]),
            (link("gre1", InfoKind::GreTun, Some(gre_fou)), &[5556], &[47_u8][..]),
            (link("gretap1", InfoKind::GreTap, None), &[], &[47]),
            (link("ip6gre1", InfoKind::GreTun6, None), &[], &[47]),
            (link("tunl0", InfoKind::IpIp, Some(fou())), &[5555], &[4, 41, 137]),
            (link("sit1", InfoKind::SitTun, None), &[], &[4, 41, 137]),
            (link("ip6tnl1", InfoKind::Ip6Tnl, None), &[], &[4, 41, 137]),
            (link("wg0", InfoKind::Wireguard, None), &[51_820, 51_821, 51_871], &[]),
            (link("l2tpeth0", InfoKind::Other(String::new()), None), &[1701], &[115]),
            (link("flannel0", InfoKind::Tun, None), &[8285], &[]),
            (link("cni0", InfoKind::Bridge, None), &[], &[]),
            (link("veth0", InfoKind::Veth, None), &[], &[]),
        ] {
            let found = opened_by(&link);
            let expected = TunnelEndpoints {
                ports: ports.iter().copied().collect(),
                protocols: protocols.iter().copied().collect(),
            };
            assert_eq!(found, expected, "{link:?}");
        }
    }

    #[test]
    fn the_standard_endpoints_include_those_of_common_plugins() {
        let standard = TunnelEndpoints::standard();
        assert!([4789, 8472, 6081, 51_820, 51_821, 1701].iter().all(|port| standard.ports.contains(port)));
        assert!([4, 41, 47, 115].iter().all(|protocol| standard.protocols.contains(protocol)));
        assert!(!standard.protocols.contains(&50), "ESP decapsulates nothing without a key");
    }
}
