//! Lists the objects of a cluster, with the user's rights, as the input of commands that also read manifests.
//!
//! Each kind is listed in all namespaces. If the user has no right to do this, the kind is listed only in the
//! namespaces that the command needs. The kinds of missing objects are stored in [`Input`], because a verdict may be
//! unknown without these objects.

mod kinds;
mod manifests_or_cluster;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, anyhow};
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams};
use netpol_policy::model::{EndpointSlice, Object, ObjectKey, Peer, Peers, PolicyKey, Rule, WorkloadKind};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::diff::Applied;
use crate::ends::EndArgument;
use crate::input::Input;
use crate::remote::{Kube, explain_error};

use kinds::Kind;
pub(crate) use manifests_or_cluster::{View, is_shown, read_all_kinds, read_input, read_shown};

/// The number of objects in one response.
const PAGE_SIZE: u32 = 500;
/// The default time limit for each response of the API server.
pub(crate) const RESPONSE_TIME: Duration = Duration::from_secs(30);

/// Appended to the error message about a missing kubeconfig.
pub(crate) const OR_MANIFESTS: &str = ", or pass manifests with -f";

/// Objects of one kind that the user has no right to list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Missing {
    /// The kind in the plural, such as `NetworkPolicies`.
    pub(crate) kind: String,
    /// The namespace, one of [`Needed::namespaces`]. `None`: all other namespaces, or a kind without namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) namespace: Option<String>,
    /// The error of the API server.
    pub(crate) error: String,
    /// Whether these are policies of a kind that netpol does not evaluate.
    #[serde(skip)]
    pub(crate) is_unevaluated: bool,
}

/// The objects that a command needs. An end is the source or the destination of a connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Needed {
    /// The namespaces of the ends, or the namespaces that the command shows. If the user has no right to list a kind
    /// for the whole cluster, the kind is listed only in the namespaces of this field.
    pub(crate) namespaces: BTreeSet<String>,
    /// The kinds of workloads to list, for example those of the ends.
    pub(crate) workloads: BTreeSet<WorkloadKind>,
}

/// Lists the objects of the cluster. `limit`: the time limit for each response of the API server.
pub(crate) async fn read(kube: &Kube, needed: &Needed, limit: Duration) -> Result<Input> {
    let mut kinds = kinds::all(kube, limit).await?;
    kinds.extend(kinds::of_workloads(&needed.workloads));
    let results = futures::future::join_all(kinds.iter().map(|kind| list_kind(kube, kind, needed, limit))).await;
    let (mut items, mut missing) = (Vec::new(), Vec::new());
    for result in results {
        let (listed, not_listed) = result?;
        items.extend(listed);
        missing.extend(not_listed);
    }
    let applied_by_kubectl = items.iter().filter_map(applied_by_kubectl).collect();
    let text = serde_json::to_vec(&json!({"apiVersion": "v1", "kind": "List", "items": items}))?;
    let mut input = Input::of_cluster(text);
    input.applied_by_kubectl = applied_by_kubectl;
    missing.sort();
    input.missing = missing;
    Ok(input)
}

/// Lists the objects of one kind. Returns them, and which objects the user cannot list.
async fn list_kind(kube: &Kube, kind: &Kind, needed: &Needed, limit: Duration) -> Result<(Vec<Value>, Vec<Missing>)> {
    let resource = kind.resource();
    let all = Api::all_with(kube.client.clone(), &resource);
    let error = match list_pages(&all, &resource, kind, limit).await? {
        Listed::Items(items) => return Ok((items, Vec::new())),
        Listed::Forbidden(error) => error,
    };
    let missing_in = |namespace: Option<&String>, error| Missing {
        kind: kind.title.to_owned(),
        namespace: namespace.cloned(),
        error,
        is_unevaluated: kind.is_unevaluated,
    };
    let mut missing = vec![missing_in(None, error)];
    let mut items = Vec::new();
    for namespace in &needed.namespaces {
        let found = if kind.is_namespaced {
            let api = Api::namespaced_with(kube.client.clone(), namespace, &resource);
            list_pages(&api, &resource, kind, limit).await?
        } else if kind.title == "Namespaces" {
            get_namespace(&all, &resource, namespace, limit).await?
        } else {
            break;
        };
        match found {
            Listed::Items(found) => items.extend(found),
            Listed::Forbidden(error) => missing.push(missing_in(Some(namespace), error)),
        }
    }
    Ok((items, missing))
}

