//! Colour where a person looks.

use std::io::IsTerminal;

/// Whether to colour standard output. <https://no-color.org>.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Color(bool);

impl Color {
    /// Only on a terminal, and not where `NO_COLOR` is set.
    pub(crate) fn detect() -> Self {
        Self(std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
    }

    #[cfg(test)]
    pub(crate) const NEVER: Self = Self(false);

    pub(crate) fn verdict(self, allowed: bool, text: &str) -> String {
        let code = if allowed { 32 } else { 31 };
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}
