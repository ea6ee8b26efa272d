//! Measures how much time flow events, and policies in shadow mode, add to a new flow.
//!
//! All variants alternate in each round, so that the load on the machine is the same for all of them. The flows differ
//! only in the source port, which the limit on events ignores. So only one of them causes an event each second, and the
//! others are counted.

use anyhow::{Result, ensure};
use netpol_common::{
    AllowEntry, AllowKey, Direction, DirectionPolicy, Endpoint, PortSetId, RuleId, RuleSetId, Settings,
};
use netpol_tests::program::Programs;

use super::packets::{Family, Host, PEERS, PORTS, ROUNDS, difference, new_flows};

/// Target in nanoseconds for the time that flow events, or policies in shadow mode, add to a new flow.
pub(super) const TARGET_EXTRA: f64 = 150.0;

/// A rule set (compiled policies) that allows the flow.
const ALLOWING: RuleSetId = RuleSetId(8);
/// A rule set without map entries, so it denies the flow.
const DENYING: RuleSetId = RuleSetId(9);

struct Variant {
    case: &'static str,
    /// 1: the first packet of each allowed flow causes an event. 0: allowed flows cause no events.
    record_allowed: u32,
    /// The rule set that would apply if policies in shadow mode were enforced. `NONE`: there are no such policies.
    shadow: RuleSetId,
}

const VARIANTS: [Variant; 4] = [
    Variant { case: "new, UDP, events off", record_allowed: 0, shadow: RuleSetId::NONE },
    Variant { case: "new, UDP, events on", record_allowed: 1, shadow: RuleSetId::NONE },
    Variant { case: "new, UDP, shadow", record_allowed: 0, shadow: ALLOWING },
    Variant { case: "new, UDP, shadow denies", record_allowed: 0, shadow: DENYING },
];

/// The result of [`difference`], in nanoseconds: the median minus the median of the empty program (which does
/// nothing); the spread; the median of the empty program.
type Cost = (f64, f64, f64);

/// Measures all variants.
pub(super) fn measure(
    programs: &mut Programs,
    family: Family,
    peer: Host,
    endpoint: Endpoint,
) -> Result<Vec<(&'static str, Cost)>> {
    let allow = AllowEntry { port_set: PORTS, rule: RuleId::NONE };
    programs.set_allow(AllowKey { rule_set: ALLOWING, class: PEERS }, allow)?;
    let mut times = VARIANTS.map(|_| (Vec::new(), Vec::new()));
    for _ in 0..ROUNDS {
        for (variant, (full, empty)) in VARIANTS.iter().zip(&mut times) {
            programs.set_settings(Settings { record_allowed: variant.record_allowed })?;
            // `any`: the ports that policies in shadow mode allow to every address. Without such policies, all ports.
            let any = if variant.shadow == RuleSetId::NONE { PortSetId::ALL } else { PortSetId::NONE };
            let shadow_ingress = DirectionPolicy { rule_set: variant.shadow, any };
            programs.set_endpoint(&Endpoint { shadow_ingress, ..endpoint })?;
            let before = programs.shadow_denied_count(endpoint.id, Direction::Ingress)?;
            let (empty_time, time) = new_flows(programs, family, peer)?;
            let denied = programs.shadow_denied_count(endpoint.id, Direction::Ingress)? - before;
            ensure!((denied > 0) == (variant.shadow == DENYING), "{}: shadow mode denied {denied} flows", variant.case);
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
