//! Checks the conditions that clients wait for, for example that this node enforces a policy. If a condition does not
//! hold, returns why.

use std::net::IpAddr;

use netpol_api::{Condition, Endpoint as EndpointStatus, Pending, Target, TargetKind};
use netpol_common::{DirectionPolicy, IfIndex, RuleSetId, endpoint_flags};
use netpol_policy::model::{Mode, Pod, PodKey, Policy, PolicyKey};
use netpol_policy::tables::EndpointPolicy;

use super::desired::addresses_of;
use super::interface::{Interface, Phase};
use super::{QUARANTINE, Reconciler, all_policies};
use netpol_dataplane::Dataplane;
use netpol_source::Generation;

/// A condition to check.
#[derive(Clone, Debug)]
pub struct Check {
    /// Condition that must hold.
    pub condition: Condition,
    /// Number of the batch of events that contains the change for which the client waits. The condition cannot hold
    /// before this batch is applied.
    pub generation: Generation,
    /// Addresses that the pod of the condition must have; `None`: any.
    pub addresses: Option<Vec<IpAddr>>,
}

/// State of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConditionState {
    /// The condition holds.
    Holds,
    /// The condition does not hold yet, for this reason. `None` if each pending pod has its own reason.
    NotYet(Option<String>),
    /// The object does not exist.
    Absent,
    /// The condition cannot hold on this node until objects or the agent's options change, or a suspension ends.
    Never(String),
}

/// Result of a check.
#[derive(Clone, Debug)]
pub struct CheckResult {
    /// State of the condition.
    pub condition: ConditionState,
    /// Number of the last batch of events that was applied.
    pub applied: Generation,
    /// Pods of this node that the condition is about.
    pub pods: Vec<String>,
    /// Pods for which the condition does not hold yet, and why.
    pub pending: Vec<Pending>,
}

