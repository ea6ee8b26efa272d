//! Isolation, missing rules and empty rules: items 1 to 3 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use anyhow::Result;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::{Lab, policy};

use super::shop_and_blog;

#[test]
fn s01_isolation_is_per_direction_and_policies_are_additive() -> Result<()> {
    let web_from_api = policy(
        "shop/web-from-api",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 80}]}]}",
    );
    let web_from_db = policy(
        "shop/web-from-db",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 443}]}]}",
    );
    let api_to_web = policy(
        "shop/api-to-web",
        "{podSelector: {matchLabels: {app: api}}, policyTypes: [Egress],
          egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[web_from_api, web_from_db, api_to_web])?;
    lab.expect(
        "shop/api  -> shop/web  80/TCP
         shop/api  -x shop/web  443/TCP
         shop/db   -x shop/web  80/TCP
         shop/db   -> shop/web  443/TCP
         shop/web  -> blog/web  80/TCP
         shop/web  -> shop/api  80/TCP
         shop/api  -x shop/db   80/TCP
         shop/api  -x outside   53/UDP
         outside   -> shop/api  53/UDP",
    )?;
    // Also compares all other connections of the cluster with the verdicts of the reference evaluator.
    lab.wait_until_expected(&[(Tcp, 80), (Tcp, 443), (Udp, 53)])?;
    Ok(())
}

#[test]
fn s02_missing_policy_types_mean_ingress_plus_egress_if_there_are_egress_rules() -> Result<()> {
    let web = policy("shop/web", "{podSelector: {matchLabels: {app: web}}}");
    let api = policy(
        "shop/api",
        "{podSelector: {matchLabels: {app: api}},
          egress: [{to: [{podSelector: {matchLabels: {app: db}}}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[web, api])?;
    lab.expect(
        "shop/db  -x shop/web 80/TCP
         shop/web -> shop/db  80/TCP
         shop/db  -x shop/api 80/TCP
         shop/api -> shop/db  80/TCP
         shop/api -x blog/web 80/TCP",
    )
}

#[test]
fn s03_a_policy_without_rules_denies_and_an_empty_rule_allows_everything() -> Result<()> {
    let none = policy("shop/none", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: []}");
    let all = policy("shop/all", "{podSelector: {matchLabels: {app: api}}, policyTypes: [Ingress], ingress: [{}]}");
    let any_peer = policy(
        "shop/any-peer",
        "{podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress], ingress: [{from: [], ports: [{port: 80}]}]}",
    );
    let lab = Lab::start(shop_and_blog(), &[none, all, any_peer])?;
    lab.expect(
        "shop/api    -x shop/web 80/TCP
         outside     -x shop/web 80/TCP
         shop/web    -> shop/api 80/TCP
         outside     -> shop/api 53/UDP
         203.0.113.5 -> shop/db  80/TCP
         blog/web    -> shop/db  80/TCP
         blog/web    -x shop/db  53/UDP",
    )
}
