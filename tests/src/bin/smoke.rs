//! Whether netpol works on the kernel that this runs on: the least that must hold, one line per check.
//!
//! `cargo xtask kernels` runs it in virtual machines, and here. Each line is `check NAME ok|FAILED WHAT`; checks after a
//! failure are not run, as each builds on the one before.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{MapData, loaded_maps};
use aya::programs::{SchedClassifier, TcAttachType, loaded_programs};
use aya::{EbpfLoader, VerifierLogLevel};
use netpol_common::LAYOUT_VERSION;
use netpol_policy::model::Protocol::{Tcp, Udp};
use netpol_tests::flow::Conversation;
use netpol_tests::program::object;
use netpol_tests::{AgentOptions, Cluster, Families, Lab, deny_all, policy};

const USAGE: &str = "usage: netpol-smoke [--attach auto|tcx|tc] [--alone]
  --attach  how the agent attaches its programs (auto)
  --alone   nothing else uses netpol on this kernel: none of its maps and programs may remain";

/// How the kernel's names of our programs begin.
const PROGRAM_PREFIX: &str = "netpol_";
/// Emulated processors are slow, and the kernel frees maps when it likes.
const PATIENCE: Duration = Duration::from_secs(10);
/// An emulated processor takes a minute for what the verifier does in a second.
const START: Duration = Duration::from_mins(3);

