//! Compares the results of [`Reachability`] with the verdicts of the reference evaluator, for random clusters.
//! [`Reachability`] computes at which ports one end can connect to another. An end is a group of pods with the same
//! connections, or a group of addresses that no pod has.

use std::net::IpAddr;

use netpol_common::{Direction, protocol};
use proptest::collection::vec;
use proptest::prelude::*;

use super::{EndId, PortIds, Reachability};
use crate::manifest::{Located, Parsed};
use crate::model::{Object, Peer, Peers, Pod, PodKey, Policy, Protocol};
use crate::offline::{AddressSet, OfflineCluster};
use crate::reference::{End, connections};
use crate::testing::{pod, policy};

fn parsed(objects: impl IntoIterator<Item = Object>) -> Parsed {
    let located = |object| Located { object, file: "f".into(), line: 1, document: 1 };
    Parsed { objects: objects.into_iter().map(located).collect(), ..Parsed::default() }
}

pub(crate) fn cluster(policies: &[Policy], pods: &[Pod]) -> OfflineCluster {
    let policies = policies.iter().cloned().map(Object::Policy);
    // Without hostPorts: a hostPort is a frontend, and the computed ports do not include connections to frontends.
    let pods = pods.iter().cloned().map(|pod| Object::Pod(Pod { host_ports: None, ..pod }));
    OfflineCluster::new(&parsed(policies.chain(pods)), &[])
}

/// The ports in random policies, and the ports next to these.
const PORTS: [u16; 12] = [0, 52, 53, 54, 78, 79, 80, 82, 8080, 8081, 65534, 65535];

/// Returns for each protocol and port whether the reference allows a connection in all common address families. ICMP,
/// the last item, stands for all protocols without ports. Returns `None` if the ends have no address family in common.
fn expected(cluster: &OfflineCluster, from: &End, to: &End) -> Option<Vec<bool>> {
    let protocols = [protocol::TCP, protocol::UDP, protocol::SCTP];
    let cases = protocols.into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port)));
    let verdict = |(protocol, port)| {
        let found = connections(cluster.state(), from, to, protocol, port).ok()?;
        Some(found.iter().all(crate::reference::Connection::allowed))
    };
    cases.chain([(protocol::ICMP, 0)]).map(verdict).collect()
}

/// Returns for each address family, side, protocol (TCP and UDP) and port whether the reference allows a connection.
/// The sides are the ingress policies of the destination and the egress policies of the source, in the order of
/// [`Direction::BOTH`].
fn expected_sides(cluster: &OfflineCluster, from: &End, to: &End) -> [Option<[Vec<bool>; 2]>; 2] {
    let mut families = [None, None];
    for (protocol, port) in [protocol::TCP, protocol::UDP].into_iter().flat_map(|it| PORTS.map(|port| (it, port))) {
        for connection in connections(cluster.state(), from, to, protocol, port).into_iter().flatten() {
            let allows = |side: &Option<(_, crate::reference::Evaluation)>| {
                side.as_ref().is_none_or(|(_, evaluation)| evaluation.reason.allows())
            };
            let family: &mut [Vec<bool>; 2] =
                families[usize::from(connection.destination.is_ipv6())].get_or_insert_default();
            family[0].push(allows(&connection.ingress));
            family[1].push(allows(&connection.egress));
        }
    }
    families
}

/// Returns the computed ports, in the form of [`expected_sides`].
fn computed_sides(reachability: &mut Reachability<'_>, from: EndId, to: EndId) -> [Option<[Vec<bool>; 2]>; 2] {
    let sides = reachability.sides(from, to);
    let ports = |ids: PortIds| {
        // The first set has the allowed ports. The second set, which adds ports with an unknown verdict, is not needed.
        let set = reachability.ports(ids)[0];
        let cases = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(|it| PORTS.map(|port| (it, port)));
        cases.map(|(protocol, port)| set.contains(protocol, port)).collect()
    };
    sides.map(|sides| sides.map(|sides| sides.map(ports)))
}

