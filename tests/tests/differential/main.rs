//! Three verdicts on every packet are one: that of the reference, which reads the objects; that of the compiled tables in
//! memory; and that of the loaded programs over the maps that the agent wrote. Worlds and packets are made at random.
//!
//! Needs root and the BPF object (`cargo xtask ebpf`). `NETPOL_CASES` sets how many histories are tried.

mod conversation;
mod frames;
mod node;
mod watch;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail, ensure};
use netpol_common::{Endpoint, Reason, protocol};
use netpol_policy::model::{Object, PodKey};
use netpol_policy::reference::evaluate;
use netpol_policy::testing::{
    Probe, event, expected, is_among_backends, judge_in, object, pod, policy, probes, service, slice,
};
use netpol_policy::world::{Event, World};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::{TestError, TestRunner};

use conversation::Conversation;
use frames::{Kind, came_by, craft, of_family};
use node::{Node, interfaces, owned};
use watch::Sample;

/// Source ports, by what they are for: a node's rounds are numbered, so that no packet meets a flow of an earlier one.
const LAST_ROUND: u16 = 1900;
const PROBE_PORTS: u16 = 20_000;
const SAMPLE_PORTS: u16 = 22_000;
const CONVERSATION_PORTS: u16 = 30_000;
/// Conversations that a step may begin.
const BEGUN: u16 = 4;

/// Something happens, and then there is talk.
#[derive(Clone)]
struct Step {
    event: Event,
    /// Who begins to talk and about what, each modulo how many there are.
    begin: Vec<(usize, usize)>,
    /// Which packets the conversations exchange, two bits for each packet.
    moves: u64,
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}; begin {:?}, moves {:#x}", self.event, self.begin, self.moves)
    }
}

fn step(event: impl Strategy<Value = Event>) -> impl Strategy<Value = Step> {
    (event, vec((0..9_usize, 0..10_000_usize), 0..=usize::from(BEGUN)), any::<u64>())
        .prop_map(|(event, begin, moves)| Step { event, begin, moves })
}

/// A world that is there already, and what happens to it.
fn history() -> impl Strategy<Value = Vec<Step>> {
    let there = prop_oneof![
        3 => pod().prop_map(Object::Pod),
        2 => policy().prop_map(Object::Policy),
        1 => service().prop_map(Object::Service),
        1 => slice().prop_map(Object::Slice),
        1 => object(),
    ];
    let first = vec(step(vec(there, 8..24).prop_map(Event::Reset)), 0..=1);
    let remotes: BTreeSet<IpAddr> = probes().iter().map(|probe| probe.remote).collect();
    let own = subsequence(remotes.into_iter().collect::<Vec<_>>(), 1..=3).prop_map(Event::OwnAddresses);
    let then = vec(step(prop_oneof![8 => event(), 1 => own]), 1..14);
    (first, then).prop_map(|(first, then)| first.into_iter().chain(then).collect())
}

fn cases() -> u32 {
    std::env::var("NETPOL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(64)
}

/// How often each reason was found.
type Tally = BTreeMap<Reason, u64>;

#[test]
fn reference_tables_and_loaded_program_agree() {
    let netns = interfaces().expect("a namespace with interfaces");
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
            // When its ports are used up, or not everything could be taken out of it, a node is not used again.
            let fits = |node: &Node| usize::from(node.round) + history.len() <= usize::from(LAST_ROUND);
            let reused = node.borrow_mut().take().filter(fits);
            let mut used = reused.map_or_else(Node::start, Ok).expect("a node");
            let played = play(&mut used, &history, &mut tally.borrow_mut());
            let cleared = used.clear().context("when everything was gone again");
            if cleared.is_ok() {
                *node.borrow_mut() = Some(used);
            }
            played.and(cleared).map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        match outcome {
            Ok(()) => Ok(tally.into_inner()),
            Err(TestError::Fail(why, history)) => bail!("{why}\nafter these events:\n{}", lines(&history)),
            Err(TestError::Abort(why)) => bail!("gave up: {why}"),
        }
    });
    let tally = outcome.unwrap_or_else(|error| panic!("{error:#}"));
    println!("packets by reason: {tally:?}");
    let every = [Reason::NotIsolated, Reason::Rule, Reason::Flow, Reason::OwnNode, Reason::Itself, Reason::NoRule];
    for reason in every.into_iter().chain([Reason::Revoked, Reason::Service, Reason::NoBackend]) {
        assert!(tally.contains_key(&reason), "no packet met {reason:?}: {tally:?}");
    }
}

