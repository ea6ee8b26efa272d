//! Tests with real connections: which pods policies select, and what policies allow (items 1 to 14 of
//! docs/semantics.md).

mod blocks;
mod isolation;
mod peers;
mod ports;

use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::{Cluster, ClusterBuilder};

/// Returns a cluster with two namespaces, and an outside host with two additional addresses.
fn shop_and_blog() -> ClusterBuilder {
    Cluster::builder()
        .namespace("shop", "team=sales")
        .namespace("blog", "team=press")
        .pods(&[
            ("shop/web", "app=web,tier=front"),
            ("shop/api", "app=api,tier=back"),
            ("shop/db", "app=db,tier=back"),
            ("blog/web", "app=web,tier=front"),
        ])
        .outside("203.0.113.5")
        .outside("203.0.113.77")
        .serve(&[(Tcp, 80), (Tcp, 443), (Udp, 53)])
}
