//! Plans the migration of Service ports (frontends).
//!
//! If both snapshots (the content of the old and of the new tables) have a frontend, it moves in the same way as an
//! address: first to the transitional class for its pair of (old class, new class), see [`super`].
//!
//! If only one snapshot has a frontend, a lookup in the other snapshot finds a different entry: the entry of the
//! address, or the entry of a `NodePort` (a frontend at every node). So until all endpoints use the new policy, such a
//! frontend has a transitional entry at each of its addresses, with a class that neither snapshot uses. The `ALLOW`
//! entries of this class have the verdicts of the old snapshot for the old rule sets, and the verdicts of the new
//! snapshot for the new rule sets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{
    Address, AddressEntry, AllowEntry, AllowKey, Attempt, ClassId, Direction, DirectionPolicy, Endpoint, FrontendEntry,
    FrontendKey, PortEntry, PortKey, PortSetId, RuleId, RuleSetId, SourceCheck, Tables, address_flags, evaluate,
};
use netpol_policy::model::{Frontend, FrontendAddress};
use netpol_policy::tables::{Change, prefixes_of};

use super::{Pairs, Snapshot};

/// What rule sets allow at a frontend: all of the backends (`PortSetId::ALL`) or some (`PortSetId::SOME`). Rule sets
/// that allow none are omitted.
type Verdicts = Vec<(RuleSetId, PortSetId)>;

/// The writes for frontends.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// Allow entries of the transitional classes.
    pub(super) allow: BTreeMap<AllowKey, AllowEntry>,
    /// Writes before addresses move to their transitional classes.
    pub(super) before: Vec<Change>,
    /// Addresses that have transitional entries.
    pub(super) transitional: BTreeSet<IpAddr>,
    /// Writes after all endpoints use the new policy, and before addresses move to their new classes. These writes may
    /// change a `NodePort` (a frontend at every node). Where this would change a verdict, the lookup still finds the
    /// transitional entry of the address itself.
    pub(super) after: Vec<Change>,
    /// Writes after addresses have moved to their new classes.
    pub(super) last: Vec<Change>,
}

/// Plans the writes for frontends.
pub(super) fn plan(old: &Snapshot, new: &Snapshot, pairs: &mut Pairs) -> Steps {
    let mut steps = Steps::default();
    let removed = old.frontends.keys().filter(|frontend| !new.frontends.contains_key(frontend));
    let put_all = new.frontends.iter().map(|(frontend, class)| Change::PutFrontend(*frontend, *class));
    if old.any.is_empty() {
        // `any` has the egress rule sets that need a lookup of Services. If the old snapshot has no such rule set, for
        // example at the first start, everything can be written at once.
        steps.before = put_all.chain(removed.copied().map(Change::DeleteFrontend)).collect();
        return steps;
    }
    for (frontend, class) in transitional_classes(old, new, &mut steps.allow, pairs) {
        steps.before.push(Change::PutFrontend(frontend, class));
        if let FrontendAddress::Address(address) = frontend.address {
            steps.transitional.insert(address);
        }
        if !new.frontends.contains_key(&frontend) {
            steps.last.push(Change::DeleteFrontend(frontend));
        }
    }
    let in_both =
        new.frontends.iter().filter_map(|(frontend, class)| Some((frontend, old.frontends.get(frontend)?, class)));
    steps.before.extend(
        in_both
            .map(|(frontend, old_class, new_class)| Change::PutFrontend(*frontend, pairs.get(*old_class, *new_class))),
    );
    steps.after = put_all.collect();
    let removed_at_all_nodes = removed.filter(|frontend| !matches!(frontend.address, FrontendAddress::Address(_)));
    steps.after.extend(removed_at_all_nodes.copied().map(Change::DeleteFrontend));
    steps
}

