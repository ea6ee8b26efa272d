//! An API server in the agent's node, which says what the cluster's manifests say.

use std::env::{self, VarError};
use std::net::TcpListener;
use std::path::Path;

use anyhow::{Context, Result, bail};
use netpol_apiserver::{ApiServer, Mirror, Options, Rules};

use crate::cleanup::{PathGuard, temporary_root, unique};
use crate::netns::Netns;

/// The environment variable that says where agents get their objects from when the test does not: `dir`, the manifests
/// themselves, or `kube`, an API server that says the same.
pub const SOURCE: &str = "NETPOL_TEST_SOURCE";

/// What users install: a test through it fails where the role does not allow enough.
const ROLE: &str = include_str!("../../../deploy/base/rbac.yaml");

/// A server whose user may do what the agent's `ClusterRole` in `deploy/` allows, and nothing else.
///
/// # Errors
/// Where there is no such role.
pub fn as_deployed() -> Result<Options> {
    let rules = Rules::of_cluster_role(ROLE).context("reading deploy/base/rbac.yaml")?;
    Ok(Options { rules, ..Options::default() })
}

/// What [`SOURCE`] asks for.
pub(super) fn asked() -> Result<Option<Options>> {
    match env::var(SOURCE).as_deref() {
        Err(VarError::NotPresent) | Ok("dir") => Ok(None),
        Ok("kube") => as_deployed().map(Some),
        other => bail!("{SOURCE} is {other:?}; it may be dir or kube"),
    }
}

/// It lives as long as the [`super::Agent`], over restarts of its process.
#[derive(Debug)]
pub(super) struct Upstream {
    pub(super) server: ApiServer,
    mirror: Mirror,
    kubeconfig: String,
    credentials: PathGuard,
}

impl Upstream {
    /// One that listens in a namespace, on a port of the kernel's choice.
    pub(super) fn start(netns: &Netns, manifests: &Path, options: Options) -> Result<Self> {
        let listener =
            netns.run(|| TcpListener::bind(("127.0.0.1", 0)).context("listening for the API server double"))?;
        let server = ApiServer::start(listener, options)?;
        let mirror = server.mirror(manifests)?;
        let credentials = PathGuard::new(temporary_root().join(unique("credentials")));
        let kubeconfig = server.write_credentials(credentials.path()).context("writing the agent's credentials")?;
        Ok(Self { server, mirror, kubeconfig: kubeconfig.display().to_string(), credentials })
    }

    /// As `--source` takes it.
    pub(super) fn source(&self) -> String {
        format!("kube:{}", self.kubeconfig)
    }

    /// A directory as a pod has it of its service account.
    pub(super) fn credentials(&self) -> &Path {
        self.credentials.path()
    }

    /// Lets the server say what the manifests say by now.
    pub(super) fn sync(&self) -> Result<()> {
        let problems = self.mirror.sync()?;
        if problems.is_empty() { Ok(()) } else { bail!("no server would have taken these: {}", problems.join("\n")) }
    }
}
