//! Tests the migration from an earlier agent's tables. After each write, either the old policy of an endpoint or its
//! new one applies.

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleId, RuleSetId};
use netpol_dataplane::migration::{Snapshot, plan};
use netpol_policy::model::{Frontend, FrontendAddress};
use netpol_policy::tables::Change;
use proptest::prelude::*;

/// IDs of the old tables are lower than this, IDs of the new tables higher.
const NEW_IDS: u32 = 100;

/// Returns the port set that a rule set allows to an address. The lookup of a port in this set is omitted.
fn verdict(tables: &Snapshot, rule_set: RuleSetId, address: IpAddr) -> Option<PortSetId> {
    let covering = tables.prefixes.iter().filter(|(net, _)| net.contains(&address));
    let longest = covering.max_by_key(|(net, _)| net.prefix_len()).map(|(_, class)| *class);
    let class = tables.addresses.get(&address).map(|entry| entry.class).or(longest).unwrap_or_default();
    if class == ClassId::NONE {
        return None;
    }
    tables.allow.get(&AllowKey { rule_set, class }).map(|entry| entry.port_set)
}

/// Returns whether a rule set allows `ALL`, `SOME` or `NONE` of a frontend's backends. Returns `None` if there is no
/// such frontend.
fn frontend_verdict(tables: &Snapshot, rule_set: RuleSetId, frontend: Frontend) -> Option<PortSetId> {
    let class = *tables.frontends.get(&frontend)?;
    Some(tables.allow.get(&AllowKey { rule_set, class }).map_or(PortSetId::NONE, |entry| entry.port_set))
}

/// Returns the frontends. The old and the new tables have the same ones; `netpol-agent/tests/resync.rs` also adds and
/// deletes frontends.
fn frontends() -> impl Iterator<Item = Frontend> {
    let of_addresses = addresses().into_iter().take(2).map(FrontendAddress::Address);
    of_addresses.chain([FrontendAddress::AnyNodeV4]).map(|address| Frontend { address, port: 80, protocol: 6 })
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
        Change::PutEndpoint(..) | Change::DeleteEndpoint(_) | Change::Reevaluate(_) => {
            panic!("not a change of a table")
        }
    }
}

fn addresses() -> Vec<IpAddr> {
    (0..16_u8).map(|last| IpAddr::from([10, 0, 0, last])).collect()
}

/// Generates tables for sixteen addresses, with IDs higher than `base`. Addresses and prefixes have the classes from
/// `base + 1` to `base + 3`, or no class. Frontends have the classes from `base + 4` to `base + 6`.
fn tables(base: u32) -> impl Strategy<Value = Snapshot> {
    let class = move || (0..4_u32).prop_map(move |class| ClassId(if class == 0 { 0 } else { base + class }));
    let entries = proptest::collection::btree_map(0..16_u8, class(), 0..6);
    let prefixes = proptest::collection::btree_map((0..16_u8, 24..33_u8), class(), 0..6);
    let allow = proptest::collection::btree_map((1..4_u32, 1..4_u32), 1..5_u32, 0..9);
    let frontend_classes = proptest::collection::vec(4..7_u32, 3);
    let frontend_allow = proptest::collection::btree_map((1..4_u32, 4..7_u32), any::<bool>(), 0..9);
    (entries, prefixes, allow, frontend_classes, frontend_allow).prop_map(
        move |(entries, prefixes, allow, frontend_classes, frontend_allow)| {
            let classes = frontend_classes.into_iter().map(|class| ClassId(base + class));
            // What each egress rule set allows to every address: nothing.
            let any = rule_sets(base).map(|rule_set| (rule_set, PortSetId::NONE)).collect();
            let mut tables = Snapshot { frontends: frontends().zip(classes).collect(), any, ..Snapshot::default() };
            for ((rule_set, class), all) in frontend_allow {
                let key = AllowKey { rule_set: RuleSetId(base + rule_set), class: ClassId(base + class) };
                let port_set = if all { PortSetId::ALL } else { PortSetId::SOME };
                tables.allow.insert(key, AllowEntry { port_set, rule: RuleId::NONE });
            }
            for (last, class) in entries {
                tables.addresses.insert(IpAddr::from([10, 0, 0, last]), AddressEntry { class, flags: 0, endpoint: 0 });
            }
            for ((last, prefix_len), class) in prefixes {
                let net = IpNet::new(IpAddr::from([10, 0, 0, last]), prefix_len).expect("invalid IPv4 prefix length");
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

fn ensure_same_verdicts(now: &Snapshot, expected: &Snapshot, base: u32, when: &str) -> Result<(), TestCaseError> {
    for rule_set in rule_sets(base) {
        for address in addresses() {
            let (found, wanted) = (verdict(now, rule_set, address), verdict(expected, rule_set, address));
            prop_assert_eq!(found, wanted, "{}: rule set {} and {}", when, rule_set, address);
        }
        for frontend in frontends() {
            let [found, wanted] = [now, expected].map(|tables| frontend_verdict(tables, rule_set, frontend));
            prop_assert_eq!(found, wanted, "{}: rule set {} and {:?}", when, rule_set, frontend);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn after_every_write_the_old_policy_or_the_new_one_applies(old in tables(0), new in tables(NEW_IDS)) {
        let migration = plan(&old, &new);
        let mut now = old.clone();
        for change in &migration.before {
            apply(&mut now, change);
            ensure_same_verdicts(&now, &old, 0, "before any endpoint uses the new tables")?;
        }
        ensure_same_verdicts(&now, &new, NEW_IDS, "when the first endpoint uses the new tables")?;
        for change in &migration.after {
            apply(&mut now, change);
            ensure_same_verdicts(&now, &new, NEW_IDS, "after all endpoints use the new tables")?;
        }
        // `any` is stored in endpoints, so the plan does not change it.
        prop_assert_eq!(Snapshot { any: new.any.clone(), ..now }, new);
    }
}
