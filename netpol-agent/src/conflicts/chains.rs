//! Finds netfilter chains of other policy engines, in nftables (where `iptables-nft` also creates its chains) and in
//! `iptables-legacy`.

use std::collections::BTreeSet;
use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

use super::signatures::{POLICY_ENGINES, Signature};
use super::{Finding, Findings, NameList, legacy};

// Netlink constants for requests to nftables. Source: `include/uapi/linux/netfilter/nfnetlink.h`, `nf_tables.h`,
// `include/uapi/linux/netlink.h`.
const GET_CHAIN: u16 = 10 << 8 | 4;
const NEW_CHAIN: u16 = 10 << 8 | 3;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const REQUEST_DUMP: u16 = 0x1 | 0x300;
const DUMP_INTERRUPTED: u16 = 0x10;
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Size of `struct nlmsghdr`.
const HEADER_SIZE: usize = 16;
/// Size of `struct nfgenmsg`.
const NFGENMSG_SIZE: usize = 4;

/// Whether more datagrams of the dump follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DumpState {
    More,
    Done,
}

/// Finds the policy engines that have chains on this node. If the kernel has no nftables, only `iptables-legacy` is
/// searched.
pub(super) fn detect() -> io::Result<Findings> {
    let mut matches = Matches::default();
    match dump(&mut matches) {
        Ok(()) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT | libc::EINVAL | libc::EOPNOTSUPP)) => {
        }
        Err(error) => return Err(error),
    }
    legacy::chains(|chain| matches.record("", chain))?;
    Ok(matches.findings())
}

/// Requests a dump of all nftables chains, and reads it.
fn dump(matches: &mut Matches) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = [0_u8; HEADER_SIZE + NFGENMSG_SIZE];
    request[..4].copy_from_slice(&20_u32.to_ne_bytes());
    request[4..6].copy_from_slice(&GET_CHAIN.to_ne_bytes());
    request[6..8].copy_from_slice(&REQUEST_DUMP.to_ne_bytes());
    socket.send(&request, 0)?;
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        if matches.read(&datagram)? == DumpState::Done {
            return Ok(());
        }
    }
}

/// For each of [`POLICY_ENGINES`], the chains and tables of this engine that were found on the node. Other chains are
/// not stored: a node may have tens of thousands.
#[derive(Debug, Default)]
struct Matches([BTreeSet<String>; POLICY_ENGINES.len()]);

