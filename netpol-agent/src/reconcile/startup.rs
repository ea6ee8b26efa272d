//! Takes over from the agent before: its tables, whose ids nobody remembers, are switched for new ones.

use std::collections::BTreeMap;

use netpol_common::{ClassId, Endpoint, IfIndex, PortSetId, RuleId};
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::tables::Change;
use netpol_policy::tables::Tables;
use netpol_policy::world::Event;

use super::failures::Failures;
use super::numbers::Numbers;
use super::{Gaps, Held, Options, QUARANTINE, Reconciler};
use crate::dataplane::switch::{Snapshot, plan};
use crate::dataplane::{Dataplane, WriteError};
use crate::endpoints::Survey;

impl<D: Dataplane> Reconciler<D> {
    /// Enforces what these objects say, whatever `old` tables and endpoints the dataplane has. Before this nothing that is
    /// pinned is touched; at every step each endpoint is judged by its old policy or by its new one.
    ///
    /// # Errors
    /// Where the endpoints cannot be read.
    pub fn start(
        dataplane: D,
        options: Options,
        old: &Snapshot,
        objects: Vec<Event>,
        survey: Survey,
    ) -> Result<Self, WriteError> {
        let endpoints = dataplane.endpoints()?;
        let (attached, running) = (dataplane.attached(), dataplane.running());
        let first = first_ids(old, &endpoints);
        let mut engine = Engine::new(NodeScope::Node(options.node.clone()), first);
        let mut events = objects;
        events.push(Event::OwnAddresses(survey.own.clone()));
        engine.apply_all(events);
        let new = snapshot_of(engine.tables());
        let first_free = old.highest().0.max(new.highest().0);
        let switch = plan(old, &new, first_free);

        let numbers = Numbers::new(dataplane.endpoint_numbers(), endpoints.values().map(|endpoint| endpoint.id));
        // Not yet this agent's: attached anew in any case, which swaps the programs where there are some.
        let held: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|(ifindex, endpoint)| {
                let attached = running.contains(&ifindex);
                (ifindex, Held { pod: None, endpoint, attached, orphaned: false })
            })
            .collect();
        let strays = attached.into_iter().filter(|ifindex| !held.contains_key(ifindex)).collect::<Vec<_>>();
        let mut reconciler = Self {
            engine,
            dataplane,
            options,
            survey,
            policies: BTreeMap::new(),
            held,
            crowded: BTreeMap::new(),
            seen: BTreeMap::new(),
            numbers,
            failures: Failures::default(),
            gaps: Gaps::default(),
        };
        reconciler.execute(&switch.before);
        reconciler.policies =
            reconciler.engine.tables().endpoints().map(|(pod, policy)| (pod.clone(), policy)).collect();
        reconciler.settle();
        let used =
            |ifindex: &IfIndex| reconciler.held.contains_key(ifindex) || reconciler.crowded.contains_key(ifindex);
        let strays: Vec<_> = strays.into_iter().filter(|ifindex| !used(ifindex)).collect();
        for ifindex in strays {
            if let Err(error) = reconciler.dataplane.detach(ifindex) {
                tracing::error!(%error, "cannot clean up after an interface that is gone");
            }
        }
        reconciler.execute(&switch.after);
        reconciler.settle();
        Ok(reconciler)
    }
}

/// Ids above all in use, so that old and new entries never meet. A rule set that allows nothing stands in its endpoints
/// alone.
fn first_ids(old: &Snapshot, endpoints: &BTreeMap<IfIndex, Endpoint>) -> FirstIds {
    let (class, mut rule_set, mut port_set) = old.highest();
    for policy in endpoints.values().flat_map(|endpoint| [endpoint.ingress, endpoint.egress]) {
        if policy.rule_set != QUARANTINE {
            rule_set = rule_set.max(policy.rule_set);
        }
        if policy.any != PortSetId::ALL {
            port_set = port_set.max(policy.any);
        }
    }
    let rules = old.ports.values().map(|entry| entry.rule).chain(old.allow.values().map(|entry| entry.rule));
    FirstIds {
        class: ClassId(class.0 + 1),
        rule_set: netpol_common::RuleSetId(rule_set.0 + 1),
        port_set: netpol_common::PortSetId(port_set.0 + 1),
        rule: RuleId(rules.max().unwrap_or_default().0 + 1),
    }
}

fn snapshot_of(tables: &Tables) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for change in tables.entries() {
        match change {
            Change::PutPort { prefix_len, key, entry } => {
                snapshot.ports.insert((key, prefix_len), entry);
            }
            Change::PutAllow(key, entry) => {
                snapshot.allow.insert(key, entry);
            }
            Change::PutAddress(address, entry) => {
                snapshot.addresses.insert(address, entry);
            }
            Change::PutPrefix(net, class) => {
                snapshot.prefixes.insert(net, class);
            }
            _ => {}
        }
    }
    snapshot
}
