//! `netpol-agent status`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use netpol_api::{Client, PartialPolicy};
use netpol_common::Reason;
use netpol_policy::text::{self, Safe};

use super::{Output, StatusArgs, gate_status, print, requirements};
use netpol_dataplane::{EndpointStatus, Status, read_status};

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode> {
    requirements::check("status")?;
    let status = read_status(&args.pin_path)?;
    let agent = agent_status(&args.api_socket);
    let pods = by_interface(agent.as_ref());
    let partial = agent.as_ref().map_or(&[][..], |agent| &agent.partial_policies);
    let warnings = agent.as_ref().map_or(&[][..], |agent| &agent.warnings);
    match args.output {
        Output::Json => {
            let mut json = serde_json::to_value(&status)?;
            for endpoint in json["endpoints"].as_array_mut().into_iter().flatten() {
                let ifindex = endpoint["ifindex"].as_u64().and_then(|ifindex| u32::try_from(ifindex).ok());
                let from_agent = ifindex.and_then(|ifindex| pods.get(&ifindex));
                endpoint["pod"] = from_agent.and_then(|endpoint| endpoint.pod.clone()).into();
                endpoint["conflict"] = from_agent.and_then(|endpoint| endpoint.conflict.clone()).into();
                endpoint["unlistedAddresses"] =
                    serde_json::to_value(from_agent.map(|endpoint| &endpoint.unlisted_addresses))?;
                endpoint["policies"] = serde_json::to_value(from_agent.map(|endpoint| &endpoint.policies))?;
            }
            json["partialPolicies"] = serde_json::to_value(partial)?;
            json["gate"] = serde_json::to_value(agent.as_ref().map(|agent| &agent.gate))?;
            json["warnings"] = serde_json::to_value(warnings)?;
            json["observe"] = serde_json::to_value(agent.as_ref().map(|agent| agent.observe))?;
            json["suspensions"] = serde_json::to_value(agent.as_ref().map(|agent| &agent.suspensions))?;
            print::out(format_args!("{}\n", text::json(&format!("{json:#}"))))?;
        }
        Output::Table => {
            let mut text = format!("{}{}", table(&status, &pods), partial_policies(partial));
            text.insert_str(0, &not_enforced(&status, agent.as_ref()));
            if let Some(agent) = &agent {
                // Writing to a string does not fail.
                let _ = write!(text, "\n{}", gate_status::text(&agent.gate, width()));
            }
            for warning in warnings {
                // Writing to a string does not fail.
                let _ = writeln!(text, "warning: {}", Safe(warning));
            }
            print::out(text)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns a line about `--observe`, if an agent uses or used it, and one about each suspension. In both cases,
/// policies are not enforced.
fn not_enforced(status: &Status, agent: Option<&netpol_api::Status>) -> String {
    let observe = if agent.is_some_and(|agent| agent.observe) {
        Some("NOTHING IS ENFORCED: the agent runs with --observe\n".to_owned())
    } else {
        let observing = status.endpoints.iter().filter(|endpoint| endpoint.observing).count();
        let interfaces = if observing == 1 { "1 interface".to_owned() } else { format!("{observing} interfaces") };
        (observing > 0)
            .then(|| format!("NOTHING IS ENFORCED on {interfaces}: an agent with --observe attached the programs\n"))
    };
    let suspensions = agent.map_or(&[][..], |agent| &agent.suspensions).iter().map(|suspension| {
        let scope = suspension.namespace.as_ref().map_or("the cluster".to_owned(), |name| format!("namespace {name}"));
        let reason = suspension.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("NOT ENFORCED: policies of {} are suspended until {}{}\n", Safe(scope), suspension.until, Safe(reason))
    });
    observe.into_iter().chain(suspensions).collect()
}

/// Returns the status of the running agent; `None` if no agent responds.
fn agent_status(socket: &Path) -> Option<netpol_api::Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    let client = Client::new(socket);
    let response = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(2), client.status()).await });
    response.ok()?.ok()
}

/// Returns the width of the terminal; without one, lines are not wrapped.
fn width() -> usize {
    terminal_size::terminal_size_of(std::io::stdout()).map_or(usize::MAX, |(width, _)| usize::from(width.0))
}

fn by_interface(status: Option<&netpol_api::Status>) -> BTreeMap<u32, &netpol_api::Endpoint> {
    let endpoints = status.into_iter().flat_map(|status| &status.endpoints);
    endpoints.map(|endpoint| (endpoint.ifindex, endpoint)).collect()
}

