//! Parses the ends of a connection in arguments, and finds the pods, addresses or Service that an end stands for.

mod ranges;

pub(crate) use ranges::internet;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use netpol_policy::model::{PodKey, Selector, ServiceKey, WorkloadKey, WorkloadKind};
use netpol_policy::offline::OfflineCluster;
use netpol_policy::reference::End;

/// One end of a connection, as it is written in an argument. `Pod`, `Service` and `Workload` have the namespace and the
/// name. The namespace is `None` if it is not written; [`find`] then uses a default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndArgument {
    Pod(Option<String>, String),
    Service(Option<String>, String),
    Workload(WorkloadKind, Option<String>, String),
    /// A label selector as text, and parsed.
    Labels(String, Selector),
    Address(IpAddr),
    Range(IpNet),
    Internet,
}

impl FromStr for EndArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "internet" {
            return Ok(Self::Internet);
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        if let Ok(range) = text.parse::<IpNet>() {
            return Ok(Self::Range(range.trunc()));
        }
        let labels = text.strip_prefix("-l").map(str::trim);
        if labels.is_some() || text.contains(['=', '(']) {
            let labels = labels.unwrap_or(text);
            return Ok(Self::Labels(labels.to_owned(), Selector::parse(labels)?));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let (namespace, name) = match parts[..] {
            [_, name] => (None, name),
            [_, namespace, name] if !namespace.is_empty() => (Some(namespace.to_owned()), name),
            _ => return Err(usage(text)),
        };
        if name.is_empty() || parts[0].is_empty() {
            return Err(usage(text));
        }
        let name = name.to_owned();
        match parts[0] {
            "service" | "services" | "svc" => Ok(Self::Service(namespace, name)),
            "pod" | "pods" | "po" => Ok(Self::Pod(namespace, name)),
            resource => match WorkloadKind::from_resource(resource) {
                Some(kind) => Ok(Self::Workload(kind, namespace, name)),
                None if namespace.is_none() => Ok(Self::Pod(Some(resource.to_owned()), name)),
                None => Err(usage(text)),
            },
        }
    }
}

/// One end in a filter of `netpol matrix` (`--from` and `--to`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum MatrixEnd {
    Namespace(String),
    End(EndArgument),
}

impl FromStr for MatrixEnd {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(namespace) = text.strip_suffix("/*").filter(|namespace| !namespace.contains('/')) {
            return Ok(Self::Namespace(namespace.to_owned()));
        }
        match text.parse()? {
            EndArgument::Service(..) | EndArgument::Range(_) | EndArgument::Internet => Err(format!(
                "`{text}` is not a row of the matrix; write a workload, a pod, labels, an address or NAMESPACE/*"
            )),
            end => Ok(Self::End(end)),
        }
    }
}

impl MatrixEnd {
    /// Returns the ends that the filter accepts.
    pub(crate) fn find(&self, cluster: &OfflineCluster, namespace: &str) -> Result<EndSet> {
        match self {
            Self::Namespace(name) => {
                let pods = cluster.state().pods.keys().filter(|key| *key.namespace == **name);
                Ok(EndSet::pods(format!("{name}/*"), pods.cloned()))
            }
            Self::End(argument) => find(cluster, argument, namespace),
        }
    }
}

impl EndArgument {
    /// Returns the namespace of the pods or the Service; `None` for addresses. `default`: the namespace if none is
    /// written.
    pub(crate) fn namespace<'e>(&'e self, default: &'e str) -> Option<&'e str> {
        match self {
            Self::Pod(namespace, _) | Self::Service(namespace, _) | Self::Workload(_, namespace, _) => {
                Some(namespace.as_deref().unwrap_or(default))
            }
            Self::Labels(..) => Some(default),
            Self::Address(_) | Self::Range(_) | Self::Internet => None,
        }
    }

    /// Returns whether the argument names a pod, a Service or an address. Whatever objects the input has, such an
    /// argument stands for one end.
    pub(crate) const fn is_single(&self) -> bool {
        matches!(self, Self::Pod(..) | Self::Service(..) | Self::Address(_))
    }

