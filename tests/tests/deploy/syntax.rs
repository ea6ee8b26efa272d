//! Validates names, labels and quantities as Kubernetes does.

/// Returns whether a text is a DNS label (RFC 1123), as used for containers, volumes and namespaces.
pub(crate) fn is_dns_label(text: &str) -> bool {
    let is_lower_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(|byte| is_lower_alphanumeric(*byte))
        && bytes.last().is_some_and(|byte| is_lower_alphanumeric(*byte))
        && bytes.iter().all(|byte| is_lower_alphanumeric(*byte) || *byte == b'-')
}

/// Returns whether a text is a DNS subdomain: DNS labels separated by dots, as used for the names of most objects.
pub(crate) fn is_dns_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_dns_label)
}

/// Returns whether a text is valid as the value of a Kubernetes label, or as the name in the key of a label (the part
/// after the prefix).
fn is_label_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.len() <= 63
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

/// Returns whether a text is the key of a Kubernetes label, with or without a prefix.
pub(crate) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_label_name(name),
        None => is_label_name(text),
    }
}

/// Returns whether a text is the value of a Kubernetes label.
pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_label_name(text)
}

/// Parses a quantity, and returns it in thousandths. Returns `None` if the quantity is invalid. Exponents are not
/// supported, because the manifests in `deploy/` have none.
pub(crate) fn quantity(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let thousandths: i128 = match suffix {
        "m" => 1,
        "" => 1000,
        "k" => 1000_i128.pow(2),
        "M" => 1000_i128.pow(3),
        "G" => 1000_i128.pow(4),
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        _ => return None,
    };
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let scale = 10_i128.checked_pow(u32::try_from(part.len()).ok()?)?;
    let digits: i128 = format!("{whole}{part}").parse().ok()?;
    Some(digits.checked_mul(thousandths)? / scale)
}

#[test]
fn invalid_names_and_label_keys_are_rejected() {
    for good in ["netpol-agent", "a", "0"] {
        assert!(is_dns_label(good) && is_dns_subdomain(good) && is_label_value(good), "{good}");
    }
    assert!(is_dns_subdomain("a.b") && !is_dns_label("a.b"));
    for bad in ["", "Netpol", "-a", "a-", "a_b", &"a".repeat(64)] {
        assert!(!is_dns_label(bad), "{bad}");
    }
    assert!(
        is_label_key("app.kubernetes.io/name") && is_label_key("app") && !is_label_key("a/b/c") && !is_label_key("/a")
    );
}

#[test]
fn quantities_are_numbers_with_a_unit() {
    assert_eq!(quantity("50m"), Some(50));
    assert_eq!(quantity("1.5"), Some(1500));
    assert_eq!(quantity("96Mi"), Some(96 * 1024 * 1024 * 1000));
    for bad in ["", "Mi", "96MB", "96 Mi", "1.2.3", "-1m"] {
        assert_eq!(quantity(bad), None, "{bad}");
    }
}
