//! Deny events that the agent writes.

use serde_json::Value;

/// A deny event that the agent wrote to standard output, as JSON.
#[derive(Clone, Debug)]
pub struct Denied(pub Value);

impl Denied {
    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// Returns `ingress` or `egress`.
    pub fn direction(&self) -> &str {
        self.text("/direction")
    }

    /// Returns the reason: a name of `netpol_common::Reason`.
    pub fn reason(&self) -> &str {
        self.text("/reason")
    }

    /// Returns the source: `namespace/name` of a pod, or an address.
    pub fn from(&self) -> String {
        self.pod_or_address("from")
    }

    /// Returns the destination: `namespace/name` of a pod, or an address.
    pub fn to(&self) -> String {
        self.pod_or_address("to")
    }

    /// Returns whether the event contains this Service (`namespace/name`): as the destination, or as a Service through
    /// which the packet may have been sent to the destination (a backend).
    pub fn names_service(&self, service: &str) -> bool {
        let lists = ["/to/services", "/to/viaServices"].map(|list| self.0.pointer(list).and_then(Value::as_array));
        lists.into_iter().flatten().flatten().any(|name| name == service)
    }

    /// `end` is `from` or `to`.
    fn pod_or_address(&self, end: &str) -> String {
        let text = |field| self.text(&format!("/{end}/{field}"));
        if text("pod").is_empty() {
            text("address").to_owned()
        } else {
            format!("{}/{}", text("namespace"), text("pod"))
        }
    }

    /// Returns the pod at which the packet was denied: `namespace/name`, or the pod's address if the name is unknown.
    pub fn pod(&self) -> String {
        self.pod_or_address(if self.direction() == "egress" { "from" } else { "to" })
    }

    /// Returns a field of the evaluation that denied the packet, such as `nearest` (the nearest rule).
    pub fn evaluation_field(&self, field: &str) -> Option<&Value> {
        self.0.get(self.direction())?.get(field)
    }

    /// Returns the destination port.
    pub fn port(&self) -> Option<u16> {
        self.0.pointer("/port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
    }

    /// Returns the protocol: `TCP`, `UDP` or another name.
    pub fn protocol(&self) -> &str {
        self.text("/protocol")
    }

    /// Returns the policies that isolate the pod in the direction of the event, as `namespace/name`.
    pub fn policies(&self) -> Vec<String> {
        let list = self.evaluation_field("policies").and_then(Value::as_array);
        list.map(|items| items.iter().filter_map(Value::as_str).map(str::to_owned).collect()).unwrap_or_default()
    }
}
