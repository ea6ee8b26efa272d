//! Sends and receives raw frames.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::cluster::{Cluster, Host};
use crate::packet::{Marker, frame};

/// How long a frame may take to arrive on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for frames that must be dropped, after the expected frames have arrived. All frames are sent at
/// about the same time, so a frame that is not dropped arrives within this time.
const GRACE: Duration = Duration::from_millis(250);

// libc declares these constants with other integer types than the fields and parameters that need them.
const EVERY_PROTOCOL: u16 = 3;
const PACKET_FAMILY: libc::sa_family_t = 17;
const ADDRESS_LENGTH: libc::socklen_t = 20;
const _: () = assert!(
    EVERY_PROTOCOL as i32 == libc::ETH_P_ALL
        && PACKET_FAMILY as i32 == libc::AF_PACKET
        && ADDRESS_LENGTH as usize == size_of::<libc::sockaddr_ll>()
);

/// A packet socket on a host's interface.
#[derive(Debug)]
pub struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn open(host: &Host) -> Result<Self> {
        host.netns()
            .run(|| {
                let every_protocol = EVERY_PROTOCOL.to_be();
                let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
                // SAFETY: takes no pointers.
                let fd = unsafe { libc::socket(libc::AF_PACKET, kind, i32::from(every_protocol)) };
                ensure!(fd >= 0, "opening a packet socket: {}", std::io::Error::last_os_error());
                // SAFETY: the descriptor is new and has no other owner.
                let socket = unsafe { OwnedFd::from_raw_fd(fd) };
                let name = CString::new(host.interface()).context("the interface's name has a zero byte")?;
                // SAFETY: `name` is a C string that is valid during the call.
                let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
                ensure!(index != 0, "no interface {}", host.interface());
                // SAFETY: all bytes zero is a valid sockaddr_ll.
                let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
                address.sll_family = PACKET_FAMILY;
                address.sll_protocol = every_protocol;
                address.sll_ifindex = index.cast_signed();
                // SAFETY: the pointer and length are those of `address`.
                let bound = unsafe { libc::bind(fd, (&raw const address).cast(), ADDRESS_LENGTH) };
                ensure!(bound == 0, "binding a packet socket: {}", std::io::Error::last_os_error());
                Ok(Self { socket })
            })
            .with_context(|| format!("at {}", host.name()))
    }

    /// Sends a frame.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the pointer and length are those of `frame`.
        let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(sent >= 0, "sending a frame of {} bytes: {}", frame.len(), std::io::Error::last_os_error());
        Ok(())
    }

    /// Returns the next frame that has arrived, or `None` if no frame is waiting.
    pub fn receive(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // SAFETY: all bytes zero is a valid sockaddr_ll.
            let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
            let mut from_length = ADDRESS_LENGTH;
            // SAFETY: pointers and lengths are those of `buffer` and `from`.
            let length = unsafe {
                libc::recvfrom(
                    self.socket.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                    (&raw mut from).cast(),
                    &raw mut from_length,
                )
            };
            let length = usize::try_from(length).ok()?;
            // Packet sockets also receive this host's own frames.
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                buffer.truncate(length);
                return Some(buffer);
            }
        }
    }
}

/// A packet, or a sequence of packets. The last packet contains a marker, by which the receiver identifies the
/// sequence.
#[derive(Clone, Debug)]
pub struct TestPacket {
    description: String,
    frames: Vec<Vec<u8>>,
    marker: Marker,
}

impl TestPacket {
    /// Creates a test packet from IP packets between two hosts, to send in order. The last packet contains the marker.
    pub fn new(
        cluster: &Cluster,
        from: &str,
        to: &str,
        description: &str,
        marker: Marker,
        packets: &[Vec<u8>],
    ) -> Self {
        Self::tagged(cluster, from, to, description, marker, packets, &[])
    }

    /// Creates a test packet from complete frames, to send in order. The last frame contains the marker.
    pub fn of_frames(description: &str, marker: Marker, frames: Vec<Vec<u8>>) -> Self {
        Self { description: description.to_owned(), frames, marker }
    }

    /// Like [`Self::new`], but the frames have VLAN tags.
    pub fn tagged(
        cluster: &Cluster,
        from: &str,
        to: &str,
        description: &str,
        marker: Marker,
        packets: &[Vec<u8>],
        vlans: &[u16],
    ) -> Self {
        let (source, destination) = (cluster.host(from), cluster.host(to));
        let next_hop = source.next_hop(destination, cluster.topology());
        let frames = packets.iter().map(|packet| frame(next_hop, source.mac(), vlans, packet)).collect();
        Self { description: description.to_owned(), frames, marker }
    }
}

/// Number of test packets sent before the receiver is read, so that its socket buffer does not overflow.
const BATCH: usize = 64;

/// Sends all test packets and waits for those that are expected to arrive. Returns for each test packet whether its
/// last packet arrived.
fn send_all(cluster: &Cluster, from: &str, to: &str, table: &[(TestPacket, bool)]) -> Result<Vec<bool>> {
    let sender = PacketSocket::open(cluster.host(from))?;
    let receiver = PacketSocket::open(cluster.host(to))?;
    let mut arrived = HashSet::new();
    let mut batches = table.chunks(BATCH).peekable();
    while let Some(batch) = batches.next() {
        // Frames of earlier batches can arrive while the next batches are sent. Only the last batch needs extra time.
        let grace = if batches.peek().is_some() { Duration::ZERO } else { GRACE };
        for (test_packet, _) in batch {
            for frame in &test_packet.frames {
                sender.send(frame).with_context(|| test_packet.description.clone())?;
            }
        }
        let start = Instant::now();
        let mut complete_since = None;
        while start.elapsed() < TIMEOUT && complete_since.is_none_or(|at: Instant| at.elapsed() < grace) {
            if let Some(frame) = receiver.receive() {
                arrived.extend(Marker::find(&frame));
                continue;
            }
            if complete_since.is_none()
                && batch.iter().all(|(test_packet, expected)| !expected || arrived.contains(&test_packet.marker))
            {
                complete_since = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(table.iter().map(|(test_packet, _)| arrived.contains(&test_packet.marker)).collect())
}

/// Sends test packets and checks which of them arrive. The table contains each test packet, and whether it must arrive.
///
/// # Errors
/// Returns an error that names the test packets with an unexpected result.
pub fn check(cluster: &Cluster, from: &str, to: &str, table: &[(TestPacket, bool)]) -> Result<()> {
    let arrived = send_all(cluster, from, to, table)?;
    let problem = |expected: bool| if expected { "did not arrive" } else { "arrived, but must be dropped" };
    let wrong: Vec<_> = table
        .iter()
        .zip(&arrived)
        .filter(|((_, expected), arrived)| expected != *arrived)
        .map(|((test_packet, expected), _)| format!("{}: {}", test_packet.description, problem(*expected)))
        .collect();
    ensure!(wrong.is_empty(), "from {from} to {to}:\n  {}", wrong.join("\n  "));
    Ok(())
}
