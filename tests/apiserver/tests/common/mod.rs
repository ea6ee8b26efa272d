//! Starts a server, and creates clients of the server.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::net::TcpListener;

use anyhow::Result;
use kube::config::{KubeConfigOptions, Kubeconfig};
use netpol_apiserver::{ApiServer, Options};
use serde_json::{Value, json};
use tempfile::TempDir;

pub(crate) fn start(options: Options) -> Result<(ApiServer, TempDir)> {
    let server = ApiServer::start(TcpListener::bind("127.0.0.1:0")?, options)?;
    Ok((server, tempfile::tempdir()?))
}

/// Creates a client from the kubeconfig that the server writes.
pub(crate) async fn client(server: &ApiServer, directory: &TempDir) -> Result<kube::Client> {
    let kubeconfig = Kubeconfig::read_from(server.write_credentials(directory.path())?)?;
    client_of(kubeconfig).await
}

/// Creates a client without retries: by default, kube repeats requests with status 429, 503 or 504 for minutes.
pub(crate) async fn client_of(kubeconfig: Kubeconfig) -> Result<kube::Client> {
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(kube::Client::try_from(config)?)
}

pub(crate) fn pod(namespace: &str, name: &str, labels: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": labels},
        "spec": {"nodeName": "node-1", "containers": [{"name": "main", "image": "example/image"}]},
    })
}
