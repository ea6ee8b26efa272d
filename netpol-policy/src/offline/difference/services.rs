//! Finds Services that have other backends in the new cluster than in the old one. Verdicts on connections through such
//! a Service can change even if no verdict on direct connections to pods changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::{Comparison, DifferenceEnd, NEW, OLD};
use crate::explain::Verdict;
use crate::model::{Protocol, ServiceKey};
use crate::offline::{EndId, OfflineCluster, UnitKey};
use crate::reference::End;

/// A backend: where a Service sends connections.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceBackend {
    /// A workload, or a pod without a workload.
    Unit(UnitKey),
    /// An address that is not that of a pod.
    Address(IpAddr),
}

impl fmt::Display for ServiceBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(unit) => unit.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// Backends with their target ports.
pub type ServiceBackends = BTreeSet<(ServiceBackend, u16)>;

/// A port of a Service. The backends of the port differ between the old and the new cluster, and connections of some
/// pods to the port get another verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// The Service.
    pub service: ServiceKey,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// The port of the Service.
    pub port: u16,
    /// The backends in the old and in the new cluster; empty in a cluster that does not have the port.
    pub backends: [ServiceBackends; 2],
    /// The sources with another verdict, by their verdicts in the old and in the new cluster. Sources are indices of
    /// [`super::Difference::ends`].
    pub sources: BTreeMap<[Verdict; 2], Vec<usize>>,
}

/// The key of a Service's port: Service, protocol and port.
type ServicePortKey = (ServiceKey, Protocol, u16);
/// The backends of each port, with their target ports.
type BackendsByPort = BTreeMap<ServicePortKey, BTreeSet<(End, u16)>>;

fn backends_by_port(cluster: &OfflineCluster) -> BackendsByPort {
    let services = cluster.state().services.values();
    let ports = services.flat_map(|service| {
        service
            .ports
            .iter()
            .map(move |port| ((service.key.clone(), port.protocol, port.port), cluster.backends(service, port)))
    });
    ports.collect()
}

/// Returns the backends. Each pod is replaced by its workload, so that another pod of the workload is the same backend.
fn named_backends(cluster: &OfflineCluster, backends: &BTreeSet<(End, u16)>) -> ServiceBackends {
    let name = |(end, port): &(End, u16)| match end {
        End::Pod(pod) => Some((ServiceBackend::Unit(UnitKey::of(cluster, pod)), *port)),
        End::Address(address) => Some((ServiceBackend::Address(*address), *port)),
        End::Service(_) => None,
    };
    backends.iter().filter_map(name).collect()
}

impl Comparison<'_, '_> {
    /// Compares the verdicts on connections through each Service that has other backends than before. A source is a
    /// group of pods with the same verdicts. The sources are only pods that both clusters have.
    pub(super) fn services(&mut self) -> Vec<ServiceChange> {
        let clusters = [OLD, NEW].map(|cluster| self.reachability.cluster(cluster));
        let [old, new] = clusters.map(backends_by_port);
        let keys: BTreeSet<&ServicePortKey> = old.keys().chain(new.keys()).collect();
        let none = BTreeSet::new();
        let mut changes = Vec::new();
        for key in keys {
            let backends = [&old, &new].map(|ports| ports.get(key).unwrap_or(&none));
            let named = [named_backends(clusters[OLD], backends[OLD]), named_backends(clusters[NEW], backends[NEW])];
            if named[OLD] == named[NEW] {
                continue;
            }
            let sources = self.service_sources(backends, key);
            if !sources.is_empty() {
                let (service, protocol, port) = key.clone();
                changes.push(ServiceChange { service, protocol, port, backends: named, sources });
            }
        }
        changes
    }

    /// Returns the pods that get another verdict on connections to the backends of one Service port. `backends` are
    /// those in the old and in the new cluster.
    fn service_sources(
        &mut self,
        backends: [&BTreeSet<(End, u16)>; 2],
        (_, protocol, _): &ServicePortKey,
    ) -> BTreeMap<[Verdict; 2], Vec<usize>> {
        let mut sources: BTreeMap<[Verdict; 2], Vec<usize>> = BTreeMap::new();
        let ends = self.ends;
        for (index, source) in ends.iter().enumerate().filter(|(_, end)| !end.is_outside()) {
            // Skips sources that only one of the clusters has.
            if source.ids.contains(&None) {
                continue;
            }
            let verdicts = [OLD, NEW].map(|cluster| self.verdict_on_all(source, backends[cluster], *protocol, cluster));
            if verdicts[OLD] != verdicts[NEW] {
                sources.entry(verdicts).or_default().push(index);
            }
        }
        sources
    }

    /// Returns the verdict on connections to all of these backends. Without backends, the verdict is `Deny`, because no
    /// connection is possible.
    fn verdict_on_all(
        &mut self,
        source: &DifferenceEnd,
        backends: &BTreeSet<(End, u16)>,
        protocol: Protocol,
        cluster: usize,
    ) -> Verdict {
        let Some(from) = source.ids[cluster] else { return Verdict::Deny };
        let mut verdicts = Vec::new();
        for (backend, port) in backends {
            let is_itself = matches!(backend, End::Pod(pod) if source.pods[cluster].as_ref() == Some(pod));
            // Hairpin traffic: a pod can always reach itself. If the source is a group of several pods, the other pods
            // connect to this backend, too, so the verdict is evaluated.
            if is_itself && !source.has_second_pod {
                verdicts.push(Verdict::Allow);
                continue;
            }
            let ids = self.backend_end(backend, cluster).and_then(|to| self.reachability.between(from, to));
            // The first set has the allowed ports, the second one the ports that are allowed or unknown.
            verdicts.extend(ids.map(
                |ids| match self.reachability.ports(ids).map(|set| set.contains(protocol, *port)) {
                    [true, _] => Verdict::Allow,
                    [false, true] => Verdict::Unknown,
                    [false, false] => Verdict::Deny,
                },
            ));
        }
        Verdict::of_several(verdicts).unwrap_or(Verdict::Deny)
    }

    fn backend_end(&mut self, backend: &End, cluster: usize) -> Option<EndId> {
        match backend {
            End::Pod(pod) => self.reachability.end_of(cluster, pod),
            End::Address(address) => Some(self.reachability.end_at(cluster, *address)),
            End::Service(_) => None,
        }
    }
}
