//! Reads all veths, the addresses in the network namespaces of their peers (their other ends, usually in pods), and
//! this node's addresses, in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::IfIndex;

use super::is_link_local;
use super::link_cache::LinkCache;
use super::monitor::Changed;
use super::{Device, Netlink, NetlinkError, TunnelEndpoints, Veth};

/// The peer (other end) of a veth, in the pod's network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodEnd {
    /// The addresses of the peer.
    pub addresses: Vec<IpAddr>,
    /// The addresses of the namespace's other interfaces: those that are not the peer of a veth of this node. An
    /// example is a pod's address that was moved to `lo`. Addresses in 127.0.0.0/8, `::1` and `fe80::/10` are omitted.
    /// If several veths lead to the namespace, only the first of them lists these addresses.
    pub other_addresses: Vec<IpAddr>,
    /// The Ethernet address of the peer; `None` if unknown.
    pub mac: Option<[u8; 6]>,
}

impl PodEnd {
    /// Creates a peer that has these addresses.
    pub const fn at(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, other_addresses: Vec::new(), mac: None }
    }
}

/// The result of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Veths with a peer in another namespace, each with its peer.
    pub veths: BTreeMap<IfIndex, (Veth, PodEnd)>,
    /// The local node's addresses: all addresses of this namespace, except loopback addresses. Without duplicates.
    pub local_addresses: Vec<IpAddr>,
    /// Interfaces with an address in a network of more than one host. The gateway address of a single pod (/32, /128)
    /// does not count. If the node is itself a container (kind), its uplink is a veth, too. This set distinguishes the
    /// uplink from the veths of pods.
    pub uplinks: BTreeSet<IfIndex>,
    /// Interfaces that routes use: the node's own devices, and veths of pods that have their own route.
    pub routed: BTreeMap<IfIndex, Device>,
    /// The tunnel endpoints of this node's devices.
    pub tunnels: TunnelEndpoints,
}

/// For which veths cached data is sufficient, and for which veths the MAC address may be read.
#[derive(Clone, Debug, Default)]
pub struct KnownVeths {
    /// Veths for which the cached addresses of the peer are sufficient.
    pub complete: BTreeSet<IfIndex>,
    /// Veths for which the MAC address of the peer is read if it is unknown, or if everything is read.
    pub read_mac: BTreeSet<IfIndex>,
}

/// Reads interfaces, and caches the addresses of the peers, so that a new link costs one request and not one per pod.
#[derive(Debug)]
pub struct InterfaceReader {
    netlink: Netlink,
    links: LinkCache,
    cache: BTreeMap<IfIndex, (Veth, PodEnd)>,
    routed: BTreeSet<IfIndex>,
    /// Whether the last reading succeeded. If not, the next one reads everything, because the changes that were passed
    /// to a failed reading are lost.
    is_valid: bool,
}

/// Whether a reading may use cached data: see [`InterfaceReader::read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CacheUse {
    /// The reading may use cached data.
    Allowed,
    /// All data is read again.
    Bypassed,
}

