//! Permissions of the user of the fake API server: the server has one user, and all valid tokens authenticate this
//! user.

use serde_json::Value;
use thiserror::Error;

use crate::resource::{Resource, Verb};

/// Permissions of the user: everything that at least one rule allows. As in RBAC, rules only add permissions. Unlike in
/// RBAC, [`Rules::without`] removes a permission, whatever the rules allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    allowed: Vec<Rule>,
    /// The permissions that [`Rules::without`] removed.
    removed: Vec<(Resource, Option<Verb>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    /// The namespace in which the rule applies. `None` for all namespaces, and for cluster-scoped resources.
    namespace: Option<String>,
    groups: Vec<String>,
    resources: Vec<String>,
    verbs: Vec<String>,
}

/// Why a text could not be read as a role.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The text is not valid YAML.
    #[error("cannot parse a role as YAML: {0}")]
    Yaml(String),
    /// The text contains no object of kind `ClusterRole` or `Role`.
    #[error("found no ClusterRole or Role in the manifests; add one")]
    NoRole,
}

impl Rules {
    /// Allows everything.
    pub fn all() -> Self {
        Self::none().allow(&["*"], &["*"], &["*"])
    }

    /// Allows nothing.
    pub fn none() -> Self {
        Self::default()
    }

    /// Allows these verbs on these resources of these API groups; `*` matches all.
    #[must_use]
    pub fn allow(self, groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        self.allow_in(None, groups, resources, verbs)
    }

    /// Like [`Rules::allow`], but only in this namespace, as a `Role` does. `None` means all namespaces.
    #[must_use]
    pub fn allow_in(mut self, namespace: Option<&str>, groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect();
        let namespace = namespace.map(str::to_owned);
        self.allowed.push(Rule { namespace, groups: owned(groups), resources: owned(resources), verbs: owned(verbs) });
        self
    }

    /// Removes the permission for a verb on a resource; `None` means all verbs.
    #[must_use]
    pub fn without(mut self, resource: Resource, verb: Option<Verb>) -> Self {
        self.removed.push((resource, verb));
        self
    }

    /// Returns the rules of all roles in `object`, which may be one role or a list of objects.
    ///
    /// # Errors
    /// If `object` contains no role.
    pub fn from_value(object: &Value) -> Result<Self, RulesError> {
        let mut rules = Self::none();
        if rules.add_roles(object) { Ok(rules) } else { Err(RulesError::NoRole) }
    }

    /// Returns the rules of all roles in YAML manifests.
    ///
    /// # Errors
    /// If the text is not valid YAML, or contains no role.
    pub fn from_yaml(yaml: &str) -> Result<Self, RulesError> {
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(yaml).map_err(|error| RulesError::Yaml(error.to_string()))?;
        Self::from_value(&Value::Array(objects))
    }

    /// Adds the rules of all roles in `object`. Returns whether it contains a role.
    fn add_roles(&mut self, object: &Value) -> bool {
        if let Some(objects) = object.as_array().or_else(|| object.get("items").and_then(Value::as_array)) {
            let mut found = false;
            for object in objects {
                // No early return: the objects after the first role are read, too.
                found |= self.add_roles(object);
            }
            return found;
        }
        if !matches!(object.get("kind").and_then(Value::as_str), Some("ClusterRole" | "Role")) {
            return false;
        }
        let texts = |rule: &Value, field: &str| -> Vec<String> {
            let list = rule.get(field).and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let namespace = object.pointer("/metadata/namespace").and_then(Value::as_str);
        let rules = object.get("rules").and_then(Value::as_array).into_iter().flatten();
        self.allowed.extend(rules.map(|rule| Rule {
            namespace: namespace.map(str::to_owned),
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            verbs: texts(rule, "verbs"),
        }));
        true
    }

    /// Returns whether a verb on a resource is allowed in all namespaces.
    pub fn allows(&self, verb: Verb, resource: Resource) -> bool {
        self.allows_in(verb, resource, "")
    }

    /// Returns whether a verb on a resource is allowed in a namespace. An empty text stands for all namespaces.
    pub fn allows_in(&self, verb: Verb, resource: Resource, namespace: &str) -> bool {
        let removed = |(removed_resource, removed_verb): &(Resource, Option<Verb>)| {
            *removed_resource == resource && removed_verb.is_none_or(|removed_verb| removed_verb == verb)
        };
        let allowed = |rule: &Rule| rule.allows(verb.name(), resource.group(), resource.plural(), namespace);
        !self.removed.iter().any(removed) && self.allowed.iter().any(allowed)
    }

    /// Returns whether the user may run commands in pods of a namespace. Since Kubernetes 1.35, a request for this by
    /// WebSocket needs both verbs, `get` and `create`.
    pub(crate) fn allows_exec(&self, namespace: &str) -> bool {
        ["get", "create"]
            .iter()
            .all(|verb| self.allowed.iter().any(|rule| rule.allows(verb, "", "pods/exec", namespace)))
    }
}

impl Rule {
    fn allows(&self, verb: &str, group: &str, resource: &str, namespace: &str) -> bool {
        let contains = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        self.namespace.as_deref().is_none_or(|own| own == namespace)
            && contains(&self.groups, group)
            && contains(&self.resources, resource)
            && contains(&self.verbs, verb)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_allows_what_it_lists() {
        let rules = Rules::from_yaml(
            "kind: ServiceAccount\nmetadata: {name: a}\n---\nkind: ClusterRole\nrules:\n\
             - {apiGroups: [\"\"], resources: [pods, namespaces], verbs: [list, watch]}\n\
             - {apiGroups: [events.k8s.io], resources: [events], verbs: [create]}\n",
        )
        .expect("the manifests contain a role");
        assert!(rules.allows(Verb::Watch, Resource::Pods));
        assert!(rules.allows(Verb::Create, Resource::Events));
        assert!(!rules.allows(Verb::Create, Resource::CoreEvents));
        assert!(!rules.allows(Verb::Get, Resource::Pods));
        assert!(!rules.without(Resource::Pods, None).allows(Verb::Watch, Resource::Pods));
        assert!(Rules::from_yaml("kind: Pod").is_err());
    }

    #[test]
    fn a_role_in_a_namespace_allows_nothing_elsewhere() {
        let rules = Rules::from_yaml(
            "kind: Role\nmetadata: {name: a, namespace: shop}\nrules:\n\
             - {apiGroups: [\"\"], resources: [pods], verbs: [list]}\n\
             - {apiGroups: [\"\"], resources: [pods/exec], verbs: [get, create]}\n",
        )
        .expect("the manifests contain a role");
        assert!(rules.allows_in(Verb::List, Resource::Pods, "shop"));
        assert!(!rules.allows_in(Verb::List, Resource::Pods, "ops"));
        assert!(!rules.allows(Verb::List, Resource::Pods));
        assert!(rules.allows_exec("shop") && !rules.allows_exec("ops"));
    }
}
