//! Pods that are isolated for egress and cannot reach cluster DNS.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use netpol_common::{Direction, protocol};

use super::context::{Context, shortened_list};
use super::egress::{ListId, Target, allowed, targets};
use super::finding::Draft;
use super::services::added_rule;
use super::{NotChecked, RuleId, dns_port, suggest};
use crate::cluster_state::ClusterState;
use crate::explain::PolicyChange;
use crate::model::{Backend, Frontend, FrontendAddress, Pod, PolicyKey, Service, ServiceKey};
use crate::reference::Packet;

/// The namespace of the cluster DNS.
const DNS_NAMESPACE: &str = "kube-system";
const DNS_PORT: u16 = 53;

/// Finds pods that are isolated for egress and cannot reach the cluster DNS. Adds one finding to each policy that
/// isolates such pods. If several policies isolate a pod, only the first one gets the finding.
pub(super) fn check(
    context: &Context<'_>,
    drafts: &mut BTreeMap<PolicyKey, Vec<Draft>>,
    not_checked: &mut Vec<NotChecked>,
) {
    let isolates_pods =
        context.policies.iter().any(|view| view.policy.egress.is_some() && !context.selected(view).is_empty());
    if !isolates_pods {
        return;
    }
    let Some((dns, targets)) = cluster_dns(context.state) else {
        // Without a known cluster DNS, only checks whether pods have any rule for DNS.
        dns_port::check(context, drafts);
        let reason = format!("no Service with backends at port {DNS_PORT} is known in {DNS_NAMESPACE}");
        return not_checked.push(NotChecked::new(RuleId::DNS_DENIED, reason));
    };
    for (policy, (pods, denied_targets)) in denied(context, &targets) {
        let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
        let (label, subject) = if pods.len() == 1 { ("pod", "The pod") } else { ("pods", "The pods") };
        let draft = Draft::new(
            RuleId::DNS_DENIED,
            "spec.egress",
            format!(
                "No rule allows {label} {} to reach the cluster DNS, Service {dns}, at {}.",
                shortened_list(&names, "pods"),
                suggest::ports(&denied_targets)
            ),
            format!("{subject} cannot resolve DNS names."),
            added_rule(context.state, policy, &targets),
        );
        drafts.entry(policy.clone()).or_default().push(draft);
    }
}

/// For each policy, the pods for which at least one target (a backend of a Service) is denied, and all targets that are
/// denied for any of these pods. A pod is listed only for the first policy that isolates it.
pub(super) type Denied<'a> = BTreeMap<&'a PolicyKey, (Vec<&'a Pod>, BTreeSet<Target>)>;

/// Finds the pods for which at least one of these targets is denied.
pub(super) fn denied<'a>(context: &Context<'a>, targets: &BTreeSet<Target>) -> Denied<'a> {
    let mut denied = Denied::new();
    // For each list of policies that isolate a group of pods: the targets that these policies do not allow.
    let mut denied_by_list: HashMap<ListId, Vec<&Target>> = HashMap::new();
    // All pods of a group have the same labels, so the same policies (`list`) isolate them for egress.
    let groups = context.groups.iter().flat_map(|(name, groups)| groups.iter().zip(context.egress.lists_of(name)));
    for (group, list) in groups.filter(|(group, _)| !group.host_network) {
        // `most_permissive`: as if unknown addresses matched as many ipBlocks as possible.
        let policies = context.egress.most_permissive(*list);
        let Some(key) = policies.first().map(|policy| &policy.key) else { continue };
        let denied_by_policies = denied_by_list.entry(*list).or_insert_with(|| {
            targets.iter().filter(|target| !allowed(context.most_permissive, policies, target)).collect()
        });
        for pod in &group.pods {
            // Targets of the pod's address families, except for the pod itself.
            let of_pod = denied_by_policies.iter().filter(|(backend, _)| {
                let has_family = pod.addresses.iter().any(|address| address.is_ipv4() == backend.address.is_ipv4());
                has_family && !pod.addresses.contains(&backend.address)
            });
            let mut of_pod = of_pod.peekable();
            if of_pod.peek().is_some() {
                let (pods, denied_targets) = denied.entry(key).or_default();
                pods.push(pod);
                denied_targets.extend(of_pod.copied());
            }
        }
    }
    for (pods, _) in denied.values_mut() {
        pods.sort_by_key(|pod| &pod.key);
    }
    denied
}

/// Returns the cluster DNS: the first Service in [`DNS_NAMESPACE`] that has the DNS port and backends.
fn cluster_dns(cluster_state: &ClusterState) -> Option<(ServiceKey, BTreeSet<Target>)> {
    let services = cluster_state.services.range(ServiceKey::new(DNS_NAMESPACE, "")..).map(|(_, service)| service);
    services.take_while(|service| *service.key.namespace == *DNS_NAMESPACE).find_map(|service| {
        let targets = targets(cluster_state, service, |port| port == DNS_PORT);
        (!targets.is_empty()).then(|| (service.key.clone(), targets))
    })
}

/// A DNS query of a pod.
pub(crate) struct DnsQuery {
    /// The Service of the cluster DNS and its backends, if the query is for the cluster DNS.
    cluster_dns: Option<(ServiceKey, BTreeSet<Target>)>,
}

impl DnsQuery {
    /// Returns the DNS query that a packet starts; `None` if the packet does not come from a pod, or is neither to the
    /// DNS port nor to the cluster DNS.
    pub(crate) fn of(cluster_state: &ClusterState, packet: &Packet) -> Option<Self> {
        if packet.direction == Direction::Ingress || ![protocol::UDP, protocol::TCP].contains(&packet.protocol) {
            return None;
        }
        let destination = Backend { address: packet.remote, port: packet.port };
        let is_frontend_of = |service: &ServiceKey| {
            let service = cluster_state.services.get(service);
            let mut frontends = service.into_iter().flat_map(Service::frontends);
            let (address, port) = (FrontendAddress::Address(destination.address), destination.port);
            let wanted = Frontend { address, port, protocol: packet.protocol };
            frontends.any(|(frontend, _)| frontend == wanted)
        };
        let is_for_cluster_dns = |(service, targets): &(ServiceKey, BTreeSet<Target>)| {
            targets.iter().any(|(backend, _)| *backend == destination) || is_frontend_of(service)
        };
        let cluster_dns = cluster_dns(cluster_state).filter(is_for_cluster_dns);
        (packet.port == DNS_PORT || cluster_dns.is_some()).then_some(Self { cluster_dns })
    }

    /// If the query is for the cluster DNS, returns the Service of the cluster DNS, and a change of `policy` that would
    /// allow the query.
    pub(crate) fn rule_of(
        &self,
        cluster_state: &ClusterState,
        policy: &PolicyKey,
    ) -> Option<(&ServiceKey, Option<PolicyChange>)> {
        let (service, targets) = self.cluster_dns.as_ref()?;
        Some((service, added_rule(cluster_state, policy, targets)))
    }
}
