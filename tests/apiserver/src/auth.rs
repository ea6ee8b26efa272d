//! Who may do what.

use serde_json::Value;
use thiserror::Error;

use crate::resource::{Resource, Verb};

/// What a user may do: anything that one of its rules allows. As in RBAC, nothing can be taken away by a rule; unlike there,
/// [`Rules::without`] can.
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

/// Why a text is no role.
#[derive(Debug, Error)]
pub enum RulesError {
    /// It is no YAML.
    #[error("cannot read a role: {0}")]
    Yaml(String),
    /// There is nothing in it of kind `ClusterRole` or `Role`.
    #[error("there is no ClusterRole and no Role in it")]
    NoRole,
}

impl Rules {
    /// Everything is allowed.
    pub fn all() -> Self {
        Self::none().allow(&["*"], &["*"], &["*"])
    }

    /// Nothing is.
    pub fn none() -> Self {
        Self::default()
    }

    /// Allows these verbs on these resources of these groups; `*` stands for all.
    #[must_use]
    pub fn allow(mut self, groups: &[&str], resources: &[&str], verbs: &[&str]) -> Self {
        let own = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect();
        self.allowed.push(Rule { groups: own(groups), resources: own(resources), verbs: own(verbs) });
        self
    }

    /// Takes a verb on a resource away, or all of them.
    #[must_use]
    pub fn without(mut self, resource: Resource, verb: Option<Verb>) -> Self {
        self.denied.push((resource, verb));
        self
    }

    /// The rules of all roles among a role, a list of objects, or the like.
    ///
    /// # Errors
    /// Where there is no role.
    pub fn of_role(object: &Value) -> Result<Self, RulesError> {
        let mut rules = Self::none();
        if rules.take(object) { Ok(rules) } else { Err(RulesError::NoRole) }
    }

    /// The rules of all roles in manifests.
    ///
    /// # Errors
    /// Where it is no YAML, or there is no role in it.
    pub fn of_cluster_role(yaml: &str) -> Result<Self, RulesError> {
        let objects: Vec<Value> =
            serde_saphyr::from_multiple(yaml).map_err(|error| RulesError::Yaml(error.to_string()))?;
        Self::of_role(&Value::Array(objects))
    }

    fn take(&mut self, object: &Value) -> bool {
        if let Some(objects) = object.as_array().or_else(|| object.get("items").and_then(Value::as_array)) {
            let mut found = false;
            for object in objects {
                // All of them: each that is a role adds its rules.
                found |= self.take(object);
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

    /// Whether a verb on a resource is allowed.
    pub fn allows(&self, verb: Verb, resource: Resource) -> bool {
        let among = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
        let denied =
            |(what, which): &(Resource, Option<Verb>)| *what == resource && which.is_none_or(|one| one == verb);
        let allowed = |rule: &Rule| {
            among(&rule.groups, resource.group())
                && among(&rule.resources, resource.plural())
                && among(&rule.verbs, verb.name())
        };
        !self.denied.iter().any(denied) && self.allowed.iter().any(allowed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_allows_what_it_lists() {
        let rules = Rules::of_cluster_role(
            "kind: ServiceAccount\nmetadata: {name: a}\n---\nkind: ClusterRole\nrules:\n\
             - {apiGroups: [\"\"], resources: [pods, namespaces], verbs: [list, watch]}\n\
             - {apiGroups: [events.k8s.io], resources: [events], verbs: [create]}\n",
        )
        .expect("a role is in it");
        assert!(rules.allows(Verb::Watch, Resource::Pods));
        assert!(rules.allows(Verb::Create, Resource::Events));
        assert!(!rules.allows(Verb::Create, Resource::CoreEvents));
        assert!(!rules.allows(Verb::Get, Resource::Pods));
        assert!(!rules.without(Resource::Pods, None).allows(Verb::Watch, Resource::Pods));
        assert!(Rules::of_cluster_role("kind: Pod").is_err());
    }
}
