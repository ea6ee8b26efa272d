//! Selectors as text, in the syntax of `kubectl -l`.

use super::names::{label_key_error, label_value_error};
use super::{Requirement, Selector};

impl Selector {
    /// Parses a selector as `kubectl -l` does: `app=web,tier in (a, b),!canary`.
    ///
    /// # Errors
    /// If a part of the text is not a requirement. The error has this part and the valid forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut requirements = split_requirements(text).map(parse_requirement).collect::<Result<Vec<_>, _>>()?;
        requirements.sort();
        requirements.dedup();
        Ok(Self { requirements, invalid: false })
    }
}

/// Splits a selector into its requirements, at commas outside of parentheses.
fn split_requirements(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    let parts = text.split(move |character| {
        depth += i32::from(character == '(') - i32::from(character == ')');
        character == ',' && depth == 0
    });
    parts.map(str::trim)
}

fn parse_requirement(text: &str) -> Result<Requirement, String> {
    let error =
        || format!("`{text}` is not a label requirement; write key=value, key!=value, key in (a, b), key or !key");
    let values = |list: &str| {
        let list = list.trim().strip_suffix(')');
        let mut values: Vec<_> = list.ok_or_else(error)?.split(',').map(|value| value.trim().into()).collect();
        values.sort();
        values.dedup();
        Ok::<_, String>(values)
    };
    let requirement = if let Some((operation, list)) = text.split_once('(') {
        let operation = operation.trim_end();
        if let Some(key) = operation.strip_suffix(" notin") {
            Requirement::NotIn(key.trim().into(), values(list)?)
        } else {
            Requirement::In(operation.strip_suffix(" in").ok_or_else(error)?.trim().into(), values(list)?)
        }
    } else if let Some((key, value)) = text.split_once("!=") {
        Requirement::NotIn(key.trim().into(), vec![value.trim().into()])
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        Requirement::In(key.trim().into(), vec![value.trim().into()])
    } else if let Some(key) = text.strip_prefix('!') {
        Requirement::DoesNotExist(key.trim().into())
    } else {
        Requirement::Exists(text.into())
    };
    let (key, values) = match &requirement {
        Requirement::In(key, values) | Requirement::NotIn(key, values) => (key, values.as_slice()),
        Requirement::Exists(key) | Requirement::DoesNotExist(key) => (key, &[][..]),
    };
    let is_valid = label_key_error(key).is_none() && values.iter().all(|value| label_value_error(value).is_none());
    if is_valid { Ok(requirement) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_parsed_as_by_kubectl() {
        let labels = |text: &str| {
            let pairs = text.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.map(|(key, value)| (key.into(), value.into())).collect::<crate::model::Labels>()
        };
        for (text, matching, not_matching) in [
            ("app=web", "app=web tier=a", "app=db"),
            ("app==web,tier!=b", "app=web", "app=web tier=b"),
            ("tier in (a, b),app", "app=x tier=b", "tier=b"),
            ("tier notin (a,b), !canary", "tier=c", "tier=c canary=1"),
            ("tier in(a,b)", "tier=a", "tier=c"),
            ("tier notin(a)", "tier=c", "tier=a"),
        ] {
            let selector = Selector::parse(text).expect(text);
            assert!(selector.matches(&labels(matching)) && !selector.matches(&labels(not_matching)), "{text}");
        }
        for text in ["", "app=web,", "app in web", "=a", "a b", "app=a b", "tier in (a", "tier (a)", "in (a)"] {
            assert!(Selector::parse(text).is_err(), "{text}");
        }
    }
}
