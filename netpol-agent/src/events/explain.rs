//! Explains the verdict of a flow: the policies and rules of both ends, and what would allow a denied flow.

use std::hash::{DefaultHasher, Hash, Hasher};

use netpol_api::{Fix, FlowDirection, FlowRecord, FlowRule, FlowSide, FlowVerdict};
use netpol_common::{Direction, Reason};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::{self, FlowExplanation, Verdict, explain_flow};
use netpol_policy::model::Mode;
use netpol_policy::reference::{self, Packet, RuleRef};

use super::bounds::{bound_side, bound_texts, json_len, listed};

/// The explanation of a flow at one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Explanation {
    /// The evaluation at this pod.
    pub(super) own: FlowSide,
    /// The evaluation at the other end of the flow, if the other end is a pod.
    pub(super) other: Option<FlowSide>,
    /// Hints on frequent causes.
    pub(super) hints: Vec<String>,
    /// If the other end is outside of the cluster: the `ipBlock`s in this pod's policies that contain the address of
    /// the other end.
    pub(super) blocks: Vec<String>,
    /// The rule that allows the flow at this pod. For a flow to a Service, this is the rule that allows the first
    /// allowed backend.
    pub(super) rule: Option<CountedRule>,
}

/// A rule for which flows are counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CountedRule {
    pub(super) rule: RuleRef,
    /// The hash of the rule's content. If it differs later, the rule was changed.
    pub(super) content_hash: u64,
}

