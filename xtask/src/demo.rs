//! `cargo xtask demo` applies policies to a small cluster of network namespaces, scene by scene. In each scene, it
//! compares actual with expected connections, and shows the agent's explanation of each dropped connection.

mod drops;
mod inventory;
mod output;
mod scenes;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::cleanup::{self, CleanupReport};
use netpol_tests::{Agent, AgentOptions, Cluster, Matrix, Protocol};

use crate::cli::DemoArgs;
use crate::workspace;
use output::Printer;
use scenes::Scene;

/// Ports to try between any two hosts (pods and external hosts), and the letter for each port in the tables.
const PORTS: [(char, Protocol, u16); 3] =
    [('w', Protocol::Tcp, 80), ('d', Protocol::Tcp, 5432), ('n', Protocol::Udp, 53)];

/// How long a change of policies may take to have its effect. After this time, a difference between actual and expected
/// connections is an error.
const WAIT_LIMIT: Duration = Duration::from_secs(3);

/// Time between two measurements. The eBPF programs send at most one deny event per second for each flow, and a flow of
/// a measurement can by chance have the same ports as a flow of the measurement before.
const EVENT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the demo.
pub(crate) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    let start = Instant::now();
    let printer = Printer::new();
    cleanup::on_interrupt(report_interrupted);
    printer.title("netpol: NetworkPolicies enforced on real packets, and explained");

    let binary = workspace::target().join("release/netpol-agent");
    ensure!(binary.is_file(), "netpol-agent not found at {}: run `cargo xtask build`", binary.display());
    printer.progress("creating a node with nine pods on its bridge, and external hosts");
    let cluster = scenes::cluster().build().context("creating the demo's cluster")?;
    printer.done(&format!("{} hosts, each serving 80/TCP, 5432/TCP and 53/UDP", cluster.ends().len()));

    printer.progress("starting netpol-agent on a directory of manifests");
    let agent = Agent::start_with(&cluster, AgentOptions::default().binary(&binary))?;
    let inventory = inventory::Inventory::list(&cluster, &agent)?;
    printer.done(&format!("{}, {} MiB resident", inventory.summary(), agent.resident_kib()? / 1024));
    printer.legend(&PORTS);

    let mut wrong_connections = 0;
    let scenes = scenes::all();
    for (index, scene) in scenes.iter().enumerate() {
        printer.scene(index + 1, scenes.len(), scene);
        wrong_connections +=
            run_scene(&printer, &cluster, &agent, scene).with_context(|| format!("scene {:?}", scene.title))?;
    }

    printer.heading("Cleaning up");
    drop(agent);
    drop(cluster);
    let remaining = inventory.remaining()?;
    printer.print_cleanup_result(&inventory, &remaining);
    let succeeded = wrong_connections == 0 && remaining.is_empty();
    printer.verdict(succeeded, wrong_connections, start.elapsed());
    Ok(if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one scene: applies its policies, and measures all connections. Returns how many connections are not as
/// expected, plus how many dropped connections have no deny event.
fn run_scene(printer: &Printer, cluster: &Cluster, agent: &Agent, scene: &Scene) -> Result<usize> {
    for &(file, policies) in scene.apply {
        cluster.apply(file, policies)?;
    }
    let ports = PORTS.map(|(_, protocol, port)| (protocol, port));
    // A cell is one possible connection: source, destination, protocol and port.
    let cells = Matrix::cells(cluster, &ports);
    let expected = Matrix::expected(cluster, &cells)?;
    let start = Instant::now();
    let (measured, elapsed) = loop {
        // Repeats the measurement until the change has taken effect, which takes milliseconds. The table shows the last
        // measurement.
        std::thread::sleep(EVENT_INTERVAL);
        agent.clear_denied();
        let measurement_start = Instant::now();
        let measured = Matrix::measure(cluster, &cells)?;
        if measured == expected || start.elapsed() > WAIT_LIMIT {
            break (measured, measurement_start.elapsed());
        }
    };
    let ends = cluster.ends();
    printer.tables(&ends, &PORTS, &measured, &expected);
    let different = measured.differences(&expected).len();
    printer.summary(&measured, different, elapsed);
    let drops = drops::Drops::collect(cluster, agent, &measured);
    printer.drops(&drops);
    Ok(different + drops.unreported.len())
}

fn report_interrupted(report: &CleanupReport) {
    eprintln!(
        "\n\nInterrupted. Processes ended: {}. Pins and directories removed: {}. Namespaces and links are removed with this process.",
        report.processes, report.paths
    );
    for path in &report.not_removed {
        eprintln!("  not removed: {path}");
    }
}
