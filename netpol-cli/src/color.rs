//! Colors for terminals.

use std::io::IsTerminal;

use netpol_policy::explain::Verdict;
use netpol_policy::model::Severity;

/// Foreground colors of ECMA-48, SGR.
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const CYAN: u8 = 36;

/// Whether to color standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColorMode(bool);

impl ColorMode {
    /// Colors output to a terminal, unless `NO_COLOR` is set: <https://no-color.org>.
    pub(crate) fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    #[cfg(test)]
    pub(crate) const NEVER: Self = Self(false);

    /// Colors a verdict: green if allowed, yellow if unknown, otherwise red.
    pub(crate) fn verdict(self, verdict: Verdict, text: &str) -> String {
        let color = match verdict {
            Verdict::Allow => GREEN,
            Verdict::Unknown => YELLOW,
            Verdict::Some | Verdict::Deny => RED,
        };
        self.paint(color, text)
    }

    /// Colors the name of a severity.
    pub(crate) fn severity(self, severity: Severity) -> String {
        let color = match severity {
            Severity::Info => CYAN,
            Severity::Warning => YELLOW,
            Severity::Error => RED,
        };
        self.paint(color, severity.name())
    }

    fn paint(self, code: u8, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
