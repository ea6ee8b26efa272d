//! Builds packets byte by byte, also packets that a pod cannot send through ordinary sockets.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::cluster::Mac;

/// IP protocol numbers.
pub mod protocol {
    /// ICMP.
    pub const ICMP: u8 = 1;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// GRE: a protocol without ports.
    pub const GRE: u8 = 47;
    /// `ICMPv6`.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// IPv6 hop-by-hop options.
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header.
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header.
    pub const FRAGMENT: u8 = 44;
    /// IPv6 destination options.
    pub const DESTINATION_OPTIONS: u8 = 60;
}

/// Bytes that identify a packet at the receiver. They are also a valid nonce option of neighbor discovery (RFC 3971,
/// section 5.3.2), so that neighbor discovery messages can contain them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marker(pub [u8; 8]);

impl Marker {
    /// The first bytes of every marker.
    const PREFIX: [u8; 4] = [14, 1, b'n', b'p'];

    /// Returns the first marker in `bytes`.
    pub fn find(bytes: &[u8]) -> Option<Self> {
        bytes.windows(8).find_map(|window| {
            let window: [u8; 8] = window.try_into().ok()?;
            window.starts_with(&Self::PREFIX).then_some(Self(window))
        })
    }

    /// Returns a marker that is unique in this process.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let prefix = u64::from(u32::from_be_bytes(Self::PREFIX)) << 32;
        Self((prefix | u64::from(NEXT.fetch_add(1, Ordering::Relaxed))).to_be_bytes())
    }
}

impl Default for Marker {
    fn default() -> Self {
        Self::new()
    }
}

/// Builder of an IP packet.
#[derive(Clone, Debug)]
pub struct Ip {
    source: IpAddr,
    destination: IpAddr,
    options: Vec<u8>,
    extensions: Vec<(u8, Vec<u8>)>,
    fragment: Option<Fragment>,
}

#[derive(Clone, Copy, Debug)]
struct Fragment {
    id: u16,
    /// In units of eight bytes.
    offset: u16,
    more: bool,
}

impl Ip {
    /// Creates a builder for packets between two addresses of one family.
    pub const fn new(source: IpAddr, destination: IpAddr) -> Self {
        Self { source, destination, options: Vec::new(), extensions: Vec::new(), fragment: None }
    }

