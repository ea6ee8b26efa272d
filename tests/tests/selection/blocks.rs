//! ipBlocks: items 11 to 14 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::Result;
use netpol_tests::{Families, Lab, policy};

use super::shop_and_blog;

#[test]
fn s11_s12_s13_blocks_match_without_their_excepts() -> Result<()> {
    let mut lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/db",
            "podSelector: {matchLabels: {app: db}}
             policyTypes: [Ingress, Egress]
             ingress:
             - from: [{ipBlock: {cidr: 203.0.113.9/24, except: [203.0.113.64/26]}}]
               ports: [{port: 80}]
             - from: [{ipBlock: {cidr: 203.0.113.64/27}}]
               ports: [{port: 443}]
             egress:
             - to: [{ipBlock: {cidr: 0.0.0.0/0, except: [203.0.113.0/26]}}]
               ports: [{protocol: UDP, port: 53}]",
        )],
    )?;
    lab.expect(
        "203.0.113.5  -> shop/db 80/TCP
         203.0.113.5  -x shop/db 443/TCP
         203.0.113.77 -x shop/db 80/TCP
         203.0.113.77 -> shop/db 443/TCP
         outside      -x shop/db 80/TCP
         shop/db -x 203.0.113.5  53/UDP
         shop/db -> 203.0.113.77 53/UDP
         shop/db -x 203.0.113.77 80/TCP
         shop/db -> outside      53/UDP
         shop/db -> shop/web     53/UDP",
    )?;
    // A warning in the log: this CIDR has host bits.
    lab.agent().wait_log(&["203.0.113.9/24"])
}

#[test]
fn s14_blocks_apply_to_pod_addresses() -> Result<()> {
    // Each cluster of this kind has the same addresses, so the policy can contain an address of this first cluster.
    let cluster = shop_and_blog().build()?;
    let api = cluster.host("shop/api").v4();
    drop(cluster);
    let lab = Lab::start(
        shop_and_blog(),
        &[policy(
            "shop/db",
            &format!(
                "{{podSelector: {{matchLabels: {{app: db}}}}, policyTypes: [Ingress], \
                 ingress: [{{from: [{{ipBlock: {{cidr: {api}/32}}}}]}}]}}"
            ),
        )],
    )?;
    lab.expect("shop/api -> shop/db 80/TCP\nshop/web -x shop/db 80/TCP\nblog/web -x shop/db 80/TCP")
}

#[test]
fn s13_invalid_blocks_match_nothing_and_other_blocks_still_match() -> Result<()> {
    // Only the third block is valid. One of its excepts, fd77::/16, contains the IPv6 addresses of the pods.
    let mut lab = Lab::start(
        shop_and_blog().outside("2001:db8:5::5").outside("2001:db8:6::6").families(Families::Dual),
        &[policy(
            "shop/db",
            "podSelector: {matchLabels: {app: db}}
             policyTypes: [Ingress]
             ingress:
             - from: [{ipBlock: {cidr: '::ffff:203.0.113.0/120'}}]
             - from: [{ipBlock: {cidr: 203.0.113.0/24, except: [10.0.0.0/8]}}]
             - from: [{ipBlock: {cidr: '::/0', except: ['2001:db8:6::/48', 'fd77::/16']}}]",
        )],
    )?;
    lab.expect(
        "203.0.113.5   -x shop/db 80/TCP
         203.0.113.77  -x shop/db 53/UDP
         2001:db8:5::5 -> shop/db 80/TCP
         2001:db8:6::6 -x shop/db 80/TCP
         shop/web      -x shop/db 80/TCP",
    )?;
    lab.agent().wait_log(&["shop/db", "::ffff:203.0.113.0/120"])?;
    lab.agent().wait_log(&["shop/db", "10.0.0.0/8"])
}
