//! Prints the names of policies that netpol does not evaluate.

use std::collections::BTreeMap;
use std::io::{self, Write};

use netpol_policy::manifest::Unevaluated;
use netpol_policy::text::Safe;

use crate::message::message;
use crate::table::paragraph;

/// Maximum number of policies that `names` lists.
const MAX_LISTED: usize = 10;

/// Prints a warning to standard error: one line with each kind of policy and the number of policies of this kind.
pub(crate) fn warn(policies: &[Unevaluated]) {
    if !policies.is_empty() {
        message!("netpol: {}", Safe(summary(policies)));
    }
}

/// Prints the names of the policies to `out`. Commands call this after they have printed their result.
pub(crate) fn print(out: &mut impl Write, policies: &[Unevaluated], width: usize) -> io::Result<()> {
    if policies.is_empty() {
        return Ok(());
    }
    paragraph(out, format!("not evaluated: {}", names(policies)), width, 0)
}

fn summary(policies: &[Unevaluated]) -> String {
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for policy in policies {
        *kinds.entry(&policy.kind).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
    format!("not evaluated: {}; verdicts that these policies may change are unknown", kinds.join(", "))
}

/// Returns text such as `CiliumNetworkPolicy shop/a (policies.yaml:1), …`.
pub(crate) fn names(policies: &[Unevaluated]) -> String {
    let listed = policies.iter().take(MAX_LISTED);
    let name = |policy: &Unevaluated| match &*policy.file {
        "" => format!("{} {}", policy.kind, policy.name),
        file => format!("{} {} ({file}:{})", policy.kind, policy.name, policy.line),
    };
    let mut names: Vec<String> = listed.map(name).collect();
    if policies.len() > MAX_LISTED {
        names.push(format!("{} more: see -o json", policies.len() - MAX_LISTED));
    }
    names.join(", ")
}
