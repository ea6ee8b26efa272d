//! A pod's sandbox, as NRI describes it.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::messages::PodSandbox;

/// The environment that a pod's containers share. A pod that is started again gets a new sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The ID of the sandbox in the runtime.
    pub id: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod in the API. For a static pod, the UID that the kubelet assigned.
    pub uid: String,
    /// Path of the network namespace. `None` on the host's network, or if the runtime does not report this path.
    pub network_namespace: Option<PathBuf>,
    /// Whether the pod is on the host's network. This is so if the runtime reports Linux namespaces of the pod, but no
    /// network namespace.
    pub host_network: bool,
    /// Addresses of the pod. Empty before NRI 0.9, on the host's network, and if one of them is invalid.
    pub addresses: Vec<IpAddr>,
    /// Whether the sandbox had containers when the plugin connected. Set only for [`crate::Handler::synchronize`].
    pub has_containers: bool,
}

impl From<PodSandbox> for Sandbox {
    fn from(pod: PodSandbox) -> Self {
        let namespaces = pod.linux.map(|linux| linux.namespaces).unwrap_or_default();
        // The kinds are the namespace types of the OCI runtime specification.
        let host_network = !namespaces.is_empty() && namespaces.iter().all(|namespace| namespace.kind != "network");
        let network =
            namespaces.into_iter().find(|namespace| namespace.kind == "network" && !namespace.path.is_empty());
        let addresses: Result<_, _> = pod.ips.iter().map(|address| address.parse()).collect();
        Self {
            id: pod.id,
            namespace: pod.namespace,
            name: pod.name,
            uid: pod.uid,
            network_namespace: network.map(|namespace| PathBuf::from(namespace.path)),
            host_network,
            addresses: addresses.unwrap_or_default(),
            has_containers: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{LinuxNamespace, LinuxPodSandbox};

    #[test]
    fn the_network_namespace_decides_whether_a_pod_is_on_the_hosts_network() {
        for (namespaces, path, host_network) in [
            (vec![], None, false),
            (vec![("pid", ""), ("ipc", "")], None, true),
            (vec![("pid", ""), ("network", "/run/netns/a")], Some("/run/netns/a"), false),
            (vec![("network", "")], None, false),
        ] {
            let description = format!("{namespaces:?}");
            let namespaces = namespaces
                .into_iter()
                .map(|(kind, path)| LinuxNamespace { kind: kind.to_owned(), path: path.to_owned() })
                .collect();
            let pod = PodSandbox { linux: Some(LinuxPodSandbox { namespaces }), ..PodSandbox::default() };
            let sandbox = Sandbox::from(pod);
            assert_eq!(sandbox.network_namespace, path.map(PathBuf::from), "{description}");
            assert_eq!(sandbox.host_network, host_network, "{description}");
        }
    }

    #[test]
    fn if_an_address_is_invalid_there_are_no_addresses() {
        for (ips, expected) in [
            (vec!["10.1.0.5", "fd00::5"], vec!["10.1.0.5", "fd00::5"]),
            (vec!["10.1.0.5", "10.1.0"], vec![]),
            (vec![""], vec![]),
            (vec![], vec![]),
        ] {
            let pod = PodSandbox { ips: ips.iter().map(|ip| (*ip).to_owned()).collect(), ..PodSandbox::default() };
            let expected: Vec<IpAddr> = expected.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(Sandbox::from(pod).addresses, expected, "{ips:?}");
        }
    }
}
