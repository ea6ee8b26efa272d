//! Derives the objects that a cluster's controllers create and that manifests do not contain.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{
    EndpointSlice, NamespaceName, Object, Pod, Service, ServiceKey, SliceEndpoint, SliceKey, SlicePort, TargetPort,
};

/// Returns `EndpointSlices` for all Services that have a selector and an address, but no slice among the objects
/// (docs/semantics.md, item 37). The backends are the selected pods that have an address and have not finished.
/// The readiness of a pod is ignored, because it can change at any time.
///
/// Source: the `EndpointSlice` controller,
/// <https://github.com/kubernetes/endpointslice/blob/v0.32.0/reconciler.go>.
pub fn endpoint_slices<'o>(objects: impl IntoIterator<Item = &'o Object>) -> Vec<EndpointSlice> {
    let (mut services, mut pods) = (Vec::new(), HashMap::<&NamespaceName, Vec<&Pod>>::new());
    let mut have_slices: BTreeSet<ServiceKey> = BTreeSet::new();
    for object in objects {
        match object {
            Object::Service(service) if !service.selector.is_empty() && !service.addresses.is_empty() => {
                services.push(service);
            }
            Object::Slice(slice) => have_slices.extend(slice.service_key()),
            Object::Pod(pod) if !pod.finished && !pod.addresses.is_empty() => {
                pods.entry(&pod.key.namespace).or_default().push(pod);
            }
            _ => {}
        }
    }
    services.retain(|service| !have_slices.contains(&service.key));
    services
        .into_iter()
        .flat_map(|service| slices_of_service(service, pods.get(&service.key.namespace).into_iter().flatten().copied()))
        .collect()
}

/// Groups the pods by their target ports, and returns one slice for each group.
fn slices_of_service<'o>(service: &Service, pods: impl Iterator<Item = &'o Pod>) -> Vec<EndpointSlice> {
    let mut groups: BTreeMap<Vec<SlicePort>, Vec<SliceEndpoint>> = BTreeMap::new();
    for pod in pods.filter(|pod| service.selects(pod)) {
        let endpoints = pod.addresses.iter().map(|address| SliceEndpoint {
            address: *address,
            ready: !pod.deleting,
            draining: pod.deleting,
        });
        groups.entry(target_ports(service, pod)).or_default().extend(endpoints);
    }
    let slice = |(number, (ports, endpoints)): (usize, (Vec<SlicePort>, Vec<SliceEndpoint>))| {
        // `*` is not valid in the name of an API object, so the name is unique.
        let name: Arc<str> = format!("{}*{number}", service.key.name).into();
        let key = SliceKey { namespace: service.key.namespace.clone(), name };
        EndpointSlice { key, service: Some(service.key.name.clone()), ports, endpoints }
    };
    groups.into_iter().enumerate().map(slice).collect()
}

/// Returns the target ports of a Service on a pod. If a target port is a name that no port of the pod has, the
/// result does not contain this port.
fn target_ports(service: &Service, pod: &Pod) -> Vec<SlicePort> {
    let target = |port: &crate::model::ServicePort| {
        let number = match &port.target {
            TargetPort::Number(number) => *number,
            TargetPort::Name(name) => {
                let mut ports = pod.ports.iter();
                ports.find(|named| named.name == *name && named.protocol == port.protocol)?.port
            }
        };
        Some(SlicePort { name: port.name.clone(), protocol: port.protocol, port: number })
    };
    service.ports.iter().filter_map(target).collect()
}

#[cfg(test)]
mod tests {
    //! sNN in the name of a test is an item of docs/semantics.md.

    use netpol_common::protocol;

    use super::*;
    use crate::cluster_state::ClusterState;
    use crate::manifest;
    use crate::reference::{End, connection};

