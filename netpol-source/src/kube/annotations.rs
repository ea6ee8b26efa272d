//! The annotations that netpol uses. Other annotations are not kept in memory.

use std::collections::BTreeMap;

use netpol_policy::model::{
    MIRROR_ANNOTATION, MODE_ANNOTATION, SUSPEND_CLUSTER_ANNOTATION, SUSPENDED_REASON_ANNOTATION,
    SUSPENDED_UNTIL_ANNOTATION,
};
use serde::Deserialize;

/// The annotations that netpol uses.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Annotations {
    /// The kubelet adds it to the mirror pod of a static pod.
    #[serde(rename = "kubernetes.io/config.mirror")]
    mirror: Option<String>,
    #[serde(rename = "netpol.io/mode")]
    mode: Option<String>,
    #[serde(rename = "netpol.io/suspended-until")]
    suspended_until: Option<String>,
    #[serde(rename = "netpol.io/suspend-cluster-until")]
    suspend_cluster_until: Option<String>,
    #[serde(rename = "netpol.io/suspended-reason")]
    suspended_reason: Option<String>,
}

impl Annotations {
    /// Returns the annotations by name; `None` if there are none.
    pub(super) fn into_map(self) -> Option<BTreeMap<String, String>> {
        let Self { mirror, mode, suspended_until, suspend_cluster_until, suspended_reason } = self;
        let all = [
            (MIRROR_ANNOTATION, mirror),
            (MODE_ANNOTATION, mode),
            (SUSPENDED_UNTIL_ANNOTATION, suspended_until),
            (SUSPEND_CLUSTER_ANNOTATION, suspend_cluster_until),
            (SUSPENDED_REASON_ANNOTATION, suspended_reason),
        ];
        let map: BTreeMap<_, _> = all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect();
        (!map.is_empty()).then_some(map)
    }
}
