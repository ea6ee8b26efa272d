//! Colors for terminals.

use std::io::IsTerminal;

/// Whether to color standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Color(bool);

impl Color {
    /// Colors output to a terminal, unless `NO_COLOR` is set: <https://no-color.org>.
    pub(crate) fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    #[cfg(test)]
    pub(crate) const NEVER: Self = Self(false);

    /// Colors a verdict green or red.
    pub(crate) fn verdict(self, allowed: bool, text: &str) -> String {
        let code = if allowed { 32 } else { 31 };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
