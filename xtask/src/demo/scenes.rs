//! Scenes of the demo. Their policies are those that users typically write first.

use netpol_tests::{Cluster, ClusterBuilder};

use super::PORTS;

/// One step of the demo.
pub(super) struct Scene {
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    /// Files to write, with their content. Files of earlier scenes stay. Empty content removes the policies of
    /// a file.
    pub(super) apply: &'static [(&'static str, &'static str)],
}

/// Short names for addresses that are too long for the tables.
pub(super) const ALIASES: [(&str, &str); 1] = [("203.0.113.66", "partner")];

/// Builds three namespaces with three pods each, and an external host. The external host has a second address with
/// the alias `partner`. The tables show the two addresses as two hosts.
pub(super) fn cluster() -> ClusterBuilder {
    Cluster::builder()
        .namespace("shop", "team=shop")
        .namespace("blog", "team=blog")
        .namespace("ops", "team=ops")
        .pods(&[
            ("shop/frontend", "tier=frontend"),
            ("shop/backend", "tier=backend"),
            ("shop/database", "tier=database"),
            ("blog/web", "app=web"),
            ("blog/comments", "app=comments"),
            ("blog/crawler", "app=crawler"),
            ("ops/dns", "app=dns"),
            ("ops/monitor", "app=monitor"),
            ("ops/shell", "app=shell"),
        ])
        .outside("203.0.113.66")
        .serve(&PORTS.map(|(_, protocol, port)| (protocol, port)))
}

pub(super) fn all() -> [Scene; 6] {
    [
        Scene { title: "Before any policy", about: "No pod is isolated: all traffic is allowed.", apply: &[] },
        Scene {
            title: "Deny all",
            about: "Pods of shop receive and send nothing. Pods of other namespaces are not isolated.",
            apply: &[("shop", include_str!("policies/deny-all.yaml"))],
        },
        Scene {
            title: "Allow from a namespace",
            about: "Only the pods of ops reach the pods of shop.",
            apply: &[("ops-to-shop", include_str!("policies/from-namespace.yaml"))],
        },
        Scene {
            title: "Frontend, backend, database, and DNS",
            about: "Each tier is reached only by the tier before it. In ops, pods of shop reach only the DNS server.",
            apply: &[("ops-to-shop", ""), ("tiers", include_str!("policies/tiers.yaml"))],
        },
        Scene {
            title: "A CIDR with an exception",
            about: "External hosts reach the frontend on 80/TCP, except 203.0.113.64/30, which includes the partner.",
            apply: &[("outside", include_str!("policies/cidr-except.yaml"))],
        },
        Scene {
            title: "Limits on egress",
            about: "The crawler of blog reaches the DNS server and external web servers, but no other pods.",
            apply: &[("crawler", include_str!("policies/egress.yaml"))],
        },
    ]
}
