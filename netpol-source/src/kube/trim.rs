//! Parses objects of the API server into the model. Only the fields that policies need are deserialized. An object of
//! unexpected shape does not affect other objects.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use netpol_policy::manifest;
use netpol_policy::model::{
    Diagnostic, EndpointSlice, Namespace, Node, Object, ObjectKey, Pod, PodKey, PolicyKey, Service, ServiceKey,
    SliceKey,
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::annotations::Annotations;
use super::resource::Resource;

/// A received object.
#[derive(Debug)]
pub(super) struct ReceivedObject {
    pub(super) key: ObjectKey,
    /// `metadata.resourceVersion`.
    pub(super) version: u64,
    /// The parsed object, or `None` if it could not be parsed. In this case, its last parsed state stays in effect.
    pub(super) object: Option<Object>,
    /// Diagnostics to log.
    pub(super) diagnostics: Vec<String>,
}

/// The metadata that identifies an object and its version. It is parsed first, because it is used even if the rest of
/// the object is invalid.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    name: String,
    namespace: Option<String>,
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WithMetadata {
    metadata: Metadata,
}

/// The other metadata that policies need.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SlimMetadata {
    uid: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<Annotations>,
    owner_references: Option<Vec<Owner>>,
    creation_timestamp: Option<Time>,
    deletion_timestamp: Option<Time>,
}

/// An owner reference.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Owner {
    kind: String,
    name: String,
    controller: Option<bool>,
}

/// The fields of an object that policies need.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Slim<Spec, Status> {
    metadata: SlimMetadata,
    spec: Spec,
    status: Status,
}

