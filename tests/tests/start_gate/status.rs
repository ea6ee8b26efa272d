//! Tests what the agent reports about the start gate. Also tests the default options of `deploy/base` on a node where
//! no start gate is possible.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_nri_double::{NriServer, Options, Start};
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::{Lab, PodSlots, PodSpec, ProbeResult};

use super::{REPLY_TIMEOUT, lab, options, pods, policies, sandbox};

/// The unprotected time of a pod (the time without enforcement) counts from the time at which its containers could
/// start, not from the creation of its interface. Here the gate delays the start until the pod is enforced, so the time
/// is 0.
#[test]
fn s38_unprotected_time_counts_from_the_start_of_containers() -> Result<()> {
    const SINCE_CONTAINER: &str = "netpol_unprotected_seconds_count{since=\"container\"}";
    let directory = tempfile::tempdir()?;
    for unknown_pods in ["allow", "deny"] {
        let runtime = NriServer::start(&directory.path().join("nri.sock"), Options::default())?;
        let lab = lab(directory.path(), &["--start-gate", "nri", "--unknown-pods", unknown_pods])?;
        runtime.wait_for_plugin("netpol", REPLY_TIMEOUT)?;
        let since_interface = lab.metric("netpol_unprotected_seconds_count{since=\"interface\"}")?;
        let mut slots = PodSlots::prepare(&lab.cluster, 1)?;
        lab.cluster.manifests().write("pod.yaml", &PodSpec::new("jobs/pod").manifest(&[]))?;
        let address = slots.attach(0, "job", 1)?;
        // The interface exists for a while before the runtime starts containers.
        sleep(Duration::from_millis(100));
        let started = runtime.run(&sandbox("jobs/pod", address, true));
        ensure!(started == Start::Allowed, "{started:?}\n{}", lab.agent_ref().log());
        let log = lab.agent_ref().log();
        ensure!(lab.metric(SINCE_CONTAINER)? > 0.5, "{unknown_pods}: the start is not counted:\n{log}");
        let time = lab.metric("netpol_unprotected_seconds_sum{since=\"container\"}")?;
        ensure!(time < f64::EPSILON, "{unknown_pods}: {time} s without protection, expected none:\n{log}");
        let counted = lab.metric("netpol_unprotected_seconds_count{since=\"interface\"}")? - since_interface;
        ensure!(counted < 0.5, "{unknown_pods}: counted from the interface, too:\n{log}");
    }
    Ok(())
}

/// No runtime serves NRI, and no CNI configuration is writable. So with the options of `deploy/base`, the start gate is
/// off, and all traffic of unknown pods is dropped. But a node can always boot: pods of `kube-system` start, and their
/// traffic is allowed as soon as their addresses are in the Pod objects.
#[test]
fn s38_the_default_of_deploy_base_does_not_lock_out_a_cluster() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let options = options(directory.path(), &["--start-gate", "auto", "--unknown-pods", "deny"])?;
    let cluster = pods().namespace("kube-system", "").pods(&[("kube-system/proxy", "app=proxy")]);
    let mut lab = Lab::start_with(cluster, &policies(), options)?;
    // Without a manifest, the agent does not know the pod.
    lab.cluster.add_pod_without_manifest(PodSpec::new("kube-system/dns").labels("app=dns"))?;
    let dns = lab.cluster.probe("kube-system/proxy", "kube-system/dns", Udp, 53);
    let before = lab.cluster.try_all(std::slice::from_ref(&dns))?;
    ensure!(
        before == [ProbeResult::Dropped],
        "the traffic of a pod without a published address must be dropped: {before:?}"
    );
    lab.cluster.write_manifest("kube-system/dns")?;
    let start = Instant::now();
    while lab.cluster.try_all(std::slice::from_ref(&dns))? != [ProbeResult::Allowed] {
        ensure!(
            start.elapsed() < REPLY_TIMEOUT,
            "DNS traffic is dropped, although the pod's address is published:\n{}",
            lab.agent_ref().log()
        );
    }
    // The kubelet can connect to the DNS pod, and the DNS pod can connect to the outside, for example to an API server.
    lab.expect(
        "node-1 -> kube-system/dns 80/TCP\nkube-system/dns -> outside 80/TCP\noutside -> kube-system/dns 80/TCP",
    )?;
    // After a restart of the agent, the traffic of pods with a published address is still allowed.
    lab.agent().restart()?;
    lab.expect("kube-system/proxy -> kube-system/dns 53/UDP")?;
    lab.wait_until_expected(&[(Tcp, 80), (Udp, 53)])?;
    let agent = lab.agent_ref();
    let status = agent.run_subcommand("status", &["--api-socket", &agent.socket().display().to_string()])?;
    let expected =
        "start gate: off: pods start without waiting until their policies are enforced; chosen because: no NRI at ";
    ensure!(status.stdout.contains(expected), "{}", status.stdout);
    Ok(())
}
