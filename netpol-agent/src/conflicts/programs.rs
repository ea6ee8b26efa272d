//! Other people's TC programs on the veths of pods.

use std::collections::BTreeMap;

use super::{Found, Place, Some8};
use crate::dataplane::{ForeignPrograms, Order};
use crate::endpoints::{Netlink, NetlinkError};

/// Veths that one look goes over, so that it takes milliseconds. Whoever attaches programs does so on all.
const VETHS: usize = 256;

const BEFORE: &str = "it runs before netpol's, and what it accepts (TC_ACT_OK) or redirects netpol does not see. Remove \
    it, let it attach behind netpol's, or let it return TC_ACT_UNSPEC for packets it has no say in";
const AFTER: &str = "it runs after netpol's and has the last word on packets that netpol lets pass: if it is another \
    enforcer, both must allow. Remove it if it is not wanted";

/// Each program once, with the veths it is on.
pub(super) fn look(foreign: &ForeignPrograms) -> Result<Found, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let mut places: BTreeMap<(String, Order), Vec<String>> = BTreeMap::new();
    for veth in netlink.links()?.veths.into_iter().take(VETHS) {
        for program in foreign.on(&mut netlink, veth.ifindex, &veth.name) {
            let veths = places.entry((program.name, program.order)).or_default();
            if veths.last() != Some(&veth.name) {
                veths.push(veth.name.clone());
            }
        }
    }
    let found = places.into_iter().map(|((name, order), veths)| {
        let (what, advice) = match order {
            Order::Before => (format!("TC program {name}, before netpol's"), BEFORE),
            Order::After => (format!("TC program {name}"), AFTER),
        };
        (what, Place { place: Some8(&veths).to_string(), advice })
    });
    Ok(found.collect())
}
