//! The examples and their READMEs: the table of connections in each README equals the verdicts that are computed from
//! the policies, the verdicts that are measured with real packets, and the output of `netpol`.
//!
//! `NETPOL_BLESS=1 cargo test -p netpol-tests --test examples` rewrites the tables. Review them before you commit them.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};
use netpol_tests::agent::netpol;
use netpol_tests::examples::{self, Example};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::matrix::wait_until_equal;
use netpol_tests::{Agent, Cell, Cluster, Matrix, Protocol};
use serde_json::Value;

#[test]
fn every_readme_table_equals_the_computed_and_the_measured_verdicts() -> Result<()> {
    let mut examples = examples::all()?;
    ensure!(examples.len() >= 15, "only {} examples were found", examples.len());
    if std::env::var_os("NETPOL_BLESS").is_some() {
        for example in &mut examples {
            let (_cluster, expected) = cluster_and_verdicts(example)?;
            example.update_table(&expected)?;
        }
    }
    // Checks several examples in parallel, because most of the time is spent waiting for dropped packets.
    for group in examples.chunks(4) {
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = group.iter().map(|example| (example, scope.spawn(|| check_table(example)))).collect();
            for (example, worker) in workers {
                let result = worker.join().map_err(|_| anyhow!("a check panicked"))?;
                result.with_context(|| format!("the example {}", example.name()))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn cluster_and_verdicts(example: &Example) -> Result<(Cluster, Matrix)> {
    let cluster = example.cluster()?;
    example.apply(&cluster)?;
    let expected = Matrix::expected(&cluster, &example.cells())?;
    Ok((cluster, expected))
}

fn check_table(example: &Example) -> Result<()> {
    let (cluster, expected) = cluster_and_verdicts(example)?;
    let documented = example.documented_matrix()?;
    for (cell, documented, expected) in documented.differences(&expected) {
        ensure!(documented == expected, "{cell}: allowed = {documented} in the README, {expected} by the policies");
    }
    let agent = Agent::start(&cluster)?;
    wait_until_equal(&cluster, &documented, TIMEOUT).with_context(|| agent.log())?;
    Ok(())
}

#[test]
fn the_command_in_every_readme_prints_its_table() -> Result<()> {
    for example in examples::all()? {
        check_command(&example).with_context(|| format!("netpol {}", example.command().join(" ")))?;
    }
    Ok(())
}

/// Runs the `netpol` command of the README, and compares its output with the README.
fn check_command(example: &Example) -> Result<()> {
    // Without `-o`, the command prints a table that contains each pod, and no warning about the example's files.
    let table = Command::new(netpol()?).args(example.command()).current_dir(examples::root().join("..")).output()?;
    let stderr = String::from_utf8_lossy(&table.stderr).into_owned();
    ensure!(table.status.success() && stderr.is_empty(), "{}: {stderr}", table.status);
    for pod in example.documented_matrix()?.0.keys().map(|cell| cell.from.rsplit('/').next().unwrap_or_default()) {
        ensure!(String::from_utf8_lossy(&table.stdout).contains(pod), "{pod} is not in the printed table");
    }
    // With `-o json`, the verdicts equal those in the README.
    let mut command = Command::new(netpol()?);
    command.args(example.command()).args(["-o", "json"]).current_dir(examples::root().join(".."));
    let rows: Value = serde_json::from_slice(&command.output()?.stdout).context("reading the JSON of netpol")?;
    let mut printed = BTreeMap::new();
    for row in rows["connections"].as_array().context("the JSON has no list of connections")? {
        let text = |key: &str| row[key].as_str().with_context(|| format!("no {key} in {row}"));
        let protocol = Protocol::from_name(text("protocol")?).context("unknown protocol")?;
        let port = row["port"].as_u64().and_then(|port| u16::try_from(port).ok()).context("the port is invalid")?;
        let cell = Cell { from: text("from")?.to_owned(), to: text("to")?.to_owned(), protocol, port };
        printed.insert(cell, text("verdict")? == "allow");
    }
    for (cell, documented) in &example.documented_matrix()?.0 {
        let allowed = printed.get(cell).with_context(|| format!("netpol prints no verdict for {cell}"))?;
        ensure!(allowed == documented, "{cell}: allowed = {documented} in the README, {allowed} by netpol");
    }
    Ok(())
}
