//! The policies people write first.

use netpol_tests::{Cluster, ClusterBuilder};

use super::PORTS;

/// One step of the walk: what is applied, and what it is about.
pub(super) struct Scene {
    pub(super) title: &'static str,
    pub(super) about: &'static str,
    /// Files to write, and what is in them. What earlier scenes wrote stays.
    pub(super) apply: &'static [(&'static str, &'static str)],
}

/// Names for addresses that would not fit the tables.
pub(super) const ALIASES: [(&str, &str); 1] = [("203.0.113.66", "partner")];

/// Three namespaces with three pods each, and three addresses outside.
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
        Scene { title: "Before any policy", about: "Nothing is isolated: everyone reaches everyone.", apply: &[] },
        Scene {
            title: "Deny all",
            about: "Nothing enters or leaves the pods of shop. The other namespaces are as open as before.",
            apply: &[("shop", include_str!("policies/deny-all.yaml"))],
        },
        Scene {
            title: "Allow from a namespace",
            about: "The pods of ops, and no others, reach those of shop.",
            apply: &[("ops-to-shop", include_str!("policies/from-namespace.yaml"))],
        },
        Scene {
            title: "Frontend, backend, database, and DNS",
            about: "Each tier is reached by the one before it; all of shop asks the DNS in ops, and nobody else.",
            apply: &[("ops-to-shop", ""), ("tiers", include_str!("policies/tiers.yaml"))],
        },
        Scene {
            title: "A CIDR with an exception",
            about: "The outside reaches the frontend on 80/TCP, but for 203.0.113.64/30, where the partner is.",
            apply: &[("outside", include_str!("policies/cidr-except.yaml"))],
        },
        Scene {
            title: "Limits on egress",
            about: "The crawler of blog asks the DNS and reads the web outside, but nothing of the cluster.",
            apply: &[("crawler", include_str!("policies/egress.yaml"))],
        },
    ]
}