/// Returns the frontends of the transitional entries with their classes. Adds the `ALLOW` entries of these classes to
/// `allow`.
fn transitional_classes(
    old: &Snapshot,
    new: &Snapshot,
    allow: &mut BTreeMap<AllowKey, AllowEntry>,
    pairs: &mut Pairs,
) -> BTreeMap<Frontend, ClassId> {
    // Frontends with the same verdicts share a class.
    let mut class_by_verdicts: BTreeMap<Verdicts, ClassId> = BTreeMap::new();
    let classify = |frontend: Frontend| {
        let verdicts: Verdicts = old.verdicts(&frontend).chain(new.verdicts(&frontend)).collect();
        (frontend, *class_by_verdicts.entry(verdicts).or_insert_with(|| pairs.unused_class()))
    };
    let classes = transitional_frontends(old, new).into_iter().map(classify).collect();
    for (verdicts, class) in class_by_verdicts {
        for (rule_set, port_set) in verdicts {
            allow.insert(AllowKey { rule_set, class }, AllowEntry { port_set, rule: RuleId::NONE });
        }
    }
    classes
}

/// Returns each address and port at which only one of the snapshots has a frontend, or at which both have different
/// ones: for example, one snapshot has a frontend of this address, and the other has a `NodePort`.
fn transitional_frontends(old: &Snapshot, new: &Snapshot) -> BTreeSet<Frontend> {
    let in_both = |frontend: &Frontend| old.frontends.contains_key(frontend) && new.frontends.contains_key(frontend);
    let mut found = BTreeSet::new();
    for frontend in old.frontends.keys().chain(new.frontends.keys()) {
        let is_in_both = in_both(frontend);
        let addresses: Vec<IpAddr> = match frontend.address {
            FrontendAddress::Address(address) => vec![address],
            any_node => {
                let nodes = old.nodes(any_node).chain(new.nodes(any_node));
                nodes.filter(|address| !is_in_both || old.is_node(*address) != new.is_node(*address)).collect()
            }
        };
        let at_addresses =
            addresses.into_iter().map(|address| Frontend { address: FrontendAddress::Address(address), ..*frontend });
        found.extend(at_addresses.filter(|frontend| !in_both(frontend)));
    }
    found
}

impl Snapshot {
    fn is_node(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_some_and(|entry| entry.flags & address_flags::NODE != 0)
    }

    /// Returns the node addresses at which a `NodePort` is reached. `any_node` determines the address family.
    fn nodes(&self, any_node: FrontendAddress) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.keys().copied();
        addresses.filter(move |address| FrontendAddress::any_node(*address) == any_node && self.is_node(*address))
    }

    /// Returns what egress rule sets allow for connections to this frontend.
    fn verdicts(&self, frontend: &Frontend) -> impl Iterator<Item = (RuleSetId, PortSetId)> {
        self.any.iter().filter_map(|(&rule_set, &any)| {
            let egress = DirectionPolicy { rule_set, any };
            let allowed = match frontend.address {
                FrontendAddress::Address(IpAddr::V4(address)) => self.verdict(egress, address.octets(), frontend),
                FrontendAddress::Address(IpAddr::V6(address)) => self.verdict(egress, address.octets(), frontend),
                FrontendAddress::AnyNodeV4 | FrontendAddress::AnyNodeV6 => PortSetId::NONE,
            };
            (allowed != PortSetId::NONE).then_some((rule_set, allowed))
        })
    }

    fn verdict<A: Address>(&self, egress: DirectionPolicy, remote: A, frontend: &Frontend) -> PortSetId
    where
        Self: Tables<A>,
    {
        let endpoint = Endpoint { egress, ..Endpoint::default() };
        let (protocol, port) = (frontend.protocol, frontend.port.to_be_bytes());
        let direction = Direction::Egress;
        let attempt = Attempt {
            direction,
            remote,
            protocol,
            port,
            ingress_ifindex: 0,
            source_endpoint: 0,
            source: SourceCheck::NONE,
            post_dnat: false,
        };
        evaluate(self, &endpoint, &attempt).port_set()
    }
}

macro_rules! tables {
    ($address:ty) => {
        impl Tables<$address> for Snapshot {
            fn address(&self, address: &$address) -> Option<AddressEntry> {
                Some(self.entry_of(IpAddr::from(*address)))
            }

            fn frontend(&self, key: &FrontendKey<$address>) -> Option<FrontendEntry> {
                let class = *self.frontends.get(&Frontend::of_key(key)?)?;
                Some(FrontendEntry { class })
            }

            fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
                self.allow.get(key).copied()
            }

            fn port(&self, key: &PortKey) -> Option<PortEntry> {
                prefixes_of(*key).find_map(|prefix| self.ports.get(&prefix)).copied()
            }
        }
    };
}
tables!([u8; 4]);
tables!([u8; 16]);
