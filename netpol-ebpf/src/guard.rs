//! Anti-spoofing: a pod can send with its own addresses only, in IP, Ethernet, ARP and neighbor discovery. Also limits
//! the length and the rate of a pod's messages of ARP, neighbor discovery, multicast listener discovery and IGMP.

use netpol_common::{
    Address, Direction, Endpoint, NEIGHBOR_BURST, NEIGHBOR_RATE, NeighborBudget, Reason, address_flags, endpoint_flags,
    protocol,
};

use crate::context::{Context, Family, PacketAddress};
use crate::packet::{self, Mac, Parse, Plain, link};
use crate::slot::{Slot, field};
use crate::window::{Bytes, Window};

/// The checks that are global BPF functions in the kernel: the verifier checks each of them only once.
pub(crate) trait GuardFunctions: Context {
    /// Checks an ARP packet from a pod, see [`check_arp`].
    #[inline(always)]
    fn check_arp(self, start: u32) -> Reason {
        check_arp(&self, start)
    }
    /// Checks a neighbor discovery message from a pod, see [`check_discovery`].
    #[inline(always)]
    fn check_discovery(self, ip_offset: u32, payload: u32) -> Reason {
        check_discovery(&self, ip_offset, payload)
    }
    /// Returns whether a packet that left its pod has an unverified source address, see [`is_unverified`].
    #[inline(always)]
    fn is_unverified(self) -> bool {
        is_unverified(&self)
    }
}

/// Returns whether a packet has a spoofed source address.
#[inline(always)]
pub(crate) fn is_spoofed<A: PacketAddress>(endpoint: &Endpoint, direction: Direction, source: &A) -> bool {
    direction == Direction::Egress && endpoint.has(endpoint_flags::ANTI_SPOOFING) && !source.belongs_to(endpoint)
}

/// Returns whether a packet is a DHCP request from the unspecified address to the broadcast address, from port 68 to
/// 67. A client sends such a request if it has no address yet, or to verify its previous address after a reboot (RFC
/// 2131, 4.1). The request is not spoofed, but policies are evaluated for it.
#[inline(always)]
pub(crate) fn is_dhcp_request<A: PacketAddress>(packet: &Plain<A>) -> bool {
    const CLIENT: [u8; 2] = 68_u16.to_be_bytes();
    const SERVER: [u8; 2] = 67_u16.to_be_bytes();
    A::FAMILY == 4
        && packet.protocol == protocol::UDP
        && packet.source.is_zero()
        && packet.destination.words()[0] == u32::MAX
        && u16::from_ne_bytes(packet.source_port) == u16::from_ne_bytes(CLIENT)
        && u16::from_ne_bytes(packet.destination_port) == u16::from_ne_bytes(SERVER)
}

/// Returns the MAC address of the pod's end of the veth, or zero if it is not known.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "the bytes of a MAC address")]
fn own_mac(endpoint: &Endpoint) -> Mac {
    let [a, b, c, d, e, f] = endpoint.mac;
    ([a, b, c, d], [e, f])
}

#[inline(always)]
fn is_same(one: Mac, other: Mac) -> bool {
    u32::from_ne_bytes(one.0) == u32::from_ne_bytes(other.0) && u16::from_ne_bytes(one.1) == u16::from_ne_bytes(other.1)
}

/// Returns whether a frame from a pod has a spoofed Ethernet source. If the pod's MAC address is not known, no source
/// is spoofed.
#[inline(always)]
pub(crate) fn is_spoofed_mac(endpoint: &Endpoint, source: Mac) -> bool {
    let own = own_mac(endpoint);
    !is_same(source, own) && !is_same(own, ([0; 4], [0; 2])) && endpoint.has(endpoint_flags::ANTI_SPOOFING)
}

/// Reads the MAC address at an offset.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "the bytes of a MAC address")]
fn mac_at<S: Context>(context: &S, offset: u32) -> Option<Mac> {
    let Bytes([a, b, c, d, e, f]) = context.load::<6>(offset)?;
    Some(([a, b, c, d], [e, f]))
}