/// A spec or status of which no field is needed.
#[derive(Debug, Default, Deserialize)]
struct Unused {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodSpec {
    node_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<Vec<Container>>,
    init_containers: Option<Vec<Container>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    restart_policy: Option<String>,
    ports: Option<Vec<core::ContainerPort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<core::PodIP>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<core::HostIP>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    type_: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
    #[serde(rename = "externalIPs")]
    external_ips: Option<Vec<String>>,
    ports: Option<Vec<core::ServicePort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ServiceStatus {
    load_balancer: Option<core::LoadBalancerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SlimSlice {
    metadata: SlimMetadata,
    address_type: String,
    endpoints: Option<Vec<SlimEndpoint>>,
    ports: Option<Vec<discovery::EndpointPort>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimEndpoint {
    addresses: Vec<String>,
    conditions: Option<discovery::EndpointConditions>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    addresses: Option<Vec<core::NodeAddress>>,
}

/// A `NetworkPolicy`. Its complete spec is kept, see [`policy`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlimPolicy {
    metadata: SlimMetadata,
    spec: Value,
}

/// Parses the JSON text of an object.
///
/// # Errors
/// If the object has no name and therefore cannot be identified.
pub(super) fn parse_object(resource: Resource, text: &str) -> Result<ReceivedObject, String> {
    let metadata = parse_metadata(text)?;
    let key = key(resource, &metadata);
    let version = version(&metadata.resource_version);
    let (object, diagnostics) = match parse(resource, &metadata, text) {
        Ok((object, diagnostics)) => (object, diagnostics.iter().map(ToString::to_string).collect()),
        Err(error) => (None, vec![format!("cannot parse the object: {error}; its last state stays in effect")]),
    };
    Ok(ReceivedObject { key, version, object, diagnostics })
}

/// Returns the key and the version of an object. Only its metadata must be valid.
pub(super) fn key_and_version(resource: Resource, text: &str) -> Result<(ObjectKey, u64), String> {
    let metadata = parse_metadata(text)?;
    Ok((key(resource, &metadata), version(&metadata.resource_version)))
}

fn parse_metadata(text: &str) -> Result<Metadata, String> {
    let WithMetadata { metadata } = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if metadata.name.is_empty() { Err("the object has no metadata.name".to_owned()) } else { Ok(metadata) }
}

/// Parses a resource version. In general, versions are opaque texts. But the versions of the API server can be compared
/// as numbers, which Kubernetes guarantees since 1.35. Any other text counts as the oldest version.
pub(super) fn version(text: &str) -> u64 {
    text.parse().unwrap_or(0)
}

fn key(resource: Resource, metadata: &Metadata) -> ObjectKey {
    let (namespace, name) = (metadata.namespace.as_deref().unwrap_or("default"), metadata.name.as_str());
    match resource {
        Resource::Namespaces => ObjectKey::Namespace(name.into()),
        Resource::Nodes => ObjectKey::Node(name.into()),
        Resource::NetworkPolicies => ObjectKey::Policy(PolicyKey::new(namespace, name)),
        Resource::Pods => ObjectKey::Pod(PodKey::new(namespace, name)),
        Resource::Services => ObjectKey::Service(ServiceKey::new(namespace, name)),
        Resource::EndpointSlices => ObjectKey::Slice(SliceKey::new(namespace, name)),
    }
}

type ParsedObject = (Option<Object>, Vec<Diagnostic>);

fn parse(resource: Resource, metadata: &Metadata, text: &str) -> Result<ParsedObject, serde_json::Error> {
    Ok(match resource {
        Resource::Namespaces => {
            let slim: Slim<Unused, Unused> = serde_json::from_str(text)?;
            let api = core::Namespace { metadata: object_meta(metadata, slim.metadata), ..core::Namespace::default() };
            let (namespace, diagnostics) = Namespace::from_api(&api);
            (Some(Object::Namespace(namespace)), diagnostics)
        }
        Resource::Nodes => {
            let slim: Slim<Unused, NodeStatus> = serde_json::from_str(text)?;
            let status = core::NodeStatus { addresses: slim.status.addresses, ..core::NodeStatus::default() };
            let metadata = object_meta(metadata, slim.metadata);
            let (node, diagnostics) = Node::from_api(&core::Node { metadata, status: Some(status), spec: None });
            (Some(Object::Node(node)), diagnostics)
        }
        Resource::Pods => {
            let slim: Slim<PodSpec, PodStatus> = serde_json::from_str(text)?;
            let (pod, diagnostics) = Pod::from_api(&pod(metadata, slim));
            (Some(Object::Pod(pod)), diagnostics)
        }
        Resource::Services => {
            let slim: Slim<ServiceSpec, ServiceStatus> = serde_json::from_str(text)?;
            let (service, diagnostics) = Service::from_api(&service(metadata, slim));
            (Some(Object::Service(service)), diagnostics)
        }
        Resource::EndpointSlices => {
            let slim: SlimSlice = serde_json::from_str(text)?;
            let (slice, diagnostics) = EndpointSlice::from_api(&slice(metadata, slim));
            (Some(Object::Slice(slice)), diagnostics)
        }
        Resource::NetworkPolicies => {
            let slim: SlimPolicy = serde_json::from_str(text)?;
            policy(metadata, slim)
        }
    })
}

/// Parses a policy in the same way as a policy in a file. So even a policy with a spec of invalid shape isolates the
/// pods that it selects.
fn policy(metadata: &Metadata, SlimPolicy { metadata: slim, spec }: SlimPolicy) -> ParsedObject {
    let annotations = slim.annotations.and_then(Annotations::into_map);
    let value = json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": { "name": metadata.name, "namespace": metadata.namespace, "annotations": annotations.unwrap_or_default() },
        "spec": spec,
    });
    let parsed = manifest::read(value, "the API server");
    let diagnostics = parsed.errors.into_iter().map(|error| Diagnostic {
        severity: error.severity,
        field: error.field.unwrap_or_default(),
        message: error.message,
    });
    let diagnostics = diagnostics.collect();
    (parsed.objects.into_iter().next().map(|located| located.object), diagnostics)
}

fn object_meta(metadata: &Metadata, slim: SlimMetadata) -> ObjectMeta {
    ObjectMeta {
        name: Some(metadata.name.clone()),
        namespace: metadata.namespace.clone(),
        uid: slim.uid,
        labels: slim.labels,
        annotations: slim.annotations.and_then(Annotations::into_map),
        owner_references: slim.owner_references.map(|owners| {
            let full = |Owner { kind, name, controller }| OwnerReference {
                kind,
                name,
                controller,
                ..OwnerReference::default()
            };
            owners.into_iter().map(full).collect()
        }),
        creation_timestamp: slim.creation_timestamp,
        deletion_timestamp: slim.deletion_timestamp,
        ..ObjectMeta::default()
    }
}

fn service(metadata: &Metadata, slim: Slim<ServiceSpec, ServiceStatus>) -> core::Service {
    let spec = core::ServiceSpec {
        type_: slim.spec.type_,
        cluster_ip: slim.spec.cluster_ip,
        cluster_ips: slim.spec.cluster_ips,
        external_ips: slim.spec.external_ips,
        ports: slim.spec.ports,
        ..core::ServiceSpec::default()
    };
    let status = core::ServiceStatus { load_balancer: slim.status.load_balancer, ..core::ServiceStatus::default() };
    core::Service { metadata: object_meta(metadata, slim.metadata), spec: Some(spec), status: Some(status) }
}

fn slice(metadata: &Metadata, slim: SlimSlice) -> discovery::EndpointSlice {
    let endpoint = |endpoint: SlimEndpoint| discovery::Endpoint {
        addresses: endpoint.addresses,
        conditions: endpoint.conditions,
        ..discovery::Endpoint::default()
    };
    discovery::EndpointSlice {
        metadata: object_meta(metadata, slim.metadata),
        address_type: slim.address_type,
        endpoints: slim.endpoints.unwrap_or_default().into_iter().map(endpoint).collect(),
        ports: slim.ports,
    }
}

fn pod(metadata: &Metadata, slim: Slim<PodSpec, PodStatus>) -> core::Pod {
    let containers = |list: Option<Vec<Container>>| {
        let full = |container: Container| core::Container {
            restart_policy: container.restart_policy,
            ports: container.ports,
            ..core::Container::default()
        };
        list.map(|list| list.into_iter().map(full).collect::<Vec<_>>())
    };
    let spec = core::PodSpec {
        node_name: slim.spec.node_name,
        host_network: slim.spec.host_network,
        containers: containers(slim.spec.containers).unwrap_or_default(),
        init_containers: containers(slim.spec.init_containers),
        ..core::PodSpec::default()
    };
    let status = core::PodStatus {
        phase: slim.status.phase,
        pod_ip: slim.status.pod_ip,
        pod_ips: slim.status.pod_ips,
        host_ip: slim.status.host_ip,
        host_ips: slim.status.host_ips,
        ..core::PodStatus::default()
    };
    core::Pod { metadata: object_meta(metadata, slim.metadata), spec: Some(spec), status: Some(status) }
}

#[cfg(test)]
mod tests {
    //! sNN in the name of a test is an item of docs/semantics.md.