    /// Returns a builder for the opposite direction, without options, extension headers and fragmentation.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self::new(self.destination, self.source)
    }

    /// Sets the IPv4 options.
    ///
    /// # Panics
    /// Panics if the length is not a multiple of four bytes, or if it is above 40 bytes.
    #[must_use]
    pub fn options(mut self, options: &[u8]) -> Self {
        assert!(
            options.len().is_multiple_of(4) && options.len() <= 40,
            "the length of IPv4 options must be a multiple of 4, and at most 40 bytes"
        );
        self.options = options.to_vec();
        self
    }

    /// Adds an IPv6 extension header of `8 + 8 * words` bytes, filled with padding.
    ///
    /// # Panics
    /// Panics if the padding does not fit in one `PadN` option.
    #[must_use]
    pub fn extension(mut self, kind: u8, words: u8) -> Self {
        let mut body = vec![0; 6 + usize::from(words) * 8];
        // A routing header has type 0 and no segments left. Other headers have one PadN option.
        if kind != protocol::ROUTING {
            body[0] = 1;
            body[1] = u8::try_from(body.len() - 2).expect("padding of at most 255 bytes");
        }
        let mut header = vec![words];
        header.extend(body);
        self.extensions.push((kind, header));
        self
    }

    /// Makes the packet a fragment. `offset` is in bytes, a multiple of eight. `more` is set if more fragments follow.
    #[must_use]
    pub const fn fragment(mut self, id: u16, offset: u16, more: bool) -> Self {
        self.fragment = Some(Fragment { id, offset: offset / 8, more });
        self
    }

    /// Returns the packet with this IP protocol number and this payload.
    ///
    /// # Panics
    /// Panics if the packet is longer than IP allows.
    pub fn carrying(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header = 20 + self.options.len();
                let mut packet = vec![0; header];
                packet[0] = 0x40 | u8::try_from(header / 4).expect("at most 60 bytes");
                let length = u16::try_from(header + payload.len()).expect("at most 65,535 bytes");
                packet[2..4].copy_from_slice(&length.to_be_bytes());
                if let Some(fragment) = self.fragment {
                    packet[4..6].copy_from_slice(&fragment.id.to_be_bytes());
                    let word = fragment.offset | if fragment.more { 0x2000 } else { 0 };
                    packet[6..8].copy_from_slice(&word.to_be_bytes());
                }
                packet[8] = 64;
                packet[9] = protocol;
                packet[12..16].copy_from_slice(&source.octets());
                packet[16..20].copy_from_slice(&destination.octets());
                packet[20..].copy_from_slice(&self.options);
                packet.extend_from_slice(payload);
                correct_header_checksum(&mut packet);
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut headers = self.extensions.clone();
                if let Some(fragment) = self.fragment {
                    let word = fragment.offset << 3 | u16::from(fragment.more);
                    let [high, low] = word.to_be_bytes();
                    let [id_high, id_low] = fragment.id.to_be_bytes();
                    headers.push((protocol::FRAGMENT, vec![0, high, low, 0, 0, id_high, id_low]));
                }
                let mut body = Vec::new();
                for (index, (_, header)) in headers.iter().enumerate() {
                    body.push(headers.get(index + 1).map_or(protocol, |(next, _)| *next));
                    body.extend_from_slice(header);
                }
                body.extend_from_slice(payload);
                let mut packet = vec![0; 40];
                packet[0] = 0x60;
                let length = u16::try_from(body.len()).expect("at most 65,535 bytes");
                packet[4..6].copy_from_slice(&length.to_be_bytes());
                packet[6] = headers.first().map_or(protocol, |(kind, _)| *kind);
                packet[7] = 64;
                packet[8..24].copy_from_slice(&source.octets());
                packet[24..40].copy_from_slice(&destination.octets());
                packet.extend(body);
                packet
            }
            (source, destination) => panic!("{source} and {destination} are of different families"),
        }
    }

    /// Returns the packet with a valid UDP datagram from port `from` to port `to`.
    ///
    /// # Panics
    /// Panics if the datagram is longer than UDP allows.
    pub fn udp(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        self.carrying(protocol::UDP, &self.udp_body(from, to, payload))
    }

    /// Returns only the UDP datagram: a header with a checksum, and the payload.
    ///
    /// # Panics
    /// Panics if the datagram is longer than UDP allows.
    pub fn udp_body(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(8 + payload.len()).expect("at most 65,535 bytes");
        let mut body = [from.to_be_bytes(), to.to_be_bytes(), length.to_be_bytes(), [0, 0]].concat();
        body.extend_from_slice(payload);
        let sum = self.transport_checksum(protocol::UDP, &body);
        body[6..8].copy_from_slice(&sum.to_be_bytes());
        body
    }

    /// Returns the packet with a TCP segment from port `from` to port `to`, with these flags (2 is SYN, 16 ACK, 4 RST)
    /// and this payload.
    pub fn tcp(&self, from: u16, to: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut body = vec![0; 20];
        body[0..2].copy_from_slice(&from.to_be_bytes());
        body[2..4].copy_from_slice(&to.to_be_bytes());
        body[4..8].copy_from_slice(&1u32.to_be_bytes());
        body[12] = 5 << 4;
        body[13] = flags;
        body[14..16].copy_from_slice(&1024u16.to_be_bytes());
        body.extend_from_slice(payload);
        let sum = self.transport_checksum(protocol::TCP, &body);
        body[16..18].copy_from_slice(&sum.to_be_bytes());
        self.carrying(protocol::TCP, &body)
    }

    /// Returns the packet with an SCTP INIT chunk from port `from` to port `to`, followed by `payload`. The CRC is
    /// zero, because no receiver in the tests checks it.
    pub fn sctp_init(&self, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
        let mut body = [from.to_be_bytes(), to.to_be_bytes()].concat();
        body.extend([0; 8]);
        body.extend([1, 0, 0, 20]);
        body.extend([0; 16]);
        body.extend_from_slice(payload);
        self.carrying(protocol::SCTP, &body)
    }

    /// Returns the packet with an ICMP or `ICMPv6` message. `kind`: the type. `word`: the four bytes after the
    /// checksum.
    pub fn icmp(&self, kind: u8, code: u8, word: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut body = vec![kind, code, 0, 0];
        body.extend(word);
        body.extend_from_slice(rest);
        let (number, sum) = if self.source.is_ipv4() {
            (protocol::ICMP, checksum(&[&body]))
        } else {
            (protocol::ICMPV6, self.transport_checksum(protocol::ICMPV6, &body))
        };
        body[2..4].copy_from_slice(&sum.to_be_bytes());
        self.carrying(number, &body)
    }

    fn transport_checksum(&self, protocol: u8, body: &[u8]) -> u16 {
        let length = u32::try_from(body.len()).expect("shorter than 4 GiB").to_be_bytes();
        let rest = [0, 0, 0, protocol];
        let sum = match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                checksum(&[&source.octets(), &destination.octets(), &length, &rest, body])
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                checksum(&[&source.octets(), &destination.octets(), &length, &rest, body])
            }
            (source, destination) => panic!("{source} and {destination} are of different families"),
        };
        // In UDP, zero means "no checksum".
        if sum == 0 { 0xffff } else { sum }
    }
}

/// Sets the header checksum of an IPv4 packet, even if its header is truncated.
pub fn correct_header_checksum(packet: &mut [u8]) {
    let length = (usize::from(packet[0] & 15) * 4).max(20).min(packet.len());
    packet[10..12].fill(0);
    let sum = checksum(&[&packet[..length]]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Computes the Internet checksum of several parts. All parts except the last have an even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// Returns an Ethernet frame with these VLAN tags (outermost first) and this IP packet.
pub fn frame(to: Mac, from: Mac, vlans: &[u16], packet: &[u8]) -> Vec<u8> {
    let mut frame = [to.0, from.0].concat();
    for vlan in vlans {
        frame.extend(0x8100u16.to_be_bytes());
        frame.extend(vlan.to_be_bytes());
    }
    let kind: u16 = if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd };
    frame.extend(kind.to_be_bytes());
    frame.extend_from_slice(packet);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_in_headers_are_correct() {
        let (a, b) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let packet = Ip::new(a, b).options(&[1, 1, 1, 0]).udp(1, 2, b"abc");
        assert_eq!((packet[0], packet.len()), (0x46, 20 + 4 + 8 + 3));
        assert_eq!(checksum(&[&packet[..24]]), 0, "the sum of a header with its checksum is not zero");

        let (a, b) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        let packet = Ip::new(a, b).extension(protocol::HOP_BY_HOP, 1).fragment(7, 0, true).udp(1, 2, b"abc");
        assert_eq!(packet[6], protocol::HOP_BY_HOP);
        assert_eq!(packet[40..42], [protocol::FRAGMENT, 1]);
        assert_eq!(packet[56], protocol::UDP);
        assert_eq!(packet.len(), 40 + 16 + 8 + 8 + 3);
    }
}