/// Reads the Ethernet source of a frame and returns whether it is spoofed.
#[inline(always)]
pub(crate) fn has_spoofed_mac<S: Context>(context: &S, endpoint: &Endpoint) -> bool {
    mac_at(context, link::SOURCE).is_none_or(|source| is_spoofed_mac(endpoint, source))
}

/// Returns whether a frame to a pod is for another host. A pod receives such frames, because a bridge floods frames for
/// MAC addresses that it has not learned. Multicast and broadcast frames are for all hosts. If the pod's MAC address is
/// not known, no frame is for another host.
#[inline(always)]
pub(crate) fn is_for_other_host<S: Context>(context: &S, endpoint: &Endpoint) -> bool {
    let own = own_mac(endpoint);
    let Some(destination) = mac_at(context, link::DESTINATION) else { return false };
    destination.0[0] & 1 == 0 && !is_same(destination, own) && !is_same(own, ([0; 4], [0; 2]))
}

/// Returns whether a packet that left its pod has an unverified source address. An address is verified if it is the
/// pod's, the local node's (masquerading) or a Service's (replies to clients outside). Must be called in a recheck only
/// (see [`Context::is_post_dnat`]). In a recheck, [`Context::endpoint`] belongs to the pod that sent the packet.
///
/// If the packet came into the node directly from the pod's veth, its source was checked there, and only the node has
/// translated it since. So the source is verified.
#[inline(always)]
pub(crate) fn is_unverified<S: Context>(context: &S) -> bool {
    let Some(endpoint) = context.endpoint() else { return false };
    if !endpoint.has(endpoint_flags::ANTI_SPOOFING) || context.ingress_ifindex() == endpoint.ifindex.0 {
        return false;
    }
    match packet::find_payload(context) {
        Ok(link::LinkPayload::Ipv4(ip_offset)) => is_unverified_source::<[u8; 4], S>(context, endpoint, ip_offset),
        Ok(link::LinkPayload::Ipv6(ip_offset)) => is_unverified_source::<[u8; 16], S>(context, endpoint, ip_offset),
        Ok(link::LinkPayload::Arp(_)) | Err(_) => false,
    }
}

#[inline(always)]
fn is_unverified_source<A, S>(context: &S, endpoint: &Endpoint, ip_offset: u32) -> bool
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    A::addresses(context, ip_offset)
        .is_some_and(|(source, _)| is_neither_own_nor_translated(context, endpoint, &source))
}

/// Returns whether this source address is neither the endpoint's nor translated. The node translates source addresses
/// to its own addresses and to those of Services.
#[inline(always)]
pub(crate) fn is_neither_own_nor_translated<A, S>(context: &S, endpoint: &Endpoint, source: &A) -> bool
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    const TRANSLATED: u16 = address_flags::LOCAL_NODE | address_flags::SERVICE;
    !source.belongs_to(endpoint) && context.exact_address(source).unwrap_or_default().flags & TRANSLATED == 0
}

/// The format of the ARP messages that pods need. RFC 826, and RFC 5227 for probes.
mod arp {
    /// Length of an ARP message.
    pub(super) const LENGTH: u32 = 28;
    /// Length up to the end of the sender's MAC address.
    pub(super) const HEAD: usize = 14;
    /// Offset of the sender IPv4 address (RFC 826).
    pub(super) const SENDER_ADDRESS: u32 = 14;
    pub(super) const REQUEST: u16 = 1;
    pub(super) const REPLY: u16 = 2;
    /// The longest ARP frame. A frame is padded to 60 bytes without its checksum (IEEE 802.3, 4A.4.2), or to 64 by
    /// devices that reserve room for a tag.
    pub(super) const LONGEST_FRAME: u32 = 64;
}