    use netpol_policy::model::Mode;

    use super::*;

    /// Returns the items of a list that was recorded from an API server.
    fn items(text: &str) -> Vec<Value> {
        let list: Value = serde_json::from_str(text).expect("the recorded list is valid JSON");
        list["items"].as_array().expect("the recorded list has items").clone()
    }

    /// Checks that [`parse_object`], which deserializes only the needed fields, returns the same object as parsing the
    /// complete text. Checks this for each object of a list.
    fn check_trimmed(resource: Resource, text: &str) {
        for mut item in items(text) {
            let received = parse_object(resource, &item.to_string()).expect("the object has a name");
            let map = item.as_object_mut().expect("the item is an object");
            let version =
                if resource.group().is_empty() { "v1".to_owned() } else { format!("{}/v1", resource.group()) };
            map.insert("apiVersion".into(), version.into());
            map.insert("kind".into(), resource.kind().into());
            let complete = manifest::read(item, "recorded").objects.remove(0).object;
            assert_eq!((received.object.as_ref(), &received.key), (Some(&complete), &complete.key()));
            assert!(received.version > 0);
        }
    }

    #[test]
    fn trimmed_recorded_objects_parse_like_complete_ones() {
        check_trimmed(Resource::Pods, include_str!("../../tests/fixtures/kube/list-pods.body"));
        check_trimmed(Resource::NetworkPolicies, include_str!("../../tests/fixtures/kube/list-netpols.body"));
    }

