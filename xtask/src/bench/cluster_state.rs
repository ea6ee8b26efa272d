//! The objects of a large cluster, for a fake API server. The objects have the size and the fields of real ones.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use netpol_apiserver::ApiServer;
use serde_json::{Value, json};

use crate::cli::BenchArgs;

/// Number of apps in each namespace.
pub(super) const APPS: usize = 10;
/// Number of pods in each namespace.
const PODS_PER_NAMESPACE: usize = 100;

/// Number of endpoints in each slice: the default of the `EndpointSlice` controller.
const ENDPOINTS_PER_SLICE: usize = 100;

/// The size of the cluster.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClusterSize {
    pub(super) pods: usize,
    pub(super) policies: usize,
    /// Number of Services. Every pod is a backend of one of them.
    pub(super) services: usize,
}

impl ClusterSize {
    /// Returns the size that the options set. `pods` and `services` are the defaults.
    pub(super) fn from_args(args: &BenchArgs, pods: u32, services: u32) -> Result<Self> {
        Ok(Self {
            pods: usize::try_from(args.pods.unwrap_or(pods))?,
            policies: usize::try_from(args.policies)?,
            services: usize::try_from(args.services.unwrap_or(services))?,
        })
    }

    pub(super) fn namespaces(self) -> usize {
        self.pods.div_ceil(PODS_PER_NAMESPACE).max(1)
    }

    /// Adds all objects to a server. The pods are remote: they are on other nodes than the agent under test. The
    /// benchmarks add local pods of the namespaces `ns-0`, `ns-1`, … separately.
    pub(super) fn fill(self, server: &ApiServer) -> Result<()> {
        for index in 0..self.namespaces() {
            apply(server, namespace(index, index))?;
        }
        for index in 0..self.policies {
            apply(server, self.policy(index, 8000))?;
        }
        for index in 0..self.pods {
            // Each app of a namespace has ten pods.
            apply(server, pod(index, (index / 10) % APPS))?;
        }
        for index in 0..self.services {
            let pods = (self.pods * index / self.services)..(self.pods * (index + 1) / self.services);
            let pods: Vec<usize> = pods.collect();
            // The namespace of the Service is that of its first backend.
            let home = namespace_name(pods.first().unwrap_or(&0) / PODS_PER_NAMESPACE);
            apply(server, service(&home, index))?;
            for (number, pods) in pods.chunks(ENDPOINTS_PER_SLICE).enumerate() {
                apply(server, endpoint_slice(&home, index, number, pods))?;
            }
        }
        Ok(())
    }

    /// Returns a policy for one app of its namespace. It allows ingress from another app of this namespace at one of 16
    /// ports, of which `port` is the first. It also allows ingress from one other namespace at the port `http`. The
    /// first ten policies of each namespace select different apps.
    pub(super) fn policy(self, index: usize, port: usize) -> Value {
        let namespaces = self.namespaces();
        let (home, app) = (index % namespaces, index / namespaces);
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"namespace": namespace_name(home), "name": format!("policy-{index}")},
            "spec": {
                "podSelector": {"matchLabels": {"app": app_name(app)}},
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [{"podSelector": {"matchLabels": {"app": app_name(app + 1)}}}],
                     "ports": [{"protocol": "TCP", "port": port + index % 16}]},
                    {"from": [{"namespaceSelector": {"matchLabels": {"team": team_name((home + 1) % namespaces)}}}],
                     "ports": [{"protocol": "TCP", "port": "http"}]},
                ],
            },
        })
    }
}

/// Adds an object to a server, or replaces it. Returns its resource version.
pub(super) fn apply(server: &ApiServer, object: Value) -> Result<u64> {
    Ok(server.apply(object).context("adding an object to the fake API server")?.version)
}

pub(super) fn namespace_name(index: usize) -> String {
    format!("ns-{index}")
}

pub(super) fn app_name(index: usize) -> String {
    format!("app-{}", index % APPS)
}

fn team_name(index: usize) -> String {
    format!("team-{index}")
}

