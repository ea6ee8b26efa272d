//! Ports of Services during a switch. Where both worlds have one, its class is a pair like an address's. Where just one has it, the
//! other judges by something else there: by the address, or by a port that every node has. So until all endpoints have flipped such a
//! port stands at each address it is at, and its class has the verdicts themselves: the old ones of old rule sets, and new ones.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::{
    AllowEntry, AllowKey, ClassId, PORT_PREFIX_EXACT, PortKey, PortSetId, RuleId, RuleSetId, address_flags,
    port_verdict, protocol,
};
use netpol_policy::model::{Frontend, Place};

use super::{Pairs, Snapshot};

/// What connections to a port of an address are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Judge {
    /// A frontend's class.
    Frontend(ClassId),
    /// The address's class, at this port of this protocol.
    Address(ClassId, u8, u16),
}

/// Frontends while the tables are switched.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Where the worlds differ in what they judge by: at one address each.
    pub(super) differing: BTreeMap<Frontend, ClassId>,
    /// What is allowed of those.
    pub(super) allow: BTreeMap<AllowKey, AllowEntry>,
}

impl Ports {
    pub(super) fn of(old: &Snapshot, new: &Snapshot, pairs: &mut Pairs) -> Self {
        let mut ports = Self::default();
        // At a first start nobody judges by the old tables: all is there before the first endpoint is.
        if old.anyone.is_empty() {
            return ports;
        }
        let mut classes = BTreeMap::new();
        for frontend in places(old, new) {
            let judges = (old.judge_at(&frontend), new.judge_at(&frontend));
            let class = *classes.entry(judges).or_insert_with(|| pairs.apart());
            ports.differing.insert(frontend, class);
        }
        for ((was, will_be), class) in classes {
            ports.allow.extend(old.entries(was, class).chain(new.entries(will_be, class)));
        }
        ports
    }

    /// Whether there is one at an address.
    pub(super) fn is_at(&self, address: IpAddr) -> bool {
        let first = Frontend { place: Place::Address(address), port: 0, protocol: 0 };
        self.differing.range(first..).next().is_some_and(|(frontend, _)| frontend.place == first.place)
    }
}

/// Each address and port where the worlds judge by different things, and at least one of them by a frontend.
fn places(old: &Snapshot, new: &Snapshot) -> BTreeSet<Frontend> {
    let mut places = BTreeSet::new();
    for frontend in old.frontends.keys().chain(new.frontends.keys()) {
        let in_both = old.frontends.contains_key(frontend) && new.frontends.contains_key(frontend);
        match frontend.place {
            Place::Address(_) if !in_both => {
                places.insert(*frontend);
            }
            Place::Address(_) => {}
            any_node => {
                let nodes = old
                    .nodes(any_node)
                    .chain(new.nodes(any_node))
                    .filter(|address| !in_both || old.is_node(*address) != new.is_node(*address));
                let at = nodes.map(|address| Frontend { place: Place::Address(address), ..*frontend });
                places.extend(at.filter(|at| !old.frontends.contains_key(at) || !new.frontends.contains_key(at)));
            }
        }
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

    /// As [`netpol_common::judge`] finds it.
    fn judge_at(&self, frontend: &Frontend) -> Judge {
        let Place::Address(address) = frontend.place else { return Judge::Address(ClassId::NOBODY, 0, 0) };
        let entry = self.entry_of(address);
        let at = |flag, place| {
            let found = self.frontends.get(&Frontend { place, ..*frontend }).filter(|_| entry.flags & flag != 0);
            found.copied().map(Judge::Frontend)
        };
        at(address_flags::SERVICE, frontend.place)
            .or_else(|| at(address_flags::NODE, Place::any_node(address)))
            .unwrap_or(Judge::Address(entry.class, frontend.protocol, frontend.port))
    }

    /// What each rule set of egress allows by a judge, as entries of a class.
    fn entries(&self, judge: Judge, class: ClassId) -> impl Iterator<Item = (AllowKey, AllowEntry)> {
        self.anyone.iter().filter_map(move |(&rule_set, &any)| {
            let port_set = self.verdict(rule_set, any, judge);
            let entry = AllowEntry { port_set, rule: RuleId::NONE };
            (port_set != PortSetId::NONE).then_some((AllowKey { rule_set, class }, entry))
        })
    }

    fn verdict(&self, rule_set: RuleSetId, any: PortSetId, judge: Judge) -> PortSetId {
        let allowed = |class| self.allow.get(&AllowKey { rule_set, class }).map(|entry| entry.port_set);
        match judge {
            Judge::Frontend(class) => allowed(class).unwrap_or(PortSetId::NONE),
            Judge::Address(class, protocol, port) => match allowed(class).unwrap_or(any) {
                whole @ (PortSetId::ALL | PortSetId::NONE) => whole,
                set if protocol::has_ports(protocol) && self.has_port(set, protocol, port) => PortSetId::ALL,
                _ => PortSetId::NONE,
            },
        }
    }

    /// Whether the longest match for a port in a set allows it.
    fn has_port(&self, set: PortSetId, protocol: u8, port: u16) -> bool {
        let found = (0..=u16::BITS).find_map(|dropped| {
            #[expect(clippy::cast_possible_truncation, reason = "bits were only taken from a u16")]
            let port = ((u32::from(port) >> dropped << dropped) as u16).to_be_bytes();
            self.ports.get(&(PortKey { set, protocol, zero: 0, port }, PORT_PREFIX_EXACT - dropped))
        });
        found.is_some_and(|entry| entry.verdict == port_verdict::ALLOW)
    }
}