/// Returns a table of the policies of which only a part is enforced, because of the memory limit. Without such
/// policies, the text is empty.
fn partial_policies(partial: &[PartialPolicy]) -> String {
    if partial.is_empty() {
        return String::new();
    }
    let mut rows = vec![
        ["PARTIAL POLICY", "IPBLOCKS+PORTS", "OMITTED IPBLOCKS", "OMITTED PORTS", "MISSING ENTRIES"].map(str::to_owned),
    ];
    rows.extend(partial.iter().map(|policy| {
        let counts = [policy.policy_items, policy.omitted_blocks, policy.omitted_ports, policy.missing_entries]
            .map(|count| count.to_string());
        let [total, blocks, ports, entries] = counts;
        [policy.policy.clone(), total, blocks, ports, entries]
    }));
    format!("\n{}Omitted parts allow nothing; raise --max-policy-memory\n", aligned(&rows, 1..5))
}

/// Returns a table of endpoints and a table of maps, as wide as their content.
fn table(status: &Status, pods: &BTreeMap<u32, &netpol_api::Endpoint>) -> String {
    let mut rows =
        vec![["INTERFACE", "POD", "ADDRESS", "INGRESS", "EGRESS", "ALLOWED", "DROPPED", "NOTES"].map(str::to_owned)];
    for endpoint in &status.endpoints {
        rows.extend(rows_of(endpoint, pods.get(&endpoint.ifindex).copied()));
    }
    let mut text = aligned(&rows, 5..7);
    if status.endpoints.is_empty() {
        text.push_str("no endpoints\n");
    }
    if !status.devices.is_empty() {
        // Writing to a string does not fail.
        let _ = writeln!(text, "\npackets are also evaluated post-DNAT on {}", Safe(status.devices.join(", ")));
    }
    let mut rows = vec![["MAP", "ENTRIES", "CAPACITY"].map(str::to_owned)];
    for (map, state) in &status.maps {
        let entries = state.entries.map_or_else(|| "-".into(), |entries| entries.to_string());
        rows.push([(*map).to_owned(), entries, state.capacity.to_string()]);
    }
    let _ = write!(text, "\n{}\nevents lost: {}\n", aligned(&rows, 1..3), status.lost_events);
    text
}

/// Returns a row for each address of an endpoint. Only the first row has values in the other columns.
fn rows_of(endpoint: &EndpointStatus, from_agent: Option<&netpol_api::Endpoint>) -> Vec<[String; 8]> {
    let isolated_by = |set: u32, names: Option<&Vec<String>>| match names {
        _ if set == 0 => "open".to_owned(),
        Some(names) if !names.is_empty() => policy_names(names),
        _ => format!("set {set}"),
    };
    let policies = from_agent.map(|endpoint| &endpoint.policies);
    let (mut allowed, mut dropped, mut notes) = (0, 0, Vec::new());
    if !endpoint.attached {
        notes.push("NOT ATTACHED".to_owned());
    }
    if endpoint.observing {
        notes.push("OBSERVED ONLY".to_owned());
    }
    // Anti-spoofing is on by default, so it is not a note.
    notes.extend(endpoint.flags.iter().filter(|flag| **flag != "anti-spoofing").map(|flag| (*flag).to_owned()));
    if let Some(conflict) = from_agent.and_then(|endpoint| endpoint.conflict.as_ref()) {
        notes.push(format!("CONFLICT: {conflict}"));
    }
    notes.extend(
        from_agent
            .iter()
            .flat_map(|endpoint| &endpoint.unlisted_addresses)
            .map(|address| format!("UNLISTED {address}")),
    );
    for (direction, reasons) in &endpoint.packets {
        for (name, packets) in reasons {
            if Reason::ALL.iter().any(|reason| reason.name() == *name && reason.allows()) {
                allowed += packets;
            } else {
                dropped += packets;
                notes.push(format!("{direction} {name} {packets}"));
            }
        }
    }
    let addresses = endpoint.ipv4.map(|v4| v4.to_string()).into_iter().chain(endpoint.ipv6.map(|v6| v6.to_string()));
    let mut addresses = addresses.collect::<Vec<_>>().into_iter();
    let first = [
        endpoint.interface.clone().unwrap_or_else(|| format!("({})", endpoint.ifindex)),
        from_agent.and_then(|endpoint| endpoint.pod.clone()).unwrap_or_else(|| "-".into()),
        addresses.next().unwrap_or_else(|| "-".into()),
        isolated_by(endpoint.ingress_rule_set, policies.map(|policies| &policies.ingress)),
        isolated_by(endpoint.egress_rule_set, policies.map(|policies| &policies.egress)),
        allowed.to_string(),
        dropped.to_string(),
        notes.join(", "),
    ];
    let others = addresses.map(|address| {
        let mut row = [const { String::new() }; 8];
        row[2] = address;
        row
    });
    std::iter::once(first).chain(others).collect()
}

