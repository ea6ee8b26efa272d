//! Slots for pods: network namespaces that are created before a test needs them. A slot becomes a pod when it is
//! connected to the bridge of its node, with rtnetlink requests, as CNI plugins send them. To run `ip` for each pod
//! would take longer.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail, ensure};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use crate::cluster::{Cluster, node_name};
use crate::netns::Netns;

/// Last byte of the first slot's address. The cluster assigns numbers from 10 upwards to its other pods, so only a
/// cluster with more than 110 other pods would reach this number.
const FIRST_NUMBER: u8 = 120;

/// A prepared namespace for one pod.
#[derive(Debug)]
struct Slot {
    netns: Netns,
    pod_netlink: Rtnetlink,
    address: Ipv4Addr,
}

/// Prepared namespaces for pods on the bridge of a cluster's first node.
#[derive(Debug)]
pub struct PodSlots {
    node_netlink: Rtnetlink,
    bridge: u32,
    slots: Vec<Slot>,
}

impl PodSlots {
    /// Creates `count` namespaces.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn prepare(cluster: &Cluster, count: u8) -> Result<Self> {
        let netns = cluster.host(&node_name(1)).netns();
        let bridge = netns.run(|| nix::net::if_::if_nametoindex("cni0").context("the node has no bridge cni0"))?;
        let slot = |number| {
            let netns = Netns::new("a prepared pod")?;
            netns.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
            let pod_netlink = Rtnetlink::open(&netns)?;
            Ok(Slot { netns, pod_netlink, address: Ipv4Addr::new(10, 244, 1, FIRST_NUMBER + number) })
        };
        let slots = (0..count).map(slot).collect::<Result<_>>()?;
        Ok(Self { node_netlink: Rtnetlink::open(netns)?, bridge, slots })
    }

    /// Returns the number of namespaces.
    pub fn count(&self) -> usize {
        self.slots.len()
    }

    /// Connects the namespace of a slot to the bridge, with a veth of this name. The veth is in the interface group
    /// `group`, see [`Self::detach_group`]. Returns the pod's address.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn attach(&mut self, slot: usize, veth: &str, group: u32) -> Result<Ipv4Addr> {
        let Slot { netns, pod_netlink, address } = &mut self.slots[slot];
        let mut peer = LinkMessage::default();
        peer.attributes = vec![LinkAttribute::IfName("eth0".into()), LinkAttribute::NetNsFd(netns.as_raw_fd())];
        let mut link = LinkMessage::default();
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        link.attributes = vec![
            LinkAttribute::IfName(veth.into()),
            LinkAttribute::Group(group),
            LinkAttribute::Controller(self.bridge),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ];
        self.node_netlink
            .request(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL)
            .context("creating a veth")?;
        let index = netns.run(|| nix::net::if_::if_nametoindex("eth0").context("the namespace has no eth0"))?;
        let mut up = LinkMessage::default();
        up.header.index = index;
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        pod_netlink.request(RouteNetlinkMessage::SetLink(up), 0).context("setting an interface up")?;
        let mut pod_address = AddressMessage::default();
        pod_address.header.family = AddressFamily::Inet;
        pod_address.header.prefix_len = 24;
        pod_address.header.index = index;
        pod_address.attributes =
            vec![AddressAttribute::Local((*address).into()), AddressAttribute::Address((*address).into())];
        pod_netlink
            .request(RouteNetlinkMessage::NewAddress(pod_address), NLM_F_CREATE | NLM_F_EXCL)
            .context("adding an address")?;
        Ok(*address)
    }

    /// Removes all veths of a group in one request, as the kernel does when several namespaces are removed
    /// (`cleanup_net`, `net/core/net_namespace.c`). If veths are removed one by one, each takes about 20 ms.
    ///
    /// # Errors
    /// Returns an error if the group has no veths.
    pub fn detach_group(&mut self, group: u32) -> Result<()> {
        let mut links = LinkMessage::default();
        links.attributes = vec![LinkAttribute::Group(group)];
        self.node_netlink.request(RouteNetlinkMessage::DelLink(links), 0).context("removing veths")
    }

    /// Returns the namespace of a slot.
    pub fn netns(&self, slot: usize) -> &Netns {
        &self.slots[slot].netns
    }
}

/// An rtnetlink socket in a network namespace.
#[derive(Debug)]
struct Rtnetlink {
    socket: Socket,
    sequence: u32,
}

impl Rtnetlink {
    fn open(netns: &Netns) -> Result<Self> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
            socket.bind_auto().context("binding a netlink socket")?;
            socket.connect(&SocketAddr::new(0, 0)).context("connecting a netlink socket")?;
            Ok(Self { socket, sequence: 0 })
        };
        netns.run(open)
    }

    /// Sends a request and waits for the kernel's acknowledgment.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence += 1;
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0).context("sending a request")?;
        ensure!(sent == bytes.len(), "only {sent} bytes of {} were sent", bytes.len());
        let (response, _) = self.socket.recv_from_full().context("receiving the response")?;
        let response = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&response)?;
        ensure!(response.header.sequence_number == self.sequence, "response to another request: {response:?}");
        match response.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io().into()),
            other => bail!("unexpected response: {other:?}"),
        }
    }
}