impl Matches {
    /// Reads one datagram of a dump.
    fn read(&mut self, mut rest: &[u8]) -> io::Result<DumpState> {
        while let Some((length, kind, flags)) = header(rest) {
            let Some(body) = rest.get(HEADER_SIZE..length) else { break };
            // Chains may be missing in an interrupted dump. Without an error, they would be treated as removed. The
            // flag is checked in `DONE` messages, too: the last message of a dump can be the only one with this flag.
            if kind != ERROR && flags & DUMP_INTERRUPTED != 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
            match kind {
                ERROR | DONE => {
                    let code = body.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                    return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(DumpState::Done) };
                }
                NEW_CHAIN => self.read_chain(body.get(NFGENMSG_SIZE..).unwrap_or_default()),
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(DumpState::More)
    }

    /// Reads the attributes of one chain.
    fn read_chain(&mut self, mut rest: &[u8]) {
        let (mut table, mut chain) = ("", "");
        while let [l0, l1, k0, k1, ..] = *rest {
            let length = usize::from(u16::from_ne_bytes([l0, l1]));
            let Some(value) = rest.get(4..length) else { break };
            let text = std::str::from_utf8(value).unwrap_or_default().trim_end_matches('\0');
            match u16::from_ne_bytes([k0, k1]) {
                CHAIN_TABLE => table = text,
                CHAIN_NAME => chain = text,
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        self.record(table, chain);
    }

    /// Stores the name of a chain if the name is a sign of a policy engine. Does the same for the chain's table.
    fn record(&mut self, table: &str, chain: &str) {
        for (found, engine) in self.0.iter_mut().zip(&POLICY_ENGINES) {
            for signature in engine.signatures {
                match signature {
                    Signature::Chain(prefix) if chain.starts_with(prefix) => {
                        found.insert(format!("chain {chain}"));
                    }
                    Signature::Table(name) if table == *name => {
                        found.insert(format!("table {table}"));
                    }
                    Signature::Chain(_) | Signature::Table(_) => {}
                }
            }
        }
    }

    fn findings(self) -> Findings {
        let location = |found: BTreeSet<String>| NameList(&found.into_iter().collect::<Vec<_>>()).to_string();
        let matching = self.0.into_iter().zip(&POLICY_ENGINES).filter(|(found, _)| !found.is_empty());
        matching
            .map(|(found, engine)| {
                (engine.name.to_owned(), Finding { location: location(found), advice: engine.advice })
            })
            .collect()
    }
}

/// Reads the header of the first netlink message. Returns the length, the type and the flags of the message.
fn header(bytes: &[u8]) -> Option<(usize, u16, u16)> {
    let [l0, l1, l2, l3, k0, k1, f0, f1, ..] = *bytes else { return None };
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    (length >= HEADER_SIZE).then(|| (length, u16::from_ne_bytes([k0, k1]), u16::from_ne_bytes([f0, f1])))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Builds a netlink attribute with a string.
    fn attribute(kind: u16, value: &str) -> Vec<u8> {
        let length = u16::try_from(4 + value.len() + 1).unwrap();
        let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        bytes.extend(value.bytes());
        bytes.resize(usize::from(length).next_multiple_of(4), 0);
        bytes
    }

    /// Builds a netlink message.
    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_SIZE + body.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([kind.to_ne_bytes(), flags.to_ne_bytes()].concat());
        bytes.extend([0; 8]);
        bytes.extend(body);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// Builds the message for one chain: table, handle and name. `Matches` must skip the handle, which is a number.
    fn chain(table: &str, name: &str) -> Vec<u8> {
        let handle = [&[12, 0, 2, 0][..], &[0; 8]].concat();
        message(NEW_CHAIN, 2, &[vec![2, 0, 0, 0], attribute(1, table), handle, attribute(3, name)].concat())
    }

    #[test]
    fn chains_and_tables_of_other_policy_engines_are_recognized() {
        // A table, a chain, and a part of the engine's name. If the third text is empty, neither the table nor the
        // chain is a sign of a policy engine.
        for (table, name, expected) in [
            ("filter", "FORWARD", ""),
            ("filter", "KUBE-FORWARD", ""),
            ("nat", "KUBE-SVC-KUBE-ROUTER-", ""),
            ("kube-proxy", "filter-forward", ""),
            ("filter", "KUBE-ROUTER-FORWARD", "k3s or kube-router"),
            ("filter", "KUBE-POD-FW-ANGME7BFW6J4NS25", "k3s or kube-router"),
            ("filter", "KUBE-NWPLCY-DEFAULT", "k3s or kube-router"),
            ("kindnet-network-policies", "postrouting", "kindnet"),
            ("kube-network-policies", "prerouting", "kube-network-policies"),
            ("filter", "cali-FORWARD", "Calico"),
            ("calico", "filter-FORWARD", "Calico"),
            ("filter", "WEAVE-NPC-INGRESS", "Weave"),
        ] {
            let mut matches = Matches::default();
            let datagram = [chain("filter", "INPUT"), chain(table, name), chain("nat", "OUTPUT")].concat();
            assert_eq!(matches.read(&datagram).unwrap(), DumpState::More);
            assert_eq!(matches.read(&message(DONE, 2, &[0; 4])).unwrap(), DumpState::Done);
            let findings = matches.findings();
            assert_eq!(findings.len(), usize::from(!expected.is_empty()), "{table} {name}: {findings:?}");
            for (engine, finding) in findings {
                assert!(engine.contains(expected), "{engine}");
                assert!(finding.location.contains(name) || finding.location.contains(table), "{}", finding.location);
            }
        }
    }

    #[test]
    fn an_error_message_and_an_interrupted_dump_are_errors() {
        let mut matches = Matches::default();
        let error = matches.read(&message(ERROR, 0, &(-libc::EPERM).to_ne_bytes())).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPERM));
        let interrupted = message(NEW_CHAIN, 2 | DUMP_INTERRUPTED, &[0; 4]);
        assert_eq!(matches.read(&interrupted).unwrap_err().kind(), io::ErrorKind::Interrupted);
        let interrupted = message(DONE, 2 | DUMP_INTERRUPTED, &[0; 4]);
        assert_eq!(matches.read(&interrupted).unwrap_err().kind(), io::ErrorKind::Interrupted);
    }

    #[test]
    fn truncated_and_malformed_messages_do_not_panic() {
        let whole = [chain("calico", "cali-FORWARD"), message(DONE, 2, &[0; 4])].concat();
        for length in 0..whole.len() {
            let _ = Matches::default().read(&whole[..length]);
        }
        // Lengths that do not match the data.
        let _ = Matches::default().read(&message(NEW_CHAIN, 0, &[2, 0, 0, 0, 1, 0, 1, 0, 255, 255, 3, 0]));
        let _ = Matches::default().read(&[0; 64]);
    }
}
