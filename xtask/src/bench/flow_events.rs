//! Cost of flow events and of policies in shadow mode, for a new flow.
//!
//! All variants alternate in each round, so that the load on the machine is the same for all of them. The flows have
//! the same addresses and destination port, so only one of them causes an event each second, and the others are
//! counted.

use anyhow::{Result, ensure};
use netpol_common::{
    AllowEntry, AllowKey, Direction, DirectionPolicy, Endpoint, PortSetId, RuleId, RuleSetId, Settings,
};
use netpol_tests::program::Programs;

use super::packets::{Family, Host, PEERS, PORTS, ROUNDS, difference, new_flows};

/// Target in nanoseconds for what a new flow costs more with flow events, or with policies in shadow mode.
pub(super) const TARGET_EXTRA: f64 = 150.0;

/// Two rule sets (compiled policies): one allows the flow. The other one has no map entries, so it denies the flow.
const ALLOWS: RuleSetId = RuleSetId(8);
const DENIES: RuleSetId = RuleSetId(9);

struct Variant {
    case: &'static str,
    record_allowed: u32,
    shadow: RuleSetId,
}

const VARIANTS: [Variant; 4] = [
    Variant { case: "new, UDP, events off", record_allowed: 0, shadow: RuleSetId::NONE },
    Variant { case: "new, UDP, events on", record_allowed: 1, shadow: RuleSetId::NONE },
    Variant { case: "new, UDP, shadow", record_allowed: 0, shadow: ALLOWS },
    Variant { case: "new, UDP, shadow denies", record_allowed: 0, shadow: DENIES },
];

/// The median above the empty program, the spread, and the empty program's median, in nanoseconds.
type Cost = (f64, f64, f64);

/// Measures all variants.
pub(super) fn measure(
    programs: &mut Programs,
    family: Family,
    peer: Host,
    endpoint: Endpoint,
) -> Result<Vec<(&'static str, Cost)>> {
    let allow = AllowEntry { port_set: PORTS, rule: RuleId::NONE };
    programs.set_allow(AllowKey { rule_set: ALLOWS, class: PEERS }, allow)?;
    let mut times = VARIANTS.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (variant, (full, empty)) in VARIANTS.iter().zip(&mut times) {
            programs.set_settings(Settings { record_allowed: variant.record_allowed })?;
            // Without policies in shadow mode, all ports are allowed to every address.
            let any = if variant.shadow == RuleSetId::NONE { PortSetId::ALL } else { PortSetId::NONE };
            let shadow_ingress = DirectionPolicy { rule_set: variant.shadow, any };
            programs.set_endpoint(&Endpoint { shadow_ingress, ..endpoint })?;
            let before = programs.shadow_denied_count(endpoint.id, Direction::Ingress)?;
            let (empty_time, time) = new_flows(programs, family, peer)?;
            let denied = programs.shadow_denied_count(endpoint.id, Direction::Ingress)? - before;
            ensure!((denied > 0) == (variant.shadow == DENIES), "{}: shadow mode denied {denied} flows", variant.case);
            empty.push(empty_time);
            full.push(time);
            // Removes the events, so that their buffer is never full.
            programs.events()?;
        }
    }
    programs.set_settings(Settings::default())?;
    programs.set_endpoint(&endpoint)?;
    let costs = times.into_iter().map(|(full, empty)| difference(full, empty));
    Ok(VARIANTS.iter().map(|variant| variant.case).zip(costs).collect())
}
