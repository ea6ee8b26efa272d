//! Colors for terminals.

use std::io::IsTerminal;

use netpol_policy::explain::Verdict;
use netpol_policy::model::Severity;

use crate::columns::Tone;

/// The codes of foreground colors (ECMA-48, SGR).
const RED: u8 = 31;
const GREEN: u8 = 32;
const YELLOW: u8 = 33;
const CYAN: u8 = 36;

/// Whether to color standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ColorMode(bool);

impl ColorMode {
    /// Returns the mode for standard output: color on a terminal, unless `NO_COLOR` is set (<https://no-color.org>).
    pub(crate) fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    pub(crate) const NEVER: Self = Self(false);

    #[cfg(test)]
    pub(crate) const ALWAYS: Self = Self(true);

    /// Colors the text of a cell, or a word, in the color of its tone. `None`: no color.
    pub(crate) fn tone(self, tone: Option<Tone>, text: &str) -> String {
        match tone {
            Some(Tone::Good) => self.paint(GREEN, text),
            Some(Tone::Notice) => self.paint(YELLOW, text),
            Some(Tone::Bad) => self.paint(RED, text),
            None => text.to_owned(),
        }
    }

    /// Colors a verdict: green if allowed, yellow if unknown, red if denied or if only some connections are allowed.
    pub(crate) fn verdict(self, verdict: Verdict, text: &str) -> String {
        let color = match verdict {
            Verdict::Allow => GREEN,
            Verdict::Unknown => YELLOW,
            Verdict::Partial | Verdict::Deny => RED,
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
