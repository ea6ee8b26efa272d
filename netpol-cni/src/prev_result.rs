//! Parses `prevResult`: the result of the CNI plugins that ran before `netpol-cni`.

use std::net::IpAddr;

use serde::Deserialize;

/// The parts of a result from which the addresses of the pod's sandbox are read. Source: the section "Success" of the
/// CNI specification. These fields have not changed since version 0.3.0.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PrevResult {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Address>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Interface {
    /// The path of the network namespace. Missing or empty for an interface of the node.
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Address {
    /// The address with its prefix length.
    address: String,
    /// Index of the address's interface in [`PrevResult::interfaces`].
    interface: Option<i64>,
}

/// Returns the addresses of the sandbox: the addresses of interfaces in the sandbox, and addresses without an
/// interface.
///
/// # Errors
/// If the result does not follow the specification.
pub(crate) fn addresses(prev_result: &str) -> Result<Vec<IpAddr>, String> {
    let result: PrevResult = serde_json::from_str(prev_result).map_err(|error| error.to_string())?;
    let interfaces = result.interfaces.unwrap_or_default();
    let is_in_sandbox = |index: i64| {
        let interface = usize::try_from(index).ok().and_then(|index| interfaces.get(index));
        interface.is_some_and(|interface| interface.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_empty()))
    };
    let ips = result.ips.unwrap_or_default();
    let of_sandbox = ips.iter().filter(|ip| ip.interface.is_none_or(is_in_sandbox));
    of_sandbox.map(|ip| parse(&ip.address)).collect()
}

fn parse(address: &str) -> Result<IpAddr, String> {
    let without_prefix = address.split_once('/').map_or(address, |(address, _)| address);
    without_prefix.parse().map_err(|_| format!("{address:?} is not an address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prev_result: &str, expected: &[&str]) {
        let found: Vec<_> = addresses(prev_result).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{prev_result}");
    }

    #[test]
    fn addresses_of_the_sandbox_are_read() {
        let interfaces =
            r#""interfaces":[{"name":"cni0"},{"name":"veth1","sandbox":""},{"name":"eth0","sandbox":"/run/netns/x"}]"#;
        check(
            &format!(
                r#"{{{interfaces},"ips":[{{"interface":2,"address":"10.0.0.5/24"}},{{"interface":2,"address":"fd00::5/64"}}]}}"#
            ),
            &["10.0.0.5", "fd00::5"],
        );
        // All addresses but the last one are omitted: they belong to the bridge, to the node's end of the veth, or to
        // an interface that does not exist.
        check(
            &format!(
                r#"{{{interfaces},"ips":[{{"interface":0,"address":"10.0.0.1/24"}},{{"interface":1,"address":"10.0.0.2/24"}},
                {{"interface":9,"address":"10.0.0.3/24"}},{{"interface":-1,"address":"10.0.0.4/24"}},{{"interface":2,"address":"10.0.0.5/24"}}]}}"#
            ),
            &["10.0.0.5"],
        );
    }

    #[test]
    fn addresses_without_an_interface_belong_to_the_sandbox() {
        check(r#"{"ips":[{"version":"4","address":"10.0.0.5/32"}]}"#, &["10.0.0.5"]);
        check(r#"{"interfaces":[{"name":"cali1"}],"ips":[{"address":"10.0.0.5"}]}"#, &["10.0.0.5"]);
        check(r#"{"interfaces":null,"ips":null}"#, &[]);
        check("{}", &[]);
    }

    #[test]
    fn an_invalid_result_is_an_error() {
        for invalid in [r#"{"ips":[{"address":"10.0.0/24"}]}"#, r#"{"ips":[{}]}"#, r#"{"ips":5}"#, "5"] {
            assert!(addresses(invalid).is_err(), "{invalid}");
        }
    }
}
