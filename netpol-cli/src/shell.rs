//! Quotes values in commands that a user can paste into a shell.

/// Quotes a value for a POSIX shell, if it needs quotes.
pub(crate) fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:@%+,".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_values_have_no_quotes() {
        for (text, expected) in [
            ("kube-system", "kube-system"),
            ("2026-11-29T12:30:00Z", "2026-11-29T12:30:00Z"),
            ("arn:aws:eks:eu-1:1:cluster/a", "arn:aws:eks:eu-1:1:cluster/a"),
            ("", "''"),
            ("a b", "'a b'"),
            ("$(reboot)", "'$(reboot)'"),
            ("x;y", "'x;y'"),
            ("~root", "'~root'"),
            ("it's", r"'it'\''s'"),
        ] {
            assert_eq!(quoted(text), expected, "{text}");
        }
    }
}
