//! The switch from an earlier agent's tables: at every single write each endpoint is judged by its old policy or by its
//! new one.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_agent::dataplane::switch::{Snapshot, plan};
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleId, RuleSetId};
use netpol_policy::model::{Frontend, Place};
use netpol_policy::tables::Change;
use proptest::prelude::*;

/// Ids of the old tables are below this, those of the new ones above.
const APART: u32 = 100;

/// What a rule set allows to an address: the port set, as it stands in the tables.
fn verdict(tables: &Snapshot, rule_set: RuleSetId, address: IpAddr) -> Option<PortSetId> {
    let covering = tables.prefixes.iter().filter(|(net, _)| net.contains(&address));
    let longest = covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, class)| *class);
    let class = tables.addresses.get(&address).map(|entry| entry.class).or(longest).unwrap_or_default();
    if class == ClassId::NOBODY {
        return None;
    }
    tables.allow.get(&AllowKey { rule_set, class }).map(|entry| entry.port_set)
}

/// What a rule set allows of a frontend; `None` where there is none.
fn frontend_verdict(tables: &Snapshot, rule_set: RuleSetId, frontend: Frontend) -> Option<PortSetId> {
    let class = *tables.frontends.get(&frontend)?;
    Some(tables.allow.get(&AllowKey { rule_set, class }).map_or(PortSetId::NONE, |entry| entry.port_set))
}

/// Frontends that are there all the time; `jump.rs` has others too.
fn frontends() -> impl Iterator<Item = Frontend> {
    let of_addresses = addresses().into_iter().take(2).map(Place::Address);
    of_addresses.chain([Place::AnyNodeV4]).map(|place| Frontend { place, port: 80, protocol: 6 })
}

fn apply(tables: &mut Snapshot, change: &Change) {
    match change {
        Change::PutPort { prefix_len, key, entry } => drop(tables.ports.insert((*key, *prefix_len), *entry)),
        Change::DeletePort { prefix_len, key } => drop(tables.ports.remove(&(*key, *prefix_len))),
        Change::PutAllow(key, entry) => drop(tables.allow.insert(*key, *entry)),
        Change::DeleteAllow(key) => drop(tables.allow.remove(key)),
        Change::PutAddress(address, entry) => drop(tables.addresses.insert(*address, *entry)),
        Change::DeleteAddress(address) => drop(tables.addresses.remove(address)),
        Change::PutPrefix(net, class) => drop(tables.prefixes.insert(*net, *class)),
        Change::PutFrontend(frontend, class) => drop(tables.frontends.insert(*frontend, *class)),
        Change::DeleteFrontend(frontend) => drop(tables.frontends.remove(frontend)),
        Change::DeletePrefix(net) => drop(tables.prefixes.remove(net)),
        Change::PutEndpoint(..) | Change::DeleteEndpoint(_) | Change::Rejudge(_) => panic!("not a table"),
    }
}

fn addresses() -> Vec<IpAddr> {
    (0..16_u8).map(|last| IpAddr::from([10, 0, 0, last])).collect()
}

/// Tables over sixteen addresses, with ids above `base`.
fn tables(base: u32) -> impl Strategy<Value = Snapshot> {
    let class = move || (0..4_u32).prop_map(move |class| ClassId(if class == 0 { 0 } else { base + class }));
    let entries = proptest::collection::btree_map(0..16_u8, class(), 0..6);
    let prefixes = proptest::collection::btree_map((0..16_u8, 24..33_u8), class(), 0..6);
    let allow = proptest::collection::btree_map((1..4_u32, 1..4_u32), 1..5_u32, 0..9);
    let behind = proptest::collection::vec(4..7_u32, 3);
    let allow_behind = proptest::collection::btree_map((1..4_u32, 4..7_u32), any::<bool>(), 0..9);
    (entries, prefixes, allow, behind, allow_behind).prop_map(
        move |(entries, prefixes, allow, behind, allow_behind)| {
            let classes = behind.into_iter().map(|class| ClassId(base + class));
            let anyone = rule_sets(base).map(|rule_set| (rule_set, PortSetId::NONE)).collect();
            let mut tables = Snapshot { frontends: frontends().zip(classes).collect(), anyone, ..Snapshot::default() };
            for ((rule_set, class), all) in allow_behind {
                let key = AllowKey { rule_set: RuleSetId(base + rule_set), class: ClassId(base + class) };
                let port_set = if all { PortSetId::ALL } else { PortSetId::SOME };
                tables.allow.insert(key, AllowEntry { port_set, rule: RuleId::NONE });
            }
            for (last, class) in entries {
                tables.addresses.insert(IpAddr::from([10, 0, 0, last]), AddressEntry { class, flags: 0, endpoint: 0 });
            }
            for ((last, width), class) in prefixes {
                let net = IpNet::new(IpAddr::from([10, 0, 0, last]), width).expect("a width of IPv4");
                tables.prefixes.insert(net.trunc(), class);
            }
            for ((rule_set, class), ports) in allow {
                let key = AllowKey { rule_set: RuleSetId(base + rule_set), class: ClassId(base + class) };
                tables.allow.insert(key, AllowEntry { port_set: PortSetId(base + ports), rule: RuleId::NONE });
            }
            tables
        },
    )
}

fn rule_sets(base: u32) -> impl Iterator<Item = RuleSetId> {
    (1..4).map(move |set| RuleSetId(base + set))
}

fn agree(now: &Snapshot, meant: &Snapshot, base: u32, when: &str) -> Result<(), TestCaseError> {
    for rule_set in rule_sets(base) {
        for address in addresses() {
            let (is, should) = (verdict(now, rule_set, address), verdict(meant, rule_set, address));
            prop_assert_eq!(is, should, "{}: rule set {} and {}", when, rule_set, address);
        }
        for frontend in frontends() {
            let [is, should] = [now, meant].map(|tables| frontend_verdict(tables, rule_set, frontend));
            prop_assert_eq!(is, should, "{}: rule set {} and {:?}", when, rule_set, frontend);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_step_is_the_old_policy_or_the_new(old in tables(0), new in tables(APART)) {
        let switch = plan(&old, &new);
        let mut now = old.clone();
        for change in &switch.before {
            apply(&mut now, change);
            agree(&now, &old, 0, "before endpoints flip")?;
        }
        agree(&now, &new, APART, "when the first endpoint flips")?;
        for change in &switch.after {
            apply(&mut now, change);
            agree(&now, &new, APART, "after endpoints flipped")?;
        }
        prop_assert_eq!(Snapshot { anyone: new.anyone.clone(), ..now }, new);
    }
}