impl InterfaceReader {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// If the kernel rejects the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let (links, cache, routed) = Default::default();
        Ok(Self { netlink: Netlink::open()?, links, cache, routed, is_valid: false })
    }

    /// Reads the links and the addresses of this namespace that have changed since the last reading. Reads everything
    /// if `cache_use` is [`CacheUse::Bypassed`], if messages of the kernel were lost ([`Changed::anything`]), or if the
    /// last reading failed.
    ///
    /// The kernel sends no message when an address in the namespace of a peer changes. So each reading also reads the
    /// addresses in the namespace of a veth's peer if the veth is new, or is not in [`KnownVeths::complete`].
    ///
    /// Routes are read only when everything is read. Between such readings, [`Monitor`](super::Monitor) reports new
    /// routes.
    ///
    /// # Errors
    /// If links or local addresses cannot be read. A namespace that cannot be read is not an error, because it may just
    /// have been removed: it counts as having no addresses, and later readings read it again.
    pub fn read(
        &mut self,
        KnownVeths { complete, read_mac }: &KnownVeths,
        changed: &Changed,
        cache_use: CacheUse,
    ) -> Result<InterfaceSnapshot, NetlinkError> {
        let was_valid = std::mem::take(&mut self.is_valid);
        let uncached = cache_use == CacheUse::Bypassed || changed.anything || !was_valid;
        self.cache.retain(|ifindex, _| !changed.gone.contains(ifindex));
        if uncached {
            self.links.read_all(&mut self.netlink)?;
        } else {
            self.links.read_changes(&mut self.netlink, changed)?;
        }
        let links = &self.links.links;
        if uncached {
            self.routed = self.netlink.route_devices()?;
        }
        self.routed.extend(&changed.routed);
        let device = |ifindex: &IfIndex| links.get(ifindex).and_then(|link| link.device.as_ref());
        self.routed.retain(|ifindex| device(ifindex).is_some());
        let routed = self.routed.iter().filter_map(|ifindex| Some((*ifindex, device(ifindex)?.clone()))).collect();
        let mut tunnels = TunnelEndpoints::default();
        for link in links.values() {
            tunnels.extend(&link.tunnels);
        }
        let veths: Vec<Veth> = links.values().filter_map(|link| link.veth.clone()).collect();
        let mut peer_indices: BTreeMap<i32, BTreeSet<u32>> = BTreeMap::new();
        for veth in &veths {
            peer_indices.entry(veth.namespace).or_default().insert(veth.peer);
        }
        let mut addresses_by_namespace: BTreeMap<i32, BTreeMap<u32, Vec<IpNet>>> = BTreeMap::new();
        let mut seen_namespaces: BTreeSet<i32> = BTreeSet::new();
        let mut current = BTreeMap::new();
        for veth in veths {
            let is_first_of_namespace = seen_namespaces.insert(veth.namespace);
            let is_same = |before: &Veth| before.namespace == veth.namespace && before.peer == veth.peer;
            let known = self.cache.remove(&veth.ifindex).filter(|(before, _)| is_same(before));
            let pod_end = match known {
                Some((_, pod_end)) if !uncached && complete.contains(&veth.ifindex) => pod_end,
                known => {
                    let namespace_addresses = addresses_by_namespace.entry(veth.namespace).or_insert_with(|| {
                        self.netlink.addresses(Some(veth.namespace)).unwrap_or_else(|error| {
                            tracing::debug!(veth = veth.name, %error, "cannot read the namespace of a veth's peer");
                            BTreeMap::new()
                        })
                    });
                    let peer_indices = &peer_indices[&veth.namespace];
                    let other_addresses = namespace_addresses
                        .iter()
                        .filter(|(index, _)| is_first_of_namespace && !peer_indices.contains(index));
                    PodEnd {
                        addresses: namespace_addresses.get(&veth.peer).into_iter().flatten().map(IpNet::addr).collect(),
                        other_addresses: other_addresses
                            .flat_map(|(_, nets)| nets)
                            .map(IpNet::addr)
                            .filter(may_be_pod_address)
                            .collect(),
                        mac: match known.and_then(|(_, pod_end)| pod_end.mac) {
                            // Each request takes rtnl_lock. So the MAC address is read only for pods, and only after
                            // their policies are enforced.
                            mac if read_mac.contains(&veth.ifindex) && (uncached || mac.is_none()) => {
                                self.mac(&veth).or(mac)
                            }
                            mac => mac,
                        },
                    }
                }
            };
            current.insert(veth.ifindex, (veth, pod_end));
        }
        self.cache.clone_from(&current);
        let uplinks = self
            .links
            .addresses
            .iter()
            .filter(|(_, nets)| nets.iter().any(has_room_for_other_hosts))
            .map(|(index, _)| IfIndex(*index));
        let uplinks = uplinks.collect();
        // Loopback addresses are omitted, because every host has the same ones. Link-local addresses are kept, because
        // a pod may use one as its gateway.
        let addresses = self.links.addresses.values().flatten().map(IpNet::addr);
        let mut local_addresses: Vec<IpAddr> = addresses.filter(|address| !address.is_loopback()).collect();
        local_addresses.sort_unstable();
        local_addresses.dedup();
        self.is_valid = true;
        Ok(InterfaceSnapshot { veths: current, local_addresses, uplinks, routed, tunnels })
    }

    fn mac(&mut self, veth: &Veth) -> Option<[u8; 6]> {
        let mac = self.netlink.mac(veth.namespace, veth.peer);
        mac.unwrap_or_else(|error| {
            tracing::debug!(veth = veth.name, %error, "cannot read the MAC address of a veth's peer");
            None
        })
    }
}

/// Returns whether this interface address belongs to a network of more than one host. With the CNI plugin ptp, the
/// gateway address of a pod is a `/32` or `/128`, which is a network of one host. Link-local addresses do not count,
/// because every interface has one.
fn has_room_for_other_hosts(net: &IpNet) -> bool {
    let link_local = match net.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => is_link_local(&address),
    };
    net.prefix_len() < net.max_prefix_len() && !link_local
}

/// Returns whether an address can identify a pod. Loopback and IPv6 link-local addresses cannot, because every
/// namespace has them.
fn may_be_pod_address(address: &IpAddr) -> bool {
    !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if is_link_local(v6))
}
