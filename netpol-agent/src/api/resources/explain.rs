//! The verdict of a connection, according to the objects and according to the tables of this node.

use netpol_api::{ExplainResponse, FlowVerdict, PortFilter, TableVerdict, parameters};
use netpol_common::Reason;
use netpol_dataplane::Dataplane;
use netpol_policy::model::{PodKey, Protocol, ServiceKey};
use netpol_policy::reference::{self, Connection, End, Evaluation, Packet};

use crate::events::flow_direction;
use crate::reconcile::{PodEndpoint, Reconciler};

/// A connection to explain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExplainQuery {
    from: End,
    to: End,
    port: u16,
    protocol: Protocol,
}

impl ExplainQuery {
    /// Parses a query string.
    ///
    /// # Errors
    /// If a parameter is missing, not known, or has an invalid value.
    pub fn parse(query: &str) -> Result<Self, String> {
        let (mut from, mut to, mut port) = (None, None, None);
        for (name, value) in parameters(query)? {
            let in_parameter = |error| format!("{name}: {error}");
            match name.as_str() {
                "from" => from = Some(parse_end(&value).map_err(in_parameter)?),
                "to" => to = Some(parse_end(&value).map_err(in_parameter)?),
                "port" => port = Some(value.parse::<PortFilter>().map_err(in_parameter)?),
                _ => return Err(format!("`{name}` is not a parameter; use from, to, port")),
            }
        }
        let (Some(from), Some(to), Some(port)) = (from, to, port) else {
            return Err("from, to and port are needed, such as from=shop/web&to=shop/db&port=5432/TCP".to_owned());
        };
        let protocol = port.protocol.as_deref().map_or(Some(Protocol::Tcp), Protocol::from_name);
        let protocol = protocol.ok_or("port: the protocol is not supported; use TCP, UDP or SCTP")?;
        Ok(Self { from, to, port: port.port, protocol })
    }
}

/// Parses one end of a connection: a pod, a Service or an address.
fn parse_end(text: &str) -> Result<End, String> {
    if let Ok(address) = text.parse() {
        return Ok(End::Address(address));
    }
    let parts: Vec<&str> = text.split('/').collect();
    match parts[..] {
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(End::Pod(PodKey::new(namespace, name))),
        ["service" | "svc", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(End::Service(ServiceKey::new(namespace, name)))
        }
        _ => Err(format!("`{text}` is not NAMESPACE/POD, service/NAMESPACE/NAME or an address")),
    }
}

/// Two generations. A generation is the number of a batch of changes.
#[derive(Clone, Copy, Debug)]
pub struct Generations {
    /// The last batch that is enforced.
    pub enforced: u64,
    /// The last batch that was received.
    pub received: u64,
}

/// Explains a connection. `evaluate` evaluates a packet with the tables of this node. The engine must be available (not
/// compiling).
///
/// # Errors
/// If the connection is not possible, for example because one of its pods does not exist.
pub fn explain<D: Dataplane>(
    reconciler: &Reconciler<D>,
    query: &ExplainQuery,
    generations: Generations,
    evaluate: impl Fn(&PodEndpoint, &Packet) -> Option<Reason>,
) -> Result<ExplainResponse, String> {
    let cluster_state = reconciler.engine().cluster_state();
    let ExplainQuery { from, to, port, protocol } = query;
    let explanation = netpol_policy::explain::explain(cluster_state, from, to, *protocol, *port);
    let explanation = explanation.map_err(|error| error.to_string())?;
    let explanation = serde_json::to_value(explanation).map_err(|error| error.to_string())?;
    let connections = reference::connections(cluster_state, from, to, protocol.number(), *port);
    let connections = connections.map_err(|error| error.to_string())?;
    let mut tables = Vec::new();
    for (packet, evaluation, backend) in connections.iter().flat_map(evaluated_packets) {
        let endpoint = reconciler.attached_endpoints().find(|endpoint| endpoint.pod.as_ref() == Some(&packet.pod));
        let Some(reason) = endpoint.and_then(|endpoint| evaluate(endpoint, packet)) else { continue };
        tables.push(TableVerdict {
            pod: packet.pod.to_string(),
            direction: flow_direction(packet.direction),
            remote: packet.remote,
            port: packet.port,
            backend,
            verdict: verdict_of(reason),
            reason: reason.name().to_owned(),
            expected: verdict_of(evaluation.reason),
        });
    }
    Ok(ExplainResponse {
        node: reconciler.node().to_owned(),
        generation: generations.enforced,
        generation_received: generations.received,
        explanation,
        differs: tables.iter().any(|table| table.verdict != table.expected),
        tables,
    })
}

/// Returns all packets of a connection with their evaluations. The third value is whether the packet is evaluated with
/// a backend of the Service as its destination.
fn evaluated_packets(connection: &Connection) -> impl Iterator<Item = (&Packet, &Evaluation, bool)> {
    let direct = [&connection.egress, &connection.ingress].into_iter().flatten();
    let direct = direct.map(|(packet, evaluation)| (packet, evaluation, false));
    let backends = connection.backends.iter().flat_map(|backend| [&backend.egress, &backend.ingress]).flatten();
    direct.chain(backends.map(|(packet, evaluation)| (packet, evaluation, true)))
}

const fn verdict_of(reason: Reason) -> FlowVerdict {
    if reason.allows() { FlowVerdict::Allowed } else { FlowVerdict::Denied }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_pods_services_or_addresses() {
        let query = ExplainQuery::parse("from=shop/web&to=service/shop/db&port=5432/tcp").expect("invalid query");
        assert_eq!(query.from, End::Pod(PodKey::new("shop", "web")));
        assert_eq!((query.to, query.port), (End::Service(ServiceKey::new("shop", "db")), 5432));
        let query = ExplainQuery::parse("from=10.0.0.1&to=fd00::1&port=53/UDP").expect("invalid query");
        assert_eq!((query.to.to_string().as_str(), query.protocol), ("fd00::1", Protocol::Udp));
    }

    #[test]
    fn invalid_queries_are_refused_with_the_accepted_values() {
        for (query, part) in [
            ("", "from, to and port are needed"),
            ("from=a/b&to=a/c", "from, to and port are needed"),
            ("from=web&to=a/c&port=80", "from: `web` is not NAMESPACE/POD"),
            ("from=a/b&to=deploy/a/c&port=80", "to: "),
            ("from=a/b&to=a/c&port=http", "53/UDP"),
            ("source=a/b", "use from, to, port"),
        ] {
            let error = ExplainQuery::parse(query).expect_err(query);
            assert!(error.contains(part), "{query}: {error}");
        }
    }
}