/// Returns a namespace with a team label. [`ClusterSize::fill`] gives each namespace a team of its own.
pub(super) fn namespace(index: usize, team: usize) -> Value {
    let name = namespace_name(index);
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name, "team": team_name(team)}},
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

/// Returns the address of a remote pod. No local pod has an address of this range (100.64.0.2 and following).
pub(super) fn address(index: usize) -> Ipv4Addr {
    let offset = u32::try_from(index).unwrap_or(u32::MAX);
    Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 2).to_bits().wrapping_add(offset))
}

/// Returns a remote pod of an app. Each namespace has a hundred remote pods, all on one node.
pub(super) fn pod(index: usize, app: usize) -> Value {
    let home = namespace_name(index / PODS_PER_NAMESPACE);
    pod_in(&home, &format!("pod-{index}"), &format!("remote-{}", index / PODS_PER_NAMESPACE), app, address(index))
}

/// Returns a running pod, with the status that a kubelet writes: about 6 KB. One in ten pods has the labels of a
/// `StatefulSet`'s pod, the others have those of a Deployment's pod.
pub(super) fn pod_in(namespace: &str, name: &str, node: &str, app: usize, address: Ipv4Addr) -> Value {
    let app = app_name(app);
    let mut labels = json!({
        "app": app, "app.kubernetes.io/name": app, "app.kubernetes.io/instance": format!("{namespace}-{app}"),
        "app.kubernetes.io/managed-by": "Helm",
    });
    if name.ends_with('7') {
        labels["statefulset.kubernetes.io/pod-name"] = name.into();
        labels["controller-revision-hash"] = format!("{app}-6d5f8c9b7").into();
    } else {
        labels["pod-template-hash"] = format!("{namespace}{app}").into();
    }
    let env: Vec<_> = (0..12)
        .map(|number| json!({"name": format!("SETTING_{number}"), "value": format!("the value of setting {number}")}))
        .collect();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-05-01T10:00:07Z"});
    let conditions =
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "namespace": namespace, "name": name, "generateName": format!("{app}-"), "labels": labels,
            "annotations": {"checksum/config": "0f343b0931126a20f133d67c2b018a3b5a4d6f1a0d2d2f0c1b6e2f6d3c4b5a69"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app, "controller": true,
                "uid": "9d1c4a7e-52c4-4c55-9a0a-6f0f8d0c8a11", "blockOwnerDeletion": true}],
            "managedFields": [
                managed_fields("kube-controller-manager", None), managed_fields("kubelet", Some("status"))],
        },
        "spec": {
            "nodeName": node, "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "schedulerName": "default-scheduler", "priority": 0, "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "main", "image": format!("registry.example/{namespace}/{app}:1.42.0"), "env": env,
                "imagePullPolicy": "IfNotPresent", "terminationMessagePath": "/dev/termination-log",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"},
                          {"name": "metrics", "containerPort": 9090, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "livenessProbe": {"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "periodSeconds": 10},
                "volumeMounts": [{"name": "kube-api-access", "readOnly": true,
                    "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            }],
            "volumes": [{"name": "kube-api-access", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "tolerations": [
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute",
                    "tolerationSeconds": 300}],
        },
        "status": {
            "phase": "Running", "qosClass": "Burstable", "hostIP": "192.0.2.10", "hostIPs": [{"ip": "192.0.2.10"}],
            "podIP": address.to_string(), "podIPs": [{"ip": address.to_string()}], "startTime": "2026-05-01T10:00:00Z",
            "conditions": conditions,
            "containerStatuses": [{
                "name": "main", "ready": true, "started": true, "restartCount": 0, "lastState": {},
                "state": {"running": {"startedAt": "2026-05-01T10:00:06Z"}},
                "image": format!("registry.example/{namespace}/{app}:1.42.0"), "imageID": digest("imageID", &app),
                "containerID": digest("containerd", name),
            }],
        },
    })
}

fn service_name(index: usize) -> String {
    format!("service-{index}")
}

/// Returns a Service with two ports.
fn service(namespace: &str, index: usize) -> Value {
    let address = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 10).to_bits() + u32::try_from(index).unwrap_or(0));
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": service_name(index),
            "labels": {"app.kubernetes.io/managed-by": "Helm"}, "managedFields": [managed_fields("helm", None)]},
        "spec": {
            "type": "ClusterIP", "clusterIP": address.to_string(), "clusterIPs": [address.to_string()],
            "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "internalTrafficPolicy": "Cluster",
            "selector": {"app.kubernetes.io/instance": service_name(index)}, "sessionAffinity": "None",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"},
                      {"name": "metrics", "port": 9090, "protocol": "TCP", "targetPort": "metrics"}],
        },
        "status": {"loadBalancer": {}},
    })
}

