//! Parses `--from` and `--to`, which name an end (source or destination) of flows. Selects the flows with these ends.

use std::str::FromStr;

use netpol_api::{EndFilter, FlowEnd};
use netpol_policy::model::WorkloadKind;

/// An end of a flow, as it is written in an argument. An end without a namespace is in the namespace of `-n`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EndMatch {
    /// A filter that agents support: a pod, a namespace or addresses.
    Filter(EndFilter),
    /// A pod in the namespace of `-n`.
    Pod(String),
    /// The pods of a workload.
    Workload(WorkloadKind, Option<String>, String),
    /// A Service.
    Service(Option<String>, String),
}

impl FromStr for EndMatch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split('/').collect();
        let usage = || {
            format!(
                "`{text}` is not an end; write NAMESPACE/POD, deploy/NAME with -n NAMESPACE, svc/NAME, NAMESPACE/*, an address or a range"
            )
        };
        if parts.iter().any(|part| part.is_empty()) {
            return Err(usage());
        }
        let (resource, namespace, name) = match parts[..] {
            [name] if !name.contains([':', '.']) => return Ok(Self::Pod(name.to_owned())),
            [resource, name] => (resource, None, name),
            [resource, namespace, name] => (resource, Some(namespace.to_owned()), name),
            _ => return text.parse().map(Self::Filter).map_err(|_| usage()),
        };
        let name = name.to_owned();
        match (resource, WorkloadKind::from_resource(resource)) {
            ("service" | "services" | "svc", _) => Ok(Self::Service(namespace, name)),
            ("pod" | "pods" | "po", _) => Ok(match namespace {
                Some(namespace) => Self::Filter(EndFilter::Pod { namespace, name }),
                None => Self::Pod(name),
            }),
            (_, Some(kind)) => Ok(Self::Workload(kind, namespace, name)),
            _ => text.parse().map(Self::Filter).map_err(|_| usage()),
        }
    }
}

impl EndMatch {
    /// Returns whether the end is written with a namespace.
    pub(super) fn names_namespace(&self) -> bool {
        match self {
            Self::Filter(EndFilter::Addresses(_)) | Self::Pod(_) => false,
            Self::Filter(_) => true,
            Self::Workload(_, namespace, _) | Self::Service(namespace, _) => namespace.is_some(),
        }
    }

    /// Returns the filter for the agents. It accepts all flows of this end, and may accept other flows.
    pub(super) fn filter(&self, default_namespace: &str) -> Option<EndFilter> {
        let namespace = |written: &Option<String>| written.clone().unwrap_or_else(|| default_namespace.to_owned());
        match self {
            Self::Filter(filter) => Some(filter.clone()),
            Self::Pod(name) => Some(EndFilter::Pod { namespace: default_namespace.to_owned(), name: name.clone() }),
            Self::Workload(_, written, _) => Some(EndFilter::Namespace(namespace(written))),
            // Agents cannot filter by a Service.
            Self::Service(..) => None,
        }
    }

    /// Returns whether the end of a flow matches. The agents have already applied [`Self::filter`] to this flow.
    pub(super) fn matches(&self, end: &FlowEnd, default_namespace: &str) -> bool {
        match self {
            Self::Filter(_) | Self::Pod(_) => true,
            Self::Workload(kind, _, name) => {
                end.workload.as_ref().is_some_and(|workload| workload.kind == kind.name() && workload.name == *name)
            }
            Self::Service(namespace, name) => {
                let service = format!("{}/{name}", namespace.as_deref().unwrap_or(default_namespace));
                end.services.iter().chain(&end.via_services).any(|other| *other == service)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_syntax_of_explain() {
        let shop = || Some("shop".to_owned());
        for (text, expected) in [
            ("web-0", EndMatch::Pod("web-0".into())),
            ("po/web-0", EndMatch::Pod("web-0".into())),
            ("deploy/web", EndMatch::Workload(WorkloadKind::Deployment, None, "web".into())),
            ("sts/shop/db", EndMatch::Workload(WorkloadKind::StatefulSet, shop(), "db".into())),
            ("svc/shop/db", EndMatch::Service(shop(), "db".into())),
            ("shop/*", EndMatch::Filter(EndFilter::Namespace("shop".into()))),
            ("shop/web-0", EndMatch::Filter(EndFilter::Pod { namespace: "shop".into(), name: "web-0".into() })),
            ("fd00::/8", EndMatch::Filter(EndFilter::Addresses("fd00::/8".parse().expect("a range")))),
            ("10.0.0.1", EndMatch::Filter("10.0.0.1".parse().expect("an address"))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for text in ["", "/", "shop/", "a/b/c", "a/b/c/d", "10.0.0", "svc/"] {
            assert!(text.parse::<EndMatch>().is_err(), "{text}");
        }
    }
}