    /// Returns whether the argument stands for a range of addresses.
    pub(crate) const fn is_range(&self) -> bool {
        matches!(self, Self::Range(_) | Self::Internet)
    }
}

/// Returns the error message for an argument that is not an end.
fn usage(text: &str) -> String {
    format!(
        "`{text}` is not an end; write namespace/pod, deploy/NAME with -n NAMESPACE, svc/NAME, key=value, an address, a range, or internet"
    )
}

/// What an [`EndArgument`] stands for: pods, addresses or a Service.
#[derive(Clone, Debug)]
pub(crate) struct EndSet {
    /// The text for messages, such as `Deployment shop/web`.
    pub(crate) title: String,
    /// Each pod, address or Service, with its text. For a range of addresses, the list is empty until `ranges::split`
    /// divides the range into parts with the same verdicts.
    pub(crate) ends: Vec<(End, EndText)>,
}

/// The text for an end in the output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndText {
    /// A pod or a Service.
    Name(String),
    /// All addresses from the first to the last one.
    Addresses(IpAddr, IpAddr),
}

impl EndText {
    /// If the addresses of `next` directly follow those of `self`, returns both ranges as one range.
    pub(crate) fn joined(&self, next: &Self) -> Option<Self> {
        let (Self::Addresses(first, last), Self::Addresses(start, end)) = (self, next) else { return None };
        (ranges::next(*last)? == *start).then_some(Self::Addresses(*first, *end))
    }
}

