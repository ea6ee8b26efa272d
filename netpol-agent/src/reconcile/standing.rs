//! Whether this node enforces what somebody waits for, and if not, why.

use std::net::IpAddr;

use netpol_api::{Condition, Endpoint as EndpointStatus, Kind, Pending, Target};
use netpol_common::{DirectionPolicy, IfIndex, RuleSetId, endpoint_flags};
use netpol_policy::model::{Pod, PodKey, PolicyKey};
use netpol_policy::tables::EndpointPolicy;

use super::settle::addresses_of;
use super::{Held, QUARANTINE, Reconciler};
use crate::dataplane::Dataplane;
use crate::source::Revision;

/// Asks whether a condition holds.
#[derive(Clone, Debug)]
pub struct Check {
    /// What is to hold.
    pub condition: Condition,
    /// The batch that says so: before it is taken in, nothing holds.
    pub revision: Revision,
}

/// How it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds.
    Holds,
    /// It does not hold; why, where the pods that are pending do not say it.
    Not(Option<String>),
    /// There is no such object.
    Absent,
    /// It will not hold, whatever comes.
    Never(String),
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How it stands.
    pub standing: Standing,
    /// The last batch that was taken in.
    pub enforced: Revision,
    /// The pods of this node that it is about.
    pub pods: Vec<String>,
    /// Those that are not enforced.
    pub pending: Vec<Pending>,
}