/// Checks an ARP packet from a pod. The packet is at the offset `start`. Its sender addresses must be the pod's own MAC
/// and IPv4 address. A probe, which checks whether an address is free, has the sender IPv4 address 0.0.0.0. Returns
/// [`Reason::NeighborDiscovery`] if the packet is allowed, else the reason for the denial.
#[inline(always)]
pub(crate) fn check_arp<S: Context>(context: &S, start: u32) -> Reason {
    let Some(endpoint) = context.endpoint() else { return Reason::NoEndpoint };
    if !endpoint.has(endpoint_flags::ANTI_SPOOFING) {
        return Reason::NeighborDiscovery;
    }
    let Some(head) = context.load::<{ arp::HEAD }>(start) else { return Reason::Malformed };
    // Loaded separately, because the verifier requires that words on the stack are aligned.
    let Some(Bytes(sender_address)) = context.load::<4>(start + arp::SENDER_ADDRESS) else { return Reason::Malformed };
    let packet = Window::of(&head.0);
    let operation = packet.u16_be::<6>();
    // The address types must be Ethernet and IPv4, with their address lengths.
    let is_ethernet_ipv4 =
        u32::from_be_bytes(packet.four_bytes::<0>()) == 0x0001_0800 && packet.u16_be::<4>() == 0x0604;
    let is_own_or_probe =
        sender_address.belongs_to(endpoint) || (sender_address.is_zero() && operation == arp::REQUEST);
    if !is_ethernet_ipv4
        || !matches!(operation, arp::REQUEST | arp::REPLY)
        || !is_own_or_probe
        || is_spoofed_mac(endpoint, (packet.four_bytes::<8>(), packet.two_bytes::<12>()))
    {
        return Reason::SpoofedNeighbor;
    }
    let length = context.length();
    charge(context, endpoint, length >= start + arp::LENGTH && length <= arp::LONGEST_FRAME)
}

/// The format of the messages of neighbor discovery (RFC 4861) and multicast listener discovery (RFC 2710, RFC 3810)
/// that pods need.
mod icmpv6 {
    pub(super) const LISTENER_REPORT: u8 = 131;
    pub(super) const LISTENER_DONE: u8 = 132;
    pub(super) const ROUTER_SOLICITATION: u8 = 133;
    pub(super) const NEIGHBOR_SOLICITATION: u8 = 135;
    pub(super) const NEIGHBOR_ADVERTISEMENT: u8 = 136;
    pub(super) const LISTENER_REPORT_V2: u8 = 143;
    /// The longest message of neighbor discovery: header and target, a link-layer address, and a nonce (RFC 7527, 4.1).
    pub(super) const LONGEST: u32 = 24 + 8 + 8;
    /// The longest listener report: header, and 16 records (multicast groups) without sources. Linux sends more groups
    /// in further reports.
    pub(super) const LONGEST_REPORT: u32 = 8 + 16 * 20;
    /// The length of an IPv6 header.
    pub(super) const IPV6_HEADER: u32 = 40;
    /// The length of a hop-by-hop header with the router alert, which listener discovery has (RFC 2711).
    pub(super) const ROUTER_ALERT: u32 = 8;
    /// Types of options: source and target link-layer address, nonce.
    /// <https://www.iana.org/assignments/icmpv6-parameters/>.
    pub(super) const SOURCE_ADDRESS: u8 = 1;
    pub(super) const TARGET_ADDRESS: u8 = 2;
    pub(super) const NONCE: u8 = 14;
}

