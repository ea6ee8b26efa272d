//! The expected content of the BPF maps, in memory. ARCHITECTURE.md ("BPF maps") describes the maps.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, FrontendEntry, FrontendKey, PORT_PREFIX_EXACT, PortEntry, PortKey,
};

use super::{Change, EndpointPolicy};
use crate::model::{Frontend, PodKey};

/// All tables. Only [`Tables::apply`] changes them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tables {
    addresses: BTreeMap<IpAddr, AddressEntry>,
    prefixes: Prefixes,
    allow: HashMap<AllowKey, AllowEntry>,
    /// By key and prefix length.
    ports: BTreeMap<(PortKey, u32), PortEntry>,
    /// For each frontend, the class that stands for its backends.
    frontends: HashMap<Frontend, ClassId>,
    endpoints: BTreeMap<PodKey, EndpointPolicy>,
}

/// A change that deletes a missing entry: a bug in the code that created the change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot apply {0:?}: the entry does not exist. This is a bug in netpol; please report it")]
pub struct MissingEntry(pub Box<Change>);

impl Tables {
    /// Applies one change.
    ///
    /// # Errors
    /// Fails if the change deletes an entry that does not exist.
    pub fn apply(&mut self, change: &Change) -> Result<(), MissingEntry> {
        let existed = match change {
            Change::PutPort { prefix_len, key, entry } => {
                self.ports.insert((*key, *prefix_len), *entry);
                true
            }
            Change::DeletePort { prefix_len, key } => self.ports.remove(&(*key, *prefix_len)).is_some(),
            Change::PutAllow(key, entry) => {
                self.allow.insert(*key, *entry);
                true
            }
            Change::DeleteAllow(key) => self.allow.remove(key).is_some(),
            Change::PutAddress(address, entry) => {
                self.addresses.insert(*address, *entry);
                true
            }
            Change::DeleteAddress(address) => self.addresses.remove(address).is_some(),
            Change::PutPrefix(net, class) => {
                self.prefixes.insert(*net, *class);
                true
            }
            Change::DeletePrefix(net) => self.prefixes.remove(net),
            Change::PutFrontend(frontend, class) => {
                self.frontends.insert(*frontend, *class);
                true
            }
            Change::DeleteFrontend(frontend) => self.frontends.remove(frontend).is_some(),
            Change::PutEndpoint(pod, policy) => {
                self.endpoints.insert(pod.clone(), *policy);
                true
            }
            Change::DeleteEndpoint(pod) => self.endpoints.remove(pod).is_some(),
            Change::Reevaluate(_) => true,
        };
        if existed { Ok(()) } else { Err(MissingEntry(Box::new(change.clone()))) }
    }

    /// Returns every entry, as the change that writes this entry.
    pub fn entries(&self) -> impl Iterator<Item = Change> {
        let ports =
            self.ports.iter().map(|((key, len), entry)| Change::PutPort { prefix_len: *len, key: *key, entry: *entry });
        let allow = self.allow.iter().map(|(key, entry)| Change::PutAllow(*key, *entry));
        let addresses = self.addresses.iter().map(|(address, entry)| Change::PutAddress(*address, *entry));
        let prefixes = self.prefixes.by_net.iter().map(|(net, class)| Change::PutPrefix(*net, *class));
        let frontends = self.frontends.iter().map(|(frontend, class)| Change::PutFrontend(*frontend, *class));
        let endpoints = self.endpoints.iter().map(|(pod, policy)| Change::PutEndpoint(pod.clone(), *policy));
        ports.chain(allow).chain(addresses).chain(prefixes).chain(frontends).chain(endpoints)
    }

    /// Returns the policy of a pod's endpoint.
    pub fn endpoint(&self, pod: &PodKey) -> Option<EndpointPolicy> {
        self.endpoints.get(pod).copied()
    }

