//! Pods that come and go faster than processes can be started to make them: namespaces that are ready, and veths made over
//! rtnetlink, as plugins make them.

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

/// Their addresses on the network of the first node's pods end with this and what follows, which a cluster's own pods reach
/// last.
const FIRST: u8 = 120;

/// A namespace that is ready to be a pod's.
#[derive(Debug)]
struct Berth {
    netns: Netns,
    inside: Rtnetlink,
    address: Ipv4Addr,
}

/// Places for pods on the bridge of a cluster's first node.
#[derive(Debug)]
pub struct Berths {
    node: Rtnetlink,
    bridge: u32,
    places: Vec<Berth>,
}

impl Berths {
    /// Makes this many.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn prepare(cluster: &Cluster, count: u8) -> Result<Self> {
        let netns = cluster.host(&node_name(1)).netns();
        let bridge = netns.run(|| nix::net::if_::if_nametoindex("cni0").context("the node has a bridge"))?;
        let berth = |number| {
            let netns = Netns::new("a berth")?;
            netns.sysctl(&[("ipv6/conf/default/disable_ipv6", "1")])?;
            let inside = Rtnetlink::open(&netns)?;
            Ok(Berth { netns, inside, address: Ipv4Addr::new(10, 244, 1, FIRST + number) })
        };
        let places = (0..count).map(berth).collect::<Result<_>>()?;
        Ok(Self { node: Rtnetlink::open(netns)?, bridge, places })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.places.len()
    }

    /// Wires one to the bridge, by a veth of this name and group; its address.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn come(&mut self, berth: usize, veth: &str, group: u32) -> Result<Ipv4Addr> {
        let Berth { netns, inside, address } = &mut self.places[berth];
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
        self.node.ask(RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL).context("making a veth")?;
        let index = netns.run(|| nix::net::if_::if_nametoindex("eth0").context("a berth has an interface"))?;
        let mut up = LinkMessage::default();
        up.header.index = index;
        up.header.flags = LinkFlags::Up;
        up.header.change_mask = LinkFlags::Up;
        inside.ask(RouteNetlinkMessage::SetLink(up), 0).context("setting an interface up")?;
        let mut own = AddressMessage::default();
        own.header.family = AddressFamily::Inet;
        own.header.prefix_len = 24;
        own.header.index = index;
        own.attributes = vec![AddressAttribute::Local((*address).into()), AddressAttribute::Address((*address).into())];
        inside.ask(RouteNetlinkMessage::NewAddress(own), NLM_F_CREATE | NLM_F_EXCL).context("giving an address")?;
        Ok(*address)
    }

    /// Takes the veths of a group away, all at once, as the kernel does when several namespaces go (`cleanup_net`,
    /// `net/core/net_namespace.c`): one by one it takes some 20 ms for each.
    ///
    /// # Errors
    /// Where there are none.
    pub fn go(&mut self, group: u32) -> Result<()> {
        let mut links = LinkMessage::default();
        links.attributes = vec![LinkAttribute::Group(group)];
        self.node.ask(RouteNetlinkMessage::DelLink(links), 0).context("taking veths away")
    }

    /// The namespace of one.
    pub fn netns(&self, berth: usize) -> &Netns {
        &self.places[berth].netns
    }
}

/// A socket that stays in its namespace.
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

    /// Has the kernel do something, and waits until it is done.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence += 1;
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let sent = self.socket.send(&bytes, 0).context("sending a request")?;
        ensure!(sent == bytes.len(), "only {sent} bytes of {} were sent", bytes.len());
        let (answer, _) = self.socket.recv_from_full().context("receiving an answer")?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)?;
        ensure!(answer.header.sequence_number == self.sequence, "an answer to another request: {answer:?}");
        match answer.payload {
            NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
            NetlinkPayload::Error(error) => Err(error.to_io().into()),
            other => bail!("an unexpected answer: {other:?}"),
        }
    }
}
