//! BPF system calls that aya lacks: operations on many entries at once, maps with BTF types, and the ID of a map in an
//! array of maps.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use bytemuck::Pod;

/// Source: `enum bpf_cmd`, `include/uapi/linux/bpf.h`.
const MAP_CREATE: libc::c_int = 0;
const MAP_LOOKUP_ELEM: libc::c_int = 1;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const BTF_LOAD: libc::c_int = 18;
const MAP_LOOKUP_BATCH: libc::c_int = 24;
const MAP_UPDATE_BATCH: libc::c_int = 26;

/// Inserts only keys that do not exist yet.
pub(super) const NOEXIST: u64 = 1;

/// `union bpf_attr` for the commands on one element.
#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for the batch commands. `from` and `to` are `in_batch` and `out_batch`: pointers to the position in
/// the map at which this batch starts, and to the position of the next batch.
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

/// `union bpf_attr` for `BPF_MAP_CREATE`, up to its fields for BTF types.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf: u32,
    btf_key_type: u32,
    btf_value_type: u32,
}

/// `union bpf_attr` for `BPF_BTF_LOAD`. `types` is a pointer to the BTF data, `size` is its length.
#[repr(C)]
#[derive(Default)]
struct LoadTypes {
    types: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: callers pass structures with the kernel's layout. Their pointers are to buffers of the sizes that the map
    // requires.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Like [`bpf`], for commands that return a descriptor.
fn bpf_descriptor<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    let descriptor = i32::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened it for this process, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `BPF_MAP_TYPE_LRU_HASH`. Source: `include/uapi/linux/bpf.h`.
const LRU_HASH: u32 = 9;

/// Creates an LRU hash with BTF types, as the maps in the BPF object have them.
///
/// Linux 5.15 to 6.2 require the types, because all inner maps of a map of maps must have the same `timer_off` (the
/// offset of a `bpf_timer` in the value, or an error code). The inner map that the BPF object declares has BTF types. A
/// map without types has another `timer_off`, so the kernel would reject it. Source: `bpf_map_meta_equal`,
/// <https://github.com/torvalds/linux/blob/v6.1/kernel/bpf/map_in_map.c>.
pub(super) fn create_lru_hash<K, V>(size: u32, name: &str) -> io::Result<OwnedFd> {
    let as_u32 = |size: usize| u32::try_from(size).map_err(io::Error::other);
    let (key_size, value_size) = (as_u32(size_of::<K>())?, as_u32(size_of::<V>())?);
    let types = load_types(key_size, value_size)?;
    let mut create = Create {
        kind: LRU_HASH,
        key_size,
        value_size,
        max_entries: size,
        btf: types.as_raw_fd().unsigned_abs(),
        btf_key_type: KEY_TYPE,
        btf_value_type: VALUE_TYPE,
        ..Create::default()
    };
    // The name ends with a zero byte.
    for (to, from) in create.name.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bpf_descriptor(MAP_CREATE, &mut create)
}

/// IDs of the types in [`load_types`].
const KEY_TYPE: u32 = 2;
const VALUE_TYPE: u32 = 4;

/// Loads types for keys and values of these sizes. The key is an array of bytes. The value is a structure with an array
/// of bytes: with a type that is not a structure, the kernel would not set the same `timer_off` as in the BPF object.
/// The types of the BPF object itself are not available: a descriptor of loaded types needs `CAP_SYS_ADMIN`
/// (`BPF_BTF_GET_FD_BY_ID`).
///
/// Source of the format: <https://docs.kernel.org/bpf/btf.html>.
fn load_types(key_size: u32, value_size: u32) -> io::Result<OwnedFd> {
    const STRINGS: &[u8] = b"\0u8\0flow\0bytes\0";
    // The offsets of the names in `STRINGS`.
    let [u8, flow, bytes] = [1, 4, 9];
    // The kinds of types (`BTF_KIND_INT` and so on), shifted to their bits in `info`, the second word of a type.
    let [int, array, structure] = [1_u32, 3, 4].map(|kind| kind << 24);
    let types = [
        // Type 1: u8, of 8 bits.
        [u8, int, 1, 8].as_slice(),
        // Types 2 and 3: arrays of type 1, with an index of type 1.
        &[0, array, 0, 1, 1, key_size],
        &[0, array, 0, 1, 1, value_size],
        // Type 4: a structure with one member, of type 3 at offset 0.
        &[flow, structure | 1, value_size, bytes, 3, 0],
    ]
    .concat();
    let types_size = u32::try_from(types.len() * 4).unwrap_or_default();
    let strings_size = u32::try_from(STRINGS.len()).unwrap_or_default();
    // Magic number and version; size of the header; offset and size of types and strings.
    let header = [0x0001_eb9f, 24, 0, types_size, types_size, strings_size];
    let mut blob: Vec<u8> = header.iter().chain(&types).flat_map(|word| word.to_ne_bytes()).collect();
    blob.extend_from_slice(STRINGS);
    let size = u32::try_from(blob.len()).unwrap_or_default();
    bpf_descriptor(BTF_LOAD, &mut LoadTypes { types: blob.as_ptr() as u64, size, ..LoadTypes::default() })
}

fn descriptor_of(map: BorrowedFd<'_>) -> u32 {
    map.as_raw_fd().unsigned_abs()
}

/// Returns the ID of the map in a slot of an array of maps. `None` if the slot is empty.
pub(super) fn map_id(array: BorrowedFd<'_>, index: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut element = Element {
        map: descriptor_of(array),
        padding: 0,
        key: &raw const index as u64,
        value: &raw mut id as u64,
        flags: 0,
    };
    match bpf(MAP_LOOKUP_ELEM, &mut element) {
        Ok(_) => Ok(Some(id)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes maps into slots of an array of maps. When this returns, no program uses the previous maps: the kernel waits
/// for running programs. Source: `maybe_wait_bpf_programs`,
/// <https://github.com/torvalds/linux/blob/v6.12/kernel/bpf/syscall.c>.
pub(super) fn set_maps(array: BorrowedFd<'_>, slots: &[(u32, BorrowedFd<'_>)]) -> io::Result<()> {
    // Since Linux 5.19, one batch operation can write all slots. Before Linux 6.8, this operation does not wait for
    // running programs. So one slot is written again: this write waits.
    if slots.len() > 2 {
        let keys: Vec<u32> = slots.iter().map(|(index, _)| *index).collect();
        let values: Vec<u32> = slots.iter().map(|(_, map)| descriptor_of(*map)).collect();
        let mut batch = Batch {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: u32::try_from(slots.len()).unwrap_or(u32::MAX),
            map: descriptor_of(array),
            ..Batch::default()
        };
        if bpf(MAP_UPDATE_BATCH, &mut batch).is_ok() {
            return set_map(array, slots[0]);
        }
    }
    // Without the batch operation, up to 32 threads write the slots, so that the waits of the threads overlap.
    let threads = slots.len().div_ceil(slots.len().div_ceil(32).max(1)).max(1);
    std::thread::scope(|scope| {
        let parts = slots.chunks(slots.len().div_ceil(threads).max(1));
        let handles: Vec<_> =
            parts.map(|part| scope.spawn(|| part.iter().try_for_each(|slot| set_map(array, *slot)))).collect();
        let died = |_| Err(io::Error::other("a thread that writes flow tables died"));
        handles.into_iter().try_for_each(|handle| handle.join().unwrap_or_else(died))
    })
}

/// Writes a map into a slot of an array of maps, and waits until no program uses the previous map.
fn set_map(array: BorrowedFd<'_>, (index, map): (u32, BorrowedFd<'_>)) -> io::Result<()> {
    let descriptor = descriptor_of(map);
    update(array, &index, &descriptor, 0)
}

