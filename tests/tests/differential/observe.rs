//! Tests that an agent that only observes (`--observe`: policies are evaluated, but no packet is dropped) and an agent
//! that enforces policies can replace each other.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{DirectionPolicy, Endpoint, EndpointVersion, IfIndex, LAYOUT_VERSION, PortSetId, RuleSetId};
use netpol_dataplane::{AttachMode, Capacities, Dataplane, FlowTotalsMode, Kernel, KernelOptions, Mounts};
use netpol_tests::cleanup::{BPFFS, PathGuard, unique};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program;

use crate::frames::Runner;

/// The pod's interface. It is `lo`, which exists in every network namespace.
const POD_INTERFACE: u32 = 1;
/// The interface through which the packets reached the node (`ingress_ifindex`).
const INCOMING_INTERFACE: u32 = 4000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

#[test]
fn an_observing_agent_and_an_enforcing_agent_replace_each_other() {
    check_replacement().unwrap_or_else(|error| panic!("{error:#}"));
}

/// Loads the programs four times, alternately as an agent that enforces policies and as one that only observes. The
/// pod's policies deny a flow. Programs that enforce must drop the flow's packets, and programs that observe must let
/// them pass.
fn check_replacement() -> Result<()> {
    let pins = PathGuard::new(Path::new(BPFFS).join(unique("observe")));
    Mounts::ensure(pins.path())?;
    let object = std::fs::read(program::object()).context("no BPF object: run `cargo xtask ebpf`")?;
    // The maps have no entries for this rule set, so it allows nothing.
    let isolated = DirectionPolicy { rule_set: RuleSetId(1), any: PortSetId::NONE };
    let endpoint = Endpoint {
        ifindex: IfIndex(POD_INTERFACE),
        version: EndpointVersion(1),
        ingress: isolated,
        egress: isolated,
        id: 1,
        address_v4: [10, 0, 0, 1],
        shadow_ingress: DirectionPolicy::OPEN,
        shadow_egress: DirectionPolicy::OPEN,
        ..Endpoint::default()
    };
    let client = Ip::new([10, 0, 0, 2].into(), endpoint.address_v4.into());
    let pod = Ip::new(endpoint.address_v4.into(), [10, 0, 0, 2].into());
    let packets_of_flow = [
        (Ingress, client.tcp(1000, 80, SYN, b"")),
        (Egress, pod.tcp(80, 1000, SYN | ACK, b"")),
        (Ingress, client.tcp(1000, 80, ACK, b"")),
    ];
    for observe in [false, true, false, true] {
        let options = KernelOptions {
            pin_path: pins.path().to_owned(),
            attach: AttachMode::Auto,
            capacities: Capacities::default(),
            observe,
            flow_totals: FlowTotalsMode::Off,
        };
        let (mut kernel, _outcomes) = Kernel::start(&object, &options).context("loading the programs: run as root")?;
        kernel.put_endpoint(&endpoint)?;
        let root = pins.path().join(format!("v{LAYOUT_VERSION}"));
        let runner = Runner::open(&root, kernel.counters()?)?;
        for (number, (direction, packet)) in packets_of_flow.iter().enumerate() {
            let packet = frame(Mac([2; 6]), Mac([4; 6]), &[], packet);
            let passes = runner.passes(POD_INTERFACE, *direction, &packet, INCOMING_INTERFACE)?;
            ensure!(passes == observe, "packet {number}: passes = {passes}, expected {observe}");
        }
    }
    Ok(())
}