/// Returns the names of policies without their namespace: it is the pod's namespace, which the column POD shows.
fn policy_names(names: &[String]) -> String {
    const SHOWN: usize = 3;
    let short = names.iter().take(SHOWN).map(|name| name.split_once('/').map_or(&**name, |(_, name)| name));
    let mut text = short.collect::<Vec<_>>().join(",");
    if names.len() > SHOWN {
        // Writing to a string does not fail.
        let _ = write!(text, ",+{}", names.len() - SHOWN);
    }
    text
}

/// Aligns columns, separated by two blanks; `right_aligned` are indexes of right-aligned columns. Cells are escaped.
pub(super) fn aligned<const N: usize>(rows: &[[String; N]], right_aligned: std::ops::Range<usize>) -> String {
    let rows: Vec<_> = rows.iter().map(|row| row.each_ref().map(|cell| Safe(cell).to_string())).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let _ = if right_aligned.contains(&column) {
                write!(line, "{cell:>width$}  ")
            } else {
                write!(line, "{cell:<width$}  ")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partly_enforced_policies_are_listed() {
        assert_eq!(partial_policies(&[]), "");
        let partial = PartialPolicy {
            policy: "shop/list".into(),
            omitted_blocks: 12_000,
            omitted_ports: 0,
            policy_items: 70_000,
            missing_entries: 0,
        };
        assert_eq!(
            partial_policies(&[partial]),
            "\nPARTIAL POLICY  IPBLOCKS+PORTS  OMITTED IPBLOCKS  OMITTED PORTS  MISSING ENTRIES\n\
             shop/list                70000             12000              0                0\n\
             Omitted parts allow nothing; raise --max-policy-memory\n"
        );
    }

    #[test]
    fn the_table_is_as_wide_as_its_content() {
        let endpoint = EndpointStatus {
            ifindex: 7,
            interface: Some("veth0a1b2c3d".into()),
            attached: true,
            observing: false,
            ipv4: Some([10, 1, 0, 5].into()),
            ipv6: Some("fd00::5".parse().expect("invalid address")),
            version: 3,
            ingress_rule_set: 12,
            egress_rule_set: 0,
            flags: vec!["anti-spoofing"],
            packets: BTreeMap::from([("ingress", BTreeMap::from([("flow", 40), ("rule", 2), ("no-rule", 9)]))]),
        };
        let status = Status {
            layout_version: 1,
            endpoints: vec![endpoint],
            devices: vec!["eth0".into(), "flannel.1".into()],
            maps: BTreeMap::new(),
            lost_events: 0,
        };
        let from_agent = netpol_api::Endpoint {
            ifindex: 7,
            interface: "veth0a1b2c3d".to_owned(),
            pod: Some("shop/web".to_owned()),
            addresses: Vec::new(),
            attached: true,
            orphaned: false,
            conflict: None,
            unlisted_addresses: vec!["10.1.0.6".parse().expect("invalid address")],
            policies: netpol_api::Directions {
                ingress: ["shop/a", "shop/b", "shop/c", "shop/d", "shop/e"].map(str::to_owned).to_vec(),
                egress: Vec::new(),
            },
            shadow_policies: netpol_api::Directions::default(),
        };
        let without_names = table(&status, &BTreeMap::new());
        assert!(without_names.contains("10.1.0.5  set 12   open"), "{without_names}");
        let table = table(&status, &BTreeMap::from([(7, &from_agent)]));
        let lines: Vec<&str> = table.lines().take(5).collect();
        assert_eq!(
            lines,
            [
                "INTERFACE     POD       ADDRESS   INGRESS   EGRESS  ALLOWED  DROPPED  NOTES",
                "veth0a1b2c3d  shop/web  10.1.0.5  a,b,c,+2  open         42        9  UNLISTED 10.1.0.6, ingress no-rule 9",
                "                        fd00::5",
                "",
                "packets are also evaluated post-DNAT on eth0, flannel.1",
            ]
        );
    }
}