impl Finding {
    /// What is asked about is not known yet.
    pub fn unknown(reason: &str) -> Self {
        let standing = Standing::Not(Some(reason.to_owned()));
        Self { standing, enforced: Revision::default(), pods: Vec::new(), pending: Vec::new() }
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Looks at one condition; `received` is the last batch that was taken in.
    pub fn check(&self, check: &Check, received: Revision) -> Finding {
        let mut finding =
            Finding { standing: Standing::Holds, enforced: received, pods: Vec::new(), pending: Vec::new() };
        if received < check.revision {
            finding.standing = Standing::Not(Some("its last change is not taken in yet".to_owned()));
            return finding;
        }
        if !self.has_engine() {
            finding.standing = Standing::Not(Some("changes are still being evaluated".to_owned()));
            return finding;
        }
        let world = self.engine.world();
        match &check.condition {
            Condition::Enforced(Target { kind: Kind::Policy, namespace, name }) => {
                let policy = PolicyKey::new(namespace.as_str(), name.as_str());
                if !world.policies.contains_key(&policy) {
                    finding.standing = Standing::Absent;
                    return finding;
                }
                self.fill(&mut finding, |_, desired| self.names([desired.ingress, desired.egress], &policy));
            }
            Condition::Enforced(Target { kind: Kind::Pod, namespace, name }) => {
                let key = PodKey::new(namespace.as_str(), name.as_str());
                finding.standing = match world.pods.get(&key) {
                    None => Standing::Absent,
                    Some(pod) => self.standing_of(pod),
                };
                if finding.standing == Standing::Holds {
                    self.fill(&mut finding, |pod, _| pod.key == key);
                }
            }
            Condition::Deleted(Target { kind: Kind::Policy, namespace, name }) => {
                let policy = PolicyKey::new(namespace.as_str(), name.as_str());
                if world.policies.contains_key(&policy) {
                    finding.standing = Standing::Not(Some("it is still there".to_owned()));
                    return finding;
                }
                // What goes missing while a rule set is replaced, and who still has the old one.
                for held in self.held.values().filter(|held| !held.orphaned) {
                    let Some(pod) = &held.pod else { continue };
                    if self.names([held.endpoint.ingress, held.endpoint.egress], &policy) {
                        finding.pods.push(pod.to_string());
                        let reason = "it still has the policy".to_owned();
                        finding.pending.push(Pending { pod: pod.to_string(), reason });
                    }
                }
            }
            Condition::Deleted(Target { kind: Kind::Pod, namespace, name }) => {
                let key = PodKey::new(namespace.as_str(), name.as_str());
                if world.pods.contains_key(&key) {
                    finding.standing = Standing::Not(Some("it is still there".to_owned()));
                } else if self.held.values().any(|held| held.pod.as_ref() == Some(&key)) {
                    let reason = "its interface is still there, and enforced as before";
                    finding.pending.push(Pending { pod: key.to_string(), reason: reason.to_owned() });
                }
            }
            Condition::Sync => self.fill(&mut finding, |_, _| true),
        }
        if finding.standing == Standing::Holds && !finding.pending.is_empty() {
            finding.standing = Standing::Not(None);
        }
        finding
    }

    /// The pods of this node that are to be enforced and are not.
    pub fn pending(&self) -> Vec<Pending> {
        let missing = |pod: &Pod| Some(Pending { pod: pod.key.to_string(), reason: self.missing(pod)? });
        self.local().filter(|pod| !pod.addresses.is_empty()).filter_map(missing).collect()
    }

    /// Whether everything that was taken in is in the kernel, pods aside whose interfaces are not there.
    pub fn is_whole(&self) -> bool {
        self.failures.is_empty() && !self.failures.has_trouble()
    }

    /// Whether there are Node objects, and none of them is this node: `--node` names another one, or nothing.
    pub fn is_node_unknown(&self) -> bool {
        self.pods.is_node_unknown()
    }

    /// This node's name.
    pub fn node(&self) -> &str {
        &self.options.node
    }

    /// How many interfaces claim a pod or an address that another one is bound to.
    pub fn conflicts(&self) -> usize {
        self.bindings.conflicts()
    }

    /// How many addresses pods have that their objects do not list.
    pub fn unlisted_addresses(&self) -> usize {
        self.bindings.all_unlisted()
    }

    /// How many further interfaces the namespaces of pods have.
    pub fn secondary_interfaces(&self) -> usize {
        self.bindings.secondary()
    }

    /// Every interface with an endpoint, for people.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let names = |set: RuleSetId| {
            let known = || self.names.get(&set).map(Vec::as_slice);
            let policies = self.engine.rule_set(set).or_else(known).unwrap_or_default();
            policies.iter().map(ToString::to_string).collect()
        };
        let status = |(ifindex, held): (&IfIndex, &Held)| EndpointStatus {
            ifindex: ifindex.0,
            interface: self.survey.veths.get(ifindex).map_or_else(String::new, |(veth, _)| veth.name.clone()),
            pod: held.pod.as_ref().map(ToString::to_string),
            addresses: addresses_of(&held.endpoint).collect::<Vec<IpAddr>>(),
            attached: held.attached,
            orphaned: held.orphaned,
            conflict: self.bindings.conflict(*ifindex).map(str::to_owned),
            unlisted: self.bindings.unlisted(*ifindex).to_vec(),
            policies: netpol_api::Directions {
                ingress: names(held.endpoint.ingress.rule_set),
                egress: names(held.endpoint.egress.rule_set),
            },
        };
        self.held.iter().map(status).collect()
    }

    fn fill(&self, finding: &mut Finding, which: impl Fn(&Pod, EndpointPolicy) -> bool) {
        for pod in self.local().filter(|pod| !pod.addresses.is_empty()) {
            if self.engine.endpoint(&pod.key).is_some_and(|desired| which(pod, desired)) {
                finding.pods.push(pod.key.to_string());
                if let Some(reason) = self.missing(pod) {
                    finding.pending.push(Pending { pod: pod.key.to_string(), reason });
                }
            }
        }
    }

    pub(super) fn local(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter()
    }

    /// Whether a pod can be enforced here at all.
    fn standing_of(&self, pod: &Pod) -> Standing {
        match &pod.node {
            None => Standing::Not(Some("it is on no node yet".to_owned())),
            Some(node) if *node != self.options.node => {
                Standing::Never(format!("it is on node {node}, and this agent is for {}", self.options.node))
            }
            Some(_) if pod.host_network => {
                Standing::Never("it has the node's own network, which policies do not apply to".to_owned())
            }
            Some(_) if pod.finished => Standing::Never("it is finished".to_owned()),
            Some(_) if pod.addresses.is_empty() => Standing::Not(Some("it has no address yet".to_owned())),
            Some(_) => Standing::Holds,
        }
    }

    fn names(&self, directions: [DirectionPolicy; 2], policy: &PolicyKey) -> bool {
        directions
            .iter()
            .any(|direction| self.engine.rule_set(direction.rule_set).is_some_and(|policies| policies.contains(policy)))
    }

    /// What keeps a pod of this node from being enforced as it should be.
    fn missing(&self, pod: &Pod) -> Option<String> {
        const UNEVALUATED: &str = "its policies are still being evaluated";
        let found = self.held.iter().find(|(ifindex, held)| {
            held.pod.as_ref() == Some(&pod.key) && !held.orphaned && self.survey.veths.contains_key(ifindex)
        });
        let Some((ifindex, held)) = found else {
            let crowded = self.crowded.keys().any(|ifindex| {
                let side = self.survey.veths.get(ifindex).map(|(_, side)| side);
                side.is_some_and(|side| pod.addresses.iter().any(|address| side.addresses.contains(address)))
            });
            return Some(if !self.pods.is_evaluated(&pod.key) {
                UNEVALUATED.to_owned()
            } else if crowded {
                "no room for another endpoint; raise --max-endpoints".to_owned()
            } else {
                "its interface is not there yet".to_owned()
            });
        };
        if !held.attached {
            let trouble = self.failures.trouble_of(*ifindex);
            return Some(trouble.unwrap_or("the programs are not on its interface yet").to_owned());
        }
        if held.shut {
            return Some(format!("{UNEVALUATED}; it drops everything until then"));
        }
        if [held.endpoint.ingress.rule_set, held.endpoint.egress.rule_set].contains(&QUARANTINE) {
            return Some("a CIDR could not be written, so it drops everything; see netpol_map_full_total".to_owned());
        }
        if held.endpoint.has(endpoint_flags::INCOMPLETE) {
            let missing = self.failures.problems().missing;
            if missing > 0 {
                return Some(format!("{missing} map entries could not be written; see netpol_map_full_total"));
            }
            if self.policies.get(&pod.key).is_some_and(|policy| policy.incomplete) {
                return Some("parts of its policies exceed the memory for policies; see left_out".to_owned());
            }
        }
        let desired =
            if self.has_engine() { self.engine.endpoint(&pod.key) } else { self.policies.get(&pod.key).copied() };
        if desired.map(|policy| [policy.ingress, policy.egress]) != Some([held.endpoint.ingress, held.endpoint.egress])
        {
            let trouble = self.failures.trouble_of(*ifindex);
            return Some(trouble.unwrap_or("its endpoint has not its last policies yet").to_owned());
        }
        self.failures.trouble_of(*ifindex).map(str::to_owned)
    }
}
