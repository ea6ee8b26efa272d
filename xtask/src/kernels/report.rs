//! What the smoke test said on a kernel.

use std::fmt::Write;

/// The checks, in the order they run; as `netpol-smoke` names them.
const CHECKS: &[&str] = &["verifier", "attach", "allow", "deny", "event", "reply", "change", "restart", "uninstall"];
/// How much of a console is shown.
const TAIL: usize = 30;

/// One kernel.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) kernel: String,
    /// In the order of [`CHECKS`]: what was found, or that it failed. Shorter where one failed.
    found: Vec<Result<String, String>>,
    said: String,
}

impl Report {
    /// Reads the lines `check NAME ok|FAILED WHAT` among others.
    pub(super) fn read(kernel: String, said: &str) -> Self {
        let found = CHECKS.iter().map_while(|check| {
            said.lines().find_map(|line| {
                let rest = line.split_once("check ")?.1.strip_prefix(check)?;
                let what = |verdict| rest.strip_prefix(verdict).map(|what: &str| what.trim().to_owned());
                what(" ok").map(Ok).or_else(|| what(" FAILED").map(Err))
            })
        });
        Self { kernel, found: found.collect(), said: said.to_owned() }
    }

    /// Whether all checks did.
    pub(super) fn passed(&self) -> bool {
        self.found.len() == CHECKS.len() && self.found.iter().all(Result::is_ok)
    }

    /// What went wrong, and the end of what was said.
    pub(super) fn failure(&self) -> String {
        let mut text = match self.found.iter().zip(CHECKS).find(|(found, _)| found.is_err()) {
            Some((Err(what), check)) => format!("{check} failed: {what}"),
            _ => format!("ended before {}", CHECKS.get(self.found.len()).unwrap_or(&"its end")),
        };
        text += "\nthe last it said:\n";
        let lines: Vec<_> = self.said.lines().collect();
        for line in &lines[lines.len().saturating_sub(TAIL)..] {
            let _ = writeln!(text, "  {line}");
        }
        text
    }

    fn cell(&self, index: usize) -> &str {
        match (self.found.get(index), CHECKS[index]) {
            // Which hook it was is worth a word.
            (Some(Ok(hook)), "attach") => hook,
            (Some(Ok(_)), _) => "ok",
            (Some(Err(_)), _) => "FAILED",
            (None, _) => "-",
        }
    }
}

/// Kernel by check, and below what the verifier told.
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
        if let Some(Ok(found)) = report.found.first() {
            let _ = writeln!(text, "{:width$}  {found}", report.kernel);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(checks: &[&str]) -> String {
        checks.iter().flat_map(|check| ["[    1.0] noise\ncheck ", check, " ok fine\n"]).collect()
    }

    #[test]
    fn all_checks_must_be_there_and_have_passed() {
        let report = |said: &str| Report::read("6.1".into(), said);
        assert!(report(&lines(CHECKS)).passed());
        assert!(!report(&lines(&CHECKS[..8])).passed());
        assert!(!report("").passed());
        let failed = report(&(lines(&CHECKS[..8]) + "check uninstall FAILED a pin remains\n"));
        assert!(!failed.passed());
        assert!(failed.failure().starts_with("uninstall failed: a pin remains"), "{}", failed.failure());
        assert!(report("Kernel panic\n").failure().contains("ended before verifier"));
    }

    #[test]
    fn the_table_has_a_line_per_kernel() {
        let reports =
            [Report::read("5.10".into(), &lines(CHECKS)), Report::read("6.1".into(), "check verifier FAILED")];
        let table = table(&reports);
        assert!(table.contains("\n5.10    ok         fine       ok"), "{table}");
        assert!(table.contains("\n6.1     FAILED     -          -"), "{table}");
    }
}
