//! Prints the names of policies that netpol does not evaluate.

use std::collections::BTreeMap;
use std::io::{self, Write};

use netpol_policy::manifest::Unevaluated;
use netpol_policy::text::Safe;

use crate::message::message;
use crate::table::paragraph;

/// The number of policies that are listed.
const SHOWN: usize = 10;

/// Prints one line to standard error, with the kinds of the policies.
pub(crate) fn warn(policies: &[Unevaluated]) {
    if !policies.is_empty() {
        message!("netpol: {}", Safe(summary(policies)));
    }
}

/// Prints the names of the policies to the output, below the result.
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
fn names(policies: &[Unevaluated]) -> String {
    let shown = policies.iter().take(SHOWN);
    let name = |policy: &Unevaluated| match &*policy.file {
        "" => format!("{} {}", policy.kind, policy.name),
        file => format!("{} {} ({file}:{})", policy.kind, policy.name, policy.line),
    };
    let mut names: Vec<String> = shown.map(name).collect();
    if policies.len() > SHOWN {
        names.push(format!("{} more: see -o json", policies.len() - SHOWN));
    }
    names.join(", ")
}
