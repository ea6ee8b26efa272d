//! Prints findings as annotations of a GitHub workflow.
//!
//! Source: <https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands>. Text is escaped as by
//! `command.ts` in <https://github.com/actions/toolkit/tree/main/packages/core/src>.

use std::io::{self, Write};

use netpol_policy::lint::{Finding, Report};
use netpol_policy::model::Severity;
use netpol_policy::text::Safe;

use super::{summary, text};
use crate::input::Input;

pub(super) fn print(out: &mut impl Write, input: &Input, report: &Report) -> io::Result<()> {
    for finding in &report.findings {
        writeln!(out, "{}", command(finding))?;
    }
    writeln!(out, "{}", summary(input, report))
}

/// Returns a workflow command such as `::error file=a.yaml,line=3,title=NP003 invalid-policy::message`.
fn command(finding: &Finding) -> String {
    let command_name = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "notice",
    };
    let title = format!("{} {}", finding.rule, finding.rule.rule().name);
    let place = [&finding.object, &finding.path].into_iter().flatten().map(String::as_str).collect::<Vec<_>>();
    let heading = if place.is_empty() { String::new() } else { format!("{}:\n", place.join(": ")) };
    let mut lines: Vec<String> = heading.lines().map(|line| Safe(line).to_string()).collect();
    lines.extend(text::sentences(finding).map(|line| Safe(line).to_string()));
    lines.extend(text::fix_lines(finding, usize::MAX));
    format!(
        "::{command_name} file={},line={},title={}::{}",
        escape_property(&finding.file),
        finding.line,
        escape_property(&title),
        escape_data(&lines.join("\n"))
    )
}

fn escape_data(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn escape_property(text: &str) -> String {
    escape_data(&Safe(text).to_string()).replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use netpol_policy::lint::RuleId;

    use super::*;

    #[test]
    fn commands_are_escaped_for_github() {
        let finding = Finding {
            rule: RuleId::INVALID_POLICY,
            severity: Severity::Error,
            object: Some("NetworkPolicy shop/a".to_owned()),
            file: "a,b:c%\n::stop.yaml".into(),
            line: 3,
            path: None,
            message: "50% of\n::error::x".to_owned(),
            why: String::new(),
            fix: None,
            count: 1,
        };
        let expected = "::error file=a%2Cb%3Ac%25\\n%3A%3Astop.yaml,line=3,title=NP003 invalid-policy::NetworkPolicy shop/a:%0A\
                        50%25 of\\n::error::x";
        assert_eq!(command(&finding), expected);
    }
}