/// Returns the computed ports, in the form of [`expected`].
fn computed(reachability: &Reachability<'_>, ids: Option<PortIds>) -> Option<Vec<bool>> {
    let set = reachability.ports(ids?)[0].clone();
    let cases = Protocol::ALL.into_iter().flat_map(|protocol| PORTS.map(|port| (protocol, port)));
    let ports = cases.map(|(protocol, port)| set.contains(protocol, port));
    Some(ports.chain([set.has_other_protocols()]).collect())
}

/// The first and the last address of each block in the policies, and the addresses next to these.
fn boundaries(policies: &[Policy]) -> Vec<IpAddr> {
    let rules = policies.iter().flat_map(|policy| policy.ingress.iter().chain(&policy.egress).flatten());
    let mut found = Vec::new();
    for rule in rules {
        let Peers::Of(peers) = &rule.peers else { continue };
        for peer in peers {
            let Peer::Block(block) = peer else { continue };
            for net in std::iter::once(&block.cidr).chain(&block.except) {
                let outside = AddressSet::of(["0.0.0.0/0", "::/0"].map(|text| text.parse().expect("a block")))
                    .difference(&AddressSet::of([*net]));
                found.extend([net.network(), net.broadcast()]);
                found.extend(outside.ranges().flat_map(|(first, last)| [first, last]));
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Returns whether a pod has this address, or whether the address is a placeholder for the unknown address of a pod.
fn is_pod_address(cluster: &OfflineCluster, address: IpAddr) -> bool {
    cluster.state().pods_with_address(address).next().is_some() || crate::offline::is_placeholder(address)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_ports_between_all_ends_are_those_of_the_reference(
        policies in vec(policy(), 0..6),
        pods in vec(pod(), 1..7),
    ) {
        let cluster = cluster(&policies, &pods);
        let mut reachability = Reachability::new(&[&cluster]);
        let keys: Vec<PodKey> = cluster.state().pods.keys().cloned().collect();
        let ends: Vec<_> = keys.iter().filter_map(|key| Some((key, reachability.end_of(0, key)?))).collect();
        // At a pod with an unknown address, verdicts can be unknown. The reference has no such verdict.
        let has_known_addresses = |key: &PodKey| {
            cluster.state().pods[key].addresses.iter().all(|address| !crate::offline::is_placeholder(*address))
        };
        for (from, source) in &ends {
            for (to, destination) in &ends {
                if from == to || !has_known_addresses(from) || !has_known_addresses(to) {
                    continue;
                }
                let found = reachability.between(*source, *destination);
                let (from_pod, to_pod) = (End::Pod((*from).clone()), End::Pod((*to).clone()));
                let expected = expected(&cluster, &from_pod, &to_pod);
                prop_assert_eq!(computed(&reachability, found), expected, "{} to {}", from, to);
                let sides = computed_sides(&mut reachability, *source, *destination);
                prop_assert_eq!(sides, expected_sides(&cluster, &from_pod, &to_pod), "{} to {}", from, to);
            }
        }
        // Connections from the addresses of pods. Skips connections from a pod to itself.
        for address in cluster.state().pods.values().flat_map(|pod| &pod.addresses) {
            let Some(peer) = cluster.state().peer_at(*address).filter(|_| !crate::offline::is_placeholder(*address))
            else { continue };
            let source = reachability.end_at(0, *address);
            for (to, destination) in ends.iter().filter(|(to, _)| **to != peer.key && has_known_addresses(to)) {
                let found = reachability.between(source, *destination);
                let expected = expected(&cluster, &End::Address(*address), &End::Pod((*to).clone()));
                prop_assert_eq!(computed(&reachability, found), expected, "{} to {}", address, to);
            }
        }
        // Connections from and to addresses that no pod has.
        let outside = reachability.outside().to_vec();
        let boundaries = boundaries(&policies).into_iter().filter(|address| !is_pod_address(&cluster, *address));
        for address in boundaries.chain(outside.iter().map(|outside| outside.example)) {
            let with_address: Vec<_> = outside.iter().filter(|part| part.addresses.contains(address)).collect();
            for (key, end) in ends.iter().filter(|(key, _)| has_known_addresses(key)) {
                let pod = || End::Pod((*key).clone());
                let egress = expected(&cluster, &pod(), &End::Address(address));
                let ingress = expected(&cluster, &End::Address(address), &pod());
                // If no pod has an address of this family, no part of `outside` contains the address.
                let [found] = with_address[..] else {
                    prop_assert!(with_address.is_empty() && egress.is_none(), "{} is in {:?}", address, with_address);
                    continue;
                };
                prop_assert_eq!(reachability.end_at(0, address), found.end());
                let to = reachability.between(*end, found.end());
                prop_assert_eq!(computed(&reachability, to), egress, "{} to {}", key, address);
                let from = reachability.between(found.end(), *end);
                prop_assert_eq!(computed(&reachability, from), ingress, "{} to {}", address, key);
            }
        }
    }

    #[test]
    fn a_source_and_a_destination_with_the_same_ids_in_two_clusters_have_the_same_ports(
        policies in vec(policy(), 1..5),
        added in vec(policy(), 0..2),
        pods in vec(pod(), 2..6),
    ) {
        let old = cluster(&policies, &pods);
        let new = cluster(&policies.iter().skip(1).chain(&added).cloned().collect::<Vec<_>>(), &pods);
        let mut reachability = Reachability::new(&[&old, &new]);
        let keys: Vec<PodKey> = old.state().pods.keys().cloned().collect();
        // The ports of a cluster must not depend on the other cluster.
        let mut singles = [Reachability::new(&[&old]), Reachability::new(&[&new])];
        for (from, to) in keys.iter().flat_map(|from| keys.iter().map(move |to| (from, to))) {
            let mut ends = Vec::new();
            for (index, single) in singles.iter_mut().enumerate() {
                let (Some(source), Some(destination)) = (reachability.end_of(index, from), reachability.end_of(index, to))
                else { continue };
                let alone = single.end_of(0, from).zip(single.end_of(0, to));
                let alone = alone.and_then(|(from, to)| single.between(from, to)).map(|ids| single.ports(ids).map(Clone::clone));
                let shared = reachability.between(source, destination);
                prop_assert_eq!(&shared.map(|ids| reachability.ports(ids).map(Clone::clone)), &alone);
                ends.push(((source, destination), alone));
            }
            if let [(old_ends, old_ports), (new_ends, new_ports)] = &ends[..] && old_ends == new_ends {
                prop_assert_eq!(old_ports, new_ports);
            }
        }
    }
}

#[test]
fn the_rules_that_allow_a_port_on_one_side_are_found() {
    use crate::manifest::parse_offline;
    let text = "\
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: s, labels: {app: a}}, status: {podIP: 10.0.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: s}, status: {podIP: 10.0.0.2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: b, namespace: s}
spec:
  podSelector: {}
  ingress: [{ports: [{port: 81}]}, {from: [{podSelector: {matchLabels: {app: a}}}], ports: [{port: 80, endPort: 90}]}]
";
    let cluster = OfflineCluster::new(&parse_offline(text, "f"), &[]);
    let mut reachability = Reachability::new(&[&cluster]);
    let [a, b] = ["a", "b"].map(|name| PodKey::new("s", name));
    let [from, to] = [&a, &b].map(|key| reachability.end_of(0, key).expect("an end"));
    let ids = reachability.between(from, to).expect("a common family");
    assert_eq!(reachability.ports(ids)[0].to_string(), "TCP 80-90");
    let side = reachability.side_between(from, to, Direction::Egress);
    assert!(side.has_all());
    // Returns the indices of the ingress rules that allow a TCP port. 99 means that no policy isolates the pod.
    let allowing_rules = |port| {
        let ports = crate::offline::PortSet::of([(Protocol::Tcp, port)]);
        match reachability.allowing(0, &b, Direction::Ingress, from, &ports) {
            super::RuleCause::Rules(rules) => rules.iter().map(|rule| rule.index).collect::<Vec<_>>(),
            super::RuleCause::NotIsolated => vec![99],
        }
    };
    assert_eq!((allowing_rules(80), allowing_rules(81), allowing_rules(91)), (vec![1], vec![0, 1], vec![]));
    assert_eq!(
        reachability.allowing(0, &a, Direction::Egress, to, &crate::offline::PortSet::all()),
        super::RuleCause::NotIsolated
    );
}
