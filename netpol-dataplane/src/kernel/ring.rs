//! The ring buffer of flow events: reports of the eBPF programs about allowed and denied flows.

use std::io;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use netpol_common::FlowEvent;
use tokio::io::unix::AsyncFd;

use super::KernelError;
use super::maps::pinned;
use super::names::MapName;
use super::pins::{Pins, pin_error};

/// Limits of one read: the number of events, and the time for handling them. With these limits, a flood of events does
/// not delay policies.
const MAX_EVENTS_PER_READ: usize = 256;
const MAX_READ_TIME: Duration = Duration::from_millis(2);

/// Reads flow events.
#[derive(Debug)]
pub struct RingReader {
    ring: AsyncFd<Ring>,
}

struct Ring(RingBuf<MapData>);

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ring")
    }
}

impl std::os::fd::AsRawFd for Ring {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_raw_fd()
    }
}

impl RingReader {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let path = pins.map(MapName::Events);
        let ring: RingBuf<MapData> = pinned(pins, MapName::Events)?;
        // SAFETY: the map's descriptor lives as long as the ring. `AsyncFd` owns the ring, and nothing replaces it.
        let ring = unsafe { AsyncFd::register(Ring(ring)) };
        let ring = ring.map_err(|error| pin_error("wait on the ring buffer", &path, &std::io::Error::from(error)))?;
        Ok(Self { ring })
    }

    /// Waits for events, and calls `each` for each available event. The number of events and the time for handling them
    /// are limited; the waiting time is not.
    ///
    /// # Errors
    /// If waiting fails permanently.
    pub async fn read(&mut self, mut each: impl FnMut(FlowEvent)) -> io::Result<()> {
        let mut ready = self.ring.readable_mut().await?;
        let started = Instant::now();
        for _ in 0..MAX_EVENTS_PER_READ {
            let Some(item) = ready.get_inner_mut().0.next() else {
                ready.clear_ready();
                break;
            };
            // Every record has the length of an event, because each version of the map layout has its own ring buffer.
            if let Ok(event) = bytemuck::try_pod_read_unaligned(&item) {
                each(event);
            }
            if started.elapsed() > MAX_READ_TIME {
                break;
            }
        }
        Ok(())
    }
}
