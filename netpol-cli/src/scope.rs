//! The scope of a command: which pods the command shows. The options `-n` and `-A` set the namespaces, and `-l` the
//! labels.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use netpol_policy::model::{Labels, Selector};

use crate::args::ScopeOptions;
use crate::remote::Fleet;

/// Which pods a command shows.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    /// The only namespace that is shown; `None`: all namespaces.
    pub(crate) namespace: Option<String>,
    /// The namespace of names that the user writes without a namespace, such as `pod/web`.
    pub(crate) default_namespace: String,
    /// Only pods that this selector matches are shown; `None`: pods with any labels.
    pub(crate) labels: Option<Selector>,
}

impl Scope {
    /// Creates the scope. Without `-n` and `-A`, it has the namespace of the kubeconfig's current context, as with
    /// kubectl. If the agent is reached through a Unix socket, there is no kubeconfig, and the scope has all
    /// namespaces.
    pub(crate) fn new(options: &ScopeOptions, fleet: &Fleet) -> Result<Self> {
        let context_namespace = fleet.kube.as_ref().map(|kube| kube.namespace.clone());
        let namespace = match (&options.namespace, options.all_namespaces) {
            (Some(namespace), _) => Some(namespace.clone()),
            (None, true) => None,
            (None, false) => context_namespace.clone(),
        };
        let default_namespace = options.namespace.clone().or(context_namespace).unwrap_or_else(|| "default".to_owned());
        let labels = options.selector.as_deref().map(Selector::parse).transpose();
        let labels = labels.map_err(|error| anyhow!("-l: {error}"))?;
        Ok(Self { namespace, default_namespace, labels })
    }

    /// Returns whether a namespace is shown.
    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.namespace.as_deref().is_none_or(|wanted| wanted == namespace)
    }

    /// Returns whether pods with these labels are shown.
    pub(crate) fn has_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.as_ref().is_none_or(|selector| {
            let labels: Labels =
                labels.iter().map(|(name, value)| (name.as_str().into(), value.as_str().into())).collect();
            selector.matches(&labels)
        })
    }

    /// Returns the end of a message about an empty result, such as ` in namespace shop`.
    pub(crate) fn describe(&self) -> String {
        self.namespace.as_ref().map(|namespace| format!(" in namespace {namespace}")).unwrap_or_default()
    }
}
