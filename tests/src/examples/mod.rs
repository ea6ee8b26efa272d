//! Loads `examples/`: pods, policies, and the table of allowed connections in each README.

mod readme;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::manifest;
use netpol_policy::model::{Labels, Object, Pod, Protocol};

use crate::cluster::{Cluster, PodSpec};
use crate::matrix::{Cell, Matrix};
use readme::Readme;

/// One directory of `examples/`.
#[derive(Debug)]
pub struct Example {
    directory: PathBuf,
    pods: Vec<Pod>,
    /// The name and the labels of each namespace.
    namespaces: Vec<(String, String)>,
    readme: Readme,
}

/// Returns the path of `examples/`.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

/// Loads all examples, sorted by name.
///
/// # Errors
/// Returns an error that names the invalid file.
pub fn all() -> Result<Vec<Example>> {
    let root = root();
    let mut directories = Vec::new();
    for entry in fs::read_dir(&root).with_context(|| format!("listing {}", root.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            directories.push(path);
        }
    }
    directories.sort();
    directories.iter().map(|path| Example::load(path)).collect()
}

/// Formats the labels of a pod or a namespace as `key=value,key=value`, without the label that every namespace gets
/// automatically.
fn labels_text(labels: &Labels) -> String {
    let labels = labels.iter().filter(|(key, _)| &***key != "kubernetes.io/metadata.name");
    labels.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

impl Example {
    fn load(directory: &Path) -> Result<Self> {
        Self::read(directory).with_context(|| format!("loading the example {}", directory.display()))
    }

    fn read(directory: &Path) -> Result<Self> {
        let mut pods = Vec::new();
        let mut namespaces = Vec::new();
        for file in ["cluster.yaml", "policies.yaml"] {
            let text = fs::read_to_string(directory.join(file)).with_context(|| format!("reading {file}"))?;
            let parsed = manifest::parse(&text, file);
            if let Some(error) = parsed.errors.first() {
                bail!("{error}");
            }
            for located in parsed.objects {
                match located.object {
                    Object::Pod(pod) => pods.push(pod),
                    Object::Namespace(namespace) => {
                        namespaces.push((namespace.name.to_string(), labels_text(&namespace.labels)));
                    }
                    Object::Node(_) | Object::Policy(_) | Object::Service(_) | Object::Slice(_) => {}
                }
            }
        }
        let text = fs::read_to_string(directory.join("README.md")).context("reading README.md")?;
        Ok(Self { directory: directory.to_owned(), pods, namespaces, readme: Readme::parse(&text)? })
    }

    /// Returns the directory's name.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Returns the arguments of the `netpol` command in the example's README. The working directory is the parent of
    /// `examples/`.
    pub fn command(&self) -> &[String] {
        &self.readme.command
    }

    /// Returns the ports in the table of the example's README.
    pub fn ports(&self) -> &[(Protocol, u16)] {
        &self.readme.ports
    }

    /// Creates a cluster of network namespaces with the example's pods, at the addresses in their manifests, without
    /// policies.
    ///
    /// # Errors
    /// Returns an error if the cluster cannot be created, or a pod gets another address.
    pub fn cluster(&self) -> Result<Cluster> {
        let mut builder = Cluster::builder().serve(self.ports());
        for (name, labels) in &self.namespaces {
            builder = builder.namespace(name, labels);
        }
        for address in &self.readme.external_hosts {
            builder = builder.outside(address);
        }
        for pod in &self.pods {
            let Some(IpAddr::V4(address)) = pod.addresses.first() else { bail!("{} has no IPv4 address", pod.key) };
            // The number of a pod is the last part of its address.
            let mut spec =
                PodSpec::new(&pod.key.to_string()).number(address.octets()[3]).labels(&labels_text(&pod.labels));
            for port in &pod.ports {
                spec = spec.port(&port.name, port.protocol, port.port);
            }
            builder = builder.pod(spec);
        }
        let cluster = builder.build()?;
        for pod in &self.pods {
            let actual = cluster.host(&pod.key.to_string()).addresses();
            ensure!(
                actual == pod.addresses,
                "{} has the addresses {actual:?}, but {:?} in its manifest",
                pod.key,
                pod.addresses
            );
        }
        Ok(cluster)
    }

    /// Applies the example's policies.
    ///
    /// # Errors
    /// Returns an error if they cannot be read.
    pub fn apply(&self, cluster: &Cluster) -> Result<()> {
        cluster.apply("example", &fs::read_to_string(self.directory.join("policies.yaml"))?)
    }

    /// Returns the names of the hosts in the table: pods, then external hosts.
    fn hosts(&self) -> Vec<String> {
        self.pods.iter().map(|pod| pod.key.to_string()).chain(self.readme.external_hosts.iter().cloned()).collect()
    }

    /// Returns all cells (connections) that the table in the example's README must have. There is no cell from a host
    /// to itself, or between external hosts.
    pub fn cells(&self) -> Vec<Cell> {
        let is_external = |host: &String| self.readme.external_hosts.contains(host);
        let hosts = self.hosts();
        let mut cells = Vec::new();
        for from in &hosts {
            for to in hosts.iter().filter(|to| *to != from && !(is_external(from) && is_external(to))) {
                for &(protocol, port) in self.ports() {
                    cells.push(Cell { from: from.clone(), to: to.clone(), protocol, port });
                }
            }
        }
        cells
    }

    /// Returns the table in the example's README.
    ///
    /// # Errors
    /// Returns an error if the table has missing or additional cells.
    pub fn documented_matrix(&self) -> Result<Matrix> {
        let documented = self.readme.table().context("the table in README.md")?;
        let cells = self.cells();
        for cell in &cells {
            ensure!(documented.0.contains_key(cell), "the table in README.md has no cell for {cell}");
        }
        ensure!(
            documented.0.len() == cells.len(),
            "the table in README.md has additional cells: {:?}",
            documented.0.keys().filter(|cell| !cells.contains(cell)).collect::<Vec<_>>()
        );
        Ok(documented)
    }

    /// Replaces the table in the README by this matrix. A person must review the result.
    ///
    /// # Errors
    /// Returns an error if it cannot be written.
    pub fn update_table(&mut self, matrix: &Matrix) -> Result<()> {
        self.readme.set_table(&self.hosts(), matrix);
        fs::write(self.directory.join("README.md"), self.readme.text()).context("writing README.md")
    }
}
