//! Finds TC programs of other components on pods' veths.

use std::collections::BTreeMap;

use super::{Finding, Findings, NameList};
use netpol_dataplane::{ForeignPrograms, Order};
use netpol_node::{Netlink, NetlinkError};

/// Maximum number of veths in one check. With this limit, a check takes milliseconds. A sample is enough, because other
/// components attach their programs to all veths.
const MAX_VETHS: usize = 256;

const BEFORE: &str = "it runs before netpol's programs. If it accepts (TC_ACT_OK) or redirects a packet, netpol does not \
    process this packet. Remove it, attach it after netpol's programs, or let it return TC_ACT_UNSPEC for packets that it does not decide";
const AFTER: &str = "it runs after netpol's programs and decides last on packets that netpol allows. If it belongs to \
    another policy engine, a packet passes only if both engines allow it. Remove it if it is not needed";

/// Finds each program once, with the veths to which it is attached.
pub(super) fn detect(foreign: &ForeignPrograms) -> Result<Findings, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut locations: BTreeMap<(String, Order), Vec<String>> = BTreeMap::new();
    for veth in netlink.links()?.into_values().filter_map(|link| link.veth).take(MAX_VETHS) {
        for program in foreign.programs_on(&mut netlink, veth.ifindex, &veth.name) {
            let veths = locations.entry((program.name, program.order)).or_default();
            if veths.last() != Some(&veth.name) {
                veths.push(veth.name.clone());
            }
        }
    }
    let found = locations.into_iter().map(|((name, order), veths)| {
        let (what, advice) = match order {
            Order::Before => (format!("TC program {name} (before netpol's)"), BEFORE),
            Order::After => (format!("TC program {name}"), AFTER),
        };
        (what, Finding { location: NameList(&veths).to_string(), advice })
    });
    Ok(found.collect())
}
