//! Compares three verdicts on every packet. The reference (`netpol_policy::reference`) evaluates the objects.
//! `netpol_common::evaluate()` uses the compiled tables in memory. The loaded eBPF programs use the maps that the agent
//! wrote. Cluster states and packets are generated at random.
//!
//! * A **probe** is a packet that could be the first packet of a flow.
//! * A **sample** is a probe that is sent again after each single write to the maps.
//! * A **conversation** consists of packets in both directions of one flow.
//!
//! Needs root and the BPF object (`cargo xtask ebpf`). `NETPOL_CASES` sets the number of histories (sequences
//! of events).

mod conversation;
mod frames;
mod node;
mod observe;
mod sampler;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use netpol_common::{Endpoint, Reason, protocol};
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::model::{Object, ObjectKey, PodKey};
use netpol_policy::reference;
use netpol_policy::testing::{
    Probe, endpoint_slice, evaluate_in, event, expected, has_local_backend, object, pod, policy, probes, service,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::{TestError, TestRunner};

use conversation::Conversation;
use frames::{PacketKind, craft, ingress_ifindex, of_family};
use node::{Node, create_interfaces, owned_addresses};
use sampler::Sample;

/// The number of events after which a [`Node`] has used up its source ports. Each event is a round.
const LAST_ROUND: u16 = 1900;
/// The first source ports of probes, of samples, of probes in shadow mode, and of conversations. In
/// each round, a different number is added, so that no packet matches a flow of an earlier round.
const PROBE_PORTS: u16 = 20_000;
const SAMPLE_PORTS: u16 = 22_000;
const SHADOW_PORTS: u16 = 24_000;
const CONVERSATION_PORTS: u16 = 30_000;
/// Maximum number of conversations that a [`Step`] begins.
const MAX_BEGUN: u16 = 4;

/// An event (a change of the cluster state), and packets that conversations exchange after it.
#[derive(Clone)]
struct Step {
    event: Event,
    /// The endpoint and the probe of each new conversation, as indexes. An index that is too large wraps around.
    begin: Vec<(usize, usize)>,
    /// The kinds of packets that the conversations exchange, two bits for each packet.
    packets: u64,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}; begin {:?}, packets {:#x}", self.event, self.begin, self.packets)
    }
}

fn step(event: impl Strategy<Value = Event>) -> impl Strategy<Value = Step> {
    (event, vec((0..9_usize, 0..10_000_usize), 0..=usize::from(MAX_BEGUN)), any::<u64>())
        .prop_map(|(event, begin, packets)| Step { event, begin, packets })
}

/// Generates a history. Its first event may set an initial cluster state. Otherwise, the cluster is empty at first.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let initial = prop_oneof![
        3 => pod().prop_map(Object::Pod),
        2 => policy().prop_map(Object::Policy),
        1 => service().prop_map(Object::Service),
        1 => endpoint_slice().prop_map(Object::Slice),
        1 => object(),
    ];
    let first = vec(step(vec(initial, 8..24).prop_map(Event::Reset)), 0..=1);
    let remotes: BTreeSet<IpAddr> = probes().iter().map(|probe| probe.remote).collect();
    let local_addresses = subsequence(remotes.into_iter().collect::<Vec<_>>(), 1..=3).prop_map(Event::LocalAddresses);
    let later = vec(step(prop_oneof![8 => event(), 1 => local_addresses]), 1..14);
    (first, later).prop_map(|(first, later)| first.into_iter().chain(later).collect())
}