/// Checks a message of neighbor or listener discovery from a pod. The IPv6 header is at the offset `ip_offset`, the
/// message at `payload`. The source must be the pod's own address; in solicitations and reports, it can also be
/// unspecified. Advertised targets must be the pod's addresses. Options with a link-layer address must have the pod's
/// MAC address, if it is known. The destination of listener discovery must be a multicast address; all other
/// destinations must be on the link. The message must not be longer than the protocols need. Other types of messages
/// are denied, such as router advertisements, redirects and queries. Returns [`Reason::NeighborDiscovery`] if the
/// message is allowed, else the reason for the denial.
#[inline(always)]
pub(crate) fn check_discovery<S: Context>(context: &S, ip_offset: u32, payload: u32) -> Reason {
    let Some(endpoint) = context.endpoint() else { return Reason::NoEndpoint };
    if !endpoint.has(endpoint_flags::ANTI_SPOOFING) {
        return Reason::NeighborDiscovery;
    }
    let Some((source, destination)) = <[u8; 16]>::addresses(context, ip_offset) else { return Reason::Malformed };
    let Some(Bytes([kind])) = context.load::<1>(payload) else { return Reason::Malformed };
    let headers_length = payload.wrapping_sub(ip_offset);
    let length = context.length().wrapping_sub(payload);
    if matches!(kind, icmpv6::LISTENER_REPORT | icmpv6::LISTENER_DONE | icmpv6::LISTENER_REPORT_V2) {
        if destination[0] != 0xff || !(source.belongs_to(endpoint) || source.is_zero()) {
            return Reason::SpoofedNeighbor;
        }
        let fits = headers_length <= icmpv6::IPV6_HEADER + icmpv6::ROUTER_ALERT && length <= icmpv6::LONGEST_REPORT;
        return charge(context, endpoint, fits);
    }
    // The source is unspecified if a host has no address yet, and checks whether its new address is free (RFC 4862,
    // 5.4) or sends a router solicitation (RFC 4861, 4.1).
    let unspecified = source.is_zero();
    if !(source.belongs_to(endpoint) || unspecified) {
        return Reason::SpoofedNeighbor;
    }
    let valid = match kind {
        icmpv6::ROUTER_SOLICITATION => is_link_scope(&destination),
        icmpv6::NEIGHBOR_SOLICITATION => read_target(context, payload).is_some_and(|target| {
            let may_query = if unspecified { target.belongs_to(endpoint) } else { true };
            may_query && matches_target(context, &destination, &target)
        }),
        icmpv6::NEIGHBOR_ADVERTISEMENT => read_target(context, payload)
            .is_some_and(|target| !unspecified && target.belongs_to(endpoint) && is_on_link(context, &destination)),
        _ => false,
    };
    let options = payload + if kind == icmpv6::ROUTER_SOLICITATION { 8 } else { 24 };
    if !valid || !are_own_options(context, endpoint, options) {
        return Reason::SpoofedNeighbor;
    }
    charge(context, endpoint, headers_length == icmpv6::IPV6_HEADER && length <= icmpv6::LONGEST)
}

/// IGMP: the types that hosts send (RFC 1112, RFC 2236, RFC 3376).
mod igmp {
    pub(super) const REPORT_V1: u8 = 0x12;
    pub(super) const REPORT_V2: u8 = 0x16;
    pub(super) const LEAVE: u8 = 0x17;
    pub(super) const REPORT_V3: u8 = 0x22;
    /// The offset of the destination in an IPv4 header.
    pub(super) const DESTINATION: u32 = 16;
}

/// Checks an IGMP message. The IPv4 header is at the offset `ip_offset`, the message at `payload`. A pod may send
/// reports and messages of type `LEAVE`, of limited length; only routers send queries. `None`: the message is not sent
/// to a multicast group, so policies are evaluated for it.
#[inline(always)]
pub(crate) fn check_igmp<S: Context>(
    context: &S,
    endpoint: &Endpoint,
    from_pod: bool,
    ip_offset: u32,
    payload: u32,
) -> Option<Reason> {
    let Bytes([first]) = context.load::<1>(ip_offset + igmp::DESTINATION)?;
    let Bytes([kind]) = context.load::<1>(payload)?;
    if first & 0xf0 != 0xe0 {
        return None;
    }
    if !from_pod || !endpoint.has(endpoint_flags::ANTI_SPOOFING) {
        return Some(Reason::NeighborDiscovery);
    }
    if !matches!(kind, igmp::REPORT_V1 | igmp::REPORT_V2 | igmp::LEAVE | igmp::REPORT_V3) {
        return Some(Reason::SpoofedNeighbor);
    }
    // An IGMPv3 report is shorter than an MLDv2 report with as many records.
    let fits = context.length().wrapping_sub(payload) <= icmpv6::LONGEST_REPORT;
    Some(charge(context, endpoint, fits))
}

/// Reads the target address of a solicitation or advertisement.
#[inline(always)]
fn read_target<S: Context>(context: &S, payload: u32) -> Option<[u8; 16]> {
    context.load::<16>(payload + 8).map(|Bytes(target)| target)
}

