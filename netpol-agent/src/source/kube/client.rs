//! The client: with the credentials there are now, on connections that notice when the other end is gone.

use std::path::Path;
use std::time::Duration;

use http::header::{HeaderValue, USER_AGENT};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt, RustlsTlsError};
use kube::config::{Config, Kubeconfig};
use tower::{BoxError, ServiceBuilder};

use crate::chain::chain;

/// A TCP connection and its TLS handshake take no longer.
const CONNECT: Duration = Duration::from_secs(10);
/// An HTTP/2 ping is sent this often, also where nothing else is,
const PING: Duration = Duration::from_secs(10);
/// and a connection whose server does not answer it within this time is dead: `client-go` takes 30 and 15 seconds.
/// Source: `ReadIdleTimeout` and `PingTimeout`, `k8s.io/apimachinery/pkg/util/net/http.go`.
const PONG: Duration = Duration::from_secs(15);
/// A TCP connection on which nothing comes is probed after this long,
const PROBE: Duration = Duration::from_secs(10);
/// and again after each of these,
const AGAIN: Duration = Duration::from_secs(5);
/// and is dead when nothing, probe or request, was acknowledged for so long.
const DEAD: Duration = Duration::from_secs(30);

/// Reads the credentials and makes a client of them, for the runtime it is called in. Connects to nobody yet.
///
/// # Errors
/// Where they cannot be read, or name what is not supported.
pub(in crate::source) fn client(kubeconfig: Option<&Path>) -> Result<Client, String> {
    // Fails where one is installed already: then that one is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = config(kubeconfig)?;
    if let Some(proxy) = &config.proxy_url {
        return Err(format!("the API server is to be reached through a proxy, {proxy}; that is not supported"));
    }
    let agent = HeaderValue::from_static(concat!("netpol-agent/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    assemble(&config).map_err(|error| chain(&error))
}

fn config(kubeconfig: Option<&Path>) -> Result<Config, String> {
    let from_file = |kubeconfig: Kubeconfig| Config::try_from(kubeconfig).map_err(|error| chain(&error));
    match kubeconfig {
        Some(path) => from_file(Kubeconfig::read_from(path).map_err(|error| chain(&error))?),
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster().map_err(|error| chain(&error))
        }
        None => from_file(Kubeconfig::read().map_err(|error| chain(&error))?),
    }
}

/// What `ClientBuilder::try_from` makes, less retries (failures are for the watcher to see: it knows when to go on and when
/// to start anew), and on our own TCP connections.
fn assemble(config: &Config) -> kube::Result<Client> {
    let mut connector = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into();
        let name = name.map_err(|error| kube::Error::RustlsTls(RustlsTlsError::InvalidServerName(error)))?;
        connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    // ALPN chooses HTTP/2, which every API server has: pings tell an idle watch from a dead one. kube's own connector has
    // HTTP/1.1 alone.
    let connector = connector.enable_all_versions().wrap_connector(tcp());
    // No time for reading: watches are idle for as long as nothing happens.
    let mut connector = TimeoutConnector::new(connector);
    connector.set_connect_timeout(Some(CONNECT));
    let mut http = Http::builder(TokioExecutor::new());
    http.timer(TokioTimer::new());
    http.http2_keep_alive_interval(PING).http2_keep_alive_timeout(PONG).http2_keep_alive_while_idle(true);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(connector));
    Ok(ClientBuilder::new(service, &config.default_namespace).build())
}

/// A server whose machine is gone says nothing, not even that: the kernel has to ask.
fn tcp() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_keepalive(Some(PROBE));
    connector.set_keepalive_interval(Some(AGAIN));
    // What is sent and not acknowledged stops probes; this counts both.
    connector.set_tcp_user_timeout(Some(DEAD));
    connector
}
