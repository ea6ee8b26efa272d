//! Ethernet headers and VLAN tags. IEEE 802.3 and 802.1Q.

use netpol_common::Reason;

use crate::context::Context;

/// Length of an Ethernet header without VLAN tags.
pub(crate) const ETHERNET: usize = 14;
/// The offset of the destination MAC address in the frame.
pub(crate) const DESTINATION: u32 = 0;
/// The offset of the source MAC address in the frame.
pub(crate) const SOURCE: u32 = 6;
/// The maximum number of VLAN tags in a frame. A tag that the kernel has removed from the frame is not counted.
const MAX_TAGS: usize = 2;

/// Ether types, <https://www.iana.org/assignments/ieee-802-numbers/>.
pub(super) mod ether_type {
    pub(in crate::packet) const IPV4: u16 = 0x0800;
    pub(in crate::packet) const ARP: u16 = 0x0806;
    pub(in crate::packet) const VLAN: u16 = 0x8100;
    pub(in crate::packet) const IPV6: u16 = 0x86dd;
    pub(in crate::packet) const SERVICE_VLAN: u16 = 0x88a8;
}

/// A MAC address, split into a part of four bytes and a part of two bytes. Each part is compared as one number.
pub(crate) type Mac = ([u8; 4], [u8; 2]);

/// The payload of a frame.
pub(crate) enum LinkPayload {
    /// ARP at this offset.
    Arp(u32),
    /// An IPv4 header at this offset.
    Ipv4(u32),
    /// An IPv6 header at this offset.
    Ipv6(u32),
}

/// Finds the payload of a frame. On devices without a link header, the frame starts with the IP header.
#[inline(always)]
pub(crate) fn parse<S: Context>(context: &S) -> Result<LinkPayload, Reason> {
    if let Some(kind) = context.l3_type() {
        return match kind {
            ether_type::IPV4 => Ok(LinkPayload::Ipv4(0)),
            ether_type::IPV6 => Ok(LinkPayload::Ipv6(0)),
            _ => Err(Reason::NotIp),
        };
    }
    // `end` is the offset after the Ethernet header and the VLAN tags that were found. The Ethernet type is in the last
    // two bytes before `end`. After a VLAN tag, the next type is four bytes further.
    let mut end = ETHERNET as u32;
    for tags in 0..=MAX_TAGS {
        let kind = u16::from_be_bytes(context.load(end - 2).ok_or(Reason::Malformed)?.0);
        match kind {
            ether_type::IPV4 => return Ok(LinkPayload::Ipv4(end)),
            ether_type::IPV6 => return Ok(LinkPayload::Ipv6(end)),
            ether_type::ARP => return Ok(LinkPayload::Arp(end)),
            ether_type::VLAN | ether_type::SERVICE_VLAN if tags < MAX_TAGS => end += 4,
            ether_type::VLAN | ether_type::SERVICE_VLAN => return Err(Reason::TooManyHeaders),
            _ => return Err(Reason::NotIp),
        }
    }
    Err(Reason::TooManyHeaders)
}
