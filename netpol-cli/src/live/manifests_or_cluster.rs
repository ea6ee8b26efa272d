//! Reads the input of commands: manifests with `-f`, or else the cluster of the kubeconfig.

use std::collections::BTreeSet;

use anyhow::Result;
use netpol_policy::model::WorkloadKind;

use super::{Missing, Needed, OR_MANIFESTS, RESPONSE_TIME, has_namespace_selector, read};
use crate::args::{InputOptions, KubeOptions, ShownOptions};
use crate::input::Input;
use crate::remote::{Kube, progress, runtime};

/// The objects that the result of a command depends on. The result always depends on the objects of the shown
/// namespaces. The variants differ in the objects of other namespaces, and in the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Only the objects of the shown namespaces: the command shows verdicts between their pods.
    Pods,
    /// Also all other pods, nodes and Services, because the command shows addresses, which can belong to them.
    Addresses,
    /// All objects, because peers can be in any namespace. Only policies of other namespaces are not needed.
    Peers,
    /// All objects.
    Everything,
}

/// Reads the manifests of `-f`, or else the cluster. Also returns the namespaces to show. An empty list means all
/// namespaces.
pub(crate) fn read_shown(manifests: &InputOptions, shown: &ShownOptions, view: View) -> Result<(Input, Vec<String>)> {
    let namespaces_of = |kube: &Kube| match &shown.namespaces[..] {
        _ if shown.all_namespaces => Vec::new(),
        [] => vec![kube.namespace.clone()],
        namespaces => namespaces.to_vec(),
    };
    if manifests.paths.is_empty() {
        let (mut input, namespaces) = read_cluster(&shown.kube, view, |kube| Ok(namespaces_of(kube)))?;
        input.parsed.errors.retain(|error| is_shown(error.object.as_deref(), &namespaces));
        Ok((input, namespaces))
    } else {
        Ok((Input::read(manifests), shown.namespaces.clone()))
    }
}

/// Returns whether to show a message about an object such as `Pod shop/web-0` or `Namespace shop`: the object must be
/// in one of `namespaces`. If `namespaces` is empty, all messages are shown. A message without an object is always
/// shown.
pub(crate) fn is_shown(object: Option<&str>, namespaces: &[String]) -> bool {
    let Some((kind, name)) = object.and_then(|object| object.split_once(' ')).filter(|_| !namespaces.is_empty()) else {
        return true;
    };
    let namespace = name.split_once('/').map(|(namespace, _)| namespace).or((kind == "Namespace").then_some(name));
    namespace.is_some_and(|namespace| namespaces.iter().any(|shown| shown == namespace))
}

/// Reads the manifests of `-f`, or else all objects of the cluster. If the user cannot list a kind in the whole
/// cluster, the kind is listed only in the namespaces that `namespaces_of` returns. The argument of `namespaces_of` is
/// the default namespace of the command: that of the kubeconfig's context, or `default` for manifests.
pub(crate) fn read_input(
    manifests: &InputOptions,
    kube: &KubeOptions,
    namespaces_of: impl FnOnce(&str) -> Result<Vec<String>>,
) -> Result<Input> {
    if !manifests.paths.is_empty() {
        // For manifests, the returned namespaces are not needed. But the function must be called, because it may also
        // read files for the caller.
        namespaces_of("default")?;
        return Ok(Input::read(manifests));
    }
    read_cluster(kube, View::Everything, |kube| namespaces_of(&kube.namespace)).map(|(input, _)| input)
}

fn read_cluster(
    options: &KubeOptions,
    view: View,
    namespaces_of: impl FnOnce(&Kube) -> Result<Vec<String>>,
) -> Result<(Input, Vec<String>)> {
    runtime()?.block_on(async {
        let kube = Kube::open(options, OR_MANIFESTS).await?;
        let namespaces = namespaces_of(&kube)?;
        // An empty list means that all namespaces are shown, so the result depends on the objects of all namespaces.
        let view = if namespaces.is_empty() { View::Everything } else { view };
        let input = read_all_kinds(&kube, namespaces.iter().cloned().collect(), view).await?;
        Ok((input, namespaces))
    })
}

/// Reads the objects of all kinds. If the user cannot list a kind in the whole cluster, the kind is listed only in
/// `namespaces`.
pub(crate) async fn read_all_kinds(kube: &Kube, namespaces: BTreeSet<String>, view: View) -> Result<Input> {
    let needed = Needed { namespaces, workloads: WorkloadKind::ALL.into() };
    let mut input = progress("the objects of the cluster", read(kube, &needed, RESPONSE_TIME)).await?;
    input.missing_needed = missing_needed(&input, view);
    Ok(input)
}

/// Returns messages about the objects that the result depends on, but that the user cannot list.
fn missing_needed(input: &Input, view: View) -> Vec<String> {
    let has_selector = has_namespace_selector(input);
    let is_needed = |missing: &&Missing| {
        // Whether the result depends on objects of this kind outside the shown namespaces.
        let needs_others = match missing.kind.as_str() {
            "NetworkPolicies" => view == View::Everything,
            "Pods" | "Nodes" | "Services" | "EndpointSlices" => view != View::Pods,
            _ => matches!(view, View::Peers | View::Everything),
        };
        // Only namespace selectors use Namespace objects.
        let is_used = missing.kind != "Namespaces" || has_selector;
        // `missing.namespace` is one of the shown namespaces; `None` stands for all others.
        missing.is_unevaluated || is_used && (missing.namespace.is_some() || needs_others)
    };
    input.missing.iter().filter(is_needed).map(ToString::to_string).collect()
}
