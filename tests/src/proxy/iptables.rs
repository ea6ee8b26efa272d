//! The rules of kube-proxy's iptables mode. Each frontend (a Service's address and port) has a chain `KUBE-SVC`, which
//! selects one of the backends at random. Each backend has a chain `KUBE-SEP`, which translates the destination.
//! `KUBE-EXT` is the chain for connections through the `NodePort`.

use std::fmt::Write;

use anyhow::Result;

use super::{Frontend, MASQUERADE, pod_network, protocol_name};
use crate::netns::Netns;

/// For each family: whether it is IPv4, the program that loads rules, and the program that prints them.
const PROGRAMS: [(bool, &str, &str); 2] =
    [(true, "iptables-nft-restore", "iptables-nft-save"), (false, "ip6tables-nft-restore", "ip6tables-nft-save")];

/// Adds the jumps to kube-proxy's chains. Must be called only once: a second call would add the same jumps again.
pub(super) fn prepare(node: &Netns) -> Result<()> {
    for (is_ipv4, ..) in PROGRAMS {
        let rules = "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]\n-A PREROUTING -j KUBE-SERVICES\n-A OUTPUT -j \
                     KUBE-SERVICES\n-A POSTROUTING -j KUBE-POSTROUTING\nCOMMIT\n";
        restore(node, is_ipv4, rules)?;
    }
    Ok(())
}

/// Loads rules, as iptables-restore does. Chains that `rules` declares (`:NAME`) are emptied first. Other chains are
/// kept.
pub(super) fn restore(node: &Netns, is_ipv4: bool, rules: &str) -> Result<()> {
    let (_, program, _) = PROGRAMS[usize::from(!is_ipv4)];
    node.iptables(program, rules)
}

/// Returns the complete input for [`restore`]. Chains of backends that were removed stay in the kernel, but no rule
/// jumps to them.
pub(super) fn rules(frontends: &[&Frontend], is_ipv4: bool) -> String {
    let mut chains = "*nat\n".to_owned();
    for name in ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"] {
        let _ = writeln!(chains, ":{name} - [0:0]");
    }
    let mut rules = format!(
        "-A KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE}
         -A KUBE-POSTROUTING -m mark ! --mark {MASQUERADE}/{MASQUERADE} -j RETURN
         -A KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE}
         -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n"
    );
    for (index, frontend) in frontends.iter().enumerate().filter(|(_, frontend)| !frontend.targets.is_empty()) {
        let Frontend { address, port, node_port, targets, .. } = frontend;
        let protocol = protocol_name(frontend.protocol);
        let _ = writeln!(chains, ":KUBE-SVC-{index} - [0:0]\n:KUBE-EXT-{index} - [0:0]");
        let match_port = format!("-p {protocol} -m {protocol} --dport");
        let _ = writeln!(rules, "-A KUBE-SERVICES -d {address} {match_port} {port} -j KUBE-SVC-{index}");
        if let Some(port) = node_port {
            let _ = writeln!(rules, "-A KUBE-NODEPORTS {match_port} {port} -j KUBE-EXT-{index}");
        }
        let _ = writeln!(
            rules,
            "-A KUBE-EXT-{index} -j KUBE-MARK-MASQ
             -A KUBE-EXT-{index} -j KUBE-SVC-{index}
             -A KUBE-SVC-{index} ! -s {} -d {address} {match_port} {port} -j KUBE-MARK-MASQ",
            pod_network(is_ipv4)
        );
        for (number, target) in targets.iter().enumerate() {
            let chain = format!("KUBE-SEP-{index}-{number}");
            let _ = writeln!(chains, ":{chain} - [0:0]");
            let probability = match targets.len() - number {
                1 => String::new(),
                remaining => format!("-m statistic --mode random --probability 0.{:010} ", 10_000_000_000 / remaining),
            };
            let _ = writeln!(
                rules,
                "-A KUBE-SVC-{index} {probability}-j {chain}
                 -A {chain} -s {} -j KUBE-MARK-MASQ
                 -A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {target}",
                target.ip()
            );
        }
    }
    rules += "-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\n";
    let rules: String = rules.lines().map(|line| line.trim_start().to_owned() + "\n").collect();
    chains + &rules + "COMMIT\n"
}

/// Returns the rules in the kernel with their packet counts. NAT rules count only the first packet of each connection.
pub(super) fn rules_with_counts(node: &Netns) -> Result<String> {
    PROGRAMS.iter().map(|(_, _, program)| node.output(program, &["-c", "-t", "nat"])).collect()
}

/// Returns the backend (address and port) in a line of [`rules_with_counts`].
pub(super) fn backend(line: &str) -> Option<&str> {
    // The table also has rules for hostPorts in other chains, which are ignored.
    line.split_once("-A KUBE-SEP-")?.1.split_once("--to-destination ")?.1.split(' ').next()
}

/// Returns the packet count in a line of [`rules_with_counts`].
pub(super) fn count(line: &str) -> Option<u64> {
    line.strip_prefix('[')?.split(':').next()?.parse().ok()
}