/// Returns whether the address is in `fe80::/10`, or multicast of link scope.
#[inline(always)]
fn is_link_scope(address: &[u8; 16]) -> bool {
    (address[0] == 0xfe && address[1] & 0xc0 == 0x80) || (address[0] == 0xff && address[1] & 0x0f == 2)
}

/// Returns whether the address is of link scope, or belongs to the local node or to a pod of this node.
#[inline(always)]
fn is_on_link<S: Context>(context: &S, address: &[u8; 16]) -> bool {
    is_link_scope(address) || {
        let entry = context.exact_address(address).unwrap_or_default();
        entry.flags & address_flags::LOCAL_NODE != 0 || entry.endpoint != 0
    }
}

/// Returns whether the destination of a solicitation matches its target. The destination must be either the target's
/// solicited-node multicast address, which ends in the same 24 bits (RFC 4291, 2.7.1), or the target itself. In the
/// second case, the target must be on the link.
#[inline(always)]
fn matches_target<S: Context>(context: &S, destination: &[u8; 16], target: &[u8; 16]) -> bool {
    let (destination_words, target_words): ([u32; 4], [u32; 4]) =
        (bytemuck::cast(*destination), bytemuck::cast(*target));
    let solicited = destination_words[0] == 0xff02_0000_u32.to_be()
        && destination_words[1] == 0
        && destination_words[2] == 1_u32.to_be()
        && destination_words[3] == target_words[3] | 0xff00_0000_u32.to_be();
    solicited || (u128::from_ne_bytes(*destination) == u128::from_ne_bytes(*target) && is_on_link(context, destination))
}

/// Returns whether the options of a message, from the offset `start` to the end of the frame, are at most two options
/// of eight bytes. Each of them must have the pod's MAC address or a nonce.
#[inline(always)]
#[expect(clippy::many_single_char_names, reason = "the bytes of a MAC address")]
fn are_own_options<S: Context>(context: &S, endpoint: &Endpoint, start: u32) -> bool {
    let mut at = start;
    for _ in 0..2 {
        if at >= context.length() {
            return true;
        }
        let Some(Bytes([kind, length_in_8_bytes, a, b, c, d, e, f])) = context.load::<8>(at) else { return false };
        let own = match kind {
            icmpv6::SOURCE_ADDRESS | icmpv6::TARGET_ADDRESS => !is_spoofed_mac(endpoint, ([a, b, c, d], [e, f])),
            icmpv6::NONCE => true,
            _ => false,
        };
        if length_in_8_bytes != 1 || !own {
            return false;
        }
        at += 8;
    }
    at >= context.length()
}

/// Returns the verdict on a message that passed the other checks. The message is allowed if it is not too long
/// (`fits`), and if the endpoint's token bucket, which limits the rate of messages, has a token. Takes this token.
/// Several CPUs may take the same token at the same time, so the limit is not exact. [`Reason::NeighborDiscovery`]
/// means allowed.
#[inline(always)]
fn charge<S: Context>(context: &S, endpoint: &Endpoint, fits: bool) -> Reason {
    let taken = fits && context.neighbor_budget(endpoint.id).is_none_or(|slot| take_token(context, slot));
    if taken { Reason::NeighborDiscovery } else { Reason::NeighborLimit }
}

/// Adds tokens for the time since the last message, and takes one. Returns whether there was one. The bucket stores
/// tokens in units of 1/`hz`, so that each jiffy adds a whole number of units. A message costs `hz` units.
#[inline(always)]
fn take_token<S: Context>(context: &S, slot: Slot<'_, NeighborBudget>) -> bool {
    let (now, hz) = (context.now(), context.hz());
    let full = NEIGHBOR_BURST * hz;
    let elapsed = now.wrapping_sub(slot.read(field!(NeighborBudget, last))).min(full / NEIGHBOR_RATE);
    let tokens = (slot.read(field!(NeighborBudget, tokens)) + elapsed * NEIGHBOR_RATE).min(full);
    slot.write(field!(NeighborBudget, last), now);
    let enough = tokens >= hz;
    slot.write(field!(NeighborBudget, tokens), if enough { tokens - hz } else { tokens });
    enough
}