    /// The backends of the Service are the pods `db-0`, `db-1`, `db-2` and `host`. The pods `db-2` and `host` have no
    /// port named `sql`, so they are not backends of the Service's port `sql`. The remaining pods are no backends: they
    /// have other labels, another namespace, phase Failed or no address.
    const SHOP: &str = "
{apiVersion: v1, kind: Service, metadata: {name: db, namespace: shop}, spec: {clusterIP: 10.96.0.1, selector: {app: db},
  ports: [{name: sql, port: 80, targetPort: sql}, {name: ui, port: 81, targetPort: 8081}, {name: same, port: 82}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-0, namespace: shop, labels: {app: db, tier: a}}, spec: {containers: [{name: c,
  ports: [{name: sql, containerPort: 5432}]}]}, status: {podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-1, namespace: shop, labels: {app: db}}, spec: {containers: [{name: c,
  ports: [{name: sql, containerPort: 5433}]}]}, status: {podIP: 10.0.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db-2, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop, labels: {app: db}}, spec: {hostNetwork: true}, status: {podIP: 192.0.2.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: other, namespace: shop, labels: {app: web}}, status: {podIP: 10.0.0.8}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: ops, labels: {app: db}}, status: {podIP: 10.0.0.9}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: shop, labels: {app: db}}, status: {podIP: 10.0.0.10, phase: Failed}}
---
{apiVersion: v1, kind: Pod, metadata: {name: late, namespace: shop, labels: {app: db}}}
";

    fn objects(text: &str) -> Vec<Object> {
        let parsed = manifest::parse(text, "f");
        assert_eq!(parsed.errors, []);
        parsed.objects.into_iter().map(|located| located.object).collect()
    }

    /// The backends of each port of Service `shop/db`, as `port: backends`.
    fn backends(objects: &[Object]) -> Vec<String> {
        let slices = endpoint_slices(objects).into_iter().map(Object::Slice);
        let cluster_state = ClusterState::from_objects(objects.iter().cloned().chain(slices));
        let address = "10.96.0.1".parse().expect("an address");
        let backends_of = |port: u16| {
            let frontend = cluster_state.frontend_at(address, protocol::TCP, port).expect("a port of the Service");
            let backends = cluster_state.backends(&frontend).into_iter();
            let texts: Vec<String> = backends.map(|backend| format!("{}:{}", backend.address, backend.port)).collect();
            format!("{port}: {}", texts.join(" "))
        };
        [80, 81, 82].map(backends_of).to_vec()
    }

    #[test]
    fn s37_the_backends_of_a_service_without_slices_are_the_selected_pods() {
        let objects = objects(SHOP);
        let expected = [
            "80: 10.0.0.1:5432 10.0.0.2:5433",
            "81: 10.0.0.1:8081 10.0.0.2:8081 10.0.0.3:8081 192.0.2.1:8081",
            "82: 10.0.0.1:82 10.0.0.2:82 10.0.0.3:82 192.0.2.1:82",
        ];
        assert_eq!(backends(&objects), expected);
    }

    #[test]
    fn s37_no_slices_are_derived_for_a_service_that_has_one() {
        let slice = "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-x, namespace: shop, \
                     labels: {kubernetes.io/service-name: db}}, addressType: IPv4, endpoints: [], ports: []}\n";
        let objects = objects(&format!("{SHOP}{slice}"));
        assert_eq!(endpoint_slices(&objects), []);
        assert_eq!(backends(&objects)[0], "80: ");
    }

    #[test]
    fn s37_no_slices_are_derived_for_services_without_selector_or_address() {
        for (from, to) in [("selector: {app: db},", ""), ("clusterIP: 10.96.0.1", "clusterIP: None")] {
            assert_eq!(endpoint_slices(&objects(&SHOP.replace(from, to))), [], "{to}");
        }
        let external_name =
            SHOP.replace("spec: {clusterIP", "spec: {type: ExternalName, externalName: a.example, clusterIP");
        assert_eq!(endpoint_slices(&objects(&external_name)), []);
    }

    #[test]
    fn s37_policies_are_evaluated_for_each_derived_backend() {
        let policy = "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {\
                      podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: \
                      {tier: a}}}], ports: [{port: 5432}]}]}}\n";
        let objects = objects(&format!("{SHOP}{policy}"));
        let slices = endpoint_slices(&objects).into_iter().map(Object::Slice);
        let cluster_state = ClusterState::from_objects(objects.iter().cloned().chain(slices));
        let from = End::Pod(crate::model::PodKey::new("shop", "other"));
        let to = End::Service(ServiceKey::new("shop", "db"));
        let found = connection(&cluster_state, &from, &to, protocol::TCP, 80).expect("the connection is not possible");
        let allowed: Vec<bool> = found.backends.iter().map(crate::reference::BackendConnection::allowed).collect();
        assert_eq!(allowed, [true, false]);
    }
}
