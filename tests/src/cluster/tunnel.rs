//! A user-space tunnel between two nodes, as with Flannel's backend `udp`. A packet that one node sends to its `tun`
//! device arrives at the `tun` device of the other node. Packets on these devices have no link-layer header.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

/// Name of the device on both nodes.
pub(super) const DEVICE: &str = "nptun";
/// Interval at which the thread checks whether it should stop, in milliseconds.
const POLL_MS: u16 = 50;
/// Buffer size, larger than any packet in tests.
const BUFFER_SIZE: usize = 65_536;

/// A running tunnel. Its thread forwards packets until the `Tunnel` is dropped.
#[derive(Debug)]
pub(super) struct Tunnel {
    stop: Arc<AtomicBool>,
    forwarder: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Starts a tunnel between two nodes. The device must already exist on both.
    pub(super) fn between(one: &Netns, other: &Netns) -> Result<Self> {
        let devices = [one.run(open)?, other.run(open)?];
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let forwarder = std::thread::Builder::new().name("tunnel".into()).spawn(move || forward(&devices, &stopped))?;
        Ok(Self { stop, forwarder: Some(forwarder) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.forwarder.take().map(JoinHandle::join));
    }
}

/// Opens the device in the calling thread's network namespace. Source: `linux/if_tun.h`.
fn open() -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    // SAFETY: all bytes zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "flags of 16 bits")]
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the request is valid during the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("attaching to the device {DEVICE}"));
    }
    Ok(file)
}

/// Forwards packets until `stop` is set. A packet that cannot be written is lost, as on a real link.
fn forward(devices: &[File; 2], stop: &AtomicBool) {
    let mut packet = vec![0; BUFFER_SIZE];
    while !stop.load(Ordering::Relaxed) {
        let mut polled =
            [PollFd::new(devices[0].as_fd(), PollFlags::POLLIN), PollFd::new(devices[1].as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::from(POLL_MS)).is_err() {
            return;
        }
        let ready = polled.map(|device| device.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)));
        for (from, to) in [(0, 1), (1, 0)] {
            if ready[from]
                && let Ok(length) = (&devices[from]).read(&mut packet)
            {
                drop((&devices[to]).write(&packet[..length]));
            }
        }
    }
}
