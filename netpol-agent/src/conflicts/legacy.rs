//! Reads the netfilter chains of `iptables-legacy`. A dump of nftables does not contain these chains.

use std::ffi::c_int;
use std::fs;
use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// The table in which policy engines create their chains.
const TABLE: &str = "filter";
/// Socket options that read a table. Source: `include/uapi/linux/netfilter_ipv4/ip_tables.h`, and `ip6_tables.h` with
/// the same numbers.
const GET_INFO: c_int = 64;
const GET_ENTRIES: c_int = 65;
/// Size of `struct ipt_getinfo`; its last member is the size of all entries.
const GETINFO_SIZE: usize = 84;
/// Position of the entries in `struct ipt_get_entries`, after the table's name and the size, aligned.
const ENTRIES_OFFSET: usize = 40;
/// Size of the table's name in both structures.
const TABLE_NAME_SIZE: usize = 32;

/// The parameters of IPv4 or IPv6.
struct Family {
    /// The file that lists the existing tables. A request for a missing table would create the table.
    tables: &'static str,
    /// The address to which a socket of this family is bound.
    bind: &'static str,
    /// The level of the socket options.
    level: c_int,
    /// The position of `target_offset` in `struct ipt_entry` or `struct ip6t_entry`; `next_offset` follows.
    target_offset_at: usize,
}

const FAMILIES: [Family; 2] = [
    Family {
        tables: "/proc/thread-self/net/ip_tables_names",
        bind: "0.0.0.0:0",
        level: libc::IPPROTO_IP,
        target_offset_at: 88,
    },
    Family {
        tables: "/proc/thread-self/net/ip6_tables_names",
        bind: "[::]:0",
        level: libc::IPPROTO_IPV6,
        target_offset_at: 140,
    },
];

/// Calls `report` with the name of each chain.
pub(super) fn chains(mut report: impl FnMut(&str)) -> io::Result<()> {
    for family in FAMILIES {
        // If the file does not exist, the kernel has no such tables.
        let tables = fs::read_to_string(family.tables).unwrap_or_default();
        if tables.lines().any(|table| table == TABLE) {
            let entries = family.entries()?;
            report_chain_names(&entries, family.target_offset_at, &mut report);
        }
    }
    Ok(())
}

impl Family {
    /// Returns the entries (rules, and starts of chains) of the table.
    fn entries(&self) -> io::Result<Vec<u8>> {
        // The kernel accepts this option on any IP socket. A UDP socket needs no CAP_NET_RAW.
        let socket = UdpSocket::bind(self.bind)?;
        let mut info = [0_u8; GETINFO_SIZE];
        info[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        self.get(&socket, GET_INFO, &mut info)?;
        let size = u32_at(&info, GETINFO_SIZE - 4).unwrap_or_default();
        let mut entries = vec![0; ENTRIES_OFFSET + size as usize];
        entries[..TABLE.len()].copy_from_slice(TABLE.as_bytes());
        entries[TABLE_NAME_SIZE..TABLE_NAME_SIZE + 4].copy_from_slice(&size.to_ne_bytes());
        // Fails with EAGAIN if the table has just changed.
        self.get(&socket, GET_ENTRIES, &mut entries)?;
        Ok(entries.split_off(ENTRIES_OFFSET))
    }

    /// Reads a socket option into the buffer, which contains the name of the table.
    fn get(&self, socket: &UdpSocket, option: c_int, buffer: &mut [u8]) -> io::Result<()> {
        let mut length = libc::socklen_t::try_from(buffer.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel writes at most `length` bytes, and `length` is the buffer's size.
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), self.level, option, buffer.as_mut_ptr().cast(), &raw mut length)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Calls `report` with the name of each chain. A chain starts with an entry that has a target named `ERROR`, and this
/// target contains the chain's name.
fn report_chain_names(entries: &[u8], target_offset_at: usize, report: &mut impl FnMut(&str)) {
    let mut rest = entries;
    while let (Some(target), Some(next)) = (u16_at(rest, target_offset_at), u16_at(rest, target_offset_at + 2)) {
        // `struct xt_error_target`: size, name of the target, revision, then 30 bytes of text.
        let target = rest.get(usize::from(target)..usize::from(next)).unwrap_or_default();
        if text(target.get(2..31)) == "ERROR" {
            report(text(target.get(32..62)));
        }
        let Some(following) = rest.get(usize::from(next)..).filter(|_| next > 0) else { return };
        rest = following;
    }
}

/// Returns the text before the first zero byte.
fn text(bytes: Option<&[u8]>) -> &str {
    let bytes = bytes.unwrap_or_default().split(|byte| *byte == 0).next().unwrap_or_default();
    std::str::from_utf8(bytes).unwrap_or_default()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds an IPv4 entry with a target of this name and text.
    fn entry(target: &str, text: &str) -> Vec<u8> {
        let mut bytes = vec![0; 112 + 64];
        bytes[88..90].copy_from_slice(&112_u16.to_ne_bytes());
        bytes[90..92].copy_from_slice(&176_u16.to_ne_bytes());
        bytes[114..114 + target.len()].copy_from_slice(target.as_bytes());
        bytes[144..144 + text.len()].copy_from_slice(text.as_bytes());
        bytes
    }

    fn chain_names(entries: &[u8]) -> Vec<String> {
        let mut names = Vec::new();
        report_chain_names(entries, 88, &mut |name: &str| names.push(name.to_owned()));
        names
    }

    #[test]
    fn chains_are_distinguished_from_rules() {
        // A rule of a built-in chain, the start of a chain, a rule of this chain, and the end of the table. The end has
        // the same form as the start of a chain `ERROR`.
        let table =
            [entry("", "of INPUT"), entry("ERROR", "cali-INPUT"), entry("REJECT", "no"), entry("ERROR", "ERROR")];
        assert_eq!(chain_names(&table.concat()), ["cali-INPUT", "ERROR"]);
    }

    #[test]
    fn truncated_and_malformed_entries_do_not_panic() {
        let whole = [entry("ERROR", "cali-INPUT"), entry("ERROR", "ERROR")].concat();
        for length in 0..whole.len() {
            assert!(chain_names(&whole[..length]).len() <= 2);
        }
        let mut endless = whole.clone();
        endless[90..92].copy_from_slice(&0_u16.to_ne_bytes());
        assert_eq!(chain_names(&endless), [""; 0]);
        let mut out_of_range = whole;
        out_of_range[88..92].copy_from_slice(&[255; 4]);
        assert_eq!(chain_names(&out_of_range), [""; 0]);
    }
}