enum Listed {
    Items(Vec<Value>),
    /// The error of the API server.
    Forbidden(String),
}

/// Lists all objects of a kind, page by page.
async fn list_pages(api: &Api<DynamicObject>, resource: &ApiResource, kind: &Kind, limit: Duration) -> Result<Listed> {
    let (mut items, mut parameters) = (Vec::new(), ListParams::default().limit(PAGE_SIZE));
    loop {
        let page = timeout(limit, api.list(&parameters)).await;
        let page = page.map_err(|_| anyhow!("cannot list {}: the API server did not respond", kind.title))?;
        let page = match page {
            Ok(page) => page,
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Ok(Listed::Forbidden(status.message.clone()));
            }
            // The cluster has the API group, but not this kind.
            Err(kube::Error::Api(status)) if status.code == 404 && kind.is_unevaluated => {
                return Ok(Listed::Items(items));
            }
            Err(error) => return Err(anyhow!("cannot list {}: {}", kind.title, explain_error(&error))),
        };
        for object in page.items {
            items.push(manifest_of(&object, resource)?);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = ListParams::default().limit(PAGE_SIZE).continue_token(&token),
            None => return Ok(Listed::Items(items)),
        }
    }
}

/// Reads one Namespace: the user may have the right to get it, but not the right to list all Namespaces.
async fn get_namespace(
    api: &Api<DynamicObject>,
    resource: &ApiResource,
    name: &str,
    limit: Duration,
) -> Result<Listed> {
    match timeout(limit, api.get(name)).await {
        Ok(Ok(object)) => Ok(Listed::Items(vec![manifest_of(&object, resource)?])),
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Ok(Listed::Items(Vec::new())),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => Ok(Listed::Forbidden(status.message.clone())),
        Ok(Err(error)) => Err(anyhow!("cannot read namespace {name}: {}", explain_error(&error))),
        Err(_) => Err(anyhow!("cannot read namespace {name}: the API server did not respond")),
    }
}

/// Returns an object as in a manifest. The items of a list have no `kind` and no `apiVersion`, so these are added.
fn manifest_of(object: &DynamicObject, resource: &ApiResource) -> Result<Value> {
    let mut value = serde_json::to_value(object)?;
    value["apiVersion"] = resource.api_version.as_str().into();
    value["kind"] = resource.kind.as_str().into();
    if let Some(metadata) = value["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    Ok(value)
}

/// Returns the key of a Namespace or a policy, and the names of the labels and annotations that `kubectl apply` has set
/// on it. kubectl stores the last applied manifest in an annotation of the object.
fn applied_by_kubectl(object: &Value) -> Option<(ObjectKey, Applied)> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str()?;
    let key = match object["kind"].as_str()? {
        "Namespace" => ObjectKey::Namespace(name.into()),
        "NetworkPolicy" => ObjectKey::Policy(PolicyKey::new(metadata["namespace"].as_str()?, name)),
        _ => return None,
    };
    let applied = metadata["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str()?;
    let applied: Value = serde_json::from_str(applied).ok()?;
    let names = |field: &str| {
        let names = applied["metadata"][field].as_object().into_iter().flatten();
        names.map(|(name, _)| name.clone()).collect()
    };
    Some((key, Applied { labels: names("labels"), annotations: names("annotations") }))
}

/// The two ends of a connection in a cluster.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'e> {
    pub(crate) from: &'e EndArgument,
    pub(crate) to: &'e EndArgument,
    /// The default namespace: that of ends for which the user gives no namespace.
    pub(crate) namespace: &'e str,
}

