//! The input of commands that read manifests with `-f`, and the cluster of the kubeconfig without it.

use std::collections::BTreeSet;

use anyhow::Result;
use netpol_policy::model::WorkloadKind;

use super::{Missing, Needed, OR_MANIFESTS, RESPONSE_TIME, has_namespace_selector, read};
use crate::args::{InputOptions, KubeOptions, ShownOptions};
use crate::input::Input;
use crate::remote::{Kube, progress, runtime};

/// What the result of a command depends on, apart from the objects of the namespaces that it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Nothing else.
    Pods,
    /// All addresses that are those of pods, nodes and Services.
    Addresses,
    /// All objects but the policies of other namespaces.
    Peers,
    /// All objects.
    Everything,
}

/// Reads the manifests of `-f`, or else the cluster. Returns the namespaces to show, too; none for all.
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

/// Returns whether an object such as `Pod shop/web-0` or `Namespace shop` is in one of the namespaces; none stands for all.
/// What is not about an object is shown.
pub(crate) fn is_shown(object: Option<&str>, namespaces: &[String]) -> bool {
    let Some((kind, name)) = object.and_then(|object| object.split_once(' ')).filter(|_| !namespaces.is_empty()) else {
        return true;
    };
    let namespace = name.split_once('/').map(|(namespace, _)| namespace).or((kind == "Namespace").then_some(name));
    namespace.is_some_and(|namespace| namespaces.iter().any(|shown| shown == namespace))
}

/// Reads the manifests of `-f`, or else everything in the cluster. `namespaces_of` gets the namespace of the context, or
/// `default` for manifests. What cannot be listed in all namespaces is listed in those that it returns.
pub(crate) fn read_input(
    manifests: &InputOptions,
    kube: &KubeOptions,
    namespaces_of: impl FnOnce(&str) -> Result<Vec<String>>,
) -> Result<Input> {
    if !manifests.paths.is_empty() {
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
        let view = if namespaces.is_empty() { View::Everything } else { view };
        let input = read_all_kinds(&kube, namespaces.iter().cloned().collect(), view).await?;
        Ok((input, namespaces))
    })
}

/// Reads the objects of all kinds. What cannot be listed in all namespaces is listed in these.
pub(crate) async fn read_all_kinds(kube: &Kube, namespaces: BTreeSet<String>, view: View) -> Result<Input> {
    let needed = Needed { namespaces, workloads: WorkloadKind::ALL.into() };
    let mut input = progress("the objects of the cluster", read(kube, &needed, RESPONSE_TIME)).await?;
    input.required = required(&input, view);
    Ok(input)
}

/// Returns the messages of missing objects that a result depends on.
fn required(input: &Input, view: View) -> Vec<String> {
    let has_selector = has_namespace_selector(input);
    let is_required = |missing: &&Missing| {
        let in_other_namespaces = match missing.kind.as_str() {
            "NetworkPolicies" => view == View::Everything,
            "Pods" | "Nodes" | "Services" | "EndpointSlices" => view != View::Pods,
            _ => matches!(view, View::Peers | View::Everything),
        };
        let matters = missing.kind != "Namespaces" || has_selector;
        missing.is_unevaluated || matters && (missing.namespace.is_some() || in_other_namespaces)
    };
    input.missing.iter().filter(is_required).map(ToString::to_string).collect()
}