/// Writes `pod shop/web`, `10.0.0.1` or `10.0.0.0-10.0.0.255`.
impl fmt::Display for EndText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Addresses(first, last) if first == last => first.fmt(f),
            Self::Addresses(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

impl EndSet {
    fn one(end: End, title: String) -> Self {
        Self { ends: vec![(end, EndText::Name(title.clone()))], title }
    }

    fn pods(title: String, pods: impl IntoIterator<Item = PodKey>) -> Self {
        Self { ends: pods.into_iter().map(|pod| (End::Pod(pod.clone()), EndText::Name(pod.title()))).collect(), title }
    }
}

/// Finds the sources and the destinations of a connection. `namespace`: the namespace of `-n`. In an offline cluster,
/// one pod can stand for all pods of a workload. If a source is such a pod, it is replaced by a second pod of the
/// workload. Then a connection of the workload to itself is a connection between two pods.
pub(crate) fn resolve(
    cluster: &mut OfflineCluster,
    (from, to): (&EndArgument, &EndArgument),
    namespace: &str,
) -> Result<(EndSet, EndSet)> {
    let mut sources = find(cluster, from, namespace)?;
    let destinations = endpoints_of_headless(cluster, find(cluster, to, namespace)?);
    check_pod_network(cluster, from, &sources)?;
    check_pod_network(cluster, to, &destinations)?;
    for (end, _) in &mut sources.ends {
        if let End::Pod(key) = end {
            *key = cluster.add_second_pod(key);
        }
    }
    let sources = ranges::split(cluster, from, sources, &destinations);
    let destinations = ranges::split(cluster, to, destinations, &sources);
    Ok((sources, destinations))
}

/// Replaces a headless Service by the pods and addresses to which its DNS name resolves (its endpoints), if there are
/// any.
fn endpoints_of_headless(cluster: &OfflineCluster, set: EndSet) -> EndSet {
    let [(End::Service(key), _)] = &set.ends[..] else { return set };
    let services = &cluster.state().services;
    let Some(service) = services.get(key).filter(|service| service.addresses.is_empty()) else { return set };
    let endpoints = cluster.headless_endpoints(service);
    if endpoints.is_empty() {
        return set;
    }
    let named = endpoints.into_iter().map(|end| {
        let text = match &end {
            End::Pod(pod) => EndText::Name(pod.title()),
            End::Address(address) => EndText::Addresses(*address, *address),
            End::Service(service) => EndText::Name(service.to_string()),
        };
        (end, text)
    });
    EndSet { title: format!("headless Service {key}"), ends: named.collect() }
}

/// Returns an error if all pods of an end are on the host network and have no known address.
fn check_pod_network(cluster: &OfflineCluster, argument: &EndArgument, set: &EndSet) -> Result<()> {
    let has_no_address = |end: &End| match end {
        End::Pod(key) => cluster.state().pods.get(key).is_some_and(|pod| pod.host_network && pod.addresses.is_empty()),
        _ => false,
    };
    if !argument.is_range() && !set.ends.is_empty() && set.ends.iter().all(|(end, _)| has_no_address(end)) {
        bail!(
            "no policy applies to {}, because it is on the host network; write the address of a node instead",
            set.title
        );
    }
    Ok(())
}

/// Finds the pods, addresses or Service that an end stands for. `default`: the namespace if the end is written without
/// one.
pub(crate) fn find(cluster: &OfflineCluster, end: &EndArgument, default: &str) -> Result<EndSet> {
    let namespace = |written: &Option<String>| written.clone().unwrap_or_else(|| default.to_owned());
    Ok(match end {
        EndArgument::Pod(written, name) => {
            let key = PodKey::new(namespace(written), name.as_str());
            let title = key.title();
            EndSet::one(End::Pod(key), title)
        }
        EndArgument::Service(written, name) => {
            let key = ServiceKey::new(namespace(written), name.as_str());
            let title = format!("Service {key}");
            EndSet::one(End::Service(key), title)
        }
        EndArgument::Workload(kind, written, name) => {
            let key = WorkloadKey::new(*kind, namespace(written), name.as_str());
            let pods = cluster.workloads().pods(&key);
            if pods.is_empty() {
                bail!("{} not found in the input; check its namespace (-n) and name", key.title());
            }
            EndSet::pods(key.title(), pods.iter().cloned())
        }
        EndArgument::Labels(text, selector) => {
            let pods = cluster.state().pods.values();
            let matching = pods.filter(|pod| {
                *pod.key.namespace == *default
                    && !pod.finished
                    && !pod.addresses.is_empty()
                    && selector.matches(&pod.labels)
            });
            let title = format!("pods with {text} in namespace {default}");
            let set = EndSet::pods(title, matching.map(|pod| pod.key.clone()));
            if set.ends.is_empty() {
                bail!("no pod in namespace {default} has the labels {text}; check the namespace (-n) and the labels");
            }
            set
        }
        EndArgument::Address(address) => EndSet::one(End::Address(*address), address.to_string()),
        EndArgument::Range(range) => EndSet { title: range.to_string(), ends: Vec::new() },
        EndArgument::Internet => EndSet { title: "internet".to_owned(), ends: Vec::new() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_syntax_of_kubectl() {
        let some = |text: &str| Some(text.to_owned());
        let pod = |namespace: &str, name: &str| EndArgument::Pod(some(namespace), name.to_owned());
        for (text, expected) in [
            ("a/b", pod("a", "b")),
            ("pod/b", EndArgument::Pod(None, "b".to_owned())),
            ("pod/deploy/b", pod("deploy", "b")),
            ("svc/a/b", EndArgument::Service(some("a"), "b".to_owned())),
            ("svc/b", EndArgument::Service(None, "b".to_owned())),
            ("deploy/b", EndArgument::Workload(WorkloadKind::Deployment, None, "b".to_owned())),
            ("sts/a/b", EndArgument::Workload(WorkloadKind::StatefulSet, some("a"), "b".to_owned())),
            ("10.0.0.1", EndArgument::Address(IpAddr::from([10, 0, 0, 1]))),
            ("10.0.0.1/8", EndArgument::Range("10.0.0.0/8".parse().expect("a range"))),
            ("internet", EndArgument::Internet),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["app=web", "-l app=web", "-lapp", "tier in (a, b)", "tier in(a,b)"] {
            assert!(matches!(text.parse(), Ok(EndArgument::Labels(..))), "{text}");
        }
        for text in ["web", "a/", "/b", "a/b/c", "svc/a/", "svc//b", "deploy/", "a/b/c/d", "=x"] {
            assert!(text.parse::<EndArgument>().is_err(), "{text}");
        }
    }
}
