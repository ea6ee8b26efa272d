//! `netpol-agent status`.

use std::process::ExitCode;

use anyhow::Result;

use super::{Output, StatusArgs};
use crate::dataplane::read_status;

pub(super) fn status(args: &StatusArgs) -> Result<ExitCode> {
    let status = read_status(&args.pin_path)?;
    if args.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "{:<16} {:<16} {:<40} {:<9} {:<9} {:>10}  flags",
        "interface", "ipv4", "ipv6", "ingress", "egress", "generation"
    );
    for endpoint in &status.endpoints {
        let set = |id: u32| if id == 0 { "open".to_owned() } else { format!("set {id}") };
        let mut flags = endpoint.flags.join(" ");
        if !endpoint.attached {
            flags.push_str(" NOT ATTACHED");
        }
        println!(
            "{:<16} {:<16} {:<40} {:<9} {:<9} {:>10}  {flags}",
            endpoint.interface.clone().unwrap_or_else(|| format!("({})", endpoint.ifindex)),
            endpoint.ipv4.map_or_else(|| "-".into(), |address| address.to_string()),
            endpoint.ipv6.map_or_else(|| "-".into(), |address| address.to_string()),
            set(endpoint.ingress_rule_set),
            set(endpoint.egress_rule_set),
            endpoint.generation,
        );
        for (direction, reasons) in &endpoint.packets {
            for (reason, packets) in reasons {
                println!("  {direction} {reason}: {packets} packets");
            }
        }
    }
    println!();
    for (map, state) in &status.maps {
        let entries = state.entries.map_or_else(|| "-".into(), |entries| entries.to_string());
        println!("{map:<20} {entries:>8} of {}", state.capacity);
    }
    println!("{:<20} {:>8}", "lost events", status.lost_events);
    Ok(ExitCode::SUCCESS)
}
