//! Every example does what its README promises: the table written down is what the policies mean, and what is measured.
//!
//! `NETPOL_BLESS=1 cargo test -p netpol-tests --test examples` writes the tables anew, to be looked at before they are
//! committed.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use netpol_tests::examples::{self, Example};
use netpol_tests::matrix::settle_on;
use netpol_tests::{Agent, Cluster, Matrix};

#[test]
fn every_table_is_what_the_policies_mean_and_what_is_measured() -> Result<()> {
    let mut examples = examples::all()?;
    if std::env::var_os("NETPOL_BLESS").is_some() {
        for example in &mut examples {
            let (_cluster, meant) = cluster_and_meaning(example)?;
            example.bless(&meant)?;
        }
    }
    // A few at a time: most of it is waiting for what is dropped.
    for group in examples.chunks(4) {
        std::thread::scope(|scope| -> Result<()> {
            let workers: Vec<_> = group.iter().map(|example| (example, scope.spawn(|| check(example)))).collect();
            for (example, worker) in workers {
                let result = worker.join().map_err(|_| anyhow!("a check panicked"))?;
                result.with_context(|| format!("the example {}", example.name()))?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn cluster_and_meaning(example: &Example) -> Result<(Cluster, Matrix)> {
    let cluster = example.cluster()?;
    example.apply(&cluster)?;
    let meant = Matrix::meant(&cluster, &example.questions())?;
    Ok((cluster, meant))
}

fn check(example: &Example) -> Result<()> {
    let (cluster, meant) = cluster_and_meaning(example)?;
    let promised = example.expected()?;
    for (cell, promised, meant) in promised.differences(&meant) {
        ensure!(promised == meant, "{cell}: the table says {promised}, the policies mean {meant}");
    }
    ensure!(
        example.readme()?.contains(&example.table()),
        "README.md does not show the table of expected.json, which is:\n{}",
        example.table()
    );
    let agent = Agent::start(&cluster)?;
    settle_on(&cluster, &promised, Duration::from_secs(5)).with_context(|| agent.log())?;
    Ok(())
}
