//! Attacks: what a pod with raw sockets and control of its own network namespace, or a host outside, tries against a node.
//! Names begin with `hostile_`, so that `cargo xtask test --filter hostile` runs them.

mod floods;
mod identity;
mod neighbors;
mod tunnels;

use netpol_tests::lab::policy;
use netpol_tests::{Cluster, ClusterBuilder, Families};

/// `rogue` is the attacker; `server` takes anything from `client` and nothing else; no policy isolates `open`.
fn pods() -> ClusterBuilder {
    Cluster::builder().families(Families::Dual).pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/rogue", "app=rogue"),
        ("shop/open", "app=open"),
    ])
}

fn server_from_client() -> String {
    policy(
        "shop/server-from-client",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

/// `rogue` may send nothing; anything may reach it.
fn rogue_sends_nothing() -> String {
    policy("shop/rogue-sends-nothing", "{podSelector: {matchLabels: {app: rogue}}, policyTypes: [Egress]}")
}