impl Ends<'_> {
    /// Returns the objects that are needed to evaluate the connection.
    pub(crate) fn needed(self) -> Needed {
        let ends = [self.from, self.to];
        Needed {
            namespaces: ends.iter().filter_map(|end| end.namespace(self.namespace)).map(str::to_owned).collect(),
            workloads: ends
                .iter()
                .filter_map(|end| if let EndArgument::Workload(kind, ..) = end { Some(*kind) } else { None })
                .collect(),
        }
    }

    /// Returns why the verdict on the connection is unknown: a message for each kind of objects that the user cannot
    /// list and that may change the verdict.
    pub(crate) fn unknown_because(self, input: &Input) -> Vec<String> {
        // If an end is an address, this address can belong to a pod or a Service of any namespace, or to a node. The
        // same is true for the address of an unknown backend: an EndpointSlice has it, but no pod in the input has it.
        let has_address = [self.from, self.to].iter().any(|end| end.namespace(self.namespace).is_none())
            || self.has_unknown_backend(input);
        let is_to_service = matches!(self.to, EndArgument::Service(..));
        let matters = |missing: &&Missing| {
            let in_namespace_of_end = missing.namespace.is_some();
            match missing.kind.as_str() {
                _ if missing.is_unevaluated => true,
                "NetworkPolicies" => in_namespace_of_end,
                "Namespaces" => in_namespace_of_end && has_namespace_selector(input),
                "Pods" => in_namespace_of_end || has_address,
                "Nodes" => has_address,
                "Services" | "EndpointSlices" => has_address || is_to_service && in_namespace_of_end,
                // If a workload is missing, its pods are not found, which is an error already.
                _ => false,
            }
        };
        input.missing.iter().filter(matters).map(ToString::to_string).collect()
    }

    /// Returns whether the destination is a Service with a backend that is no pod in the input.
    fn has_unknown_backend(self, input: &Input) -> bool {
        let EndArgument::Service(namespace, name) = self.to else { return false };
        let namespace = namespace.as_deref().unwrap_or(self.namespace);
        let objects = || input.parsed.objects.iter().map(|located| &located.object);
        let pods: BTreeSet<IpAddr> = objects()
            .filter_map(|object| if let Object::Pod(pod) = object { Some(&pod.addresses) } else { None })
            .flatten()
            .copied()
            .collect();
        let of_service = |slice: &&EndpointSlice| {
            slice.service_key().is_some_and(|key| (&*key.namespace, &*key.name) == (namespace, name.as_str()))
        };
        let slices = objects().filter_map(|object| if let Object::Slice(slice) = object { Some(slice) } else { None });
        slices.filter(of_service).flat_map(|slice| &slice.endpoints).any(|endpoint| !pods.contains(&endpoint.address))
    }
}

/// Appends the list of missing objects in the needed namespaces to an error: an end that was not found may be one of
/// these objects. An I/O error is returned unchanged, because `main` checks whether the error is a closed pipe.
pub(crate) fn with_unlisted_objects(error: anyhow::Error, input: &Input) -> anyhow::Error {
    let in_needed_namespaces: Vec<String> =
        input.missing.iter().filter(|missing| missing.namespace.is_some()).map(ToString::to_string).collect();
    if in_needed_namespaces.is_empty() || error.is::<std::io::Error>() {
        return error;
    }
    anyhow!("{error:#}; {}", in_needed_namespaces.join("; "))
}

/// Returns the error of a command that has no pod to show.
pub(crate) fn no_pods(input: &Input) -> anyhow::Error {
    if input.is_of_cluster {
        return with_unlisted_objects(anyhow!("no pods to show in the selected namespaces (-n, -A)"), input);
    }
    anyhow!("no pods to show; pass manifests of pods or workloads with -f, and check --namespace")
}

/// Returns whether a policy selects namespaces by their labels.
fn has_namespace_selector(input: &Input) -> bool {
    let selects = |rule: &Rule| match &rule.peers {
        Peers::Any => false,
        Peers::Of(peers) => peers.iter().any(|peer| matches!(peer, Peer::Pods { namespaces: Some(_), .. })),
    };
    input.parsed.objects.iter().any(|located| match &located.object {
        Object::Policy(policy) => policy.ingress.iter().chain(&policy.egress).flatten().any(selects),
        _ => false,
    })
}

/// Writes `cannot list Pods in namespace shop: …`.
impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "cannot list {} in namespace {namespace}: {}", self.kind, self.error),
            None => write!(f, "cannot list {}: {}", self.kind, self.error),
        }
    }
}
