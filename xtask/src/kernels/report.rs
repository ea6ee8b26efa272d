//! Results of the smoke test `netpol-smoke` on each kernel.

use std::fmt::Write;

/// The checks of `netpol-smoke`, in order.
const CHECKS: &[&str] = &["verifier", "attach", "allow", "deny", "event", "reply", "change", "restart", "uninstall"];
/// Maximum number of console lines in the description of a failure.
const TAIL: usize = 30;

/// Results on one kernel.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) kernel: String,
    /// Results in the order of [`CHECKS`]: a detail, or the error. They end before the first check without a result.
    results: Vec<Result<String, String>>,
    /// The output of the smoke test and of the kernel.
    console: String,
}

impl Report {
    /// Parses the lines `check NAME ok|FAILED DETAIL` and ignores all others.
    pub(super) fn read(kernel: String, console: &str) -> Self {
        let results = CHECKS.iter().map_while(|check| {
            console.lines().find_map(|line| {
                let rest = line.split_once("check ")?.1.strip_prefix(check)?;
                let detail = |verdict| rest.strip_prefix(verdict).map(|detail: &str| detail.trim().to_owned());
                detail(" ok").map(Ok).or_else(|| detail(" FAILED").map(Err))
            })
        });
        Self { kernel, results: results.collect(), console: console.to_owned() }
    }

    /// Returns whether all checks passed.
    pub(super) fn passed(&self) -> bool {
        self.results.len() == CHECKS.len() && self.results.iter().all(Result::is_ok)
    }

    /// Describes the failure, with the last lines of the console.
    pub(super) fn failure(&self) -> String {
        let mut text = match self.results.iter().zip(CHECKS).find(|(result, _)| result.is_err()) {
            Some((Err(detail), check)) => format!("{check} failed: {detail}"),
            _ => format!("stopped before {}", CHECKS.get(self.results.len()).unwrap_or(&"the end")),
        };
        text += "\nlast lines of the console:\n";
        let lines: Vec<_> = self.console.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    fn cell(&self, index: usize) -> &str {
        match (self.results.get(index), CHECKS[index]) {
            // The detail of this check is the hook at which the programs were attached.
            (Some(Ok(hook)), "attach") => hook,
            (Some(Ok(_)), _) => "ok",
            (Some(Err(_)), _) => "FAILED",
            (None, _) => "-",
        }
    }
}

/// Formats a table of kernels and checks, followed by the verifier's statistics.
pub(super) fn table(reports: &[Report]) -> String {
    let width = reports.iter().map(|report| report.kernel.len()).max().unwrap_or_default().max("kernel".len());
    let mut text = format!("\n{:width$}", "kernel");
    for check in CHECKS {
        let _ = write!(text, "  {check:9}");
    }
    for report in reports {
        let _ = write!(text, "\n{:width$}", report.kernel);
        for index in 0..CHECKS.len() {
            let _ = write!(text, "  {:9}", report.cell(index));
        }
    }
    text += "\n\nverifier:\n";
    for report in reports {
        // The detail of the first check, `verifier`, is the statistics.
        if let Some(Ok(statistics)) = report.results.first() {
            let _ = writeln!(text, "{:width$}  {statistics}", report.kernel);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns console output in which these checks pass.
    fn passing_output(checks: &[&str]) -> String {
        checks.iter().flat_map(|check| ["[    1.0] noise\ncheck ", check, " ok fine\n"]).collect()
    }

    #[test]
    fn a_report_passes_only_if_all_checks_passed() {
        let report = |console: &str| Report::read("6.1".into(), console);
        assert!(report(&passing_output(CHECKS)).passed());
        assert!(!report(&passing_output(&CHECKS[..8])).passed());
        assert!(!report("").passed());
        let failed = report(&(passing_output(&CHECKS[..8]) + "check uninstall FAILED a pin remains\n"));
        assert!(!failed.passed());
        assert!(failed.failure().starts_with("uninstall failed: a pin remains"), "{}", failed.failure());
        assert!(report("Kernel panic\n").failure().contains("stopped before verifier"));
    }

    #[test]
    fn the_table_has_one_line_per_kernel() {
        let reports =
            [Report::read("5.10".into(), &passing_output(CHECKS)), Report::read("6.1".into(), "check verifier FAILED")];
        let table = table(&reports);
        assert!(table.contains("\n5.10    ok         fine       ok"), "{table}");
        assert!(table.contains("\n6.1     FAILED     -          -"), "{table}");
    }
}
