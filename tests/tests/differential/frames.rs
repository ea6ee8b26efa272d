//! What an attempt looks like on the wire, and what the loaded programs make of it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{HashMap, Map, MapData};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use netpol_agent::dataplane::CounterReader;
use netpol_common::{Counters, Direction, Endpoint, FlowEntry, FlowKey, Reason, protocol};
use netpol_policy::testing::Probe;
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::Wire;

/// Came in by an interface that is neither the pod's nor its bridge.
const ELSEWHERE: u32 = 4000;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A packet of an exchange that begins with a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The probe: a SYN, a datagram, an echo request.
    Opening,
    /// A later one of who sent the probe.
    Further,
    /// One the other way.
    Answer,
}

impl Kind {
    /// Which way it goes.
    pub(crate) fn direction(self, probe: &Probe) -> Direction {
        match self {
            Self::Opening | Self::Further => probe.direction,
            Self::Answer => probe.direction.opposite(),
        }
    }
}

/// The probe as it is sent: ICMP of its family.
pub(crate) fn of_family(probe: Probe) -> Probe {
    let icmp_v6 = probe.protocol == protocol::ICMP && probe.remote.is_ipv6();
    Probe { protocol: if icmp_v6 { protocol::ICMPV6 } else { probe.protocol }, ..probe }
}

/// A frame of an exchange between a pod and the probe's remote. `source` is the port, or the echo identifier, of who opens.
pub(crate) fn craft(pod: IpAddr, probe: &Probe, source: u16, kind: Kind) -> Vec<u8> {
    let ip = match kind.direction(probe) {
        Direction::Ingress => Ip::new(probe.remote, pod),
        Direction::Egress => Ip::new(pod, probe.remote),
    };
    let answers = kind == Kind::Answer;
    let (from, to) = if answers { (probe.port, source) } else { (source, probe.port) };
    let packet = match probe.protocol {
        protocol::TCP => ip.tcp(from, to, if kind == Kind::Opening { SYN } else { ACK }, b""),
        protocol::UDP => ip.udp(from, to, b"datagram"),
        protocol::SCTP => ip.sctp_init(from, to, b""),
        number => {
            let echo = if number == protocol::ICMP { [8, 0] } else { [128, 129] };
            let [high, low] = source.to_be_bytes();
            ip.icmp(echo[usize::from(answers)], 0, [high, low, 0, 1], b"12345678")
        }
    };
    frame(Mac([2; 6]), Mac([4; 6]), &[], &packet)
}

/// `ingress_ifindex` of a packet of an exchange.
pub(crate) fn came_by(endpoint: &Endpoint, probe: &Probe, kind: Kind) -> u32 {
    if kind == Kind::Answer {
        return ELSEWHERE;
    }
    match (probe.from_node, probe.via_own) {
        (true, _) => 0,
        (false, true) => endpoint.ifindex.0,
        (false, false) => ELSEWHERE,
    }
}

/// The programs as they are pinned.
pub(crate) struct Runner {
    programs: [SchedClassifier; 2],
    counters: CounterReader,
    /// Where the endpoints' flow tables are pinned.
    flows: PathBuf,
}

impl Runner {
    /// Opens the programs below an agent's pin path.
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

    /// Whether a frame passes at an interface.
    pub(crate) fn passes(&self, ifindex: u32, direction: Direction, frame: &[u8], came_by: u32) -> Result<bool> {
        // struct __sk_buff of linux/bpf.h: ingress_ifindex and ifindex.
        let mut context = [0_u8; 192];
        context[36..40].copy_from_slice(&came_by.to_ne_bytes());
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

    /// Removes the flows of this port from an endpoint's tables: some thousand probes would evict conversations.
    pub(crate) fn forget(&self, endpoint: &Endpoint, port: u16) -> Result<()> {
        self.forget_in::<[u8; 4]>("v4", endpoint, port)?;
        self.forget_in::<[u8; 16]>("v6", endpoint, port)
    }

    fn forget_in<A>(&self, family: &str, endpoint: &Endpoint, port: u16) -> Result<()>
    where
        Wire<FlowKey<A>>: aya::Pod,
    {
        // Where there is none, the endpoint still uses the shared table, which is large.
        let Ok(map) = MapData::from_pin(self.flows.join(format!("{family}-{}", endpoint.id))) else { return Ok(()) };
        let mut table = HashMap::<_, Wire<FlowKey<A>>, Wire<FlowEntry>>::try_from(Map::LruHashMap(map))?;
        let keys: Vec<Wire<FlowKey<A>>> = table.keys().collect::<Result<_, _>>()?;
        for key in keys {
            if [key.0.pod_port, key.0.remote_port].contains(&port.to_be_bytes()) {
                // It may have been evicted meanwhile.
                let _ = table.remove(&key);
            }
        }
        Ok(())
    }

    /// What becomes of a frame at an endpoint, as its counters tell; they and the verdict must agree.
    pub(crate) fn judge(
        &self,
        endpoint: &Endpoint,
        direction: Direction,
        frame: &[u8],
        came_by: u32,
    ) -> Result<Reason> {
        let before = self.counters.packets(endpoint.id, direction)?;
        let passed = self.passes(endpoint.ifindex.0, direction, frame, came_by)?;
        let after = self.counters.packets(endpoint.id, direction)?;
        let reason = counted(&before, &after)?;
        ensure!(reason.allows() == passed, "counted as {}, but passed is {passed}", reason.name());
        Ok(reason)
    }
}

/// The only counter that went up, and by one.
fn counted(before: &Counters, after: &Counters) -> Result<Reason> {
    let risen: Vec<(&Reason, u64)> = Reason::ALL
        .iter()
        .map(|reason| (reason, after.packets[*reason as usize].wrapping_sub(before.packets[*reason as usize])))
        .filter(|(_, more)| *more != 0)
        .collect();
    match risen[..] {
        [(reason, 1)] => Ok(*reason),
        _ => bail!("one packet was counted as {risen:?}"),
    }
}