fn main() -> ExitCode {
    let mut attach = "auto".to_owned();
    let mut alone = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match (word.as_str(), words.by_ref()) {
            ("--alone", _) => alone = true,
            ("--attach", rest) => attach = rest.next().unwrap_or_default(),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::from(2);
            }
        }
    }
    let mut smoke = Smoke { attach, alone, lab: None, open: Vec::new() };
    for (name, check) in CHECKS {
        match check(&mut smoke) {
            Ok(found) => println!("check {name} ok {found}"),
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

/// What the checks have built so far.
struct Smoke {
    attach: String,
    alone: bool,
    lab: Option<Lab>,
    open: Vec<Conversation>,
}

impl Smoke {
    fn lab(&mut self) -> Result<&mut Lab> {
        self.lab.as_mut().context("no cluster")
    }

    /// The verifier takes the programs.
    #[expect(clippy::unused_self, reason = "a check like the others")]
    fn verifier(&mut self) -> Result<String> {
        let object = std::fs::read(object()).context("no BPF object: run `cargo xtask ebpf`")?;
        // Its full log would take an emulated processor minutes.
        let mut bpf =
            EbpfLoader::new().verifier_log_level(VerifierLogLevel::STATS).load(&object).context("the maps")?;
        let mut found = Vec::new();
        for name in ["netpol_ingress", "netpol_egress"] {
            let program: &mut SchedClassifier = bpf.program_mut(name).context("missing from the object")?.try_into()?;
            let start = Instant::now();
            program.load().with_context(|| format!("{name}, after {:.1} s", start.elapsed().as_secs_f64()))?;
            let took = start.elapsed().as_secs_f64();
            // Before 5.16 the kernel does not tell.
            let count = program.info()?.verified_instruction_count();
            let count = count.map_or_else(String::new, |count| format!("{count} instructions, "));
            found.push(format!("{name}: {count}{took:.1} s"));
        }
        Ok(found.join("; "))
    }

    /// The agent gets ready, and both programs are on each veth.
    fn attach(&mut self) -> Result<String> {
        let cluster = Cluster::builder().families(Families::Dual).serve(&[(Tcp, 80), (Tcp, 81), (Udp, 53)]).pods(&[
            ("shop/client", "app=client"),
            ("shop/server", "app=server"),
            ("shop/other", "app=other"),
        ]);
        let options = AgentOptions::default().arguments(&["--attach", &self.attach]).patience(START);
        self.lab = Some(Lab::start_with(cluster, &only_the_client(), options)?);
        let (tcx, filters) = self.attached()?;
        match (tcx, filters) {
            (6, 0) => Ok("tcx".into()),
            (0, 6) => Ok("clsact".into()),
            _ => bail!("3 veths have {tcx} TCX programs and {filters} clsact filters; it is to be 6 of one kind"),
        }
    }

    /// Programs of ours on the pods' veths: by TCX, by clsact.
    fn attached(&mut self) -> Result<(usize, usize)> {
        let lab = self.lab()?;
        let veths: Vec<_> =
            lab.cluster.pods().map(|pod| lab.cluster.host(&pod.full_name()).veth().to_owned()).collect();
        let node = lab.cluster.host("node-1").netns();
        let (mut tcx, mut filters) = (0, 0);
        for veth in &veths {
            for (hook, word) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
                tcx += node.run(|| {
                    // Before 6.6 there is nothing to ask.
                    let found = SchedClassifier::query_tcx(veth, hook).map(|(_, programs)| programs);
                    let ours = |name: Option<&str>| name.is_some_and(|name| name.starts_with(PROGRAM_PREFIX));
                    Ok(found.unwrap_or_default().iter().filter(|program| ours(program.name_as_str())).count())
                })?;
                let output = node.command("tc").args(["filter", "show", "dev", veth, word]).output();
                let output = output.context("starting tc; it comes with iproute2")?;
                let shown = String::from_utf8_lossy(&output.stdout);
                filters += shown.lines().filter(|line| line.contains(PROGRAM_PREFIX)).count();
            }
        }
        Ok((tcx, filters))
    }

    fn allow(&mut self) -> Result<String> {
        self.lab()?.expect(
            "shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP
             shop/server -> shop/client 80/TCP",
        )?;
        Ok("IPv4 and IPv6, TCP and UDP".into())
    }

    fn deny(&mut self) -> Result<String> {
        self.lab()?.expect(
            "shop/other -x shop/server 80/TCP
             shop/other -x shop/server 53/UDP
             shop/client -x shop/server 81/TCP
             outside -x shop/server 80/TCP",
        )?;
        Ok("by peer and by port".into())
    }

    /// The ring buffer tells who was denied.
    fn event(&mut self) -> Result<String> {
        let denied =
            self.lab()?.agent().wait_denied(|line| line.from() == "shop/other" && line.to() == "shop/server")?;
        Ok(denied.reason().to_owned())
    }

    /// What a pod that may open nothing itself answers still passes.
    fn reply(&mut self) -> Result<String> {
        let lab = self.lab()?;
        let mut policies = only_the_client();
        policies.push(policy("shop/silent", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Egress]}"));
        lab.policies(&policies)?;
        lab.expect(
            "shop/server -x shop/client 80/TCP
             shop/client -> shop/server 80/TCP
             shop/client -> shop/server 53/UDP",
        )?;
        let mut open = Conversation::open(&lab.cluster, "shop/client", "shop/server", 80)?;
        ensure!(open.echoes(PATIENCE)?, "an open connection got no answer");
        self.open.push(open);
        Ok("from a pod that may open nothing".into())
    }

    /// A policy that comes later stops what was open before; without it, the same connection goes on.
    fn change(&mut self) -> Result<String> {
        let lab = self.lab()?;
        let mut open = Conversation::open(&lab.cluster, "shop/other", "shop/client", 80)?;
        ensure!(open.echoes(PATIENCE)?, "an open connection got no answer");
        let start = Instant::now();
        lab.cluster.apply("late", &deny_all("shop"))?;
        lab.expect("shop/other -x shop/client 80/TCP")?;
        ensure!(!open.echoes(Duration::from_millis(500))?, "an open connection outlived its permission");
        let took = start.elapsed();
        lab.cluster.withdraw("late")?;
        lab.expect("shop/other -> shop/client 80/TCP")?;
        Ok(format!("an open connection stopped, seen after {:.1} s", took.as_secs_f64()))
    }

    /// Verdicts stay in force while the agent is dead, and the next one takes over maps, programs and connections.
    fn restart(&mut self) -> Result<String> {
        let before = self.flow_map()?;
        self.lab()?.agent().crash()?;
        self.holds().context("while the agent is dead")?;
        self.lab()?.agent().restart()?;
        self.holds().context("after the restart")?;
        ensure!(self.flow_map()? == before, "the agent made a new map of flows instead of adopting the pinned one");
        let (tcx, filters) = self.attached()?;
        ensure!(tcx + filters == 6, "after the restart, 3 veths have {tcx} TCX programs and {filters} clsact filters");
        Ok("pins adopted, an open connection went on".into())
    }

    fn holds(&mut self) -> Result<()> {
        self.lab()?.expect(
            "shop/client -> shop/server 80/TCP
             shop/other -x shop/server 80/TCP
             shop/server -x shop/client 80/TCP",
        )?;
        for open in &mut self.open {
            ensure!(open.echoes(PATIENCE)?, "an open connection got no answer");
        }
        Ok(())
    }

    /// The kernel's number of the pinned map.
    fn flow_map(&mut self) -> Result<u32> {
        let path = self.lab()?.agent().pin_path().join(format!("v{LAYOUT_VERSION}/FLOWS_V4"));
        let map = MapData::from_pin(&path).with_context(|| format!("opening {}", path.display()))?;
        Ok(map.info().context("asking for the map's number")?.id())
    }

    /// Nothing remains: no filter, qdisc, pin, program or map; and everything is open.
    fn uninstall(&mut self) -> Result<String> {
        let alone = self.alone;
        let lab = self.lab()?;
        let (done, said) = lab.agent().uninstall()?;
        ensure!(done, "netpol-agent uninstall failed; it said:\n{said}");
        lab.expect_beyond_policy("shop/other -> shop/server 80/TCP\nshop/server -> shop/client 80/TCP")?;
        let left = std::fs::read_dir(lab.agent().pin_path()).map_or(0, Iterator::count);
        ensure!(left == 0, "{left} entries remain below {}", lab.agent().pin_path().display());
        let qdiscs = lab.cluster.host("node-1").netns().command("tc").args(["qdisc", "show"]).output()?;
        let qdiscs = String::from_utf8_lossy(&qdiscs.stdout).into_owned();
        ensure!(!qdiscs.contains("clsact"), "a clsact qdisc remains:\n{qdiscs}");
        ensure!(self.attached()? == (0, 0), "programs remain on veths");
        self.open.clear();
        self.lab = None;
        if !alone {
            return Ok("no pin, filter or qdisc".into());
        }
        let start = Instant::now();
        loop {
            let remains = loaded();
            if remains.is_empty() {
                return Ok("no pin, filter, qdisc, program or map".into());
            }
            ensure!(start.elapsed() < PATIENCE, "still in the kernel: {}", remains.join(", "));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Programs and maps of netpol that the kernel holds.
fn loaded() -> Vec<String> {
    let programs = loaded_programs().filter_map(Result::ok).filter_map(|program| {
        let name = program.name_as_str()?;
        name.starts_with(PROGRAM_PREFIX).then(|| format!("program {name}"))
    });
    let maps = loaded_maps().filter_map(Result::ok).filter_map(|map| {
        let name = map.name_as_str()?;
        name.starts_with("FLOWS").then(|| format!("map {name}"))
    });
    programs.chain(maps).collect()
}

/// `server` takes 80/TCP and 53/UDP from `client`, and nothing else.
fn only_the_client() -> Vec<String> {
    vec![policy(
        "shop/server-from-client",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}, {protocol: UDP, port: 53}]}]}",
    )]
}