/// Writes one entry.
pub(super) fn update<K, V>(map: BorrowedFd<'_>, key: &K, value: &V, flags: u64) -> io::Result<()> {
    let (key, value) = (std::ptr::from_ref(key) as u64, std::ptr::from_ref(value) as u64);
    bpf(MAP_UPDATE_ELEM, &mut Element { map: descriptor_of(map), padding: 0, key, value, flags }).map(drop)
}

/// Returns all entries of a hash. Entries that are inserted or deleted meanwhile may or may not be included.
pub(super) fn entries<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    /// The size of the first batch. If a bucket of the hash has more entries, the kernel returns `ENOSPC`, and the
    /// batch is repeated with a larger size.
    const BATCH_SIZE: usize = 1024;
    let mut found = Vec::new();
    let (mut keys, mut values) = (vec![K::zeroed(); BATCH_SIZE], vec![V::zeroed(); BATCH_SIZE]);
    let mut position: Option<u32> = None;
    loop {
        let mut next = 0_u32;
        let mut batch = Batch {
            from: position.as_ref().map_or(0, |position| std::ptr::from_ref(position) as u64),
            to: &raw mut next as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len()).unwrap_or(u32::MAX),
            map: descriptor_of(map),
            ..Batch::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut batch);
        let last = match result {
            Ok(_) => false,
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
        position = Some(next);
    }
}