/// Returns an `EndpointSlice` with some backends of a Service. `index`: the number of the Service; `number`: the number
/// of the slice in the Service; `pods`: the numbers of the backends.
fn endpoint_slice(namespace: &str, index: usize, number: usize, pods: &[usize]) -> Value {
    let service = service_name(index);
    let endpoint = |&pod: &usize| {
        json!({
            "addresses": [address(pod).to_string()], "nodeName": format!("remote-{}", pod / PODS_PER_NAMESPACE),
            "conditions": {"ready": true, "serving": true, "terminating": false}, "zone": "zone-a",
            "targetRef": {"kind": "Pod", "namespace": namespace_name(pod / PODS_PER_NAMESPACE), "name": format!("pod-{pod}"),
                "uid": "9d1c4a7e-52c4-4c55-9a0a-6f0f8d0c8a11"},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{service}-x{number}"),
            "generateName": format!("{service}-"),
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-05-01T10:00:07Z"},
            "labels": {"kubernetes.io/service-name": service,
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": service, "controller": true,
                "uid": "9d1c4a7e-52c4-4c55-9a0a-6f0f8d0c8a11", "blockOwnerDeletion": true}]},
        "endpoints": pods.iter().map(endpoint).collect::<Vec<_>>(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}, {"name": "metrics", "port": 9090, "protocol": "TCP"}],
    })
}

/// Returns an entry of `managedFields`. Such entries make up much of a real pod's size.
fn managed_fields(manager: &str, subresource: Option<&str>) -> Value {
    let mut fields = json!({});
    for name in ["env", "image", "imagePullPolicy", "livenessProbe", "ports", "resources", "volumeMounts"] {
        let mut children = json!({".": {}});
        for number in 0..4 {
            children[format!("k:{{\"name\":\"{name}-{number}\"}}")] = json!({".": {}, "f:name": {}, "f:value": {}});
        }
        fields[format!("f:{name}")] = children;
    }
    let mut entry = json!({"manager": manager, "operation": "Update", "apiVersion": "v1",
        "time": "2026-05-01T10:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": fields}});
    if let Some(name) = subresource {
        entry["subresource"] = name.into();
        entry["fieldsV1"] = json!({"f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:status": {}}},
            "f:containerStatuses": {}, "f:hostIP": {}, "f:phase": {}, "f:podIP": {}, "f:startTime": {}}});
    }
    entry
}

/// Returns a text in the form of a container's ID or an image's ID.
fn digest(scheme: &str, of: &str) -> String {
    let mut text = format!("{scheme}://");
    for number in 0..8_usize {
        let _ = write!(text, "{:08x}", of.len().wrapping_add(number).wrapping_mul(0x9e37_79b9) & 0xffff_ffff);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_the_size_of_a_real_one() {
        let bytes = pod(77, 7).to_string().len();
        assert!((5_000..8_000).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn each_namespace_has_a_policy_for_every_app() {
        // 100 namespaces, each with 10 policies.
        let cluster_size = ClusterSize { pods: 10_000, policies: 1_000, services: 0 };
        let selected = |index| cluster_size.policy(index, 8000).pointer("/spec/podSelector/matchLabels/app").cloned();
        assert_eq!(selected(0), Some("app-0".into()));
        assert_eq!(selected(900), Some("app-9".into()));
        assert_eq!(cluster_size.policy(900, 8000).pointer("/metadata/namespace"), Some(&"ns-0".into()));
    }
}