fn lines(history: &[Step]) -> String {
    let lines: Vec<String> = history.iter().enumerate().map(|(index, step)| format!("{index}: {step:?}")).collect();
    lines.join("\n")
}

/// Lives through a history on a node, and compares at every turn.
fn play(node: &mut Node, history: &[Step], tally: &mut Tally) -> Result<()> {
    let probes: Vec<Probe> = at_the_pod().map(of_family).collect();
    let mut talks: Vec<Conversation> = Vec::new();
    for (index, step) in history.iter().enumerate() {
        change(node, &step.event).with_context(|| format!("at event {index}"))?;
        compare(node, &probes, tally).with_context(|| format!("after event {index}"))?;
        talk(node, step, &probes, &mut talks, tally).with_context(|| format!("talking after event {index}"))?;
    }
    Ok(())
}

/// The pod's address of the other end's family.
fn own_address(endpoint: &Endpoint, remote: IpAddr) -> Option<IpAddr> {
    let own = match remote {
        IpAddr::V4(_) => IpAddr::from(endpoint.address_v4),
        IpAddr::V6(_) => IpAddr::from(endpoint.address_v6),
    };
    (!own.is_unspecified()).then_some(own)
}

/// Every pod here, every probe: the three agree.
fn compare(node: &Node, probes: &[Probe], tally: &mut Tally) -> Result<()> {
    let world = node.world();
    for (pod, endpoint) in node.endpoints().into_values() {
        let policy = node.tables().endpoint(&pod).with_context(|| format!("{pod} has no policy"))?;
        for probe in probes {
            let Some(own) = own_address(&endpoint, probe.remote) else { continue };
            let frame = craft(own, probe, PROBE_PORTS + node.round, Kind::Opening);
            let came_by = came_by(&endpoint, probe, Kind::Opening);
            let (reference, _) = expected(world, node.tables(), &probe.at(&pod));
            let tables = judge_in(node.tables(), world, &pod, policy, probe);
            let program = node.runner.judge(&endpoint, probe.direction, &frame, came_by);
            let program = program.with_context(|| format!("{pod} {probe:?}, which is {reference:?}"))?;
            ensure!(
                reference == tables && tables == program,
                "{pod} {probe:?}: reference {reference:?}, tables {tables:?}, program {program:?}"
            );
            *tally.entry(program).or_default() += 1;
        }
        node.runner.forget(&endpoint, PROBE_PORTS + node.round)?;
    }
    Ok(())
}

