//! What aya has no call for: many entries in one system call.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use bytemuck::Pod;

/// Source: `enum bpf_cmd`, `include/uapi/linux/bpf.h`.
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;

/// Only keys that are not there yet.
pub(super) const NOEXIST: u64 = 1;

/// `union bpf_attr`, as the commands on one element have it.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, as the batch commands have it.
#[repr(C)]
#[derive(Default)]
struct Batch {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<()> {
    // SAFETY: the callers' structures are the kernel's, and the pointers in them are to buffers of the lengths that the map has.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn number(map: BorrowedFd<'_>) -> u32 {
    map.as_raw_fd().unsigned_abs()
}

/// The ID of the map in a slot of an array of maps; `None`: the slot is empty.
pub(super) fn map_id(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut element =
        Element { map: number(array), padding: 0, key: &raw const index as u64, value: &raw mut id as u64, flags: 0 };
    match bpf(MAP_LOOKUP_ELEM, &mut element) {
        Ok(()) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Puts maps into slots of an array of maps. When this returns, no program uses what was there before: the kernel waits for those
/// that run.
/// Source: `maybe_wait_bpf_programs`, <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c>.
pub(super) fn set_maps(array: BorrowedFd<'_>, slots: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
    // Linux 5.19 takes them all at once, but only since 6.8 does it wait then: one more call does.
    if slots.len() > 2 {
        let keys: Vec<u32> = slots.iter().map(|(index, _)| *index).collect();
        let values: Vec<u32> = slots.iter().map(|(_, map)| number(*map)).collect();
        let mut batch = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(slots.len()).unwrap_or(u32::MAX),
            map: number(array),
            ..Batch::default()
        };
        if bpf(MAP_UPDATE_BATCH, &mut batch).is_ok() {
            return set_map(array, slots[0]);
        }
    }
    // Those that wait at the same time wait for the same.
    let threads = slots.len().div_ceil(slots.len().div_ceil(32).max(1)).max(1);
    std::thread::scope(|scope| {
        let parts = slots.chunks(slots.len().div_ceil(threads).max(1));
        let handles: Vec<_> =
            parts.map(|part| scope.spawn(|| part.iter().try_for_each(|slot| set_map(array, *slot)))).collect();
        let died = |_| Err(io::Error::other("a thread that writes flow tables died"));
        handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(died))
    })
}

fn set_map(array: BorrowedFd<'_>, (index, map): (u32, BorrowedFd<'_>)) -> io::Result<()> {
    let descriptor = number(map);
    update(array, &index, &descriptor, 0)
}

/// Writes one entry.
pub(super) fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let (key, value) = (std::ptr::from_ref(key) as u64, std::ptr::from_ref(value) as u64);
    bpf(MAP_UPDATE_ELEM, &mut Element { map: number(map), padding: 0, key, value, flags })
}

/// Everything in a hash. What comes or goes meanwhile is in it or not.
pub(super) fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// More than any bucket of a hash has that is not full of collisions.
    const AT_ONCE: usize = 1024;
    let mut found = Vec::new();
    let (mut keys, mut values) = (vec![K::zeroed(); AT_ONCE], vec![V::zeroed(); AT_ONCE]);
    let mut place: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut batch = Batch {
            from: place.as_ref().map_or(0, |place| std::ptr::from_ref(place) as u64),
            to: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map: number(map),
            ..Batch::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut batch);
        let last = match result {
            Ok(()) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && keys.len() < 1 << 20 => {
                keys.resize(keys.len() * 4, K::zeroed());
                values.resize(values.len() * 4, V::zeroed());
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = batch.count as usize;
        found.extend(keys[..count].iter().copied().zip(values[..count].iter().copied()));
        if last {
            return Ok(found);
        }
        place = Some(next);
    }
}
