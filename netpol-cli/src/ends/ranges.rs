//! If the source or destination of a connection is a range of addresses, splits the range into parts, so that all
//! addresses of a part have the same verdict.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netpol_policy::model::Peer;
use netpol_policy::offline::{AddressSet, OfflineCluster, is_placeholder};
use netpol_policy::reference::End;

use super::{EndArgument, EndSet, EndText};

/// Addresses that are not public. Sources: the special-purpose registries of RFC 6890, and RFC 9637. IPv6 addresses
/// outside of `2000::/3` are not in this list, and are not public, either.
const NOT_PUBLIC: [&str; 17] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.0.2.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/3",
    "2001::/23",
    "2001:db8::/32",
    "2002::/16",
    "3fff::/20",
];

/// Returns the parts of an end (source or destination) that is a range. Returns `set` if the end is not a range.
/// `argument` and `set` are of this end, and `other` is the other end of the connection. The first address of a part
/// represents all of its addresses: each block of a policy contains all of them or none, and each known address (of a
/// pod, a node or a Service) is a part of its own. The parts have only address families that the other end has.
pub(super) fn split(cluster: &OfflineCluster, argument: &EndArgument, set: EndSet, other: &EndSet) -> EndSet {
    let addresses = match argument {
        EndArgument::Range(range) => AddressSet::of([*range]),
        EndArgument::Internet => internet(cluster),
        _ => return set,
    };
    let known: Vec<IpNet> = known_addresses(cluster).into_iter().map(IpNet::from).collect();
    let parts = addresses.split_at(blocks(cluster).chain(&known)).into_iter();
    let [has_v4, has_v6] = [true, false].map(|is_ipv4| has_family(cluster, other, is_ipv4));
    let parts = parts.filter(|(first, _)| if first.is_ipv4() { has_v4 } else { has_v6 });
    let ends = parts.map(|(first, last)| (End::Address(first), EndText::Addresses(first, last))).collect();
    EndSet { ends, ..set }
}

/// Returns all public addresses that are not known to be in the cluster.
pub(crate) fn internet(cluster: &OfflineCluster) -> AddressSet {
    let nets = |texts: &[&str]| AddressSet::of(texts.iter().filter_map(|text| text.parse::<IpNet>().ok()));
    let known = AddressSet::of_addresses(known_addresses(cluster));
    nets(&["0.0.0.0/0", "2000::/3"]).difference(&nets(&NOT_PUBLIC)).difference(&known)
}

/// Returns whether an end in the set has an address of a family. Also returns true if an end in the set has no known
/// address: the later evaluation reports why no connection to this end is possible.
fn has_family(cluster: &OfflineCluster, set: &EndSet, is_ipv4: bool) -> bool {
    let is_of_family = |address: &IpAddr| address.is_ipv4() == is_ipv4;
    let has_address = |addresses: &[IpAddr]| addresses.is_empty() || addresses.iter().any(is_of_family);
    // The set of a range has no ends until it is split.
    set.ends.is_empty()
        || set.ends.iter().any(|(end, _)| match end {
            End::Address(address) => is_of_family(address),
            End::Pod(key) => cluster.state().pods.get(key).is_none_or(|pod| has_address(&pod.addresses)),
            End::Service(key) => {
                cluster.state().services.get(key).is_none_or(|service| has_address(&service.addresses))
            }
        })
}

/// Returns the known addresses of pods, nodes and Services.
fn known_addresses(cluster: &OfflineCluster) -> BTreeSet<IpAddr> {
    let state = cluster.state();
    let pods = state.pods.values().flat_map(|pod| pod.addresses.iter().copied());
    let services = state.services.values().flat_map(|service| service.addresses.iter().copied());
    pods.chain(services).chain(state.node_addresses()).filter(|address| !is_placeholder(*address)).collect()
}

/// Returns the `cidr` and the `except` entries of all blocks in policies.
fn blocks(cluster: &OfflineCluster) -> impl Iterator<Item = &IpNet> {
    let policies = cluster.state().policies.values();
    let rules = policies.flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    let blocks = rules.flat_map(|rule| rule.peers.listed()).filter_map(|peer| match peer {
        Peer::Block(block) => Some(block),
        Peer::Pods { .. } => None,
    });
    let nets = blocks.flat_map(|block| std::iter::once(&block.cidr).chain(&block.except));
    // netpol gives pods and Services with an unknown address a placeholder address, and adds blocks of these addresses
    // to rules. Such blocks are not in the manifests.
    nets.filter(|net| !is_placeholder(net.addr()))
}

/// Returns the address after this one, in the same family.
pub(super) fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(Ipv4Addr::from_bits(address.to_bits().checked_add(1)?).into()),
        IpAddr::V6(address) => Some(Ipv6Addr::from_bits(address.to_bits().checked_add(1)?).into()),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::manifest::parse_offline;

    use super::*;

    #[test]
    fn the_internet_has_only_public_addresses_that_are_not_in_the_cluster() {
        // With 10,000 nodes, an algorithm with quadratic time would take too long.
        let node = |index: u32| {
            let address = Ipv4Addr::from_bits(0x0808_0000 + index);
            format!(
                "{{apiVersion: v1, kind: Node, metadata: {{name: n{index}}}, status: {{addresses: [{{type: InternalIP, address: {address}}}]}}}}\n---\n"
            )
        };
        let pod =
            "{apiVersion: v1, kind: Pod, metadata: {name: a}, status: {podIPs: [{ip: 10.0.0.1}, {ip: '2001:db8::1'}]}}";
        let text = (0..10_000).map(|index| node(2 * index)).collect::<String>() + pod;
        let cluster = OfflineCluster::new(&parse_offline(&text, "f"), &[]);
        // A set without ends counts as an end with addresses of both families.
        let set = EndSet { title: "internet".to_owned(), ends: Vec::new() };
        let parts = split(&cluster, &EndArgument::Internet, set.clone(), &set).ends;
        let contains = |address: &str| {
            let address: IpAddr = address.parse().expect("an address");
            parts
                .iter()
                .any(|(_, text)| matches!(text, EndText::Addresses(first, last) if (*first..=*last).contains(&address)))
        };
        let found =
            |addresses: &[&'static str]| addresses.iter().copied().filter(|text| contains(text)).collect::<Vec<_>>();
        let public = [
            "1.0.0.0",
            "9.255.255.255",
            "8.8.0.1",
            "8.8.0.5",
            "223.255.255.255",
            "2000::",
            "3fff:1000::",
            "2001:db9::",
        ];
        assert_eq!(found(&public), public);
        let others = [
            "0.0.0.1",
            "8.8.0.0",
            "8.8.0.2",
            "10.0.0.1",
            "192.0.2.255",
            "224.0.0.1",
            "2001:db8::1",
            "3fff::1",
            "4000::",
        ];
        assert_eq!(found(&others), [""; 0]);
    }
}
