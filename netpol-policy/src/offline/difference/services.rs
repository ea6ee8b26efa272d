//! Services with other backends than before: their connections change, even if those of the pods do not.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use super::{Comparison, DifferenceEnd, NEW, OLD};
use crate::explain::Verdict;
use crate::model::{Protocol, ServiceKey};
use crate::offline::{EndId, OfflineCluster, UnitKey};
use crate::reference::End;

/// What a Service sends connections to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceBackend {
    /// A workload, or a pod without one.
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

/// Backends with their ports.
pub type ServiceBackends = BTreeSet<(ServiceBackend, u16)>;

/// A port of a Service with other backends than before, and with another verdict for some pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceChange {
    /// The Service.
    pub service: ServiceKey,
    /// The protocol of the port.
    pub protocol: Protocol,
    /// The port of the Service.
    pub port: u16,
    /// The backends before and now; none if there was or is no such port.
    pub backends: [ServiceBackends; 2],
    /// The sources with another verdict, by the verdicts before and now: indices of [`super::Difference::ends`].
    pub sources: BTreeMap<[Verdict; 2], Vec<usize>>,
}

/// A port of a Service.
type PortKey = (ServiceKey, Protocol, u16);
/// The backends of each port.
type Ports = BTreeMap<PortKey, BTreeSet<(End, u16)>>;

fn ports(cluster: &OfflineCluster) -> Ports {
    let services = cluster.state().services.values();
    let ports = services.flat_map(|service| {
        service
            .ports
            .iter()
            .map(move |port| ((service.key.clone(), port.protocol, port.port), cluster.backends(service, port)))
    });
    ports.collect()
}

fn names(cluster: &OfflineCluster, backends: &BTreeSet<(End, u16)>) -> ServiceBackends {
    let name = |(end, port): &(End, u16)| match end {
        End::Pod(pod) => Some((ServiceBackend::Unit(UnitKey::of(cluster, pod)), *port)),
        End::Address(address) => Some((ServiceBackend::Address(*address), *port)),
        End::Service(_) => None,
    };
    backends.iter().filter_map(name).collect()
}

impl Comparison<'_, '_> {
    /// Compares the connections of pods through each Service with other backends. Pods that exist in one cluster only are
    /// left out.
    pub(super) fn services(&mut self) -> Vec<ServiceChange> {
        let clusters = [OLD, NEW].map(|cluster| self.reachability.cluster(cluster));
        let [old, new] = clusters.map(ports);
        let keys: BTreeSet<&PortKey> = old.keys().chain(new.keys()).collect();
        let none = BTreeSet::new();
        let mut changes = Vec::new();
        for key in keys {
            let backends = [&old, &new].map(|ports| ports.get(key).unwrap_or(&none));
            let named = [names(clusters[OLD], backends[OLD]), names(clusters[NEW], backends[NEW])];
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

    fn service_sources(
        &mut self,
        backends: [&BTreeSet<(End, u16)>; 2],
        (_, protocol, _): &PortKey,
    ) -> BTreeMap<[Verdict; 2], Vec<usize>> {
        let mut sources: BTreeMap<[Verdict; 2], Vec<usize>> = BTreeMap::new();
        let ends = self.ends;
        for (index, source) in ends.iter().enumerate().filter(|(_, end)| !end.is_outside()) {
            if source.ids.contains(&None) {
                continue;
            }
            let verdicts = [OLD, NEW].map(|cluster| self.through(source, backends[cluster], *protocol, cluster));
            if verdicts[OLD] != verdicts[NEW] {
                sources.entry(verdicts).or_default().push(index);
            }
        }
        sources
    }

    /// Returns the verdict on connections to all of these backends; without any, no connection is possible.
    fn through(
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
            if is_itself && !source.has_second_pod {
                verdicts.push(Verdict::Allow);
                continue;
            }
            let ids = self.backend_end(backend, cluster).and_then(|to| self.reachability.between(from, to));
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
