//! Deny events of the agent.

use serde_json::Value;

/// A deny event that the agent printed.
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

    /// Returns the reason, with its name in `netpol_common::Reason`.
    pub fn reason(&self) -> &str {
        self.text("/reason")
    }

    /// Returns the source: `namespace/name` of a pod, or an address.
    pub fn from(&self) -> &str {
        self.pod_or_address("from")
    }

    /// Returns the destination: `namespace/name` of a pod, or an address.
    pub fn to(&self) -> &str {
        self.pod_or_address("to")
    }

    /// Returns whether the event contains this Service (`namespace/name`) as the destination, or as a Service that may
    /// have selected the destination as a backend.
    pub fn names_service(&self, service: &str) -> bool {
        let lists = ["/to/services", "/to/viaServices"].map(|list| self.0.pointer(list).and_then(Value::as_array));
        lists.into_iter().flatten().flatten().any(|name| name == service)
    }

    fn pod_or_address(&self, which: &str) -> &str {
        let by_name = self.text(&format!("/{which}/pod"));
        if by_name.is_empty() { self.text(&format!("/{which}/address")) } else { by_name }
    }

    /// Returns the destination port.
    pub fn port(&self) -> Option<u16> {
        self.0.pointer("/port").and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok())
    }

    /// Returns `TCP`, `UDP`, ….
    pub fn protocol(&self) -> &str {
        self.text("/protocol")
    }

    /// Returns the policies that isolate the pod in this direction, as `namespace/name`.
    pub fn policies(&self) -> Vec<String> {
        let list = self.0.pointer("/policies").and_then(Value::as_array);
        let name = |item: &Value| Some(format!("{}/{}", item.get("namespace")?.as_str()?, item.get("name")?.as_str()?));
        list.map(|items| items.iter().filter_map(name).collect()).unwrap_or_default()
    }
}
