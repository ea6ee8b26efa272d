//! Ports of Services during a switch. Where both worlds have one, its class is a pair like an address's. Where just one has it, the
//! other judges by something else there: by the address, or by a port that every node has. So until all endpoints have flipped such a
//! port stands at each address it is at, and its class has the verdicts themselves: the old ones of old rule sets, and new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{
    Address, AddressEntry, AllowEntry, AllowKey, Attempt, ClassId, Direction, DirectionPolicy, Endpoint, FrontendEntry,
    FrontendKey, PortEntry, PortKey, PortSetId, RuleId, RuleSetId, SourceCheck, Tables, address_flags, judge,
};
use netpol_policy::model::{Frontend, Place};
use netpol_policy::tables::{Change, prefixes_of};

use super::{Pairs, Snapshot};

/// What rule sets allow at a port: all, or some of those behind. Those that allow nothing are left out.
type Verdicts = Vec<(RuleSetId, PortSetId)>;

/// The writes of frontends.
#[derive(Debug, Default)]
pub(super) struct Steps {
    /// What is allowed of the classes that are only in use meanwhile.
    pub(super) allow: BTreeMap<AllowKey, AllowEntry>,
    /// Before addresses move.
    pub(super) before: Vec<Change>,
    /// The addresses where something stands only meanwhile.
    pub(super) meanwhile: BTreeSet<IpAddr>,
    /// When all endpoints have flipped, before addresses move on: what is at every node is asked only where nothing stands at the
    /// address itself.
    pub(super) after: Vec<Change>,
    /// When addresses have moved on.
    pub(super) last: Vec<Change>,
}

pub(super) fn plan(old: &Snapshot, new: &Snapshot, pairs: &mut Pairs) -> Steps {
    let mut steps = Steps::default();
    let gone = old.frontends.keys().filter(|frontend| !new.frontends.contains_key(frontend));
    let put = new.frontends.iter().map(|(frontend, class)| Change::PutFrontend(*frontend, *class));
    if old.anyone.is_empty() {
        // Nobody asks, as at a first start: all is as it will be before the first endpoint is.
        steps.before = put.chain(gone.copied().map(Change::DeleteFrontend)).collect();
        return steps;
    }
    for (frontend, class) in differing(old, new, &mut steps.allow, pairs) {
        steps.before.push(Change::PutFrontend(frontend, class));
        if let Place::Address(address) = frontend.place {
            steps.meanwhile.insert(address);
        }
        if !new.frontends.contains_key(&frontend) {
            steps.last.push(Change::DeleteFrontend(frontend));
        }
    }
    let both =
        new.frontends.iter().filter_map(|(frontend, class)| Some((frontend, old.frontends.get(frontend)?, class)));
    steps.before.extend(both.map(|(frontend, was, will_be)| Change::PutFrontend(*frontend, pairs.get(*was, *will_be))));
    steps.after = put.collect();
    let everywhere = gone.filter(|frontend| !matches!(frontend.place, Place::Address(_)));
    steps.after.extend(everywhere.copied().map(Change::DeleteFrontend));
    steps
}

/// What stands at addresses meanwhile, with the class it has then, and what is allowed of those classes.
fn differing(
    old: &Snapshot,
    new: &Snapshot,
    allow: &mut BTreeMap<AllowKey, AllowEntry>,
    pairs: &mut Pairs,
) -> BTreeMap<Frontend, ClassId> {
    let mut known: BTreeMap<Verdicts, ClassId> = BTreeMap::new();
    let classify = |frontend: Frontend| {
        let verdicts: Verdicts = old.verdicts(&frontend).chain(new.verdicts(&frontend)).collect();
        (frontend, *known.entry(verdicts).or_insert_with(|| pairs.apart()))
    };
    let classes = places(old, new).into_iter().map(classify).collect();
    for (verdicts, class) in known {
        for (rule_set, port_set) in verdicts {
            allow.insert(AllowKey { rule_set, class }, AllowEntry { port_set, rule: RuleId::NONE });
        }
    }
    classes
}

/// Each address and port where just one of the worlds has a frontend, or each another one.
fn places(old: &Snapshot, new: &Snapshot) -> BTreeSet<Frontend> {
    let in_both = |frontend: &Frontend| old.frontends.contains_key(frontend) && new.frontends.contains_key(frontend);
    let mut places = BTreeSet::new();
    for frontend in old.frontends.keys().chain(new.frontends.keys()) {
        let everywhere = in_both(frontend);
        let addresses: Vec<IpAddr> = match frontend.place {
            Place::Address(address) => vec![address],
            any_node => {
                let nodes = old.nodes(any_node).chain(new.nodes(any_node));
                nodes.filter(|address| !everywhere || old.is_node(*address) != new.is_node(*address)).collect()
            }
        };
        let at = addresses.into_iter().map(|address| Frontend { place: Place::Address(address), ..*frontend });
        places.extend(at.filter(|at| !in_both(at)));
    }
    places
}

impl Snapshot {
    fn is_node(&self, address: IpAddr) -> bool {
        self.addresses.get(&address).is_some_and(|entry| entry.flags & address_flags::NODE != 0)
    }

    /// The addresses that a port of every node is at.
    fn nodes(&self, any_node: Place) -> impl Iterator<Item = IpAddr> {
        let addresses = self.addresses.keys().copied();
        addresses.filter(move |address| Place::any_node(*address) == any_node && self.is_node(*address))
    }

    /// What rule sets of egress allow of connections to a port of an address.
    fn verdicts(&self, frontend: &Frontend) -> impl Iterator<Item = (RuleSetId, PortSetId)> {
        self.anyone.iter().filter_map(|(&rule_set, &any)| {
            let egress = DirectionPolicy { rule_set, any };
            let allowed = match frontend.place {
                Place::Address(IpAddr::V4(address)) => self.verdict(egress, address.octets(), frontend),
                Place::Address(IpAddr::V6(address)) => self.verdict(egress, address.octets(), frontend),
                Place::AnyNodeV4 | Place::AnyNodeV6 => PortSetId::NONE,
            };
            (allowed != PortSetId::NONE).then_some((rule_set, allowed))
        })
    }

    fn verdict<A: Address>(&self, egress: DirectionPolicy, remote: A, asked: &Frontend) -> PortSetId
    where
        Self: Tables<A>,
    {
        let endpoint = Endpoint { egress, ..Endpoint::default() };
        let (protocol, port) = (asked.protocol, asked.port.to_be_bytes());
        let direction = Direction::Egress;
        let attempt = Attempt {
            direction,
            remote,
            protocol,
            port,
            ingress_ifindex: 0,
            sender: 0,
            source: SourceCheck::NONE,
            behind: false,
        };
        judge(self, &endpoint, &attempt).port_set()
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
