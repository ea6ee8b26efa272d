//! Explains connections to a frontend (the address and port of a Service or a hostPort): the evaluation of each
//! backend.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::{ExplainContext, Side, Verdict, explain_end, is_unknown};
use crate::cluster_state::FrontendOwner;
use crate::model::{PodKey, Protocol};
use crate::reference::{BackendConnection, Connection};

/// A frontend, and the verdicts of a connection to it and to each of its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendVerdict {
    /// `service/namespace/name` or `hostPort of namespace/pod`; several if they share an address and a port.
    pub owners: Vec<String>,
    /// The address of the frontend; in JSON only if it is known.
    #[serde(skip_serializing_if = "is_unknown")]
    pub address: IpAddr,
    /// Whether all, some or none of the backends are allowed. `Deny` if the source denies the packet to the frontend.
    /// If there are no backends and the source does not deny this packet, the verdict is `Some` or `Unknown`.
    pub verdict: Verdict,
    /// The evaluation for each backend.
    pub backends: Vec<BackendVerdict>,
}

/// The evaluation of a connection through a frontend to one backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendVerdict {
    /// The address of the backend; in JSON only if it is known.
    #[serde(skip_serializing_if = "is_unknown")]
    pub address: IpAddr,
    /// The port of the backend, which can differ from that of the Service.
    pub port: u16,
    /// The pod with this address, if any.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// `Allow` only if both `egress` and `ingress` allow.
    pub verdict: Verdict,
    /// The evaluation at the source, for the address and port of this backend.
    pub egress: Side,
    /// The evaluation at the backend.
    pub ingress: Side,
}

/// Explains the evaluation for each backend. `source_verdict`: the verdict at the source for the packet to the
/// frontend's address. Returns `None` if the destination is not a frontend.
pub(super) fn explain_frontend(
    context: ExplainContext<'_>,
    connection: &Connection,
    source_verdict: Verdict,
    protocol: Protocol,
    port: u16,
) -> Option<FrontendVerdict> {
    let cluster_state = context.cluster_state;
    let frontend = cluster_state.frontend_at(connection.destination, protocol.number(), port)?;
    let name = |owner: &FrontendOwner| match owner {
        FrontendOwner::Service(key) => format!("service/{key}"),
        FrontendOwner::HostPort(key) => format!("hostPort of {key}"),
    };
    let backends: Vec<BackendVerdict> =
        connection.backends.iter().map(|connection| explain_backend(context, connection)).collect();
    let verdict = match (source_verdict, Verdict::of_several(backends.iter().map(|backend| backend.verdict))) {
        (Verdict::Deny, _) => Verdict::Deny,
        // Without backends, the packet is evaluated again post-DNAT. So the verdict is never `Verdict::Allow`.
        (_, None) => source_verdict.max(Verdict::Partial),
        (_, Some(Verdict::Allow)) => source_verdict,
        (_, Some(of_backends)) => of_backends,
    };
    Some(FrontendVerdict {
        owners: cluster_state.owners(&frontend).iter().map(name).collect(),
        address: connection.destination,
        verdict,
        backends,
    })
}

fn explain_backend(context: ExplainContext<'_>, connection: &BackendConnection) -> BackendVerdict {
    let egress = explain_end(context, connection.egress.as_ref());
    let ingress = explain_end(context, connection.ingress.as_ref());
    BackendVerdict {
        address: connection.backend.address,
        port: connection.backend.port,
        pod: context.cluster_state.peer_at(connection.backend.address).map(|pod| pod.key.clone()),
        verdict: Verdict::of_sides(egress.verdict, ingress.verdict),
        egress,
        ingress,
    }
}

#[allow(clippy::ref_option, reason = "serde requires this signature")]
fn as_text<S: Serializer>(key: &Option<PodKey>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&key.as_ref().map(ToString::to_string).unwrap_or_default())
}
