//! Frames for probes (generated packets that start a flow) and for conversations (packets in both directions of one
//! flow), and the verdicts of the loaded programs on these frames.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netpol_common::{Counters, Direction, Endpoint, FlowEntry, FlowKey, Reason, protocol};
use netpol_dataplane::CounterReader;
use netpol_policy::testing::Probe;
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::PlainData;

/// Index of an interface that is neither the pod's nor its bridge.
const OTHER_INTERFACE: u32 = 4000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The role of a packet in a conversation that begins with a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PacketKind {
    /// The probe itself: a SYN, an SCTP INIT, a datagram or an echo request.
    Initial,
    /// A later packet in the probe's direction.
    Further,
    /// A packet in the other direction.
    Reply,
}

impl PacketKind {
    /// Returns the direction of the packet at the pod.
    pub(crate) fn direction(self, probe: &Probe) -> Direction {
        match self {
            Self::Initial | Self::Further => probe.direction,
            Self::Reply => probe.direction.opposite(),
        }
    }
}

/// Returns the probe with `ICMPv6` in place of ICMP, if its remote address is an IPv6 address.
pub(crate) fn of_family(probe: Probe) -> Probe {
    let icmp_v6 = probe.protocol == protocol::ICMP && probe.remote.is_ipv6();
    Probe { protocol: if icmp_v6 { protocol::ICMPV6 } else { probe.protocol }, ..probe }
}

/// Builds a frame of a conversation between a pod and the probe's remote address. `source` is the source port of the
/// probe. If the probe is an echo request, `source` is its identifier.
pub(crate) fn craft(pod: IpAddr, probe: &Probe, source: u16, kind: PacketKind) -> Vec<u8> {
    let ip = match kind.direction(probe) {
        Direction::Ingress => Ip::new(probe.remote, pod),
        Direction::Egress => Ip::new(pod, probe.remote),
    };
    let is_reply = kind == PacketKind::Reply;
    let (from, to) = if is_reply { (probe.port, source) } else { (source, probe.port) };
    let packet = match probe.protocol {
        protocol::TCP => ip.tcp(from, to, if kind == PacketKind::Initial { SYN } else { ACK }, b""),
        protocol::UDP => ip.udp(from, to, b"datagram"),
        protocol::SCTP => {
            let mut packet = ip.sctp_init(from, to, b"");
            if kind != PacketKind::Initial {
                // Changes the type of the only chunk, which has 20 bytes, from INIT to DATA.
                let chunk = packet.len() - 20;
                packet[chunk] = 0;
            }
            packet
        }
        number => {
            let echo = if number == protocol::ICMP { [8, 0] } else { [128, 129] };
            let [high, low] = source.to_be_bytes();
            ip.icmp(echo[usize::from(is_reply)], 0, [high, low, 0, 1], b"12345678")
        }
    };
    frame(Mac([2; 6]), Mac([4; 6]), &[], &packet)
}

/// Returns the `ingress_ifindex` of a packet of a conversation: the interface through which the packet came to the
/// node, or 0 if the node itself sends it.
pub(crate) fn ingress_ifindex(endpoint: &Endpoint, probe: &Probe, kind: PacketKind) -> u32 {
    if kind == PacketKind::Reply {
        return OTHER_INTERFACE;
    }
    match (probe.from_node, probe.is_hairpin) {
        (true, _) => 0,
        (false, true) => endpoint.ifindex.0,
        (false, false) => OTHER_INTERFACE,
    }
}

/// Runs the pinned programs on frames.
pub(crate) struct Runner {
    programs: [SchedClassifier; 2],
    counters: CounterReader,
    /// The directory with the pinned flow tables of endpoints.
    flows: PathBuf,
}

impl Runner {
    /// Opens the programs that are pinned below this directory of an agent.
    pub(crate) fn open(root: &Path, counters: CounterReader) -> Result<Self> {
        let open = |direction: Direction| {
            let path = root.join("programs").join(format!("netpol_{}", direction.name()));
            SchedClassifier::from_pin(&path).with_context(|| format!("opening {}", path.display()))
        };
        Ok(Self {
            programs: [open(Direction::Ingress)?, open(Direction::Egress)?],
            counters,
            flows: root.join("flows"),
        })
    }

