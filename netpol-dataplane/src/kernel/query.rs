//! Lists the programs at a TCX hook. Unlike aya, this needs no more privileges than attaching a program.

use std::io;

use aya::programs::TcAttachType;
use netpol_common::IfIndex;

/// `BPF_PROG_QUERY`, `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`. Source: `include/uapi/linux/bpf.h`.
const PROG_QUERY: libc::c_int = 16;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
/// Maximum number of programs at one hook. Source: `BPF_MPROG_MAX`, `include/linux/bpf_mprog.h`.
const MAX_PROGRAMS: u32 = 64;

/// `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    /// The length of the array at `ids`. The kernel replaces it with the number of programs.
    count: u32,
    padding: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Returns the ids of the programs at a hook, in the order in which they run. Unlike aya, this function does not open
/// the programs: opening by id needs `CAP_SYS_ADMIN` (`bpf_prog_get_fd_by_id`, `kernel/bpf/syscall.c`).
pub(super) fn tcx_programs(ifindex: IfIndex, hook: TcAttachType) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS as usize];
    let mut query = Query {
        ifindex: ifindex.0,
        attach_type: if hook == TcAttachType::Ingress { TCX_INGRESS } else { TCX_EGRESS },
        ids: ids.as_mut_ptr() as u64,
        count: MAX_PROGRAMS,
        ..Query::default()
    };
    // SAFETY: the structure has the kernel's layout and the given size; `ids` has room for `count` ids.
    let result = unsafe { libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.into_iter().take(query.count as usize).collect())
}
