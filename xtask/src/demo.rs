//! A small cluster, and what policies do to it: measured beside meant, and each drop explained by the agent.

mod drops;
mod page;
mod scenes;
mod traces;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::cleanup::{self, Remains};
use netpol_tests::{Agent, AgentOptions, Cluster, Matrix, Protocol};

use crate::cli::DemoArgs;
use crate::workspace;
use page::Page;
use scenes::Scene;

/// What is tried between any two ends, and the letter that stands for it.
const PORTS: [(char, Protocol, u16); 3] =
    [('w', Protocol::Tcp, 80), ('d', Protocol::Tcp, 5432), ('n', Protocol::Udp, 53)];

/// How long a change may take before a difference counts.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs the demo.
pub(crate) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let page = Page::new();
    cleanup::on_interrupt(say_interrupted);
    page.title("netpol: NetworkPolicies enforced on real packets, and explained");

    let binary = workspace::target().join("release/netpol-agent");
    ensure!(binary.is_file(), "there is no agent at {}: run `cargo xtask build`", binary.display());
    page.progress("making a node, nine pods on its bridge, and hosts outside");
    let cluster = scenes::cluster().build().context("making the demo's cluster")?;
    page.done(&format!("{} ends, each serving 80/TCP, 5432/TCP and 53/UDP", cluster.ends().len()));

    page.progress("starting netpol-agent on a directory of manifests");
    let agent = Agent::start_with(&cluster, AgentOptions::default().binary(&binary))?;
    let traces = traces::Traces::of(&cluster, &agent)?;
    page.done(&format!("{}, {} MiB resident", traces.summary(), agent.resident_kib()? / 1024));
    page.legend(&PORTS);

    let mut wrong = 0;
    let scenes = scenes::all();
    for (index, scene) in scenes.iter().enumerate() {
        page.scene(index + 1, scenes.len(), scene);
        wrong += play(&page, &cluster, &agent, scene).with_context(|| format!("in the scene {:?}", scene.title))?;
    }

    page.heading("Leaving");
    drop(agent);
    drop(cluster);
    let left = traces.left()?;
    page.clean(&traces, &left);
    let good = wrong == 0 && left.is_empty();
    page.verdict(good, wrong, start.elapsed());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Plays one scene; returns how many connections were not as they should be, or not explained.
fn play(page: &Page, cluster: &Cluster, agent: &Agent, scene: &Scene) -> Result<usize> {
    for &(file, policies) in scene.apply {
        cluster.apply(file, policies)?;
    }
    let ports = PORTS.map(|(_, protocol, port)| (protocol, port));
    let cells = Matrix::questions(cluster, &ports);
    let meant = Matrix::meant(cluster, &cells)?;
    let start = Instant::now();
    let (measured, took) = loop {
        // A change is there within milliseconds; what is shown is one whole measurement after it.
        std::thread::sleep(Duration::from_millis(100));
        agent.forget_denied();
        let begun = Instant::now();
        let measured = Matrix::measure(cluster, &cells)?;
        if measured == meant || start.elapsed() > PATIENCE {
            break (measured, begun.elapsed());
        }
    };
    let ends = cluster.ends();
    page.tables(&ends, &PORTS, &measured, &meant);
    let different = measured.differences(&meant).len();
    page.count(&measured, different, took);
    let drops = drops::Drops::gather(cluster, agent, &measured);
    page.drops(&drops);
    Ok(different + drops.untold.len())
}

fn say_interrupted(remains: &Remains) {
    eprintln!(
        "\n\nInterrupted: {} process ended, {} pins and directories removed; the namespaces and links go with this process.",
        remains.processes, remains.paths
    );
    for left in &remains.left {
        eprintln!("  left behind: {left}");
    }
}
