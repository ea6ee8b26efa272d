//! Creates the client of the API server. The client renews credentials that expire, and its connections detect a dead
//! server.

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

use netpol_policy::text::error_chain;

/// Timeout for a new TCP connection, including its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of HTTP/2 pings, also on idle connections. `client-go` uses 30 seconds (`ReadIdleTimeout`). Source:
/// `k8s.io/apimachinery/pkg/util/net/http.go`.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time after which a connection without a reply to a ping is dead. It is the same as `PingTimeout` of `client-go`, in
/// the same file.
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle time after which the kernel sends the first keepalive probe on a TCP connection.
const PROBE_AFTER: Duration = Duration::from_secs(10);
/// Interval of further keepalive probes.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// A TCP connection is dead if a keepalive probe or data is not acknowledged within this time.
const DEAD_AFTER: Duration = Duration::from_secs(30);

/// Reads the credentials and creates a client for the current Tokio runtime. Does not connect yet.
///
/// # Errors
/// If the credentials cannot be read, or use an unsupported feature.
pub(crate) fn client(kubeconfig: Option<&Path>) -> Result<Client, String> {
    // An error means that another crypto provider is already installed. Then that provider is used.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = config(kubeconfig)?;
    if let Some(proxy) = &config.proxy_url {
        return Err(format!(
            "the kubeconfig sets a proxy for the API server, {proxy}, which is not supported; remove it"
        ));
    }
    let agent = HeaderValue::from_static(concat!("netpol-agent/", env!("CARGO_PKG_VERSION")));
    config.headers.push((USER_AGENT, agent));
    assemble(&config).map_err(|error| error_chain(&error))
}

/// Reads the given kubeconfig. Without one, uses the service account of the pod, or outside of a cluster the default
/// kubeconfig.
fn config(kubeconfig: Option<&Path>) -> Result<Config, String> {
    let from_file = |kubeconfig: Kubeconfig| Config::try_from(kubeconfig).map_err(|error| error_chain(&error));
    match kubeconfig {
        Some(path) => from_file(Kubeconfig::read_from(path).map_err(|error| error_chain(&error))?),
        None if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() => {
            Config::incluster().map_err(|error| error_chain(&error))
        }
        None => from_file(Kubeconfig::read().map_err(|error| error_chain(&error))?),
    }
}

/// Does the same as `ClientBuilder::try_from`, but with the TCP and HTTP/2 options above, and without retries: after
/// each failure, the watcher decides whether to continue the watch or to list again.
fn assemble(config: &Config) -> kube::Result<Client> {
    let mut connector = HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into();
        let name = name.map_err(|error| kube::Error::RustlsTls(RustlsTlsError::InvalidServerName(error)))?;
        connector = connector.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    // ALPN selects HTTP/2, which every API server supports. HTTP/2 pings distinguish an idle watch from a dead one.
    // kube's own connector only has HTTP/1.1.
    let connector = connector.enable_all_versions().wrap_connector(tcp_connector());
    // No read timeout: watches are idle as long as nothing changes.
    let mut connector = TimeoutConnector::new(connector);
    connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
    let mut http = Http::builder(TokioExecutor::new());
    http.timer(TokioTimer::new());
    http.http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http.build::<_, Body>(connector));
    Ok(ClientBuilder::new(service, &config.default_namespace).build())
}

/// Creates a TCP connector with keepalive. A machine that has failed sends nothing, not even a RST. The kernel's probes
/// detect this, also over HTTP/1.1, which has no pings.
fn tcp_connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    // Also accepts URIs with `https`: the TLS connector wraps this connector.
    connector.enforce_http(false);
    connector.set_keepalive(Some(PROBE_AFTER));
    connector.set_keepalive_interval(Some(PROBE_INTERVAL));
    // Unacknowledged data suspends keepalive probes. This timeout applies to probes and to data.
    connector.set_tcp_user_timeout(Some(DEAD_AFTER));
    connector
}
