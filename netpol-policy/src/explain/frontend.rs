//! Connections to a Service or a hostPort: the evaluation of each backend.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::{Side, Verdict, explain_end};
use crate::cluster_state::{ClusterState, Owner};
use crate::model::{PodKey, Protocol};
use crate::reference::{BackendConnection, Connection};

/// A frontend and its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendVerdict {
    /// `service/namespace/name` or `hostPort of namespace/pod`; several if they share an address and a port.
    pub owners: Vec<String>,
    /// The address of the frontend.
    pub address: IpAddr,
    /// Whether all, some or none of the backends are allowed.
    pub verdict: Verdict,
    /// The backends.
    pub backends: Vec<BackendVerdict>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendVerdict {
    /// Its address.
    pub address: IpAddr,
    /// Its port, which can differ from that of the Service.
    pub port: u16,
    /// The pod with this address, if any.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// `Allow` only if both sides allow.
    pub verdict: Verdict,
    /// The source, evaluated for the address and port of this backend.
    pub egress: Side,
    /// The backend.
    pub ingress: Side,
}

/// `None` if the destination is not a frontend.
pub(super) fn frontend(
    cluster_state: &ClusterState,
    connection: &Connection,
    protocol: Protocol,
    port: u16,
) -> Option<FrontendVerdict> {
    let frontend = cluster_state.frontend_at(connection.destination, protocol.number(), port)?;
    let name = |owner: &Owner| match owner {
        Owner::Service(key) => format!("service/{key}"),
        Owner::HostPort(key) => format!("hostPort of {key}"),
    };
    let backends = &connection.backends;
    let source_allows = connection.egress.as_ref().is_none_or(|(_, evaluation)| evaluation.reason.allows());
    let verdict = match backends.iter().filter(|backend| backend.allowed()).count() {
        _ if !source_allows => Verdict::Deny,
        0 if !backends.is_empty() => Verdict::Deny,
        allowed if allowed == backends.len() && allowed > 0 => Verdict::Allow,
        _ => Verdict::Some,
    };
    Some(FrontendVerdict {
        owners: cluster_state.owners(&frontend).iter().map(name).collect(),
        address: connection.destination,
        verdict,
        backends: backends.iter().map(|connection| backend(cluster_state, connection)).collect(),
    })
}

fn backend(cluster_state: &ClusterState, connection: &BackendConnection) -> BackendVerdict {
    BackendVerdict {
        address: connection.backend.address,
        port: connection.backend.port,
        pod: cluster_state.peer_at(connection.backend.address).map(|pod| pod.key.clone()),
        verdict: Verdict::of(connection.allowed()),
        egress: explain_end(cluster_state, connection.egress.as_ref()),
        ingress: explain_end(cluster_state, connection.ingress.as_ref()),
    }
}

#[allow(clippy::ref_option, reason = "serde requires this signature")]
fn as_text<S: Serializer>(key: &Option<PodKey>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&key.as_ref().map(ToString::to_string).unwrap_or_default())
}
