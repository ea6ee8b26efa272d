//! Connection matrices: measured with sockets, or expected by the policies. The reference evaluator
//! (`netpol_policy::reference`) computes the expected verdicts. It is a second, direct implementation of the API
//! documentation of `NetworkPolicy`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::manifest;
use netpol_policy::model::{Object, Protocol};
use netpol_policy::reference::{self, End};

use crate::cluster::Cluster;
use crate::probe::{Probe, ProbeResult};

/// One possible connection in a matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cell {
    /// `namespace/name`, or the name of an external host.
    pub from: String,
    /// `namespace/name`, or the name of an external host.
    pub to: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The destination port.
    pub port: u16,
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} -> {} {}/{}", self.from, self.to, self.port, self.protocol.name())
    }
}

/// Whether each connection is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Matrix(pub BTreeMap<Cell, bool>);

impl Matrix {
    /// Returns all cells between different hosts of a cluster, except between external hosts.
    pub fn cells(cluster: &Cluster, ports: &[(Protocol, u16)]) -> Vec<Cell> {
        let hosts = cluster.ends();
        let is_outside = |name: &String| cluster.host(name).is_outside();
        let mut cells = Vec::new();
        for from in &hosts {
            for to in hosts.iter().filter(|to| *to != from && !(is_outside(from) && is_outside(to))) {
                for &(protocol, port) in ports {
                    cells.push(Cell { from: from.clone(), to: to.clone(), protocol, port });
                }
            }
        }
        cells
    }

    /// Measures real connections over every address family that both hosts have. The result must be the same for all
    /// families.
    ///
    /// # Errors
    /// Returns an error if the results of the families differ, if a host other than the destination responds, or if a
    /// connection is neither allowed nor dropped.
    pub fn measure(cluster: &Cluster, cells: &[Cell]) -> Result<Self> {
        let mut probes = Vec::new();
        let mut probed_cells = Vec::new();
        for cell in cells {
            for probe in cluster.probes(&cell.from, &cell.to, cell.protocol, cell.port) {
                probes.push(probe);
                probed_cells.push(cell);
            }
        }
        let outcomes = cluster.try_all(&probes)?;
        let mut found = BTreeMap::new();
        for ((probe, outcome), cell) in probes.iter().zip(&outcomes).zip(probed_cells) {
            let passed = match outcome {
                ProbeResult::Allowed => true,
                ProbeResult::Dropped => false,
                ProbeResult::Refused | ProbeResult::WrongHost(_) | ProbeResult::Failed(_) => {
                    bail!("{probe}: {outcome:?}")
                }
            };
            if let Some(before) = found.insert(cell.clone(), passed) {
                ensure!(before == passed, "{cell}: IPv4 and IPv6 differ: {before}, then {passed} with {probe}");
            }
        }
        Ok(Self(found))
    }

    /// Evaluates the policies in the cluster's manifests with the reference evaluator.
    ///
    /// # Errors
    /// Returns an error if the reference evaluator does not accept an address. Manifests with diagnostics are not
    /// errors, because tests use them.
    pub fn expected(cluster: &Cluster, cells: &[Cell]) -> Result<Self> {
        let cluster_state = cluster_state_of(cluster)?;
        let mut found = BTreeMap::new();
        for cell in cells {
            let mut passes = Vec::new();
            for Probe { address, .. } in cluster.probes(&cell.from, &cell.to, cell.protocol, cell.port) {
                // Evaluates addresses instead of pods, so that every family is evaluated. The reference evaluator finds
                // the pod of each address.
                let source = cluster
                    .host(&cell.from)
                    .address_of_same_family(address)
                    .context("the source has no address of this family")?;
                let (from, to) = (End::Address(source), End::Address(address));
                let connection = reference::connection(&cluster_state, &from, &to, cell.protocol.number(), cell.port)
                    .with_context(|| format!("evaluating {cell} with the reference"))?;
                passes.push(connection.allowed());
            }
            found.insert(cell.clone(), passes.into_iter().all(|pass| pass));
        }
        Ok(Self(found))
    }

    /// Returns the cells that differ, each with its value in this matrix and its value in `other`.
    pub fn differences<'m>(&'m self, other: &'m Self) -> Vec<(&'m Cell, bool, bool)> {
        let pairs = self.0.iter().filter_map(|(cell, mine)| other.0.get(cell).map(|theirs| (cell, *mine, *theirs)));
        pairs.filter(|(_, mine, theirs)| mine != theirs).collect()
    }

    /// Returns the number of allowed connections.
    pub fn allowed(&self) -> usize {
        self.0.values().filter(|passes| **passes).count()
    }
}

/// Returns the cluster state from the cluster's manifests.
///
/// # Errors
/// Returns an error if a file cannot be read.
pub fn cluster_state_of(cluster: &Cluster) -> Result<ClusterState> {
    let mut objects: Vec<Object> = Vec::new();
    let directory = cluster.manifests().path();
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry.context("reading the manifests' directory")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with('.') {
            continue;
        }
        let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        objects.extend(manifest::parse(&text, &name).objects.into_iter().map(|located| located.object));
    }
    Ok(ClusterState::from_objects(objects))
}

/// Repeats the measurement until the connections match the policies, which take effect after a few milliseconds.
///
/// # Errors
/// Returns the differences if the connections do not match within the timeout.
pub fn wait_until_expected(cluster: &Cluster, ports: &[(Protocol, u16)], timeout: Duration) -> Result<Matrix> {
    let cells = Matrix::cells(cluster, ports);
    let expected = Matrix::expected(cluster, &cells)?;
    wait_until_equal(cluster, &expected, timeout)
}

/// Repeats the measurement until the connections match a matrix.
///
/// # Errors
/// Returns the differences if the connections do not match within the timeout.
pub fn wait_until_equal(cluster: &Cluster, expected: &Matrix, timeout: Duration) -> Result<Matrix> {
    let start = Instant::now();
    let cells: Vec<_> = expected.0.keys().cloned().collect();
    loop {
        let measured = Matrix::measure(cluster, &cells);
        let error = match &measured {
            Ok(found) if found == expected => return measured,
            Ok(found) => describe(&expected.differences(found)),
            Err(error) => format!("{error:#}"),
        };
        ensure!(
            start.elapsed() < timeout,
            "after {timeout:?} the measured connections do not match the expected ones:\n{error}"
        );
    }
}

fn describe(differences: &[(&Cell, bool, bool)]) -> String {
    let word = |passes: bool| if passes { "allowed" } else { "dropped" };
    let mut text = String::new();
    for (cell, expected, measured) in differences {
        let _ = writeln!(text, "  {cell}: expected {}, measured {}", word(*expected), word(*measured));
    }
    text
}
