//! kube-proxy's nftables mode: a table for each address family. A map selects the chain of a frontend (a Service's
//! address and port). The chain of the frontend selects the chain of a backend. As in kube-proxy, the name of a
//! backend's chain starts with `endpoint`.

use std::fmt::Write;

use anyhow::Result;

use super::{Frontend, MASQUERADE, pod_network, protocol_name};
use crate::netns::Netns;

/// Returns rules that replace the table of an address family. Frontends without backends get no rules.
pub(super) fn rules(frontends: &[&Frontend], is_ipv4: bool) -> String {
    let (ip, address_type, loopback) =
        if is_ipv4 { ("ip", "ipv4_addr", "127.0.0.0/8") } else { ("ip6", "ipv6_addr", "::1") };
    let (mut chains, mut cluster_ips, mut node_ports) = (String::new(), String::new(), String::new());
    for (index, frontend) in frontends.iter().enumerate().filter(|(_, frontend)| !frontend.targets.is_empty()) {
        let Frontend { address, port, .. } = frontend;
        let protocol = protocol_name(frontend.protocol);
        chains += &frontend_chains(index, frontend, ip, is_ipv4);
        let _ = write!(cluster_ips, "{address} . {protocol} . {port} : goto service-{index}, ");
        if let Some(port) = frontend.node_port {
            let _ = write!(node_ports, "{protocol} . {port} : goto external-{index}, ");
        }
    }
    format!(
        "add table {ip} npt_proxy
         delete table {ip} npt_proxy
         table {ip} npt_proxy {{
           chain mark-for-masquerade {{ meta mark set meta mark or {MASQUERADE}; }}
           {chains}
           map cluster-ips {{ type {address_type} . inet_proto . inet_service : verdict; {} }}
           map node-ports {{ type inet_proto . inet_service : verdict; {} }}
           chain services {{
             {ip} daddr . meta l4proto . th dport vmap @cluster-ips
             fib daddr type local {ip} daddr != {loopback} meta l4proto . th dport vmap @node-ports
           }}
           chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
           chain nat-output {{ type nat hook output priority -100; jump services; }}
           chain masquerading {{
             meta mark and {MASQUERADE} == 0 return
             meta mark set meta mark xor {MASQUERADE}
             masquerade fully-random
           }}
           chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}
         }}\n",
        elements(&cluster_ips),
        elements(&node_ports)
    )
}

/// Returns the elements of an nftables map. The syntax of nftables does not allow an empty list of elements.
fn elements(list: &str) -> String {
    if list.is_empty() { String::new() } else { format!("elements = {{ {list} }}") }
}

/// Returns the chains of a frontend: one for each backend (`endpoint-…`), one that selects a backend (`service-…`), and
/// one for packets through a `NodePort` (`external-…`).
fn frontend_chains(index: usize, frontend: &Frontend, ip: &str, is_ipv4: bool) -> String {
    let Frontend { address, targets, .. } = frontend;
    let mut choices = String::new();
    let mut chains = String::new();
    for (number, target) in targets.iter().enumerate() {
        let _ = write!(choices, "{number} : goto endpoint-{index}-{number}, ");
        let _ = writeln!(
            chains,
            "chain endpoint-{index}-{number} {{
               {ip} saddr {} jump mark-for-masquerade
               meta l4proto {} counter dnat to {target}
             }}",
            target.ip(),
            protocol_name(frontend.protocol)
        );
    }
    let _ = writeln!(
        chains,
        "chain service-{index} {{
           {ip} daddr {address} {ip} saddr != {} jump mark-for-masquerade
           numgen random mod {} vmap {{ {choices} }}
         }}
         chain external-{index} {{ jump mark-for-masquerade; goto service-{index}; }}",
        pod_network(is_ipv4),
        targets.len()
    );
    chains
}

/// Lists the rules on a node, with their packet counts. A NAT rule counts only the first packet of each connection.
pub(super) fn rules_with_counts(node: &Netns) -> Result<String> {
    let list = |ip| node.output("nft", &["-n", "list", "table", ip, "npt_proxy"]);
    Ok(list("ip")? + &list("ip6")?)
}

/// Returns the backend in a line of [`rules_with_counts`]; `None` if the line has no backend.
pub(super) fn backend(line: &str) -> Option<&str> {
    line.split_once("dnat to ")?.1.split(' ').next()
}

/// Returns the packet count in a line of [`rules_with_counts`].
pub(super) fn count(line: &str) -> Option<u64> {
    line.split_once("counter packets ")?.1.split(' ').next()?.parse().ok()
}
