//! A client of the API server, with the user's kubeconfig.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use netpol_policy::text::error_chain;

use crate::args::KubeOptions;

/// A client, and the namespace of its context.
#[derive(Clone)]
pub(crate) struct Kube {
    pub(crate) client: kube::Client,
    /// The namespace of the context.
    pub(crate) namespace: String,
    /// The options of kubectl with which it uses the same cluster: `--context staging `, or nothing.
    pub(crate) kubectl_options: String,
}

impl Kube {
    /// Creates a client, without connecting.
    pub(crate) async fn open(options: &KubeOptions) -> Result<Self> {
        let mut config = config(options).await?;
        // A request that fails is reported at once, instead of being repeated for minutes.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = kube::Client::try_from(config)
            .map_err(|error| anyhow!("cannot use the kubeconfig: {}", error_chain(&error)))?;
        let mut kubectl_options = String::new();
        for (name, value) in [
            ("--kubeconfig", options.kubeconfig.as_ref().map(|path| path.display().to_string())),
            ("--context", options.context.clone()),
        ] {
            if let Some(value) = value {
                kubectl_options.extend([name, " ", &value, " "]);
            }
        }
        Ok(Self { client, namespace, kubectl_options })
    }
}

/// Returns whether the options, the environment or the home directory name a kubeconfig.
pub(super) fn has_kubeconfig(options: &KubeOptions) -> bool {
    let default = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    options.kubeconfig.is_some() || options.context.is_some() || is_set("KUBECONFIG") || default()
}

async fn config(options: &KubeOptions) -> Result<Config> {
    if !has_kubeconfig(options) {
        return Config::incluster()
            .map_err(|_| anyhow!("no kubeconfig found; set --kubeconfig or $KUBECONFIG, or use --socket on a node"));
    }
    let read = |path: Option<&Path>| path.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let path = options.kubeconfig.as_deref();
    let kubeconfig = read(path).map_err(|error| anyhow!("cannot read the kubeconfig: {}", error_chain(&error)))?;
    let selected = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &selected).await;
    config.map_err(|error| anyhow!("{}", error_chain(&error))).context("cannot use the kubeconfig")
}

/// Returns why a request to the API server failed, for a message.
pub(crate) fn explain_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server returned status {}", status.code),
        error => error_chain(error),
    }
}
