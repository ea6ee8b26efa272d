//! Creates a client of the API server, with the user's kubeconfig, or with the service account of the pod in which
//! `netpol` runs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use netpol_api::format_duration;
use netpol_policy::text::error_chain;
use tokio::time::timeout;

use crate::args::KubeOptions;
use crate::shell::quoted;

/// A client of the API server.
#[derive(Clone)]
pub(crate) struct Kube {
    pub(crate) client: kube::Client,
    /// The namespace of the kubeconfig's context, or of the pod in which `netpol` runs.
    pub(crate) namespace: String,
    /// The options that select this cluster, such as `--context staging `. Messages use them in suggested commands of
    /// kubectl and netpol. Values are quoted for a shell. A space follows each value, because the command continues
    /// after the options. Empty in a pod without a kubeconfig.
    pub(crate) kubectl_options: String,
}

impl Kube {
    /// Creates a client, without connecting. `alternative`: the end of the error message if there is no kubeconfig.
    pub(crate) async fn open(options: &KubeOptions, alternative: &str) -> Result<Self> {
        let (mut config, context) = config(options, alternative).await?;
        // A failed request is reported at once. By default, the client would repeat it for minutes.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = kube::Client::try_from(config)
            .map_err(|error| anyhow!("cannot use the kubeconfig: {}", error_chain(&error)))?;
        let mut kubectl_options = String::new();
        for (name, value) in [
            ("--kubeconfig", options.kubeconfig.as_ref().map(|path| path.display().to_string())),
            ("--context", context),
        ] {
            if let Some(value) = value {
                kubectl_options.extend([name, " ", &quoted(&value), " "]);
            }
        }
        Ok(Self { client, namespace, kubectl_options })
    }
}

/// Returns whether an option or the environment selects a kubeconfig, or the home directory contains one.
pub(super) fn has_kubeconfig(options: &KubeOptions) -> bool {
    let home_has_one = || std::env::home_dir().is_some_and(|home| home.join(".kube/config").exists());
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    options.kubeconfig.is_some() || options.context.is_some() || is_set("KUBECONFIG") || home_has_one()
}

/// Returns the configuration, and the name of the context in use. Without a kubeconfig, uses the service account of the
/// pod. `alternative`: see [`Kube::open`].
async fn config(options: &KubeOptions, alternative: &str) -> Result<(Config, Option<String>)> {
    if !has_kubeconfig(options) {
        return Config::incluster()
            .map(|config| (config, None))
            .map_err(|_| anyhow!("no kubeconfig found; set --kubeconfig or $KUBECONFIG{alternative}"));
    }
    let read = |path: Option<&Path>| path.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    let path = options.kubeconfig.as_deref();
    let kubeconfig = read(path).map_err(|error| anyhow!("cannot read the kubeconfig: {}", error_chain(&error)))?;
    let context = options.context.clone().or_else(|| kubeconfig.current_context.clone());
    let selected = KubeConfigOptions { context: options.context.clone(), ..KubeConfigOptions::default() };
    let config = Config::from_custom_kubeconfig(kubeconfig, &selected).await;
    let config = config.map_err(|error| anyhow!("{}", error_chain(&error))).context("cannot use the kubeconfig")?;
    Ok((config, context))
}

/// Waits for a response of the API server, up to a time limit. The error is a message. `hint`: the end of the message
/// if the request is forbidden.
pub(crate) async fn within<T>(
    limit: Duration,
    hint: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, String> {
    match timeout(limit, request).await {
        Ok(response) => response.map_err(|error| explain_with_hint(&error, hint)),
        Err(_) => Err(format!(
            "the API server did not respond within {}; check the kubeconfig and the network",
            format_duration(limit)
        )),
    }
}

/// Returns why a request to the API server failed, for a message. `hint`: the end of the message if the request is
/// forbidden.
pub(super) fn explain_with_hint(error: &kube::Error, hint: &str) -> String {
    let is_forbidden = matches!(error, kube::Error::Api(status) if status.code == 403);
    explain_error(error) + if is_forbidden { hint } else { "" }
}

/// Returns why a request to the API server failed, for a message.
pub(crate) fn explain_error(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) if !status.message.is_empty() => status.message.clone(),
        kube::Error::Api(status) => format!("the API server returned status {}", status.code),
        error => error_chain(error),
    }
}
