//! `examples/`: clusters, policies and the table each promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use netpol_policy::manifest;
use netpol_policy::model::{Labels, Object, Pod, Protocol};
use serde_json::{Value, json};

use crate::cluster::{Cluster, PodSpec};
use crate::matrix::{Cell, Matrix};

/// One directory of `examples/`.
#[derive(Debug)]
pub struct Example {
    directory: PathBuf,
    pods: Vec<Pod>,
    namespaces: Vec<(String, String)>,
    ports: Vec<(Protocol, u16)>,
    outside: Vec<String>,
    allowed: BTreeSet<Cell>,
}

/// All of them, by name.
///
/// # Errors
/// Names the file that is not as it should be.
pub fn all() -> Result<Vec<Example>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
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

/// `80/TCP`.
///
/// # Errors
/// Where it is not of that form.
pub fn parse_port(text: &str) -> Result<(Protocol, u16)> {
    let (number, name) = text.split_once('/').with_context(|| format!("{text:?} is not PORT/PROTOCOL"))?;
    let protocol = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
    Ok((protocol.with_context(|| format!("unknown protocol in {text:?}"))?, number.parse()?))
}

fn port_text((protocol, port): (Protocol, u16)) -> String {
    format!("{port}/{}", protocol.name())
}

fn labels_text(labels: &Labels) -> String {
    let own = labels.iter().filter(|(key, _)| &***key != "kubernetes.io/metadata.name");
    own.map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn strings(value: &Value, what: &str) -> Result<Vec<String>> {
    let list = value.as_array().with_context(|| format!("{what} is not a list"))?;
    list.iter()
        .map(|item| item.as_str().map(str::to_owned).with_context(|| format!("{what} is no list of words")))
        .collect()
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
                    Object::Node(_) | Object::Policy(_) => {}
                }
            }
        }
        let text = fs::read_to_string(directory.join("expected.json")).context("reading expected.json")?;
        let expected: Value = serde_json::from_str(&text).context("reading expected.json")?;
        let ports = strings(&expected["ports"], "ports")?.iter().map(|text| parse_port(text)).collect::<Result<_>>()?;
        let mut allowed = BTreeSet::new();
        for (from, row) in expected["allowed"].as_object().context("allowed is not an object")? {
            for (to, ports) in row.as_object().context("a row of allowed is not an object")? {
                for text in strings(ports, "a cell of allowed")? {
                    let (protocol, port) = parse_port(&text)?;
                    allowed.insert(Cell { from: from.clone(), to: to.clone(), protocol, port });
                }
            }
        }
        let outside = strings(&expected["outside"], "outside")?;
        Ok(Self { directory: directory.to_owned(), pods, namespaces, ports, outside, allowed })
    }

    /// The directory's name.
    pub fn name(&self) -> String {
        self.directory.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A cluster with these pods, at the addresses their manifests have. Without policies yet.
    ///
    /// # Errors
    /// Where it cannot be made, or an address comes out another.
    pub fn cluster(&self) -> Result<Cluster> {
        let mut builder = Cluster::builder().serve(&self.ports);
        for (name, labels) in &self.namespaces {
            builder = builder.namespace(name, labels);
        }
        for address in &self.outside {
            builder = builder.outside(address);
        }
        for pod in &self.pods {
            let Some(IpAddr::V4(address)) = pod.addresses.first() else { bail!("{} has no IPv4 address", pod.key) };
            let mut spec =
                PodSpec::new(&pod.key.to_string()).number(address.octets()[3]).labels(&labels_text(&pod.labels));
            for port in &pod.ports {
                spec = spec.port(&port.name, port.protocol, port.port);
            }
            builder = builder.pod(spec);
        }
        let cluster = builder.build()?;
        for pod in &self.pods {
            let live = cluster.host(&pod.key.to_string()).addresses();
            ensure!(
                live == pod.addresses,
                "{} is at {live:?} live, and at {:?} in the manifest",
                pod.key,
                pod.addresses
            );
        }
        Ok(cluster)
    }

    /// Applies the example's policies, as they are written.
    ///
    /// # Errors
    /// Where they cannot be read.
    pub fn apply(&self, cluster: &Cluster) -> Result<()> {
        cluster.apply("example", &fs::read_to_string(self.directory.join("policies.yaml"))?)
    }

    fn ends(&self) -> (Vec<String>, Vec<String>) {
        let froms: Vec<_> =
            self.pods.iter().map(|pod| pod.key.to_string()).chain(self.outside.iter().cloned()).collect();
        (froms.clone(), froms)
    }

    /// All questions its table answers.
    pub fn questions(&self) -> Vec<Cell> {
        let (froms, tos) = self.ends();
        let mut cells = Vec::new();
        for from in &froms {
            for to in &tos {
                if from == to || self.outside.contains(from) && self.outside.contains(to) {
                    continue;
                }
                for &(protocol, port) in &self.ports {
                    cells.push(Cell { from: from.clone(), to: to.clone(), protocol, port });
                }
            }
        }
        cells
    }

    /// The table it promises.
    ///
    /// # Errors
    /// Where it promises something about ends or ports that are none of the example's.
    pub fn expected(&self) -> Result<Matrix> {
        let questions = self.questions();
        for cell in &self.allowed {
            ensure!(questions.contains(cell), "{}: expected.json allows {cell}, which is no question", self.name());
        }
        Ok(Matrix(questions.into_iter().map(|cell| (cell.clone(), self.allowed.contains(&cell))).collect()))
    }

    /// The table as its README shows it.
    pub fn table(&self) -> String {
        let (froms, tos) = self.ends();
        let mut text = format!("| from ↓ to → | {} |\n|---|{}\n", tos.join(" | "), "---|".repeat(tos.len()));
        for from in &froms {
            let _ = write!(text, "| {from} |");
            for to in &tos {
                let ports: Vec<_> = self
                    .ports
                    .iter()
                    .filter(|(protocol, port)| {
                        self.allowed.contains(&Cell {
                            from: from.clone(),
                            to: to.clone(),
                            protocol: *protocol,
                            port: *port,
                        })
                    })
                    .map(|port| port_text(*port))
                    .collect();
                let asked = from != to && !(self.outside.contains(from) && self.outside.contains(to));
                let cell = if !asked {
                    "·".to_owned()
                } else if ports.is_empty() {
                    "–".to_owned()
                } else if ports.len() == self.ports.len() {
                    "all".to_owned()
                } else {
                    ports.join(", ")
                };
                let _ = write!(text, " {cell} |");
            }
            text.push('\n');
        }
        text
    }

    /// The README.
    ///
    /// # Errors
    /// Where there is none.
    pub fn readme(&self) -> Result<String> {
        fs::read_to_string(self.directory.join("README.md"))
            .with_context(|| format!("{} has no README.md", self.name()))
    }

    /// Rewrites `expected.json` and the README's table after a matrix that somebody has looked at.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn bless(&mut self, matrix: &Matrix) -> Result<()> {
        let passing = || matrix.0.iter().filter(|(_, passes)| **passes).map(|(cell, _)| cell);
        self.allowed = passing().cloned().collect();
        let mut allowed: BTreeMap<&str, BTreeMap<&str, Vec<String>>> = BTreeMap::new();
        for cell in passing() {
            let row = allowed.entry(&cell.from).or_default();
            row.entry(&cell.to).or_default().push(port_text((cell.protocol, cell.port)));
        }
        let ports: Vec<_> = self.ports.iter().map(|port| port_text(*port)).collect();
        let expected = json!({ "ports": ports, "outside": self.outside, "allowed": allowed });
        fs::write(self.directory.join("expected.json"), format!("{expected:#}\n"))?;
        let readme = self.readme()?;
        let (before, rest) = readme.split_once("<!-- table -->").context("README.md has no <!-- table -->")?;
        let (_, after) = rest.split_once("<!-- /table -->").context("README.md has no <!-- /table -->")?;
        let table = self.table();
        fs::write(self.directory.join("README.md"), format!("{before}<!-- table -->\n{table}<!-- /table -->{after}"))?;
        Ok(())
    }
}
