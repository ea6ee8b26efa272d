//! The target of a suspension: the Namespace and its annotations, and the commands that change them.

use netpol_policy::text::Safe;

use crate::args::{AGENT_NAMESPACE, SuspendScope};
use crate::shell::quoted;

/// The annotation with the end of a suspension of its Namespace.
pub(super) const UNTIL: &str = "netpol.io/suspended-until";
/// The annotation of the agents' Namespace with the end of a suspension of the cluster.
pub(super) const CLUSTER_UNTIL: &str = "netpol.io/suspend-cluster-until";
/// The annotation with the reason of a suspension, for both kinds of suspensions.
pub(super) const REASON: &str = "netpol.io/suspended-reason";

/// What is suspended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The Namespace that has the annotations.
    pub(super) namespace: String,
    /// The name of the annotation with the end of the suspension.
    pub(super) until_annotation: &'static str,
}

impl Target {
    /// Returns the target that the user has selected: a namespace, or the cluster.
    pub(super) fn new(scope: &SuspendScope, agent_namespace: &str) -> Self {
        match &scope.namespace {
            Some(namespace) => Self::namespace(namespace),
            None => Self { namespace: agent_namespace.to_owned(), until_annotation: CLUSTER_UNTIL },
        }
    }

    pub(super) fn namespace(name: &str) -> Self {
        Self { namespace: name.to_owned(), until_annotation: UNTIL }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.until_annotation == CLUSTER_UNTIL
    }

    /// The agents' Namespace can have two suspensions: that of its own policies, and that of the cluster. For a target
    /// of one kind, returns the annotation with the end of the other suspension. Both suspensions use the same
    /// annotation for the reason.
    pub(super) fn other_until_annotation(&self) -> &'static str {
        if self.is_cluster() { UNTIL } else { CLUSTER_UNTIL }
    }

    pub(super) fn scope(&self) -> &'static str {
        if self.is_cluster() { "cluster" } else { "namespace" }
    }

    pub(super) fn title(&self) -> String {
        if self.is_cluster() { "the cluster".to_owned() } else { format!("namespace {}", Safe(&self.namespace)) }
    }

    /// Returns the kubectl command that sets the annotations. `options`: the options that select the cluster,
    /// such as `--context staging`, followed by a space. `end`: when the suspension ends.
    pub(super) fn kubectl_set_command(&self, options: &str, end: &str, reason: &str) -> String {
        let (namespace, annotation, reason) = (quoted(&self.namespace), self.until_annotation, quoted(reason));
        format!(
            "kubectl {options}annotate namespace {namespace} {annotation}={} {REASON}={reason} --overwrite",
            quoted(end)
        )
    }

    /// Returns the kubectl command that removes the annotations. `options`: as in `kubectl_set_command`.
    /// `keeps_reason`: whether the reason is not removed, because the other suspension needs it.
    pub(super) fn kubectl_remove_command(&self, options: &str, keeps_reason: bool) -> String {
        let reason = if keeps_reason { String::new() } else { format!(" {REASON}-") };
        format!("kubectl {options}annotate namespace {} {}-{reason}", quoted(&self.namespace), self.until_annotation)
    }

    /// Returns the command that ends the suspension.
    pub(super) fn resume_command(&self, options: &str, agent_namespace: &str) -> String {
        format!("netpol resume {options}{}", self.arguments(agent_namespace))
    }

    /// Returns a command that starts the suspension again. The user replaces `TEXT` with the reason.
    pub(super) fn suspend_command(&self, options: &str, agent_namespace: &str) -> String {
        format!("netpol suspend {options}{} --for 30m --reason TEXT", self.arguments(agent_namespace))
    }

    /// Returns the arguments of `netpol suspend` and `netpol resume` that select this target.
    fn arguments(&self, agent_namespace: &str) -> String {
        match (self.is_cluster(), agent_namespace == AGENT_NAMESPACE) {
            (false, _) => format!("-n {}", quoted(&self.namespace)),
            (true, true) => "--cluster".to_owned(),
            (true, false) => format!("--cluster --agent-namespace {}", quoted(agent_namespace)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_can_be_pasted_into_a_shell() {
        let shop = Target::namespace("shop");
        assert_eq!(
            shop.kubectl_set_command("--context staging ", "2026-11-29T12:30:00Z", "it's down; rm -rf"),
            "kubectl --context staging annotate namespace shop netpol.io/suspended-until=2026-11-29T12:30:00Z \
             netpol.io/suspended-reason='it'\\''s down; rm -rf' --overwrite"
        );
        assert_eq!(shop.kubectl_remove_command("", true), "kubectl annotate namespace shop netpol.io/suspended-until-");
        assert_eq!(Target::namespace("a;reboot").resume_command("", "x"), "netpol resume -n 'a;reboot'");
        let cluster = Target { namespace: "netpol".to_owned(), until_annotation: CLUSTER_UNTIL };
        assert_eq!(cluster.resume_command("", "netpol"), "netpol resume --cluster --agent-namespace netpol");
        assert_eq!(
            cluster.kubectl_remove_command("", false),
            "kubectl annotate namespace netpol netpol.io/suspend-cluster-until- netpol.io/suspended-reason-"
        );
    }
}