    /// Runs a program on a frame. Returns whether the frame passes.
    pub(crate) fn passes(
        &self,
        ifindex: u32,
        direction: Direction,
        frame: &[u8],
        ingress_ifindex: u32,
    ) -> Result<bool> {
        // The offsets of ingress_ifindex and ifindex in struct __sk_buff, in linux/bpf.h.
        let mut context = [0_u8; 192];
        context[36..40].copy_from_slice(&ingress_ifindex.to_ne_bytes());
        context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..Default::default() };
        let result = self.programs[direction as usize]
            .test_run(options)
            .with_context(|| format!("BPF_PROG_TEST_RUN at interface {ifindex}"))?;
        match result.return_value.cast_signed() {
            // TC_ACT_UNSPEC and TC_ACT_SHOT.
            -1 => Ok(true),
            2 => Ok(false),
            other => bail!("the program returned {other}"),
        }
    }

    /// Removes the flows with this port from an endpoint's flow tables. Only single probes use this port. If their
    /// thousands of flows remained, they would evict the flows of conversations.
    pub(crate) fn remove_flows(&self, endpoint: &Endpoint, port: u16) -> Result<()> {
        self.remove_flows_of::<[u8; 4]>("v4", endpoint, port)?;
        self.remove_flows_of::<[u8; 16]>("v6", endpoint, port)
    }

    fn remove_flows_of<A>(&self, family: &str, endpoint: &Endpoint, port: u16) -> Result<()>
    where
        PlainData<FlowKey<A>>: aya::Pod,
    {
        // An endpoint without its own flow table uses the shared one, which is large enough.
        let Ok(map) = MapData::from_pin(self.flows.join(format!("{family}-{}", endpoint.id))) else { return Ok(()) };
        let mut table = HashMap::<_, PlainData<FlowKey<A>>, PlainData<FlowEntry>>::try_from(Map::LruHashMap(map))?;
        let keys: Vec<PlainData<FlowKey<A>>> = table.keys().collect::<Result<_, _>>()?;
        for key in keys {
            if [key.0.pod_port, key.0.remote_port].contains(&port.to_be_bytes()) {
                // An error means that the flow was evicted in the meantime.
                let _ = table.remove(&key);
            }
        }
        Ok(())
    }

    /// Evaluates a frame at an endpoint that no enforced policy isolates. Returns whether the endpoint's policies in
    /// shadow mode would deny the frame.
    pub(crate) fn shadow_denies(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        frame: &[u8],
        ingress_ifindex: u32,
    ) -> Result<bool> {
        let before = self.counters.packets(endpoint.id, direction)?.shadow_denied();
        let reason = self.evaluate(endpoint, direction, frame, ingress_ifindex)?;
        ensure!(reason == Reason::NotIsolated, "shadow mode changed the verdict to {}", reason.name());
        match self.counters.packets(endpoint.id, direction)?.shadow_denied() - before {
            0 => Ok(false),
            1 => Ok(true),
            more => bail!("one packet was counted as {more} flows"),
        }
    }

    /// Evaluates a frame at an endpoint. Returns the reason that is counted, and checks that this reason agrees with
    /// the verdict.
    pub(crate) fn evaluate(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        frame: &[u8],
        ingress_ifindex: u32,
    ) -> Result<Reason> {
        let before = self.counters.packets(endpoint.id, direction)?;
        let passed = self.passes(endpoint.ifindex.0, direction, frame, ingress_ifindex)?;
        let after = self.counters.packets(endpoint.id, direction)?;
        let reason = counted_reason(&before, &after)?;
        ensure!(reason.allows() == passed, "the counted reason is {}, but passed is {passed}", reason.name());
        Ok(reason)
    }
}

/// Returns the reason of the only counter that increased. It must have increased by one.
fn counted_reason(before: &Counters, after: &Counters) -> Result<Reason> {
    let increased: Vec<(&Reason, u64)> = Reason::ALL
        .iter()
        .map(|reason| (reason, after.packets[*reason as usize].wrapping_sub(before.packets[*reason as usize])))
        .filter(|(_, increase)| *increase != 0)
        .collect();
    match increased[..] {
        [(reason, 1)] => Ok(*reason),
        _ => bail!("one packet was counted as {increased:?}"),
    }
}
