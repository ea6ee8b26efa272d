//! Smoke test: checks that netpol works on the running kernel, with one line of output for each check.
//!
//! `cargo xtask kernels` runs it in virtual machines and on the running kernel. Each line is `check NAME ok|FAILED
//! DETAIL`. Each check needs the state that the previous check leaves, so the first failure ends the test.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{MapData, loaded_maps};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use aya::{EbpfLoader, VerifierLogLevel};
use netpol_common::LAYOUT_VERSION;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::EchoConnection;
use netpol_tests::program::object;
use netpol_tests::{AgentOptions, Cluster, Families, Lab, deny_all, policy};

const USAGE: &str = "usage: netpol-smoke [--attach auto|tcx|tc] [--alone]
  --attach  how the agent attaches its programs (auto)
  --alone   also check that no maps or programs of netpol remain; only if no other netpol runs on this kernel";

/// Prefix of the names of netpol's programs in the kernel, and of the flow tables of endpoints.
const NAME_PREFIX: &str = "netpol_";
/// How long to wait for a response, and for the kernel to free maps. Emulated CPUs are slow.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long the agent may take to become ready. On an emulated CPU, the verifier takes about 60 times as long.
const START_TIMEOUT: Duration = Duration::from_mins(3);

fn main() -> ExitCode {
    let mut attach = "auto".to_owned();
    let mut alone = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.by_ref()) {
            ("--alone", _) => alone = true,
            ("--attach", rest) => attach = rest.next().unwrap_or_default(),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let mut smoke = Smoke { attach, alone, lab: None, connections: Vec::new() };
    for (name, check) in CHECKS {
        match check(&mut smoke) {
            Ok(detail) => println!("check {name} ok {detail}"),
            Err(error) => {
                println!("check {name} FAILED {error:#}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

type Check = fn(&mut Smoke) -> Result<String>;

const CHECKS: &[(&str, Check)] = &[
    ("verifier", Smoke::verifier),
    ("attach", Smoke::attach),
    ("allow", Smoke::allow),
    ("deny", Smoke::deny),
    ("event", Smoke::event),
    ("reply", Smoke::reply),
    ("change", Smoke::change),
    ("restart", Smoke::restart),
    ("uninstall", Smoke::uninstall),
];

/// State that the checks share.
struct Smoke {
    /// The value of `--attach`.
    attach: String,
    /// Whether `--alone` is given.
    alone: bool,
    /// The cluster and its agent, from the check `attach` to the check `uninstall`.
    lab: Option<Lab>,
    /// Established connections that must continue when the agent is killed and restarted.
    connections: Vec<EchoConnection>,
}

impl Smoke {
    fn lab(&mut self) -> Result<&mut Lab> {
        self.lab.as_mut().context("the check `attach` has not created the cluster")
    }

    /// Checks that the verifier accepts the programs.
    #[expect(clippy::unused_self, reason = "the signature of all checks")]
    fn verifier(&mut self) -> Result<String> {
        let object = std::fs::read(object()).context("BPF object not found: run `cargo xtask ebpf`")?;
        // On an emulated CPU, the verifier's full log would take minutes.
        let mut bpf =
            EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(&object).context("loading the maps")?;
        let mut details = Vec::new();
        for name in ["netpol_ingress", "netpol_egress"] {
            let program: &mut SchedClassifier =
                bpf.program_mut(name).context("the BPF object does not have this program")?.try_into()?;
            let start = Instant::now();
            program.load().with_context(|| format!("{name}, after {:.1} s", start.elapsed().as_secs_f64()))?;
            let elapsed = start.elapsed().as_secs_f64();
            // Kernels before 5.16 do not report the count.
            let count = program.info()?.verified_instruction_count();
            let count = count.map_or_else(String::new, |count| format!("{count} instructions, "));
            details.push(format!("{name}: {count}{elapsed:.1} s"));
        }
        Ok(details.join("; "))
    }

    /// Checks that the agent becomes ready and attaches both programs to each veth.
    fn attach(&mut self) -> Result<String> {
        let cluster = Cluster::builder().families(Families::Dual).serve(&[(Tcp, 80), (Tcp, 81), (Udp, 53)]).pods(&[
            ("shop/client", "app=client"),
            ("shop/server", "app=server"),
            ("shop/other", "app=other"),
        ]);
        let options = AgentOptions::default().arguments(&["--attach", &self.attach]).start_timeout(START_TIMEOUT);
        self.lab = Some(Lab::start_with(cluster, &allow_only_client(), options)?);
        // 3 pods with one veth each, and two programs on each veth.
        let (tcx, filters) = self.attached()?;
        match (tcx, filters) {
            (6, 0) => Ok("tcx".into()),
            (0, 6) => Ok("clsact".into()),
            _ => bail!("3 veths have {tcx} TCX programs and {filters} clsact filters, expected 6 of one kind"),
        }
    }

    /// Returns how many of netpol's programs are attached to the pods' veths: the number of TCX links, and the number
    /// of clsact filters.
    fn attached(&mut self) -> Result<(usize, usize)> {
        let lab = self.lab()?;
        let veths: Vec<_> =
            lab.cluster.pods().map(|pod| lab.cluster.host(&pod.full_name()).veth().to_owned()).collect();
        let node = lab.cluster.host("node-1").netns();
        let (mut tcx, mut filters) = (0, 0);
        for veth in &veths {
            for (hook, argument) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
                tcx += node.run(|| {
                    // Kernels before 6.6 do not have TCX.
                    let found = SchedClassifier::query_tcx(veth, hook).map(|(_, programs)| programs);
                    let is_netpol = |name: Option<&str>| name.is_some_and(|name| name.starts_with(NAME_PREFIX));
                    Ok(found.unwrap_or_default().iter().filter(|program| is_netpol(program.name_as_str())).count())
                })?;
                let output = node.command("tc").args(["filter", "show", "dev", veth, argument]).output();
                let output = output.context("starting tc: install iproute2")?;
                let shown = String::from_utf8_lossy(&output.stdout);
                filters += shown.lines().filter(|line| line.contains(NAME_PREFIX)).count();
            }
        }
        Ok((tcx, filters))
    }

    /// Checks that allowed connections succeed.
    fn allow(&mut self) -> Result<String> {
        self.lab()?.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -> shop/client 80/TCP",
        )?;
        Ok("IPv4 and IPv6, TCP and UDP".into())
    }

    /// Checks that connections from other sources, and to other ports, are dropped.
    fn deny(&mut self) -> Result<String> {
        self.lab()?.expect(
            "shop/other -x shop/server 80/TCP
             shop/other -x shop/server 53/UDP
             shop/client -x shop/server 81/TCP
             outside -x shop/server 80/TCP",
        )?;
        Ok("by peer and by port".into())
    }

    /// Checks that a deny event arrives through the ring buffer.
    fn event(&mut self) -> Result<String> {
        let denied =
            self.lab()?.agent().wait_denied(|line| line.from() == "shop/other" && line.to() == "shop/server")?;
        Ok(denied.reason().to_owned())
    }

    /// Checks that a pod isolated for egress can still reply.
    fn reply(&mut self) -> Result<String> {
        let lab = self.lab()?;
        let mut policies = allow_only_client();
        policies.push(policy("shop/silent", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}"));
        lab.set_policies(&policies)?;
        lab.expect(
            "shop/server -x shop/client 80/TCP
             shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP",
        )?;
        let mut connection = EchoConnection::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        ensure!(connection.echoes(TIMEOUT)?, "an established connection got no response");
        self.connections.push(connection);
        Ok("from a pod isolated for egress".into())
    }

    /// Checks that a new policy stops an established connection, and that connections are allowed again without the
    /// policy.
    fn change(&mut self) -> Result<String> {
        let lab = self.lab()?;
        let mut connection = EchoConnection::open(&lab.cluster, "shop/other", "shop/client", 80)?;
        ensure!(connection.echoes(TIMEOUT)?, "an established connection got no response");
        let start = Instant::now();
        lab.cluster.apply("late", &deny_all("shop"))?;
        lab.expect("shop/other -x shop/client 80/TCP")?;
        ensure!(
            !connection.echoes(Duration::from_millis(500))?,
            "an established connection continued after it was denied"
        );
        let elapsed = start.elapsed();
        lab.cluster.delete("late")?;
        lab.expect("shop/other -> shop/client 80/TCP")?;
        Ok(format!("an established connection stopped within {:.1} s", elapsed.as_secs_f64()))
    }

    /// Checks that verdicts do not change when the agent is killed, and that the next agent adopts maps, programs and
    /// connections.
    fn restart(&mut self) -> Result<String> {
        let before = self.shared_flow_table()?;
        self.lab()?.agent().crash()?;
        self.check_verdicts().context("after the agent was killed")?;
        self.lab()?.agent().restart()?;
        self.check_verdicts().context("after the restart")?;
        ensure!(
            self.shared_flow_table()? == before,
            "the agent created a new shared flow table instead of adopting the pinned one"
        );
        let (tcx, filters) = self.attached()?;
        ensure!(
            tcx + filters == 6,
            "after the restart, 3 veths have {tcx} TCX programs and {filters} clsact filters, expected 6 in total"
        );
        Ok("the agent adopted the pinned maps, an established connection continued".into())
    }

    fn check_verdicts(&mut self) -> Result<()> {
        self.lab()?.expect(
            "shop/client -> shop/server 80/TCP
             shop/other -x shop/server 80/TCP
             shop/server -x shop/client 80/TCP",
        )?;
        for connection in &mut self.connections {
            ensure!(connection.echoes(TIMEOUT)?, "an established connection got no response");
        }
        Ok(())
    }

    /// Returns the map ID of the pinned flow table that endpoints without a table of their own share.
    fn shared_flow_table(&mut self) -> Result<u32> {
        let path = self.lab()?.agent().pin_path().join(format!("v{LAYOUT_VERSION}/FLOWS_V4"));
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(map.info().context("reading the map's ID")?.id())
    }

    /// Checks that no filter, qdisc, pin, program or map remains, and that all traffic is allowed.
    fn uninstall(&mut self) -> Result<String> {
        let alone = self.alone;
        let lab = self.lab()?;
        let (done, output) = lab.agent().uninstall()?;
        ensure!(done, "netpol-agent uninstall failed:\n{output}");
        lab.expect_without_reference_evaluator("shop/other -> shop/server 80/TCP\nshop/server -> shop/client 80/TCP")?;
        let remaining = std::fs::read_dir(lab.agent().pin_path()).map_or(0, Iterator::count);
        ensure!(remaining == 0, "{remaining} entries remain below {}", lab.agent().pin_path().display());
        let qdiscs = lab.cluster.host("node-1").netns().command("tc").args(["qdisc", "show"]).output()?;
        let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
        ensure!(!qdiscs.contains("clsact"), "a clsact qdisc remains:\n{qdiscs}");
        ensure!(self.attached()? == (0, 0), "programs remain on veths");
        self.connections.clear();
        self.lab = None;
        if !alone {
            return Ok("no pin, filter or qdisc".into());
        }
        let start = Instant::now();
        loop {
            let loaded = loaded_objects();
            if loaded.is_empty() {
                return Ok("no pin, filter, qdisc, program or map".into());
            }
            ensure!(start.elapsed() < TIMEOUT, "remaining in the kernel: {}", loaded.join(", "));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Returns the programs and flow tables of netpol in the kernel. The flow tables of endpoints have the name
/// `netpol_flows`. The endpoints without tables of their own share `FLOWS_V4` and `FLOWS_V6`.
fn loaded_objects() -> Vec<String> {
    let programs = loaded_programs().filter_map(Result::ok).filter_map(|program| {
        let name = program.name_as_str()?;
        name.starts_with(NAME_PREFIX).then(|| format!("program {name}"))
    });
    let maps = loaded_maps().filter_map(Result::ok).filter_map(|map| {
        let name = map.name_as_str()?;
        (name.starts_with("FLOWS") || name.starts_with(NAME_PREFIX)).then(|| format!("map {name}"))
    });
    programs.chain(maps).collect()
}

/// Returns a policy that allows only `client` to reach `server`, on 80/TCP and 53/UDP.
fn allow_only_client() -> Vec<String> {
    vec![policy(
        "shop/server-from-client",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
    )]
}
