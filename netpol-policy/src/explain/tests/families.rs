//! Explanations for dual-stack pods.

use super::*;
use crate::model::PodKey;

/// The pods `web` and `db` have an address of each family, `v4-only` has an IPv4 address only. The Service `db` has the
/// pod `db` as its only backend, in both families.
const OBJECTS: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIPs: [{ip: 10.0.0.2}, {ip: 'fd00::2'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: v4-only, namespace: shop}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIPs: [10.96.0.1, 'fd96::1'], ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-4, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.0.0.2]}]
ports: [{port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-6, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv6
endpoints: [{addresses: ['fd00::2']}]
ports: [{port: 80}]
---
";

/// Explains a connection from pod `shop/web` to `to`. The only policy isolates `shop/web` for egress, and has these
/// rules.
fn egress(rules: &str, to: &End) -> Explanation {
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, \
         spec: {{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{rules}]}}}}"
    );
    let parsed = manifest::parse(&format!("{OBJECTS}{policy}"), "f");
    assert_eq!(parsed.errors, []);
    let cluster_state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
    let from = End::Pod(PodKey::new("shop", "web"));
    explain(&cluster_state, &from, to, Protocol::Tcp, 80).expect("both ends have addresses")
}

fn pod(name: &str) -> End {
    End::Pod(PodKey::new("shop", name))
}

#[test]
fn the_verdict_is_the_worse_of_two_families() {
    let service = || End::Service(crate::model::ServiceKey::new("shop", "db"));
    for to in [pod("db"), service()] {
        for (rules, verdict, allowed_family) in [
            ("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}", Verdict::Deny, Some(Family::V4)),
            ("{to: [{ipBlock: {cidr: '::/0'}}]}", Verdict::Deny, Some(Family::V6)),
            ("{to: [{ipBlock: {cidr: 0.0.0.0/0}}, {ipBlock: {cidr: '::/0'}}]}", Verdict::Allow, None),
            ("{to: [{podSelector: {}}]}", Verdict::Allow, None),
            ("", Verdict::Deny, None),
        ] {
            let explanation = egress(rules, &to);
            assert_eq!((explanation.verdict, explanation.allowed_family), (verdict, allowed_family), "{rules} {to}");
            assert_eq!(explanation.families.len(), 2);
            let worse = explanation
                .families
                .iter()
                .find(|family| family.verdict == verdict)
                .expect("one family has the verdict");
            assert_eq!(explanation.path, worse.path);
        }
    }
}

#[test]
fn both_families_are_shown_if_their_verdicts_differ() {
    let different = egress("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}", &pod("db"));
    expect_file!["golden/families.txt"].assert_eq(&different.to_string());
    let same = egress("{}", &pod("db")).to_string();
    let start =
        "ALLOW: pod shop/web -> pod shop/db, 80/TCP\n\nThe verdict is the same for IPv4 and IPv6:\nEgress: allow\n";
    assert!(same.starts_with(start), "{same}");
}

#[test]
fn an_address_family_that_only_one_end_has_is_not_evaluated() {
    let explanation = egress("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}", &pod("v4-only"));
    // `families` is empty if only one family is evaluated.
    assert_eq!(
        (explanation.verdict, explanation.allowed_family, explanation.families.len()),
        (Verdict::Allow, None, 0)
    );
    let explanation =
        egress("{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}", &End::Address("fd00::2".parse().expect("an address")));
    assert_eq!((explanation.verdict, explanation.allowed_family), (Verdict::Deny, None));
}