/// Explains the flow that starts with `packet`, according to the current objects. With [`Mode::Shadow`], explains the
/// flow as if policies in shadow mode (evaluated, but not enforced) were enforced. Returns `None` if the pod was
/// deleted.
pub(super) fn explain(cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> Option<Explanation> {
    cluster_state.pods.get(&packet.pod)?;
    let FlowExplanation { egress, ingress, blocks, mut hints } = explain_flow(cluster_state, packet, mode);
    let (own, other) = match packet.direction {
        Direction::Ingress => (ingress, egress),
        Direction::Egress => (egress, ingress),
    };
    let own = own?;
    let rule = allowing_rule(cluster_state, packet, &own, mode);
    let counted = rule.and_then(|rule| Some(CountedRule { content_hash: content_hash(cluster_state, &rule)?, rule }));
    let mut own = record_side(own);
    bound_texts(&mut hints);
    if let Some(CountedRule { rule, .. }) = &counted {
        // If the flow is to a Service, `own` has no rule yet.
        let rule = FlowRule { policy: rule.policy.to_string(), path: rule.path(), unmet_conditions: Vec::new() };
        own.rule.get_or_insert(rule);
    }
    Some(Explanation {
        own,
        other: other.map(record_side),
        hints,
        blocks: blocks.iter().map(ToString::to_string).collect(),
        rule: counted,
    })
}

impl Explanation {
    /// Adds the explanation to a record.
    pub(super) fn add_to(&self, record: &mut FlowRecord) {
        *record.own_side_mut() = Some(FlowSide { verdict: record.verdict, ..self.own.clone() });
        let (other, remote) = match record.direction {
            FlowDirection::Ingress => (&mut record.egress, &mut record.from),
            FlowDirection::Egress => (&mut record.ingress, &mut record.to),
        };
        other.clone_from(&self.other);
        remote.blocks.clone_from(&self.blocks);
        record.hints.extend(self.hints.iter().cloned());
    }

    /// Returns the approximate size in bytes.
    pub(super) fn size(&self) -> usize {
        let texts: usize = self.hints.iter().chain(&self.blocks).map(String::len).sum();
        size_of::<Self>() + json_len(&self.own) + self.other.as_ref().map_or(0, json_len) + texts
    }
}

/// Returns the rule that allows a flow. For a flow to a Service, returns the rule that allows the first allowed
/// backend.
fn allowing_rule(
    cluster_state: &ClusterState,
    packet: &Packet,
    own: &explain::FlowSide,
    mode: Mode,
) -> Option<RuleRef> {
    if let Some(rule) = &own.rule {
        // The path ends with the index, as in `spec.egress[0]`.
        let index = rule.path.strip_suffix(']')?.rsplit_once('[')?.1.parse().ok()?;
        return Some(RuleRef { policy: rule.policy.clone(), direction: packet.direction, index });
    }
    let candidates = match own.reason {
        Reason::Service => reference::evaluate_in(cluster_state, packet, mode).candidates,
        _ => Vec::new(),
    };
    candidates.into_iter().find_map(|candidate| candidate.rule)
}

/// Converts one side of an explanation (the evaluation at one pod) to the type that records contain, with bounded size.
fn record_side(side: explain::FlowSide) -> FlowSide {
    let flow_rule = |rule: explain::FlowRule| FlowRule {
        policy: rule.policy.to_string(),
        path: rule.path,
        unmet_conditions: rule.unmet_conditions,
    };
    let (policies, policy_count) = listed(&side.policies);
    let mut side = FlowSide {
        verdict: if side.verdict == Verdict::Deny { FlowVerdict::Denied } else { FlowVerdict::Allowed },
        reason: side.reason.name().to_owned(),
        policies,
        policy_count,
        rule: side.rule.map(flow_rule),
        nearest: side.nearest.map(flow_rule),
        fix: side.fix.map(|fix| Fix { policy: fix.policy.to_string(), path: fix.path, yaml: fix.yaml }),
        fix_omitted: false,
    };
    bound_side(&mut side);
    side
}

/// Returns the hash of a rule's content; `None` if the rule does not exist.
pub(super) fn content_hash(cluster_state: &ClusterState, rule: &RuleRef) -> Option<u64> {
    let policy = cluster_state.policies.get(&rule.policy)?;
    let mut hasher = DefaultHasher::new();
    reference::rules(policy, rule.direction).get(rule.index)?.hash(&mut hasher);
    Some(hasher.finish())
}

#[cfg(test)]
mod tests {
    use netpol_common::protocol;
    use netpol_policy::manifest;
    use netpol_policy::model::PodKey;

    use super::*;

    /// Pods web and db, each with one policy. The policy of web allows egress to db at port 5432, but the policy of db
    /// allows ingress only at port 5433.
    const SHOP: &str = "
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: shop, labels: {app: db}}, status: {podIP: 10.1.0.2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
  - {to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 5432}]}
  - {to: [{ipBlock: {cidr: 203.0.113.0/24}}, {ipBlock: {cidr: 203.0.0.0/16}}], ports: [{port: 443}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: db, namespace: shop}
spec: {podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 5433}]}]}
";

    fn cluster_state() -> ClusterState {
        ClusterState::from_objects(manifest::parse(SHOP, "f").objects.into_iter().map(|located| located.object))
    }

    /// Returns a packet that pod web sends.
    fn packet(remote: [u8; 4], port: u16) -> Packet {
        Packet {
            pod: PodKey::new("shop", "web"),
            direction: Direction::Egress,
            remote: remote.into(),
            protocol: protocol::TCP,
            port,
            from_node: false,
            is_hairpin: false,
            post_dnat: false,
        }
    }

    #[test]
    fn both_sides_of_a_flow_are_explained() {
        let explained = explain(&cluster_state(), &packet([10, 1, 0, 2], 5432), Mode::Enforce).expect("no pod");
        let rule = explained.own.rule.expect("no rule");
        assert_eq!((rule.policy.as_str(), rule.path.as_str()), ("shop/web", "spec.egress[0]"));
        assert_eq!(explained.own.verdict, FlowVerdict::Allowed);
        let other = explained.other.expect("no other side");
        assert_eq!((other.verdict, other.policies), (FlowVerdict::Denied, vec!["shop/db".to_owned()]));
        let nearest = other.nearest.expect("no nearest rule");
        assert_eq!((nearest.path.as_str(), nearest.unmet_conditions.len()), ("spec.ingress[0]", 1));
        let fix = other.fix.expect("no fix");
        assert_eq!((fix.policy.as_str(), fix.path.as_str()), ("shop/db", "spec.ingress"));
        assert!(fix.yaml.contains("port: 5432"), "{}", fix.yaml);
    }

    #[test]
    fn a_flow_to_a_service_is_counted_for_the_rule_that_allows_a_backend() {
        let service = "
---
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: db-x1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.2]}]
ports: [{port: 5432}]
";
        let objects = manifest::parse(&format!("{SHOP}{service}"), "f").objects;
        let state = ClusterState::from_objects(objects.into_iter().map(|located| located.object));
        let explained = explain(&state, &packet([10, 96, 0, 7], 80), Mode::Enforce).expect("no pod");
        // Whether db allows the connection does not matter here: flows are counted for the rules of web.
        assert_eq!((explained.own.verdict, explained.own.reason.as_str()), (FlowVerdict::Allowed, "service"));
        let rule = explained.rule.expect("no rule").rule;
        assert_eq!((rule.policy.to_string().as_str(), rule.path().as_str()), ("shop/web", "spec.egress[0]"));
        assert_eq!(explained.own.rule.map(|rule| rule.path).as_deref(), Some("spec.egress[0]"));
    }

    #[test]
    fn policies_in_shadow_mode_are_evaluated_only_on_request() {
        let shadow = SHOP.replace(
            "{name: db, namespace: shop}\nspec",
            "{name: db, namespace: shop, annotations: {netpol.io/mode: shadow}}\nspec",
        );
        assert_ne!(shadow, SHOP);
        let state =
            ClusterState::from_objects(manifest::parse(&shadow, "f").objects.into_iter().map(|located| located.object));
        let packet =
            Packet { pod: PodKey::new("shop", "db"), direction: Direction::Ingress, ..packet([10, 1, 0, 1], 5432) };
        for (mode, verdict) in [(Mode::Enforce, FlowVerdict::Allowed), (Mode::Shadow, FlowVerdict::Denied)] {
            assert_eq!(explain(&state, &packet, mode).expect("no pod").own.verdict, verdict, "{mode:?}");
        }
    }

    #[test]
    fn the_blocks_that_contain_an_address_outside_the_cluster_are_listed() {
        let explained = explain(&cluster_state(), &packet([203, 0, 113, 7], 80), Mode::Enforce).expect("no pod");
        assert_eq!(explained.own.verdict, FlowVerdict::Denied);
        assert_eq!(explained.other, None);
        let covering = |cidr: &str, index| format!("{cidr} (shop/web spec.egress[1].to[{index}])");
        assert_eq!(explained.blocks, [covering("203.0.113.0/24", 0), covering("203.0.0.0/16", 1)]);
    }

    #[test]
    fn a_changed_rule_has_another_content_hash() {
        let before = cluster_state();
        let explained = explain(&before, &packet([10, 1, 0, 2], 5432), Mode::Enforce).expect("no pod");
        let rule = explained.rule.expect("no rule");
        let changed = SHOP.replace("port: 5432", "port: 5434");
        let objects = manifest::parse(&changed, "f").objects.into_iter().map(|located| located.object);
        let after = ClusterState::from_objects(objects);
        assert_eq!(content_hash(&before, &rule.rule), Some(rule.content_hash));
        assert_ne!(content_hash(&after, &rule.rule), Some(rule.content_hash));
        assert_eq!(content_hash(&after, &RuleRef { index: 7, ..rule.rule }), None);
    }
}
