//! Enforcers and plugins that are known to be in the way, as data.

/// Where an enforcer shows in netfilter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trace {
    /// Its chains begin with this.
    Chain(&'static str),
    /// Its table is called this.
    Table(&'static str),
}

/// Whoever leaves these has the same policies enforced by rules of its own.
pub(super) struct Enforcer {
    pub(super) name: &'static str,
    pub(super) traces: &'static [Trace],
    pub(super) advice: &'static str,
}

const K3S: &str = "it enforces the same policies, and both must allow. On k3s start every server with \
    --disable-network-policy; else run kube-router with --run-firewall=false. Chains of an earlier run stay until the node \
    reboots, or are removed by hand";
const KINDNET: &str = "it enforces the same policies, and both must allow. Make kind clusters with disableDefaultCNI \
    and a plugin that enforces nothing, or remove kube-network-policies; `nft delete table inet NAME` removes its rules";
const CALICO: &str = "Calico enforces the same policies and its own, and both must allow. Run netpol on nodes whose CNI \
    plugin enforces nothing, or keep Calico and remove netpol";
const WEAVE: &str = "Weave enforces the same policies, and both must allow. Run weave-kube with EXPECT_NPC=0 and \
    without weave-npc";

/// Sources: <https://github.com/cloudnativelabs/kube-router/tree/master/pkg/controllers/netpol> (its own nftables tables have
/// chains of the same names; k3s runs the same code: <https://docs.k3s.io/networking/networking-services>, and leaves its
/// chains: <https://github.com/k3s-io/k3s/issues/7244>), <https://github.com/kubernetes-sigs/kind/releases/tag/v0.24.0>,
/// <https://github.com/kubernetes-sigs/kube-network-policies/blob/main/pkg/dataplane/controller.go>,
/// <https://github.com/projectcalico/calico/tree/master/felix/rules>, with nftables
/// <https://github.com/projectcalico/calico/tree/master/felix/nftables>,
/// <https://github.com/weaveworks/weave/blob/master/npc/constants.go>, and for `EXPECT_NPC`
/// <https://github.com/weaveworks/weave/blob/master/site/kubernetes/kube-addon.md>.
pub(super) const ENFORCERS: [Enforcer; 4] = [
    Enforcer {
        name: "the policy controller of k3s or kube-router",
        traces: &[Trace::Chain("KUBE-NWPLCY-"), Trace::Chain("KUBE-POD-FW-"), Trace::Chain("KUBE-ROUTER-")],
        advice: K3S,
    },
    Enforcer {
        name: "kindnet or kube-network-policies",
        traces: &[Trace::Table("kindnet-network-policies"), Trace::Table("kube-network-policies")],
        advice: KINDNET,
    },
    Enforcer { name: "Calico", traces: &[Trace::Chain("cali-"), Trace::Table("calico")], advice: CALICO },
    Enforcer { name: "Weave", traces: &[Trace::Chain("WEAVE-NPC")], advice: WEAVE },
];

const ENFORCES: &str = "this plugin enforces the same policies itself, and both must allow. Turn that off there, or remove \
    netpol from these nodes";
const NO_VETH: &str = "its pods have no veth in the node, which is where netpol's programs go: they are NOT enforced. Use \
    a plugin that makes veths (bridge, ptp)";

/// CNI plugins by `type`. Sources: <https://github.com/cilium/cilium/tree/main/plugins/cilium-cni>,
/// <https://github.com/projectcalico/calico/tree/master/cni-plugin>,
/// <https://github.com/antrea-io/antrea/tree/main/build/charts/antrea/conf>, <https://github.com/weaveworks/weave>,
/// <https://github.com/ovn-org/ovn-kubernetes/tree/master/go-controller/cmd/ovn-k8s-cni-overlay>,
/// <https://github.com/kubeovn/kube-ovn/tree/master/cmd/cni>; those without a veth:
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
