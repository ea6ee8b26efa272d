//! Permissions of the user.

use serde_json::Value;
use thiserror::Error;

use crate::resource::{Resource, Verb};

/// Permissions of a user: everything that at least one rule allows. As in RBAC, rules only add permissions. Unlike in
/// RBAC, [`Rules::without`] removes a permission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    allowed: Vec<Rule>,
    denied: Vec<(Resource, Option<Verb>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
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
    pub fn allow(mut self, groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect();
        self.allowed.push(Rule { groups: owned(groups), resources: owned(resources), verbs: owned(verbs) });
        self
    }

    /// Removes one verb on a resource, or all verbs.
    #[must_use]
    pub fn without(mut self, resource: Resource, verb: Option<Verb>) -> Self {
        self.denied.push((resource, verb));
        self
    }

    /// Returns the rules of all roles in `object`, which may be one role or a list of objects.
    ///
    /// # Errors
    /// If it contains no role.
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

    fn add_roles(&mut self, object: &Value) -> bool {
        if let Some(objects) = object.as_array().or_else(|| object.get("items").and_then(Value::as_array)) {
            let mut found = false;
            for object in objects {
                // No early return: each role adds its rules.
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
        let rules = object.get("rules").and_then(Value::as_array).into_iter().flatten();
        self.allowed.extend(rules.map(|rule| Rule {
            groups: texts(rule, "apiGroups"),
            resources: texts(rule, "resources"),
            verbs: texts(rule, "verbs"),
        }));
        true
    }

    /// Returns whether a verb on a resource is allowed.
    pub fn allows(&self, verb: Verb, resource: Resource) -> bool {
        let contains = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        let denied =
            |(what, which): &(Resource, Option<Verb>)| *what == resource && which.is_none_or(|one| one == verb);
        let allowed = |rule: &Rule| {
            contains(&rule.groups, resource.group())
                && contains(&rule.resources, resource.plural())
                && contains(&rule.verbs, verb.name())
        };
        !self.denied.iter().any(denied) && self.allowed.iter().any(allowed)
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
}
