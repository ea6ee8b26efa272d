//! Parses `ipBlock`s of policies.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::IPBlock;

use super::Diagnostics;
use crate::model::IpBlock;

/// Parses the block at `field`. Returns `None` if the CIDR or any item of `except` is invalid. If an invalid item of
/// `except` were omitted instead, the block would allow addresses that its author excluded.
pub(super) fn block(api: &IPBlock, field: &str, diagnostics: &mut Diagnostics) -> Option<IpBlock> {
    let cidr = parse_network(&api.cidr, &format!("{field}.cidr"), diagnostics);
    let mut except = Vec::new();
    let mut valid = true;
    for (index, text) in api.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{index}]");
        let Some(excluded) = parse_network(text, &field, diagnostics) else {
            valid = false;
            continue;
        };
        let Some(cidr) = cidr else { continue };
        if !cidr.contains(&excluded) {
            diagnostics
                .error(field, format!("{excluded} is not inside the block {cidr}; the whole ipBlock matches nothing"));
            valid = false;
            continue;
        }
        if excluded == cidr {
            diagnostics.warning(field, format!("excludes the whole block {cidr}, so that the block matches nothing"));
        }
        except.push(excluded);
    }
    except.sort();
    except.dedup();
    cidr.filter(|_| valid).map(|cidr| IpBlock { cidr, except })
}

/// Removes leading zeros from the decimal numbers of a block. Returns `None` if no number has leading zeros. The API
/// server ignores leading zeros: it does not read such numbers as octal.
///
/// Source: `ParseCIDRSloppy` in <https://github.com/kubernetes/utils/blob/master/net/parse.go>.
fn without_leading_zeros(text: &str) -> Option<String> {
    let (address, length) = text.split_once('/')?;
    let decimal = |number: &str| {
        let is_decimal = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let significant = number.trim_start_matches('0');
        if is_decimal && significant.is_empty() {
            "0".to_owned()
        } else if is_decimal {
            significant.to_owned()
        } else {
            number.to_owned()
        }
    };
    // In IPv6 addresses, leading zeros are valid.
    let address = if address.contains(':') {
        address.to_owned()
    } else {
        address.split('.').map(decimal).collect::<Vec<_>>().join(".")
    };
    let without_zeros = format!("{address}/{}", decimal(length));
    (without_zeros != text).then_some(without_zeros)
}

fn parse_network(text: &str, field: &str, diagnostics: &mut Diagnostics) -> Option<IpNet> {
    let parsed = text.parse::<IpNet>().ok().or_else(|| {
        let network = without_leading_zeros(text)?.parse().ok()?;
        diagnostics.warning(field, format!("{text} has leading zeros, which the API server ignores; write {network}"));
        Some(network)
    });
    let Some(network) = parsed else {
        let advice = match text.parse() {
            Ok(std::net::IpAddr::V4(_)) => format!("write {text}/32"),
            Ok(std::net::IpAddr::V6(_)) => format!("write {text}/128"),
            Err(_) => "write an address and a prefix length, such as 10.0.0.0/8".into(),
        };
        diagnostics.error(field, format!("`{text}` is not a CIDR block; {advice}"));
        return None;
    };
    if let IpNet::V6(v6) = network
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.network().to_ipv4_mapped()
    {
        let v4_length = v6.prefix_len() - 96;
        diagnostics.error(
            field,
            format!("{text} is an IPv4-mapped IPv6 block, which matches no packet; write {v4}/{v4_length}"),
        );
        return None;
    }
    if network.trunc() != network {
        let masked = network.trunc();
        diagnostics.warning(field, format!("{text} has bits set after its prefix; it is used as {masked}"));
    }
    Some(network.trunc())
}