    /// These objects are not recorded from an API server, but written according to the API documentation.
    #[test]
    fn trimmed_services_and_host_ports_parse_like_complete_ones() {
        let list = |item: Value| json!({ "items": [item] }).to_string();
        let metadata = json!({"name": "a", "namespace": "shop", "resourceVersion": "7",
            "labels": {"kubernetes.io/service-name": "a"}});
        let ports = json!([{"containerPort": 80, "hostPort": 8080, "hostIP": "192.0.2.9"}, {"containerPort": 81, "hostPort": 81}]);
        check_trimmed(
            Resource::Pods,
            &list(json!({
                "metadata": metadata, "spec": {"containers": [{"name": "c", "ports": ports}]},
                "status": {"podIP": "10.1.0.2", "hostIP": "192.0.2.1", "hostIPs": [{"ip": "192.0.2.1"}, {"ip": "2001:db8::1"}]},
            })),
        );
        for kind in ["ClusterIP", "ExternalName"] {
            check_trimmed(
                Resource::Services,
                &list(json!({
                    "metadata": metadata,
                    "spec": {"type": kind, "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
                        "externalIPs": ["198.51.100.1"], "sessionAffinity": "None",
                        "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "targetPort": "dns", "nodePort": 30053}]},
                    "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.1", "ipMode": "VIP"}]}},
                })),
            );
        }
        check_trimmed(
            Resource::EndpointSlices,
            &list(json!({
                "metadata": metadata, "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.1.0.2"], "conditions": {"ready": false, "serving": true, "terminating": true},
                    "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "a-1"}, "zone": "z"}],
                "ports": [{"name": "dns", "protocol": "UDP", "port": 5353}],
            })),
        );
        check_trimmed(
            Resource::EndpointSlices,
            &list(json!({"metadata": metadata, "addressType": "FQDN", "endpoints": null, "ports": null})),
        );
    }

    #[test]
    fn s43_trimmed_annotations_and_owners_parse_like_complete_ones() {
        let list = |item: Value| json!({ "items": [item] }).to_string();
        let annotations = json!({"netpol.io/mode": "shadow", "netpol.io/suspended-until": "2026-11-29T18:00:00Z",
            "netpol.io/suspend-cluster-until": "2026-11-29T19:00:00Z", "netpol.io/suspended-reason": "x", "other": "y"});
        let owner =
            json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f", "uid": "u", "controller": true});
        let metadata = json!({"name": "a", "namespace": "shop", "resourceVersion": "7", "annotations": annotations,
            "labels": {"pod-template-hash": "5d4f"}, "ownerReferences": [owner]});
        let spec = json!({"podSelector": {}});
        check_trimmed(Resource::NetworkPolicies, &list(json!({"metadata": metadata, "spec": spec})));
        check_trimmed(Resource::Namespaces, &list(json!({"metadata": metadata})));
        check_trimmed(Resource::Pods, &list(json!({"metadata": metadata, "spec": {"containers": []}, "status": {}})));
        let parsed_object = |resource| {
            let text = json!({"metadata": metadata, "spec": spec}).to_string();
            parse_object(resource, &text).expect("it has a name").object.expect("it is valid")
        };
        let Object::Policy(policy) = parsed_object(Resource::NetworkPolicies) else { panic!("not a policy") };
        assert_eq!(policy.mode, Some(Mode::Shadow));
        let Object::Namespace(namespace) = parsed_object(Resource::Namespaces) else { panic!("not a namespace") };
        assert!(namespace.modes.suspended_until < namespace.modes.cluster_suspended_until);
        let Object::Pod(pod) = parsed_object(Resource::Pods) else { panic!("not a pod") };
        assert_eq!(&*pod.workload.expect("it has a controller").name, "web");
    }

    /// With an API server, only `EndpointSlice` objects determine the backends of a Service, not its selector.
    #[test]
    fn s37_the_selector_of_a_service_from_an_api_server_is_ignored() {
        let text = json!({"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "a"}, "ports": [{"port": 80}]}});
        let received = parse_object(Resource::Services, &text.to_string()).expect("it has a name");
        let Some(Object::Service(service)) = received.object else { panic!("{:?}", received.diagnostics) };
        assert!(service.selector.is_empty() && service.addresses.len() == 1, "{service:?}");
    }

    #[test]
    fn a_pod_with_a_field_of_the_wrong_type_is_identified_but_not_parsed() {
        let text =
            r#"{"metadata": {"name": "a", "namespace": "shop", "resourceVersion": "7"}, "spec": {"containers": 1}}"#;
        let received = parse_object(Resource::Pods, text).expect("the object has a name");
        assert_eq!((received.key, received.version), (ObjectKey::Pod(PodKey::new("shop", "a")), 7));
        assert!(
            received.object.is_none() && received.diagnostics[0].contains("its last state stays in effect"),
            "{:?}",
            received.diagnostics
        );
    }

    #[test]
    fn a_policy_of_invalid_shape_isolates() {
        for spec in [r#""spec": 7"#, r#""spec": {"podSelector": [], "ingress": {}}"#, r#""spec": {"ingres": []}"#] {
            let text = format!(r#"{{"metadata": {{"name": "p", "namespace": "shop"}}, {spec}}}"#);
            let received = parse_object(Resource::NetworkPolicies, &text).expect("the object has a name");
            let Some(Object::Policy(policy)) = received.object else {
                panic!("{text} is not parsed as a policy: {:?}", received.diagnostics)
            };
            assert!(policy.ingress.is_some() && !policy.diagnostics.is_empty(), "{text}: {policy:?}");
        }
    }

    #[test]
    fn an_object_without_a_name_is_an_error() {
        assert!(parse_object(Resource::Pods, r#"{"metadata": {"labels": {}}}"#).is_err());
        assert!(parse_object(Resource::Pods, "[]").is_err());
    }
}
