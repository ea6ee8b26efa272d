//! Pods that come and go at fifty a second, without a process for each.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::Stream;
use netpol_tests::{AgentOptions, Cluster, Lab, PodSlots, PodSpec, deny_all};

use super::{server_from_client, wait_metrics};

/// How many pods come, and how far apart.
const PODS: u32 = 500;
const APART: Duration = Duration::from_millis(20);
/// How many are there at a time, and how many go at once.
const ALIVE: usize = 50;
const TOGETHER: u32 = 10;
/// An address is another pod's only after a while, as plugins give them: else the agent takes the one that comes for the one
/// that went, and goes over to its policies when it is told.
const SLOTS: u8 = 110;
/// How often a pod knocks, at a port of the server that no policy opens to it.
const KNOCKS: usize = 3;

/// On a busy machine they come more slowly; each must be enforced all the same, before it goes.
#[test]
fn s24_fifty_pods_a_second_are_enforced_one_and_all() -> Result<()> {
    let pods = Cluster::builder().namespace("jobs", "").pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/never", "app=never"),
    ]);
    let mut lab = Lab::start_with(pods, &[server_from_client(), deny_all("jobs")], AgentOptions::default())?;
    let mut slots = PodSlots::prepare(&lab.cluster, SLOTS)?;
    let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
    let denied = Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?;

    let mut alive = Alive::new();
    let begun = Instant::now();
    for number in 0..PODS {
        std::thread::sleep((begun + APART * number).saturating_duration_since(Instant::now()));
        let slot = usize::try_from(number)? % slots.count();
        // The default group is 0.
        let group = number / TOGETHER + 1;
        if number % TOGETHER == 0 && alive.len() == ALIVE {
            go(&mut lab, &mut slots, &mut alive)?;
        }
        let name = format!("jobs/swift-{number}");
        let address = slots.attach(slot, &format!("swift{number}"), group)?;
        lab.cluster.manifests().write(&file_of(&name), &PodSpec::new(&name).manifest(&[address.into()]))?;
        alive.push_back((slot, group, name));
    }
    let rate = f64::from(PODS) / begun.elapsed().as_secs_f64();
    let all = 3 + alive.len();
    wait_metrics(&mut lab, &[&format!("netpol_endpoints {all}"), "netpol_pods_waiting 0"])
        .context("all that are there")?;
    let log = lab.agent().log();
    let mut enforced = BTreeMap::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once(" enforced pod=") else { continue };
        let mut words = rest.split(' ');
        let pod = words.next().unwrap_or_default();
        // A pod that was shut until its policies were evaluated has the time until then.
        let time = |word: &str| {
            ["unprotected_ms=", "evaluated_ms="]
                .into_iter()
                .find_map(|name| word.strip_prefix(name)?.parse::<f64>().ok())
        };
        let gap = words.find_map(time);
        *enforced.entry(pod).or_insert(0.0) += gap.with_context(|| format!("no time in {line:?}"))?;
    }
    let missed: Vec<_> = (0..PODS)
        .map(|number| format!("jobs/swift-{number}"))
        .filter(|name| !enforced.contains_key(name.as_str()))
        .collect();
    let mut gaps: Vec<_> = enforced.values().copied().collect();
    gaps.sort_by(f64::total_cmp);
    println!(
        "{PODS} pods came at {rate:.0} a second; enforced after {:.1} ms in the middle, {:.1} ms at most",
        gaps[gaps.len() / 2],
        gaps.last().copied().unwrap_or_default()
    );
    ensure!(missed.is_empty(), "never enforced: {missed:?}\n{log}");
    knocks_in_vain(&lab, &slots, alive.iter().map(|(slot, ..)| *slot))?;

    while !alive.is_empty() {
        go(&mut lab, &mut slots, &mut alive)?;
    }
    let (allowed, denied) = (allowed.finish()?, denied.finish()?);
    ensure!(allowed.sent > 500 && allowed.answered == allowed.sent, "the old flow lost packets: {allowed:?}");
    ensure!(denied.sent > 100 && denied.answered == 0, "a stranger got through: {denied:?}");
    wait_metrics(&mut lab, &["netpol_endpoints 3", "netpol_pods_waiting 0", "netpol_write_errors_total 0"])?;
    let page = lab.metrics()?;
    ensure!(!page.contains("pod=\"swift-"), "counters of pods that are gone:\n{page}");
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    Ok(())
}

/// By slot, group and name, the oldest first.
type Alive = VecDeque<(usize, u32, String)>;

/// The oldest group goes as a kubelet has it go: first the network, then the objects.
fn go(lab: &mut Lab, slots: &mut PodSlots, alive: &mut Alive) -> Result<()> {
    let oldest = alive.front().context("there is one")?.1;
    slots.detach_group(oldest)?;
    while let Some((_, _, name)) = alive.pop_front_if(|(_, group, _)| *group == oldest) {
        lab.cluster.manifests().remove(&file_of(&name))?;
    }
    Ok(())
}

fn file_of(name: &str) -> String {
    format!("pod-{}.yaml", name.replace('/', "-"))
}

/// Each pod that is there sends to the server, and none of it gets out.
fn knocks_in_vain(lab: &Lab, slots: &PodSlots, alive: impl Iterator<Item = usize>) -> Result<()> {
    let server = lab.cluster.host("shop/server").v4();
    for slot in alive {
        let answer = slots.netns(slot).run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((server, 53))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            (0..KNOCKS).try_for_each(|_| socket.send(b"knock").map(drop))?;
            Ok(socket.recv(&mut [0; 16]))
        })?;
        ensure!(answer.is_err(), "the server answers the pod in slot {slot}");
    }
    let page = lab.metrics()?;
    let dropped = page.lines().filter(|line| {
        line.starts_with("netpol_packets_total{")
            && line.contains("pod=\"swift-")
            && line.contains("direction=\"egress\"")
            && line.contains("reason=\"no-rule\"")
    });
    let counts: Vec<_> = dropped.filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).collect();
    ensure!(
        counts.len() == ALIVE && counts.iter().all(|count| *count >= KNOCKS),
        "each of {ALIVE} pods has {KNOCKS} packets dropped on their way out: {counts:?}\n{page}"
    );
    Ok(())
}
