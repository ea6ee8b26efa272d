//! The list of all rules of `netpol lint`. An ID never changes its meaning, and the ID of a removed rule is not used
//! again.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use crate::model::Severity;

/// The ID of a lint rule, such as `NP010`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(u16);

/// A lint rule. Not to be confused with a rule of a policy.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The ID.
    pub id: RuleId,
    /// The name, in lower case with `-`.
    pub name: &'static str,
    /// The severity of its findings. Findings from the parser of the input can be less severe.
    pub severity: Severity,
    /// What a finding means, in one sentence.
    pub summary: &'static str,
}

/// Error: a text is neither the ID nor the name of a lint rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown rule `{0}`; docs/lint/README.md lists all rules")]
pub struct UnknownRule(String);

macro_rules! rules {
    ($($constant:ident = $number:literal, $name:literal, $severity:ident, $summary:literal;)*) => {
        impl RuleId {
            $(#[doc = concat!("`", $name, "`: see its summary.")] pub const $constant: Self = Self($number);)*
        }

        /// All rules, sorted by ID.
        pub const RULES: &[Rule] = &[
            $(Rule { id: RuleId::$constant, name: $name, severity: Severity::$severity, summary: $summary },)*
        ];
    };
}

rules! {
    INVALID_DOCUMENT = 1, "invalid-document", Error, "A document is not valid YAML or not a Kubernetes object.";
    INVALID_OBJECT = 2, "invalid-object", Error, "An object that is not a NetworkPolicy has an invalid part.";
    INVALID_POLICY = 3, "invalid-policy", Error, "A NetworkPolicy has an invalid part, which matches nothing.";
    UNKNOWN_FIELD = 4, "unknown-field", Error, "An object has a field that does not exist.";
    DUPLICATE_KEY = 5, "duplicate-key", Error, "A map has the same key twice.";
    UNUSUAL_VALUE = 6, "unusual-value", Warning, "A valid value is probably a mistake.";
    DUPLICATE_OBJECT = 7, "duplicate-object", Warning, "The input defines an object twice.";
    TEMPLATE = 8, "template", Warning, "A file is a template that must be rendered first.";
    INVALID_SUPPRESSION = 9, "invalid-suppression", Warning, "A suppression has no reason or no known rule.";
    SELECTS_NO_POD = 10, "selects-no-pod", Warning, "The podSelector of a policy selects no pod.";
    MISSING_NAMESPACE = 11, "missing-namespace", Warning, "A policy is in a namespace that does not exist.";
    PEER_MATCHES_NO_POD = 20, "peer-matches-no-pod", Warning, "The selectors of a peer match no pod.";
    HOST_NETWORK_PEER = 21, "host-network-peer", Warning, "All pods with the labels of a peer are host-network pods, which a peer never matches.";
    NAMESPACE_SELECTOR_MATCHES_NOTHING = 22, "namespace-selector-matches-nothing", Warning, "A namespaceSelector matches no namespace.";
    EMPTY_PEER_LIST = 23, "empty-peer-list", Warning, "An empty `from` or `to` allows every address.";
    SPLIT_PEER = 24, "split-peer", Warning, "Two peers were probably intended to be one.";
    JOINED_PEER = 25, "joined-peer", Warning, "One peer was probably intended to be two.";
    UNKNOWN_PORT_NAME = 30, "unknown-port-name", Warning, "No pod has a port with this name.";
    UNUSED_PORT_NUMBER = 31, "unused-port-number", Warning, "No container declares a port with this number.";
    SERVICE_PORT = 32, "service-port", Warning, "A rule has the port of a Service instead of the port of its pods.";
    SPLIT_PORT = 33, "split-port", Warning, "An item of `ports` has no port, so it allows all ports of its protocol.";
    BLOCK_OF_SERVICES = 40, "ip-block-of-services", Warning, "An ipBlock contains addresses of Services.";
    BLOCK_OF_PODS = 41, "ip-block-of-pods", Warning, "A small ipBlock contains addresses of pods.";
    BLOCK_OF_NODES = 42, "ip-block-of-nodes", Info, "An ingress rule allows addresses of nodes.";
    DNS_DENIED = 50, "dns-denied", Warning, "Pods that are isolated for egress cannot reach cluster DNS.";
    API_SERVER_DENIED = 51, "api-server-denied", Info, "Pods with a service-account token cannot reach the API server.";
    RULES_WITHOUT_TYPE = 60, "rules-without-type", Warning, "The field ingress or egress has no effect, because policyTypes does not list it.";
    TYPE_WITHOUT_RULES = 61, "type-without-rules", Info, "policyTypes lists Ingress or Egress, but the policy has no such field.";
    DEFAULT_DENY_MISSING = 70, "default-deny-missing", Info, "A namespace has policies, but no policy that selects all pods.";
    PODS_NOT_ISOLATED = 71, "pods-not-isolated", Info, "No policy isolates some pods of a namespace.";
    POLICY_CHANGES_NOTHING = 72, "policy-changes-nothing", Info, "A policy can be deleted without an effect.";
    SHADOWED_RULE = 73, "shadowed-rule", Info, "A rule allows nothing that another rule does not allow.";
    NOT_ENFORCED = 74, "not-enforced", Info, "A policy is not enforced, because of shadow mode or a suspension.";
}

impl RuleId {
    /// Returns the rule with this ID.
    pub fn rule(self) -> &'static Rule {
        let index = RULES.binary_search_by_key(&self, |rule| rule.id);
        // The search finds every ID: it is one of the constants above, or `from_str` found it in `RULES`.
        index.map_or(&RULES[0], |index| &RULES[index])
    }

    /// Returns the path of the rule's page in the repository.
    pub fn page(self) -> String {
        format!("docs/lint/{self}.md")
    }

    /// Returns whether an annotation of an object can suppress findings of this rule. Findings about input that was not
    /// read in full cannot be suppressed. Neither can those about duplicate objects and about invalid suppressions.
    pub fn is_suppressible(self) -> bool {
        self > Self::INVALID_SUPPRESSION || self == Self::UNUSUAL_VALUE
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NP{:03}", self.0)
    }
}

impl FromStr for RuleId {
    type Err = UnknownRule;

    /// Parses an ID or the name of a rule.
    fn from_str(text: &str) -> Result<Self, UnknownRule> {
        let found = RULES.iter().find(|rule| rule.name == text || rule.id.to_string() == text);
        found.map(|rule| rule.id).ok_or_else(|| UnknownRule(text.to_owned()))
    }
}

impl Serialize for RuleId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_sorted_and_their_ids_and_names_are_unique() {
        assert!(RULES.windows(2).all(|pair| pair[0].id < pair[1].id));
        for rule in RULES {
            assert_eq!((rule.id.rule().name, rule.name.parse()), (rule.name, Ok(rule.id)));
            assert_eq!(rule.id.to_string().parse(), Ok(rule.id));
        }
        assert!("NP999".parse::<RuleId>().is_err() && "10".parse::<RuleId>().is_err());
    }
}