fn cases() -> u32 {
    std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

/// Number of packets by reason.
type Tally = BTreeMap<Reason, u64>;

#[test]
fn the_reference_the_tables_and_the_programs_agree() {
    let netns = create_interfaces().expect("cannot create a network namespace with interfaces");
    let outcome = netns.run(|| {
        let (node, tally) = (RefCell::new(Some(Node::start()?)), RefCell::new(Tally::new()));
        let config = ProptestConfig {
            cases: cases(),
            max_shrink_time: 60_000,
            max_shrink_iters: 1000,
            failure_persistence: None,
            ..ProptestConfig::default()
        };
        let outcome = TestRunner::new(config).run(&history(), |history| {
            // A node is not reused when its ports are used up or when it could not be cleared.
            let has_ports = |node: &Node| usize::from(node.round) + history.len() <= usize::from(LAST_ROUND);
            let reused = node.borrow_mut().take().filter(has_ports);
            let mut used = reused.map_or_else(Node::start, Ok).expect("cannot start a node");
            let result = run(&mut used, &history, &mut tally.borrow_mut());
            let cleared = used.clear().context("after everything was deleted");
            if cleared.is_ok() {
                *node.borrow_mut() = Some(used);
            }
            result.and(cleared).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        match outcome {
            Ok(()) => Ok(tally.into_inner()),
            Err(TestError::Fail(why, history)) => bail!("{why}\nafter these events:\n{}", lines(&history)),
            Err(TestError::Abort(why)) => bail!("aborted: {why}"),
        }
    });
    let tally = outcome.unwrap_or_else(|error| panic!("{error:#}"));
    println!("packets by reason: {tally:?}");
    let required =
        [Reason::NotIsolated, Reason::Rule, Reason::Flow, Reason::LocalNode, Reason::Hairpin, Reason::NoRule];
    for reason in required.into_iter().chain([Reason::Revoked, Reason::Service, Reason::NoAllowedBackend]) {
        assert!(tally.contains_key(&reason), "no packet had the reason {reason:?}: {tally:?}");
    }
}

fn lines(history: &[Step]) -> String {
    let lines: Vec<String> = history.iter().enumerate().map(|(index, step)| format!("{index}: {step:?}")).collect();
    lines.join("\n")
}

/// Runs a history on a node and compares the verdicts after every event.
fn run(node: &mut Node, history: &[Step], tally: &mut Tally) -> Result<()> {
    let probes: Vec<Probe> = pre_dnat_probes().map(of_family).collect();
    let mut conversations: Vec<Conversation> = Vec::new();
    for (index, step) in history.iter().enumerate() {
        check_every_write(node, &step.event).with_context(|| format!("at event {index}"))?;
        compare(node, &probes, tally).with_context(|| format!("after event {index}"))?;
        converse(node, step, &probes, &mut conversations, tally)
            .with_context(|| format!("in a conversation after event {index}"))?;
    }
    compare_shadow(node, &probes).context("in shadow mode, after the last event")
}

/// Returns the pod's address of the same family as the remote address.
fn pod_address(endpoint: &Endpoint, remote: IpAddr) -> Option<IpAddr> {
    let address = match remote {
        IpAddr::V4(_) => IpAddr::from(endpoint.address_v4),
        IpAddr::V6(_) => IpAddr::from(endpoint.address_v6),
    };
    (!address.is_unspecified()).then_some(address)
}

/// Compares the three verdicts for every pod of the node and every probe.
fn compare(node: &Node, probes: &[Probe], tally: &mut Tally) -> Result<()> {
    let cluster_state = node.cluster_state();
    for (pod, endpoint) in node.endpoints().into_values() {
        let policy = node.tables().endpoint(&pod).with_context(|| format!("{pod} has no policy"))?;
        for probe in probes {
            let Some(address) = pod_address(&endpoint, probe.remote) else { continue };
            let frame = craft(address, probe, PROBE_PORTS + node.round, PacketKind::Initial);
            let ingress_ifindex = ingress_ifindex(&endpoint, probe, PacketKind::Initial);
            let (reference, _) = expected(cluster_state, node.tables(), &probe.at(&pod));
            let tables = evaluate_in(node.tables(), cluster_state, &pod, policy, probe);
            let program = node.runner.evaluate(&endpoint, probe.direction, &frame, ingress_ifindex);
            let program = program.with_context(|| format!("{pod} {probe:?}, expected {reference:?}"))?;
            ensure!(
                reference == tables && tables == program,
                "{pod} {probe:?}: reference {reference:?}, tables {tables:?}, program {program:?}"
            );
            *tally.entry(program).or_default() += 1;
        }
        node.runner.remove_flows(&endpoint, PROBE_PORTS + node.round)?;
    }
    Ok(())
}

/// Moves the policies of every pod of the node to shadow mode. The programs must report exactly the probes that the
/// policies would deny, and deny none.
fn compare_shadow(node: &mut Node, probes: &[Probe]) -> Result<()> {
    for (pod, endpoint) in node.endpoints().into_values() {
        let shadow = node.move_to_shadow(&endpoint)?;
        for probe in probes {
            let Some(address) = pod_address(&endpoint, probe.remote) else { continue };
            let frame = craft(address, probe, SHADOW_PORTS + node.round, PacketKind::Initial);
            let ingress_ifindex = ingress_ifindex(&endpoint, probe, PacketKind::Initial);
            let (reference, _) = expected(node.cluster_state(), node.tables(), &probe.at(&pod));
            let denied = node.runner.shadow_denies(&shadow, probe.direction, &frame, ingress_ifindex);
            let denied = denied.with_context(|| format!("{pod} {probe:?}, expected {reference:?}"))?;
            ensure!(denied != reference.allows(), "{pod} {probe:?}: {reference:?}, but shadow mode denies: {denied}");
        }
        node.runner.remove_flows(&endpoint, SHADOW_PORTS + node.round)?;
        node.write_endpoint(&endpoint)?;
    }
    Ok(())
}

/// Applies an event, and sends samples after every single write to the maps. Checks that each sample gets the verdict
/// from before the event or the one from after the event.
fn check_every_write(node: &mut Node, event: &Event) -> Result<()> {
    // A reset and a change of the local addresses consist of several changes, and the states between these changes are
    // not checked. The same is true if an event changes both the labels and the modes of a namespace.
    let is_namespace = matches!(event, Event::Apply(Object::Namespace(_)) | Event::Delete(ObjectKey::Namespace(_)));
    let is_mixed = is_namespace && !node.has_safe_order(event);
    if is_mixed || matches!(event, Event::Reset(_) | Event::LocalAddresses(_)) {
        return node.apply(event);
    }
    let old = node.cluster_state().clone();
    let new = {
        let mut cluster_state = old.clone();
        cluster_state.apply(event.clone());
        cluster_state
    };
    // If the addresses of a pod change, there are at least two writes: one for its endpoint, and one for each address
    // entry. The states between these writes are not checked.
    let is_stable = |pod: &PodKey| {
        let addresses = |cluster_state: &ClusterState| cluster_state.pods.get(pod).map(|pod| pod.addresses.clone());
        addresses(&old) == addresses(&new) && owned_addresses(&old, pod) == owned_addresses(&new, pod)
    };
    let before: Vec<_> = node.endpoints().into_values().filter(|(pod, _)| is_stable(pod)).collect();
    let mut sent = Vec::new();
    let mut samples = Vec::new();
    for (pod, endpoint) in &before {
        for probe in sample_probes() {
            let address = pod_address(endpoint, probe.remote).filter(|address| *address != probe.remote);
            let Some(address) = address else { continue };
            samples.push(Sample {
                ifindex: endpoint.ifindex,
                direction: probe.direction,
                frame: craft(address, &probe, SAMPLE_PORTS + node.round, PacketKind::Initial),
                ingress_ifindex: ingress_ifindex(endpoint, &probe, PacketKind::Initial),
                first_write: [None, None],
            });
            sent.push((pod, probe));
        }
    }
    node.sampler.borrow_mut().samples = samples;
    node.sampler.borrow_mut().send(|| "no write".to_owned());
    node.apply(event)?;

    let after = node.endpoints();
    let mut sampler = node.sampler.borrow_mut();
    let samples = std::mem::take(&mut sampler.samples);
    ensure!(sampler.failed.is_none(), "sending a packet: {:?}", sampler.failed);
    for ((pod, probe), sample) in sent.into_iter().zip(samples) {
        if after.get(&sample.ifindex).is_none_or(|(now, _)| now != pod) {
            continue;
        }
        let (was, is) =
            (reference::evaluate(&old, &probe.at(pod)).reason, reference::evaluate(&new, &probe.at(pod)).reason);
        // A packet to a Service may pass here although no rule allows it. A backend on this node may always reach
        // itself through the Service (hairpin traffic), so the table entries for the rules of this backend allow the
        // Service. If the sending pod has the same rules, it uses the same entries. The recheck post-DNAT denies the
        // packet later: see `expected`. Each write can change which pods have the same rules, so any backend on this
        // node counts.
        let is_local_backend =
            [&old, &new].into_iter().any(|cluster_state| has_local_backend(cluster_state, &probe.at(pod), |_| true));
        for (passed, first_write) in [false, true].into_iter().zip(&sample.first_write) {
            if let Some(write) = first_write {
                let is_old_or_new = was.allows() == passed || is.allows() == passed || (passed && is_local_backend);
                ensure!(
                    is_old_or_new,
                    "{pod} {probe:?} was {was:?}, will be {is:?}, but passes: {passed} after {write}"
                );
            }
        }
        let passed = node.runner.passes(sample.ifindex.0, sample.direction, &sample.frame, sample.ingress_ifindex)?;
        let (is, _) = expected(&new, node.tables(), &probe.at(pod));
        ensure!(passed == is.allows(), "{pod} {probe:?} was {was:?}, is {is:?}, but passes: {passed}");
    }
    Ok(())
}

/// Returns the probes that are sent after every write: SYNs, which are always evaluated, and datagrams, which match
/// known flows.
fn sample_probes() -> Vec<Probe> {
    let is_sample = |probe: &Probe| match probe.protocol {
        protocol::TCP => matches!(probe.port, 53 | 80 | 8080),
        protocol::UDP => matches!(probe.port, 53 | 80),
        _ => false,
    };
    pre_dnat_probes().filter(is_sample).collect()
}

/// Returns the pre-DNAT probes. Other programs, which this test does not run, evaluate post-DNAT packets.
fn pre_dnat_probes() -> impl Iterator<Item = Probe> {
    probes().into_iter().filter(|probe| !probe.post_dnat)
}

/// Continues the conversations of existing endpoints and begins new ones.
fn converse(
    node: &Node,
    step: &Step,
    probes: &[Probe],
    conversations: &mut Vec<Conversation>,
    tally: &mut Tally,
) -> Result<()> {
    let endpoints = node.endpoints();
    conversations.retain(|conversation| {
        let address = conversation.address;
        endpoints
            .get(&conversation.ifindex)
            .is_some_and(|(pod, endpoint)| *pod == conversation.pod && pod_address(endpoint, address) == Some(address))
    });
    let mut port = CONVERSATION_PORTS + MAX_BEGUN * node.round;
    for (endpoint, probe) in &step.begin {
        let chosen = endpoints.iter().nth(endpoint % endpoints.len().max(1));
        let Some((ifindex, (pod, endpoint))) = chosen else { continue };
        let usable: Vec<_> =
            probes.iter().filter_map(|probe| Some((probe, pod_address(endpoint, probe.remote)?))).collect();
        if let Some((probe, address)) = usable.get(probe % usable.len().max(1)) {
            conversations.push(Conversation::new((*ifindex, pod.clone()), *address, **probe, port));
            port += 1;
        }
    }
    let mut packets = step.packets;
    for conversation in conversations {
        for _ in 0..3 {
            let kinds = [PacketKind::Initial, PacketKind::Further, PacketKind::Reply, PacketKind::Reply];
            let kind = kinds[(packets & 3) as usize];
            packets = packets.rotate_right(2);
            let endpoint = &endpoints[&conversation.ifindex].1;
            let reason = conversation.send(kind, node.cluster_state(), node.tables(), endpoint, &node.runner)?;
            *tally.entry(reason).or_default() += 1;
        }
    }
    Ok(())
}
