//! Creates fifty pods a second. To reach this rate, each pod is only a network namespace: the test starts no process
//! for a pod.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::Stream;
use netpol_tests::{AgentOptions, Cluster, Lab, PodSlots, PodSpec, deny_all};

use super::allow_client_to_server;

/// Number of pods that the test creates.
const PODS: u32 = 500;
/// The time from the creation of one pod to that of the next.
const INTERVAL: Duration = Duration::from_millis(20);
/// Maximum number of pods that exist at the same time.
const MAX_ALIVE: usize = 50;
/// Number of pods that are deleted together.
const GROUP_SIZE: u32 = 10;
/// Number of slots: prepared network namespaces, each with its own address. There are more slots than pods at a time,
/// so an address is reused only after some time, as with CNI plugins. If it were reused at once, the agent would treat
/// the new pod as the old pod until the agent receives the new pod's object.
const SLOTS: u8 = 110;
/// Number of packets that each pod sends to the server. No policy allows them.
const PACKETS: usize = 3;

/// On a busy machine, pods are created more slowly: no pod is deleted before its policies are enforced.
#[test]
fn s24_policies_are_enforced_on_each_pod_if_fifty_are_created_per_second() -> Result<()> {
    let pods = Cluster::builder().namespace("jobs", "").pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/never", "app=never"),
    ]);
    let mut lab = Lab::start_with(pods, &[allow_client_to_server(), deny_all("jobs")], AgentOptions::default())?;
    let mut slots = PodSlots::prepare(&lab.cluster, SLOTS)?;
    let allowed = Stream::start(&lab.cluster, "shop/client", "shop/server", 53)?;
    let denied = Stream::of_new_flows(&lab.cluster, "shop/never", "shop/server", 53)?;

    let mut alive = LivePods::new();
    let start = Instant::now();
    for number in 0..PODS {
        std::thread::sleep((start + INTERVAL * number).saturating_duration_since(Instant::now()));
        let slot = usize::try_from(number)? % slots.count();
        // Starts at 1: all other network interfaces are in group 0, so deleting group 0 would delete them, too.
        let group = number / GROUP_SIZE + 1;
        if number % GROUP_SIZE == 0 && alive.len() == MAX_ALIVE {
            wait_until_enforced(&mut lab, alive.iter().take(GROUP_SIZE as usize).map(|(_, _, name)| name))?;
            delete_oldest_group(&mut lab, &mut slots, &mut alive)?;
        }
        let name = format!("jobs/swift-{number}");
        let address = slots.attach(slot, &format!("swift{number}"), group)?;
        lab.cluster.manifests().write(&file_of(&name), &PodSpec::new(&name).manifest(&[address.into()]))?;
        alive.push_back((slot, group, name));
    }
    let rate = f64::from(PODS) / start.elapsed().as_secs_f64();
    wait_until_enforced(&mut lab, alive.iter().map(|(_, _, name)| name))?;
    // The three pods of namespace shop stay until the end.
    let all = 3 + alive.len();
    lab.wait_metrics(&[&format!("netpol_endpoints {all}"), "netpol_pods_waiting 0"]).context("all current pods")?;
    let log = lab.agent().log();
    let mut enforced = BTreeMap::new();
    for line in log.lines() {
        let Some((_, rest)) = line.split_once(" enforced pod=") else { continue };
        let mut words = rest.split(' ');
        let pod = words.next().unwrap_or_default();
        // The time until the pod's policies were enforced: the value of `interface_age_ms` if the line has this field,
        // else of `unprotected_ms`. A line has `interface_age_ms`, to the left of `unprotected_ms`, if all traffic of
        // the pod was dropped until its policies were enforced.
        let parse_time = |word: &str| {
            ["unprotected_ms=", "interface_age_ms="]
                .into_iter()
                .find_map(|name| word.strip_prefix(name)?.parse::<f64>().ok())
        };
        let time = words.find_map(parse_time);
        *enforced.entry(pod).or_insert(0.0) += time.with_context(|| format!("no time in {line:?}"))?;
    }
    let mut times: Vec<_> = enforced.values().copied().collect();
    times.sort_by(f64::total_cmp);
    println!(
        "{PODS} pods at {rate:.0} a second; enforced after {:.1} ms (median), {:.1} ms (maximum)",
        times[times.len() / 2],
        times.last().copied().unwrap_or_default()
    );
    check_all_dropped(&lab, &slots, alive.iter().map(|(slot, ..)| *slot))?;

    while !alive.is_empty() {
        delete_oldest_group(&mut lab, &mut slots, &mut alive)?;
    }
    let (allowed, denied) = (allowed.finish()?, denied.finish()?);
    ensure!(allowed.sent > 500 && allowed.answered == allowed.sent, "an allowed flow lost packets: {allowed:?}");
    ensure!(denied.sent > 100 && denied.answered == 0, "packets of a denied pod passed: {denied:?}");
    lab.wait_metrics(&["netpol_endpoints 3", "netpol_pods_waiting 0", "netpol_write_errors_total 0"])?;
    let page = lab.metrics()?;
    ensure!(!page.contains("pod=\"swift-"), "counters of deleted pods:\n{page}");
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    Ok(())
}

/// Slot, group and name of each pod, oldest first.
type LivePods = VecDeque<(usize, u32, String)>;

/// Waits until the agent's log reports for each of these pods that its policies are enforced.
fn wait_until_enforced<'a>(lab: &mut Lab, mut pods: impl Iterator<Item = &'a String>) -> Result<()> {
    pods.try_for_each(|pod| lab.agent().wait_log(&[&format!(" enforced pod={pod} ")]))
}

/// Deletes the pods of the oldest group as a kubelet does: first their network, then their objects.
fn delete_oldest_group(lab: &mut Lab, slots: &mut PodSlots, alive: &mut LivePods) -> Result<()> {
    let oldest = alive.front().context("no pod is left")?.1;
    slots.detach_group(oldest)?;
    while let Some((_, _, name)) = alive.pop_front_if(|(_, group, _)| *group == oldest) {
        lab.cluster.manifests().remove(&file_of(&name))?;
    }
    Ok(())
}

fn file_of(name: &str) -> String {
    format!("pod-{}.yaml", name.replace('/', "-"))
}

/// Sends packets from each current pod to the server, and checks that all are dropped at egress.
fn check_all_dropped(lab: &Lab, slots: &PodSlots, alive: impl Iterator<Item = usize>) -> Result<()> {
    let server = lab.cluster.host("shop/server").v4();
    for slot in alive {
        let reply = slots.netns(slot).run(|| {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((server, 53))?;
            socket.set_read_timeout(Some(Duration::from_millis(50)))?;
            (0..PACKETS).try_for_each(|_| socket.send(b"denied").map(drop))?;
            Ok(socket.recv(&mut [0; 16]))
        })?;
        ensure!(reply.is_err(), "the server replied to the pod in slot {slot}");
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
        counts.len() == MAX_ALIVE && counts.iter().all(|count| *count >= PACKETS),
        "expected {PACKETS} egress drops for each of {MAX_ALIVE} pods: {counts:?}\n{page}"
    );
    Ok(())
}