/// Takes an event in. Meanwhile packets are sent after every write: each finds the old verdict or the new one.
fn change(node: &mut Node, event: &Event) -> Result<()> {
    // A reset is several events, and so is what it does.
    if matches!(event, Event::Reset(_) | Event::OwnAddresses(_)) {
        return node.apply(event);
    }
    let old = node.world().clone();
    let new = {
        let mut world = old.clone();
        world.apply(event.clone());
        world
    };
    // A pod that changes does so as a pod and as an address, one after the other; so does who takes over its address.
    let steady = |pod: &PodKey| {
        let addresses = |world: &World| world.pods.get(pod).map(|pod| pod.addresses.clone());
        addresses(&old) == addresses(&new) && owned(&old, pod) == owned(&new, pod)
    };
    let before: Vec<_> = node.endpoints().into_values().filter(|(pod, _)| steady(pod)).collect();
    let mut sent = Vec::new();
    let mut samples = Vec::new();
    for (pod, endpoint) in &before {
        for probe in sampled() {
            let Some(own) = own_address(endpoint, probe.remote).filter(|own| *own != probe.remote) else { continue };
            samples.push(Sample {
                ifindex: endpoint.ifindex,
                direction: probe.direction,
                frame: craft(own, &probe, SAMPLE_PORTS + node.round, Kind::Opening),
                came_by: came_by(endpoint, &probe, Kind::Opening),
                seen: [None, None],
            });
            sent.push((pod, probe));
        }
    }
    node.watch.borrow_mut().samples = samples;
    node.watch.borrow_mut().look(|| "nothing yet".to_owned());
    node.apply(event)?;

    let after = node.endpoints();
    let mut watch = node.watch.borrow_mut();
    let samples = std::mem::take(&mut watch.samples);
    ensure!(watch.failed.is_none(), "sending a packet: {:?}", watch.failed);
    for ((pod, probe), sample) in sent.into_iter().zip(samples) {
        if after.get(&sample.ifindex).is_none_or(|(now, _)| now != pod) {
            continue;
        }
        let (was, is) = (evaluate(&old, &probe.at(pod)).reason, evaluate(&new, &probe.at(pod)).reason);
        // Where a pod with the same rules is behind the same Service, it may be passed on: see `expected`.
        let shared = [&old, &new].into_iter().any(|world| is_among_backends(world, &probe.at(pod), |_| true));
        for (passed, seen) in [false, true].into_iter().zip(&sample.seen) {
            if let Some(write) = seen {
                let either = was.allows() == passed || is.allows() == passed || (passed && shared);
                ensure!(either, "{pod} {probe:?} was {was:?}, will be {is:?}, but passes: {passed} after {write}");
            }
        }
        let passed = node.runner.passes(sample.ifindex.0, sample.direction, &sample.frame, sample.came_by)?;
        let (is, _) = expected(&new, node.tables(), &probe.at(pod));
        ensure!(passed == is.allows(), "{pod} {probe:?} was {was:?}, is {is:?}, but passes: {passed}");
    }
    Ok(())
}

/// The probes that are sent after every write: SYNs, which are judged each time, and datagrams, which flows let pass.
fn sampled() -> Vec<Probe> {
    let often = |probe: &Probe| match probe.protocol {
        protocol::TCP => matches!(probe.port, 53 | 80 | 8080),
        protocol::UDP => matches!(probe.port, 53 | 80),
        _ => false,
    };
    at_the_pod().filter(often).collect()
}

/// What is past the place where Services send packets on is the other programs' matter.
fn at_the_pod() -> impl Iterator<Item = Probe> {
    probes().into_iter().filter(|probe| !probe.behind)
}

/// Those who talk go on, and some begin.
fn talk(node: &Node, step: &Step, probes: &[Probe], talks: &mut Vec<Conversation>, tally: &mut Tally) -> Result<()> {
    let endpoints = node.endpoints();
    let goes_on = |talk: &Conversation| {
        let known = endpoints.get(&talk.ifindex);
        known.is_some_and(|(pod, endpoint)| *pod == talk.pod && own_address(endpoint, talk.own) == Some(talk.own))
    };
    talks.retain(goes_on);
    let mut begun = CONVERSATION_PORTS + BEGUN * node.round;
    for (who, what) in &step.begin {
        let Some((ifindex, (pod, endpoint))) = endpoints.iter().nth(who % endpoints.len().max(1)) else { continue };
        let fitting: Vec<_> =
            probes.iter().filter_map(|probe| Some((probe, own_address(endpoint, probe.remote)?))).collect();
        if let Some((probe, own)) = fitting.get(what % fitting.len().max(1)) {
            talks.push(Conversation::new((*ifindex, pod.clone()), *own, **probe, begun));
            begun += 1;
        }
    }
    let mut moves = step.moves;
    for talk in talks {
        for _ in 0..3 {
            let kind = [Kind::Opening, Kind::Further, Kind::Answer, Kind::Answer][(moves & 3) as usize];
            moves = moves.rotate_right(2);
            let reason = talk.send(kind, node.world(), node.tables(), &endpoints[&talk.ifindex].1, &node.runner)?;
            *tally.entry(reason).or_default() += 1;
        }
    }
    Ok(())
}