    /// Returns all endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = (&PodKey, EndpointPolicy)> {
        self.endpoints.iter().map(|(pod, policy)| (pod, *policy))
    }

    /// Returns the entry that a lookup of an address finds: the address's own entry, or else that of the longest
    /// prefix.
    pub fn address(&self, address: IpAddr) -> Option<AddressEntry> {
        let by_prefix = || self.prefixes.longest(address).map(|class| AddressEntry { class, flags: 0, endpoint: 0 });
        self.addresses.get(&address).copied().or_else(by_prefix)
    }

    /// Returns the address's own entry.
    pub fn exact_address(&self, address: IpAddr) -> Option<AddressEntry> {
        self.addresses.get(&address).copied()
    }

    /// Returns the addresses in a range that have their own entry.
    pub fn addresses_between(&self, first: IpAddr, last: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.addresses.range(first..=last).map(|(address, _)| *address)
    }

    /// Returns the class of a frontend.
    pub fn frontend(&self, frontend: &Frontend) -> Option<ClassId> {
        self.frontends.get(frontend).copied()
    }

    /// Returns what a rule set allows to a class of addresses. `None` if this is not more than the rule set allows to
    /// every address.
    pub fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow.get(key).copied()
    }

    /// Returns the entry with the longest prefix that matches a port.
    pub fn port(&self, key: &PortKey) -> Option<PortEntry> {
        prefixes_of(*key).find_map(|prefix| self.ports.get(&prefix)).copied()
    }

    /// Returns whether all tables are empty.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

// `netpol_common::evaluate()`, which the eBPF programs run on the maps, can also run on these tables.
impl netpol_common::Tables<[u8; 4]> for Tables {
    fn address(&self, address: &[u8; 4]) -> Option<AddressEntry> {
        self.address(IpAddr::from(*address))
    }

    fn frontend(&self, key: &FrontendKey<[u8; 4]>) -> Option<FrontendEntry> {
        self.frontend(&Frontend::of_key(key)?).map(|class| FrontendEntry { class })
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow(key)
    }

    fn port(&self, key: &PortKey) -> Option<PortEntry> {
        self.port(key)
    }
}

impl netpol_common::Tables<[u8; 16]> for Tables {
    fn address(&self, address: &[u8; 16]) -> Option<AddressEntry> {
        self.address(IpAddr::from(*address))
    }

    fn frontend(&self, key: &FrontendKey<[u8; 16]>) -> Option<FrontendEntry> {
        self.frontend(&Frontend::of_key(key)?).map(|class| FrontendEntry { class })
    }

    fn allow(&self, key: &AllowKey) -> Option<AllowEntry> {
        self.allow(key)
    }

    fn port(&self, key: &PortKey) -> Option<PortEntry> {
        self.port(key)
    }
}

/// Returns the keys of `PORTS` that may match a port, each with its prefix length. The longest prefix comes first.
pub fn prefixes_of(key: PortKey) -> impl Iterator<Item = (PortKey, u32)> {
    let port = u32::from(u16::from_be_bytes(key.port));
    (0..=u16::BITS).map(move |dropped| {
        #[expect(clippy::cast_possible_truncation, reason = "the shifts only clear bits of a u16")]
        let prefix = (port >> dropped << dropped) as u16;
        (PortKey { port: prefix.to_be_bytes(), ..key }, PORT_PREFIX_EXACT - dropped)
    })
}

/// The classes of prefixes. Finds the class of the longest prefix that contains an address. A lookup tries only the
/// prefix lengths that are in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Prefixes {
    by_net: BTreeMap<IpNet, ClassId>,
    /// Number of prefixes by family (IPv6 or not) and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

impl Prefixes {
    fn insert(&mut self, net: IpNet, class: ClassId) {
        if self.by_net.insert(net, class).is_none() {
            *self.lengths.entry(family_and_length(net)).or_default() += 1;
        }
    }

    fn remove(&mut self, net: &IpNet) -> bool {
        let removed = self.by_net.remove(net).is_some();
        if removed && let Some(count) = self.lengths.get_mut(&family_and_length(*net)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&family_and_length(*net));
            }
        }
        removed
    }

    fn longest(&self, address: IpAddr) -> Option<ClassId> {
        let lengths = self.lengths.range((address.is_ipv6(), 0)..=(address.is_ipv6(), u8::MAX)).rev();
        let mut nets = lengths.filter_map(|((_, length), _)| IpNet::new(address, *length).ok());
        nets.find_map(|net| self.by_net.get(&net.trunc()).copied())
    }
}

/// Returns whether a prefix is IPv6, and its length.
fn family_and_length(net: IpNet) -> (bool, u8) {
    (net.addr().is_ipv6(), net.prefix_len())
}