impl CheckResult {
    /// Returns the result of a check that cannot be decided yet.
    pub fn unknown(reason: &str) -> Self {
        let condition = ConditionState::NotYet(Some(reason.to_owned()));
        Self { condition, applied: Generation::default(), pods: Vec::new(), pending: Vec::new() }
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Checks one condition. `applied` is the number of the last batch of events that was applied.
    pub fn check(&self, check: &Check, applied: Generation) -> CheckResult {
        let mut result =
            CheckResult { condition: ConditionState::Holds, applied, pods: Vec::new(), pending: Vec::new() };
        if applied < check.generation {
            result.condition = ConditionState::NotYet(Some("its latest change is not applied yet".to_owned()));
            return result;
        }
        // While the engine (the compiler of policies) runs on another thread, it cannot be queried.
        if !self.has_engine() {
            result.condition = ConditionState::NotYet(Some("changes are still being compiled".to_owned()));
            return result;
        }
        let cluster_state = self.engine.cluster_state();
        match &check.condition {
            Condition::Enforced(Target { kind: TargetKind::Policy, namespace, name }) => {
                let policy = PolicyKey::new(namespace.as_str(), name.as_str());
                let Some(found) = cluster_state.policies.get(&policy) else {
                    result.condition = ConditionState::Absent;
                    return result;
                };
                if let Some(reason) = self.why_not_enforced(found) {
                    result.condition = ConditionState::Never(reason);
                    return result;
                }
                self.add_pods(&mut result, |_, desired| {
                    let EndpointPolicy { ingress, egress, shadow_ingress, shadow_egress, .. } = desired;
                    self.rule_sets_contain(&[ingress, egress, shadow_ingress, shadow_egress], &policy)
                });
            }
            Condition::Enforced(Target { kind: TargetKind::Pod, namespace, name }) => {
                let key = PodKey::new(namespace.as_str(), name.as_str());
                result.condition = match cluster_state.pods.get(&key) {
                    None => ConditionState::Absent,
                    Some(pod) if check.addresses.as_ref().is_some_and(|addresses| *addresses != pod.addresses) => {
                        ConditionState::NotYet(Some("its addresses are not applied yet".to_owned()))
                    }
                    Some(pod) => self.can_be_enforced(pod),
                };
                if result.condition == ConditionState::Holds {
                    self.add_pods(&mut result, |pod, _| pod.key == key);
                }
            }
            Condition::Deleted(Target { kind: TargetKind::Policy, namespace, name }) => {
                let policy = PolicyKey::new(namespace.as_str(), name.as_str());
                if cluster_state.policies.contains_key(&policy) {
                    result.condition = ConditionState::NotYet(Some("the object still exists".to_owned()));
                    return result;
                }
                self.add_pods_with_deleted_policy(&mut result, &policy);
            }
            Condition::Deleted(Target { kind: TargetKind::Pod, namespace, name }) => {
                let key = PodKey::new(namespace.as_str(), name.as_str());
                if cluster_state.pods.contains_key(&key) {
                    result.condition = ConditionState::NotYet(Some("the object still exists".to_owned()));
                } else if self.pod_endpoints().any(|pod_endpoint| pod_endpoint.pod.as_ref() == Some(&key)) {
                    let reason = "the interface still exists and is enforced as before";
                    result.pending.push(Pending { pod: key.to_string(), reason: reason.to_owned() });
                }
            }
            Condition::Sync => self.add_pods(&mut result, |_, _| true),
        }
        if result.condition == ConditionState::Holds && !result.pending.is_empty() {
            result.condition = ConditionState::NotYet(None);
        }
        result
    }

    /// Returns why a policy cannot be enforced now: the option `--observe`, a suspension, or shadow mode. `None`: it
    /// can be enforced now.
    fn why_not_enforced(&self, policy: &Policy) -> Option<String> {
        let is_shadow = || self.engine.cluster_state().mode(policy) == Mode::Shadow;
        let reason = self.not_enforced_in(&policy.key.namespace);
        reason.or_else(|| is_shadow().then(|| "the policy is in shadow mode".to_owned()))
    }

    /// Returns why no policy of a namespace is enforced now: `--observe`, or a suspension.
    pub fn not_enforced_in(&self, namespace: &str) -> Option<String> {
        if self.options.observe {
            return Some("the agent enforces nothing (--observe)".to_owned());
        }
        let of_namespace =
            self.suspensions.iter().filter(|suspension| suspension.cluster || &*suspension.namespace == namespace);
        let until = of_namespace.map(|suspension| suspension.until).max()?;
        Some(format!("enforcement is suspended until {until}"))
    }

    /// Adds the pods with an endpoint that still has a rule set of a deleted policy. Orphaned endpoints (of deleted
    /// pods) keep their last policies, so they are not added.
    fn add_pods_with_deleted_policy(&self, result: &mut CheckResult, policy: &PolicyKey) {
        for pod_endpoint in self.pod_endpoints().filter(|pod_endpoint| !pod_endpoint.is_orphaned()) {
            let Some(pod) = &pod_endpoint.pod else { continue };
            if self.rule_sets_contain(&all_policies(&pod_endpoint.endpoint), policy) {
                result.pods.push(pod.to_string());
                let reason = "the policy is still enforced on the pod".to_owned();
                result.pending.push(Pending { pod: pod.to_string(), reason });
            }
        }
    }

    /// Returns the pods of this node on which policies are not enforced yet.
    pub fn pending(&self) -> Vec<Pending> {
        let pending = |pod: &Pod| Some(Pending { pod: pod.key.to_string(), reason: self.pending_reason(pod)? });
        self.local_pods().filter(|pod| !pod.addresses.is_empty()).filter_map(pending).collect()
    }

    /// Returns whether all changes are in the kernel. Pods without an interface are not checked.
    pub fn is_fully_applied(&self) -> bool {
        self.failures.is_empty() && self.interfaces.values().all(|interface| interface.error().is_none())
    }

    /// Returns whether there are Node objects, but none for this node. If so, `--node` is wrong.
    pub fn is_node_unknown(&self) -> bool {
        self.pods.is_node_unknown()
    }

    /// Returns the name of this node.
    pub fn node(&self) -> &str {
        &self.options.node
    }

    /// Returns the number of interfaces that claim a pod or an address to which another interface is bound.
    pub fn conflicts(&self) -> usize {
        self.interfaces_that(|interface| interface.identity.conflict.is_some()).len()
    }

    /// Returns the number of addresses that pods' interfaces have, but the pods' objects do not list.
    pub fn unlisted_addresses(&self) -> usize {
        self.interfaces.values().map(|interface| interface.identity.unlisted.len()).sum()
    }

    /// Returns the number of additional interfaces in pods' network namespaces.
    pub fn secondary_interfaces(&self) -> usize {
        self.interfaces_that(|interface| interface.identity.secondary.is_some()).len()
    }

    /// Returns every interface with an endpoint, for the status.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let names = |set: RuleSetId| {
            let stored = || self.rule_set_names.get(&set).map(Vec::as_slice);
            let policies = self.engine.rule_set(set).or_else(stored).unwrap_or_default();
            policies.iter().map(ToString::to_string).collect()
        };
        let status = |(ifindex, interface): (&IfIndex, &Interface)| {
            let pod_endpoint = interface.endpoint()?;
            Some(EndpointStatus {
                ifindex: ifindex.0,
                interface: self.snapshot.veths.get(ifindex).map_or_else(String::new, |(veth, _)| veth.name.clone()),
                pod: pod_endpoint.pod.as_ref().map(ToString::to_string),
                addresses: addresses_of(&pod_endpoint.endpoint).collect::<Vec<IpAddr>>(),
                attached: interface.attached_endpoint().is_some(),
                orphaned: pod_endpoint.is_orphaned(),
                conflict: interface.identity.conflict.clone(),
                unlisted_addresses: interface.identity.unlisted.clone(),
                policies: netpol_api::Directions {
                    ingress: names(pod_endpoint.endpoint.ingress.rule_set),
                    egress: names(pod_endpoint.endpoint.egress.rule_set),
                },
                shadow_policies: netpol_api::Directions {
                    ingress: names(pod_endpoint.endpoint.shadow_ingress.rule_set),
                    egress: names(pod_endpoint.endpoint.shadow_egress.rule_set),
                },
            })
        };
        self.interfaces.iter().filter_map(status).collect()
    }

    /// Adds the pods of this node that match `which`. For pods that are not enforced yet, also adds the reason.
    fn add_pods(&self, result: &mut CheckResult, which: impl Fn(&Pod, EndpointPolicy) -> bool) {
        for pod in self.local_pods().filter(|pod| !pod.addresses.is_empty()) {
            if self.engine.endpoint(&pod.key).is_some_and(|desired| which(pod, desired)) {
                result.pods.push(pod.key.to_string());
                if let Some(reason) = self.pending_reason(pod) {
                    result.pending.push(Pending { pod: pod.key.to_string(), reason });
                }
            }
        }
    }

    /// Returns the pods of this node.
    pub fn local_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter()
    }

    /// Returns `Holds` if policies can be enforced on a pod at this node, otherwise why they cannot.
    fn can_be_enforced(&self, pod: &Pod) -> ConditionState {
        match &pod.node {
            None => ConditionState::NotYet(Some("the pod is not scheduled yet".to_owned())),
            Some(node) if *node != self.options.node => ConditionState::Never(format!(
                "the pod is on node {node}; this agent runs on node {}",
                self.options.node
            )),
            Some(_) if pod.host_network => {
                ConditionState::Never("the pod uses the host network, to which policies do not apply".to_owned())
            }
            Some(_) if pod.finished => ConditionState::Never("the pod is finished".to_owned()),
            Some(_) if pod.addresses.is_empty() => {
                ConditionState::NotYet(Some("the pod has no address yet".to_owned()))
            }
            Some(_) => ConditionState::Holds,
        }
    }

    /// Returns whether one of the rule sets of an endpoint contains a policy.
    fn rule_sets_contain(&self, directions: &[DirectionPolicy], policy: &PolicyKey) -> bool {
        directions
            .iter()
            .any(|direction| self.engine.rule_set(direction.rule_set).is_some_and(|policies| policies.contains(policy)))
    }

    /// Returns why policies are not enforced on a pod of this node yet. `None`: they are enforced.
    fn pending_reason<'a>(&'a self, pod: &Pod) -> Option<String> {
        const UNCOMPILED: &str = "its policies are still being compiled";
        let endpoint_of_pod = |interface: &'a Interface| {
            let pod_endpoint = interface.endpoint()?;
            let is_of_pod = pod_endpoint.pod.as_ref() == Some(&pod.key) && !pod_endpoint.is_orphaned();
            (is_of_pod && interface.is_veth).then_some((interface, pod_endpoint))
        };
        let Some((interface, pod_endpoint)) = self.interfaces.values().find_map(endpoint_of_pod) else {
            let lacks_room = |(ifindex, interface): (&IfIndex, &Interface)| {
                let pod_end = self.snapshot.veths.get(ifindex).map(|(_, pod_end)| pod_end);
                interface.no_room
                    && pod_end
                        .is_some_and(|pod_end| pod.addresses.iter().any(|address| pod_end.addresses.contains(address)))
            };
            return Some(if !self.pods.is_compiled(&pod.key) {
                UNCOMPILED.to_owned()
            } else if self.interfaces.iter().any(lacks_room) {
                "no room for another endpoint; raise --max-endpoints".to_owned()
            } else {
                "no interface with an address of the pod was found yet".to_owned()
            });
        };
        let error = interface.error();
        if interface.attached_endpoint().is_none() {
            return Some(error.unwrap_or("the eBPF programs are not attached yet").to_owned());
        }
        if pod_endpoint.phase == Phase::Shut {
            return Some(format!("{UNCOMPILED}; all of its traffic is dropped until then"));
        }
        if [pod_endpoint.endpoint.ingress.rule_set, pod_endpoint.endpoint.egress.rule_set].contains(&QUARANTINE) {
            return Some("a CIDR could not be written, so the pod drops all traffic in isolated directions; see netpol_map_full_total".to_owned());
        }
        if pod_endpoint.endpoint.has(endpoint_flags::INCOMPLETE) {
            let missing = self.failures.failed_writes().missing;
            if missing > 0 {
                return Some(format!("{missing} map entries could not be written; see netpol_map_full_total"));
            }
            if self.policies.get(&pod.key).is_some_and(|policy| policy.incomplete) {
                return Some(
                    "parts of its policies exceed --max-policy-memory; `netpol-agent status` lists them".to_owned(),
                );
            }
        }
        let desired =
            if self.has_engine() { self.engine.endpoint(&pod.key) } else { self.policies.get(&pod.key).copied() };
        let written = &pod_endpoint.endpoint;
        // While a map entry for policies in shadow mode is missing, `desired_endpoint` omits these policies.
        let is_written = |policy: EndpointPolicy| {
            let shadow = [policy.shadow_ingress, policy.shadow_egress];
            [policy.ingress, policy.egress] == [written.ingress, written.egress]
                && (shadow == [written.shadow_ingress, written.shadow_egress] || self.failures.affects(shadow))
        };
        if !desired.is_some_and(is_written) {
            return Some(error.unwrap_or("its latest policies are not written yet").to_owned());
        }
        error.map(str::to_owned)
    }
}
