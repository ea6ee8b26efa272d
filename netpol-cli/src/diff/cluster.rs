//! The two versions of `netpol diff --cluster`: a cluster, and the same cluster after manifests are applied.

mod apply;

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use netpol_policy::manifest::Parsed;
use netpol_policy::model::Object;

use super::DiffOptions;
use crate::args::InputOptions;
use crate::input::Input;
use crate::live::{View, read_all_kinds};
use crate::remote::{Kube, runtime};
pub(crate) use apply::{Applied, AppliedByKubectl};

/// Reads the cluster and the manifests. Returns the objects of the cluster, and the objects that it would have after
/// `kubectl apply` of the manifests.
pub(super) fn read(options: &DiffOptions) -> Result<(Input, Input)> {
    runtime()?.block_on(async {
        let kube = Kube::open(&options.kube, "").await?;
        let namespace = options.namespace.clone().unwrap_or_else(|| kube.namespace.clone());
        let mut manifest_options = options.clone();
        manifest_options.common.default_namespace = Some(namespace.clone());
        let manifests = if options.first == "-" {
            // Standard input.
            Input::read(&InputOptions { paths: vec![PathBuf::from("-")], ..manifest_options.common })
        } else {
            super::read(&manifest_options, &options.first, None)?
        };
        let mut namespaces = namespaces(&manifests.parsed);
        namespaces.insert(namespace);
        let old = read_all_kinds(&kube, namespaces, View::Everything).await?;
        let Input { parsed, unreadable, skipped, .. } = manifests;
        let parsed = apply::apply(&old.parsed, parsed, &old.applied_by_kubectl);
        // Objects of the cluster that the user cannot list are missing in both versions.
        let missing = old.missing.clone();
        let mut new = Input::default();
        (new.parsed, new.unreadable, new.skipped, new.missing) = (parsed, unreadable, skipped, missing);
        Ok((old, new))
    })
}

/// Returns the namespaces of the objects in the manifests.
fn namespaces(manifests: &Parsed) -> BTreeSet<String> {
    let of_objects = manifests.objects.iter().filter_map(|located| match &located.object {
        Object::Pod(pod) => Some(pod.key.namespace.to_string()),
        Object::Policy(policy) => Some(policy.key.namespace.to_string()),
        Object::Service(service) => Some(service.key.namespace.to_string()),
        Object::Namespace(namespace) => Some(namespace.name.to_string()),
        Object::Slice(_) | Object::Node(_) => None,
    });
    of_objects.chain(manifests.workloads.iter().map(|located| located.object.key.namespace.to_string())).collect()
}
