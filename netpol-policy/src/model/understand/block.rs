//! `ipBlock`s.

use ipnet::IpNet;
use k8s_openapi::api::networking::v1::IPBlock;

use super::Problems;
use crate::model::IpBlock;

/// The block at `field`, or `None` where any part of it is not understood: a block without one of its excepts would open
/// what the author closed.
pub(super) fn block(api: &IPBlock, field: &str, problems: &mut Problems) -> Option<IpBlock> {
    let cidr = network(&api.cidr, &format!("{field}.cidr"), problems);
    let mut except = Vec::new();
    let mut understood = true;
    for (index, text) in api.except.iter().flatten().enumerate() {
        let field = format!("{field}.except[{index}]");
        let Some(hole) = network(text, &field, problems) else {
            understood = false;
            continue;
        };
        let Some(cidr) = cidr else { continue };
        if !cidr.contains(&hole) {
            problems.error(field, format!("{hole} is not inside the block {cidr}; the whole ipBlock matches nothing"));
            understood = false;
            continue;
        }
        if hole == cidr {
            problems.warning(field, format!("cuts out the whole block {cidr}; nothing is left of it"));
        }
        except.push(hole);
    }
    except.sort();
    except.dedup();
    cidr.filter(|_| understood).map(|cidr| IpBlock { cidr, except })
}

fn network(text: &str, field: &str, problems: &mut Problems) -> Option<IpNet> {
    let Ok(network) = text.parse::<IpNet>() else {
        let advice = match text.parse() {
            Ok(std::net::IpAddr::V4(_)) => format!("write {text}/32"),
            Ok(std::net::IpAddr::V6(_)) => format!("write {text}/128"),
            Err(_) => "write an address and a prefix length, such as 10.0.0.0/8".into(),
        };
        problems.error(field, format!("`{text}` is not a CIDR block; {advice}"));
        return None;
    };
    if let IpNet::V6(v6) = network
        && v6.prefix_len() >= 96
        && let Some(v4) = v6.network().to_ipv4_mapped()
    {
        let v4_length = v6.prefix_len() - 96;
        problems
            .error(field, format!("{text} is IPv4 mapped into IPv6, which no packet carries; write {v4}/{v4_length}"));
        return None;
    }
    if network.trunc() != network {
        let masked = network.trunc();
        problems.warning(field, format!("{text} has bits set beyond its prefix; it is read as {masked}"));
    }
    Some(network.trunc())
}
