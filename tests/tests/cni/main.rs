//! Tests on realistic nodes: pods connected by CNI plugins, pods that are created and deleted, interfaces that are
//! removed immediately, and node addresses that move.

mod churn;
mod fifty;
mod node_addresses;
mod plugins;
mod short_lived;
mod start_gate;

use netpol_tests::policy;

/// Returns a policy that allows ingress to `server` only from `client`.
fn allow_client_to_server() -> String {
    policy(
        "shop/server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}
