//! The parameters of a call of this CNI plugin. The container runtime passes them in environment variables.

use std::env;

/// The parameters of a call of the plugin. The field of a missing variable is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `CNI_COMMAND`, for example `ADD`.
    pub command: String,
    /// `CNI_CONTAINERID`: the ID of the sandbox.
    pub container_id: String,
    /// `CNI_NETNS`: the path of the sandbox's network namespace.
    pub netns: String,
    /// `CNI_IFNAME`: the name of the interface in the sandbox.
    pub interface: String,
    /// `CNI_ARGS`: `KEY=VALUE;…`.
    pub arguments: String,
}

/// The pod and the sandbox that `CNI_ARGS` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodIdentity {
    /// The ID of the sandbox.
    pub(crate) sandbox: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    /// Empty if the runtime does not pass it.
    pub(crate) uid: String,
}

impl Environment {
    /// Returns the parameters of this process.
    pub fn of_process() -> Self {
        let variable = |name| env::var_os(name).map(|value| value.to_string_lossy().into_owned()).unwrap_or_default();
        Self {
            command: variable("CNI_COMMAND"),
            container_id: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            interface: variable("CNI_IFNAME"),
            arguments: variable("CNI_ARGS"),
        }
    }

    /// Returns the pod that `CNI_ARGS` names; `None` if the call is not for a pod of Kubernetes.
    ///
    /// Source: `CNI_ARGS` of containerd (`toCNILabels`) and CRI-O (`buildCNIRuntimeConf`).
    pub(crate) fn pod(&self) -> Option<PodIdentity> {
        let argument = |key: &str| {
            let mut pairs = self.arguments.split(';').filter_map(|pair| pair.split_once('='));
            pairs.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).filter(|value| !value.is_empty())
        };
        Some(PodIdentity {
            namespace: argument("K8S_POD_NAMESPACE")?.to_owned(),
            name: argument("K8S_POD_NAME")?.to_owned(),
            uid: argument("K8S_POD_UID").unwrap_or_default().to_owned(),
            sandbox: argument("K8S_POD_INFRA_CONTAINER_ID").unwrap_or(&self.container_id).to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(arguments: &str) -> Option<PodIdentity> {
        Environment { container_id: "c1".into(), arguments: arguments.into(), ..Environment::default() }.pod()
    }

    #[test]
    fn a_pod_is_read_from_the_arguments_of_a_kubernetes_runtime() {
        let containerd =
            "K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=u1;IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web";
        let expected =
            PodIdentity { sandbox: "s1".into(), namespace: "shop".into(), name: "web".into(), uid: "u1".into() };
        assert_eq!(pod(containerd), Some(expected.clone()));
        let from_old_runtime = pod("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web");
        assert_eq!(from_old_runtime, Some(PodIdentity { sandbox: "c1".into(), uid: String::new(), ..expected }));
    }

    #[test]
    fn arguments_without_the_namespace_and_name_of_a_pod_are_not_for_a_pod() {
        for arguments in ["", "IgnoreUnknown=1", "K8S_POD_NAMESPACE=shop", "K8S_POD_NAMESPACE=;K8S_POD_NAME=web", ";;="]
        {
            assert_eq!(pod(arguments), None, "{arguments}");
        }
    }
}
