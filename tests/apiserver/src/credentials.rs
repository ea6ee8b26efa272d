//! Credentials with which clients authenticate to the fake API server.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Bearer tokens, and the directories to which the newest token is written.
#[derive(Debug)]
pub(crate) struct Credentials {
    /// Valid tokens, newest last.
    valid: Vec<String>,
    /// Number of tokens issued, including those that are no longer valid.
    issued: usize,
    ca_certificate: String,
    /// The URL of the API server.
    url: String,
    directories: Vec<PathBuf>,
}

impl Credentials {
    pub(crate) fn new(ca_certificate: String, address: SocketAddr) -> Self {
        let url = format!("https://{address}");
        let mut credentials = Self { valid: Vec::new(), issued: 0, ca_certificate, url, directories: Vec::new() };
        credentials.issue();
        credentials
    }

    fn issue(&mut self) {
        self.issued += 1;
        self.valid.push(format!("token-{}-of-a-test", self.issued));
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the newest token.
    pub(crate) fn newest(&self) -> &str {
        self.valid.last().map_or("", String::as_str)
    }

    pub(crate) fn accepts(&self, token: &str) -> bool {
        self.valid.iter().any(|valid| valid == token)
    }

    /// Writes the files of a mounted service account (`ca.crt`, `namespace`, `token`) and a `kubeconfig` to a
    /// directory. Returns the path of the kubeconfig.
    pub(crate) fn write(&mut self, directory: &Path) -> io::Result<PathBuf> {
        fs::create_dir_all(directory)?;
        let directory = directory.canonicalize()?;
        replace(&directory.join("ca.crt"), &self.ca_certificate)?;
        replace(&directory.join("namespace"), "kube-system")?;
        replace(&directory.join("token"), self.newest())?;
        let kubeconfig = directory.join("kubeconfig");
        let (ca, token) = (directory.join("ca.crt"), directory.join("token"));
        // JSON is valid YAML, and quotes any path correctly.
        let text = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "certificate-authority": ca}}],
            "users": [{"name": "agent", "user": {"tokenFile": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "agent", "namespace": "kube-system"}}],
        });
        replace(&kubeconfig, &text.to_string())?;
        if !self.directories.contains(&directory) {
            self.directories.push(directory);
        }
        Ok(kubeconfig)
    }

    /// Issues a new token and writes it to all directories. The old tokens stay valid.
    pub(crate) fn rotate(&mut self) -> io::Result<()> {
        self.issue();
        self.directories.iter().try_for_each(|directory| replace(&directory.join("token"), self.newest()))
    }

    /// Makes all tokens invalid except the newest.
    pub(crate) fn expire_old(&mut self) {
        self.valid.drain(..self.valid.len() - 1);
    }
}

/// Replaces a file atomically. The kubelet also replaces mounted tokens atomically.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, text)?;
    fs::rename(&partial, path)
}
