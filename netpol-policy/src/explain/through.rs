//! Connections that go in at a Service or a hostPort: what becomes of them at each of those who may be behind it.

use std::net::IpAddr;

use serde::{Serialize, Serializer};

use super::{Side, Verdict, explain_end};
use crate::model::{PodKey, Protocol};
use crate::reference::{Connection, Reached};
use crate::world::{Owner, World};

/// What is in between, and who may be behind it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Through {
    /// `service/namespace/name`, or `hostPort of namespace/pod`. Several where they share an address and a port.
    pub owners: Vec<String>,
    /// The address that the connection goes in at.
    pub address: IpAddr,
    /// Whether it reaches all of them, some, or none.
    pub verdict: Verdict,
    /// Each of them, by address and port.
    pub backends: Vec<ThroughBackend>,
}

/// Who may be behind a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThroughBackend {
    /// Its address.
    pub address: IpAddr,
    /// The port it is reached at there: not always the Service's.
    pub port: u16,
    /// The pod at the address, if it is one's.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodKey>,
    /// Allowed only if both sides allow.
    pub verdict: Verdict,
    /// At the source, by this backend's address and port.
    pub egress: Side,
    /// At the backend.
    pub ingress: Side,
}

/// `None` where the connection goes to the address itself.
pub(super) fn through(world: &World, connection: &Connection, protocol: Protocol, port: u16) -> Option<Through> {
    let frontend = world.frontend_at(connection.destination, protocol.number(), port)?;
    let name = |owner: &Owner| match owner {
        Owner::Service(key) => format!("service/{key}"),
        Owner::HostPort(key) => format!("hostPort of {key}"),
    };
    let reached = &connection.reached;
    let sent_on = connection.egress.as_ref().is_none_or(|(_, evaluation)| evaluation.reason.allows());
    let verdict = match reached.iter().filter(|reached| reached.allowed()).count() {
        _ if !sent_on => Verdict::Deny,
        0 if !reached.is_empty() => Verdict::Deny,
        allowed if allowed == reached.len() && allowed > 0 => Verdict::Allow,
        _ => Verdict::Some,
    };
    Some(Through {
        owners: world.owners(&frontend).iter().map(name).collect(),
        address: connection.destination,
        verdict,
        backends: reached.iter().map(|reached| backend(world, reached)).collect(),
    })
}

fn backend(world: &World, reached: &Reached) -> ThroughBackend {
    ThroughBackend {
        address: reached.backend.address,
        port: reached.backend.port,
        pod: world.peer_at(reached.backend.address).map(|pod| pod.key.clone()),
        verdict: Verdict::of(reached.allowed()),
        egress: explain_end(world, reached.egress.as_ref()),
        ingress: explain_end(world, reached.ingress.as_ref()),
    }
}

#[allow(clippy::ref_option, reason = "the signature serde calls it by")]
fn as_text<S: Serializer>(key: &Option<PodKey>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&key.as_ref().map(ToString::to_string).unwrap_or_default())
}
