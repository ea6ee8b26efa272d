//! Policy engines and CNI plugins that conflict with netpol: their names in netfilter and in CNI configurations, and
//! advice for users.

/// How a policy engine is recognized in the netfilter rules of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signature {
    /// The name of a chain starts with this prefix.
    Chain(&'static str),
    /// A table has this name.
    Table(&'static str),
}

/// A policy engine that enforces `NetworkPolicies` with its own netfilter rules.
pub(super) struct PolicyEngine {
    pub(super) name: &'static str,
    pub(super) signatures: &'static [Signature],
    /// The effect of the conflict, and how to end it. Printed after the engine's name.
    pub(super) advice: &'static str,
}

const K3S: &str = "it enforces the same policies, and a packet passes only if both engines allow it. On k3s, start every \
    server with --disable-network-policy; without k3s, run kube-router with --run-firewall=false. Chains of an earlier run stay \
    until the node reboots or you remove them";
const KINDNET: &str = "it enforces the same policies, and a packet passes only if both engines allow it. Create kind clusters with \
    disableDefaultCNI and a CNI plugin without policy enforcement, or remove kube-network-policies; \
    `nft delete table inet NAME` removes its rules";
const CALICO: &str = "it enforces the same policies and its own, and a packet passes only if both Calico and netpol allow it. \
    Run netpol on nodes with a CNI plugin that enforces no policies, or keep Calico and remove netpol";
const WEAVE: &str = "it enforces the same policies, and a packet passes only if both Weave and netpol allow it. Run weave-kube \
    with EXPECT_NPC=0 and without weave-npc";

/// The known policy engines. Sources:
/// * kube-router: <https://github.com/cloudnativelabs/kube-router/tree/master/pkg/controllers/netpol>; its nftables
///   tables have chains with the same names
/// * k3s runs kube-router's code: <https://docs.k3s.io/networking/networking-services>; the chains stay when k3s stops:
///   <https://github.com/k3s-io/k3s/issues/7244>
/// * kindnet: <https://github.com/kubernetes-sigs/kind/releases/tag/v0.24.0>,
///   <https://github.com/kubernetes-sigs/kube-network-policies/blob/main/pkg/dataplane/controller.go>
/// * Calico: <https://github.com/projectcalico/calico/tree/master/felix/rules>, with nftables
///   <https://github.com/projectcalico/calico/tree/master/felix/nftables>
/// * Weave: <https://github.com/weaveworks/weave/blob/master/npc/constants.go>; `EXPECT_NPC`:
///   <https://github.com/weaveworks/weave/blob/master/site/kubernetes/kube-addon.md>
pub(super) const POLICY_ENGINES: [PolicyEngine; 4] = [
    PolicyEngine {
        name: "the policy controller of k3s or kube-router",
        signatures: &[
            Signature::Chain("KUBE-NWPLCY-"),
            Signature::Chain("KUBE-POD-FW-"),
            Signature::Chain("KUBE-ROUTER-"),
        ],
        advice: K3S,
    },
    PolicyEngine {
        name: "kindnet or kube-network-policies",
        signatures: &[Signature::Table("kindnet-network-policies"), Signature::Table("kube-network-policies")],
        advice: KINDNET,
    },
    PolicyEngine {
        name: "Calico",
        signatures: &[Signature::Chain("cali-"), Signature::Table("calico")],
        advice: CALICO,
    },
    PolicyEngine { name: "Weave", signatures: &[Signature::Chain("WEAVE-NPC")], advice: WEAVE },
];

const ENFORCES: &str = "it enforces the same policies, and a packet passes only if both the plugin and netpol allow it. Turn \
    off its policy enforcement, or remove netpol from these nodes";
const NO_VETH: &str = "pods of this plugin have no veth on the node, so netpol CANNOT enforce policies for them. Use a plugin \
    that creates veths (bridge, ptp)";

/// Conflicting CNI plugins: the `type` in the CNI configuration, and the advice. Sources for the plugins that enforce
/// policies: <https://github.com/cilium/cilium/tree/main/plugins/cilium-cni>,
/// <https://github.com/projectcalico/calico/tree/master/cni-plugin>,
/// <https://github.com/antrea-io/antrea/tree/main/build/charts/antrea/conf>, <https://github.com/weaveworks/weave>,
/// <https://github.com/ovn-org/ovn-kubernetes/tree/master/go-controller/cmd/ovn-k8s-cni-overlay>,
/// <https://github.com/kubeovn/kube-ovn/tree/master/cmd/cni>. Sources for the plugins without a veth:
/// <https://github.com/containernetworking/plugins/tree/main/plugins/main>,
/// <https://github.com/k8snetworkplumbingwg/sriov-cni>, <https://github.com/k8snetworkplumbingwg/ib-sriov-cni>,
/// <https://github.com/Mellanox/ipoib-cni>.
pub(super) const PLUGINS: [(&str, &str); 14] = [
    ("antrea", ENFORCES),
    ("calico", ENFORCES),
    ("cilium-cni", ENFORCES),
    ("kube-ovn", ENFORCES),
    ("ovn-k8s-cni-overlay", ENFORCES),
    ("weave-net", ENFORCES),
    ("host-device", NO_VETH),
    ("ib-sriov", NO_VETH),
    ("ipoib", NO_VETH),
    ("ipvlan", NO_VETH),
    ("macvlan", NO_VETH),
    ("sriov", NO_VETH),
    ("tap", NO_VETH),
    ("vlan", NO_VETH),
];
