//! A fake API server on the agent's node, which serves the cluster's manifests.

use std::env::{self, VarError};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, bail};
use netpol_apiserver::{ApiServer, Mirror, Options, Rules};

use crate::cleanup::{PathGuard, temporary_root, unique};
use crate::netns::Netns;

/// Environment variable that selects the source of agents if a test does not select it. With `dir`, agents read the
/// manifests. With `kube`, they watch a fake API server that serves the same objects.
pub const SOURCE: &str = "NETPOL_TEST_SOURCE";

/// The manifest of the role that users install. If the role does not allow enough, tests with the fake API server fail.
const ROLE: &str = include_str!("../../../deploy/base/rbac.yaml");

/// Returns options for a server on which the agent has only the permissions of its `ClusterRole` in `deploy/`.
///
/// # Errors
/// Returns an error if the role is missing or invalid.
pub fn options_with_deployed_role() -> Result<Options> {
    let rules = Rules::from_yaml(ROLE).context("parsing deploy/base/rbac.yaml")?;
    Ok(Options { rules, ..Options::default() })
}

/// Returns the options of the fake API server if [`SOURCE`] selects `kube`; `None` if agents read the manifests.
pub(super) fn options_from_environment() -> Result<Option<Options>> {
    match env::var(SOURCE).as_deref() {
        Err(VarError::NotPresent) | Ok("dir") => Ok(None),
        Ok("kube") => options_with_deployed_role().map(Some),
        other => bail!("{SOURCE} is {other:?}: set it to dir or kube"),
    }
}

/// The server, and the mirror that copies the manifests to it. They exist as long as the [`super::Agent`], also while
/// its process restarts.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) server: ApiServer,
    mirror: Mirror,
    kubeconfig: String,
    credentials: PathGuard,
}

impl Upstream {
    /// Starts a server in a network namespace, on a port that the kernel selects.
    pub(super) fn start(netns: &Netns, manifests: &Path, options: Options) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind(("127.0.0.1", 0)).context("listening for the fake API server"))?;
        let server = ApiServer::start(listener, options)?;
        let mirror = server.mirror(manifests)?;
        let credentials = PathGuard::new(temporary_root().join(unique("credentials")));
        let kubeconfig = server.write_credentials(credentials.path()).context("writing the agent's credentials")?;
        Ok(Self { server, mirror, kubeconfig: kubeconfig.display().to_string(), credentials })
    }

    /// Returns the value of `--source`.
    pub(super) fn source(&self) -> String {
        format!("kube:{}", self.kubeconfig)
    }

    /// Returns the directory with the files of the agent's service account.
    pub(super) fn credentials(&self) -> &Path {
        self.credentials.path()
    }

    /// Updates the server from the manifests now.
    pub(super) fn sync(&self) -> Result<()> {
        let diagnostics = self.mirror.sync()?;
        if diagnostics.is_empty() {
            Ok(())
        } else {
            bail!("an API server would reject these objects: {}", diagnostics.join("\n"))
        }
    }
}
