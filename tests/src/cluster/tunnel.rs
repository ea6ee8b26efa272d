//! A tunnel of user space between two nodes, as Flannel's udp: what one's `tun` device sends comes out of the other's. Its packets
//! have no link header.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::netns::Netns;

/// The device on either side.
pub(super) const DEVICE: &str = "nptun";
/// How often it is asked whether to end.
const PATIENCE_MS: u16 = 50;
/// More than any packet here.
const LARGEST: usize = 65_536;

/// Carries packets for as long as this lives.
#[derive(Debug)]
pub(super) struct Tunnel {
    end: Arc<AtomicBool>,
    carrier: Option<JoinHandle<()>>,
}

impl Tunnel {
    /// Between two nodes that have the device already.
    pub(super) fn between(one: &Netns, other: &Netns) -> Result<Self> {
        let ends = [one.run(open)?, other.run(open)?];
        let end = Arc::new(AtomicBool::new(false));
        let told = end.clone();
        let carrier = std::thread::Builder::new().name("tunnel".into()).spawn(move || carry(&ends, &told))?;
        Ok(Self { end, carrier: Some(carrier) })
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        drop(self.carrier.take().map(JoinHandle::join));
    }
}

/// Opens the device of the namespace that the calling thread is in. Source: `linux/if_tun.h`.
fn open() -> Result<File> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun").context("opening /dev/net/tun")?;
    // SAFETY: all zeros are a request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(DEVICE.bytes()) {
        *to = from.cast_signed();
    }
    #[expect(clippy::cast_possible_truncation, reason = "flags of 16 bits")]
    let flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
    request.ifr_ifru.ifru_flags = flags;
    // SAFETY: the request lives as long as the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if done < 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("taking the device {DEVICE}"));
    }
    Ok(file)
}

/// A packet that the other side does not take is lost, as packets are.
fn carry(ends: &[File; 2], end: &AtomicBool) {
    let mut packet = vec![0; LARGEST];
    while !end.load(Ordering::Relaxed) {
        let mut waiting =
            [PollFd::new(ends[0].as_fd(), PollFlags::POLLIN), PollFd::new(ends[1].as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(PATIENCE_MS)).is_err() {
            return;
        }
        let ready = waiting.map(|one| one.revents().is_some_and(|events| events.contains(PollFlags::POLLIN)));
        for (from, to) in [(0, 1), (1, 0)] {
            if ready[from]
                && let Ok(length) = (&ends[from]).read(&mut packet)
            {
                drop((&ends[to]).write(&packet[..length]));
            }
        }
    }
}
