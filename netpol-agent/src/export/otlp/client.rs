//! A client with one connection to an OpenTelemetry collector. The connection is kept between requests.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::Endpoint;

/// Time limit for looking up the name of the collector and connecting to it.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Time limit for a request and its response.
const RESPONSE_TIME: Duration = Duration::from_secs(10);
/// Maximum size of a response.
const MAX_RESPONSE: usize = 64 << 10;
/// Maximum number of bytes of a response that are logged.
const MAX_LOGGED: usize = 300;

/// The result of a request to a collector.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// The collector accepted the request, except for `rejected` records.
    Accepted { rejected: usize, message: String },
    /// The collector rejected the request. It would reject the same request again.
    Rejected(String),
    /// The request failed, or the collector cannot accept it now. `after` is the pause that the collector requests.
    Retry { after: Option<Duration>, error: String },
}

/// A client of one collector.
#[derive(Debug)]
pub(super) struct Client {
    /// The URL of the collector.
    endpoint: Endpoint,
    /// The connection of the last request; `None` if the next request must connect.
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl Client {
    /// Creates a client. The first request connects.
    pub(super) fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, connection: None }
    }

    /// Sends an `ExportLogsServiceRequest`.
    pub(super) async fn send(&mut self, body: Bytes) -> Response {
        match self.exchange(body).await {
            Ok(response) => response,
            Err(error) => {
                self.connection = None;
                Response::Retry { after: None, error }
            }
        }
    }

    async fn exchange(&mut self, body: Bytes) -> Result<Response, String> {
        let mut connection = match self.idle_connection().await {
            Some(connection) => connection,
            None => timeout(CONNECT_TIME, self.connect()).await.map_err(|_| "connecting took too long")??,
        };
        let request = Request::builder()
            .method(Method::POST)
            .uri(&self.endpoint.path)
            .header(header::HOST, self.endpoint.authority())
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::USER_AGENT, concat!("netpol-agent/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(body))
            .map_err(|error| error.to_string())?;
        let response = timeout(RESPONSE_TIME, async {
            let response = connection.send_request(request).await.map_err(|error| error.to_string())?;
            read(response).await
        });
        let response = response.await.map_err(|_| "no response in time")??;
        self.connection = Some(connection);
        Ok(response)
    }

    /// Returns the connection of the last request, unless the collector has closed it.
    async fn idle_connection(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut connection = self.connection.take()?;
        connection.ready().await.is_ok().then_some(connection)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let Endpoint { host, port, .. } = &self.endpoint;
        let stream = TcpStream::connect((&**host, *port)).await.map_err(|error| error.to_string())?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        // This task ends with the connection. Its errors can be ignored, because requests return them, too.
        tokio::spawn(async move { drop(connection.await) });
        Ok(sender)
    }
}

/// Reads a response. Requests are retried only for four status codes, as the OTLP specification requires.
async fn read(response: hyper::Response<Incoming>) -> Result<Response, String> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_RESPONSE).collect().await.map_err(|error| error.to_string())?.to_bytes();
    let error = || format!("{}: {}", head.status, start_of(&body));
    Ok(match head.status {
        StatusCode::OK => accepted(&body),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let after = head.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            // The header can also contain a date. Collectors do not send dates, so a date is ignored.
            let after = after.and_then(|seconds| seconds.trim().parse().ok()).map(Duration::from_secs);
            Response::Retry { after, error: error() }
        }
        _ => Response::Rejected(error()),
    })
}

/// `ExportLogsServiceResponse`: <https://github.com/open-telemetry/opentelemetry-proto>, `collector/logs/v1`.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ExportLogsServiceResponse {
    partial_success: ExportLogsPartialSuccess,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ExportLogsPartialSuccess {
    /// An `int64`, which is written as a string in JSON. Readers must accept a number, too.
    rejected_log_records: serde_json::Value,
    error_message: String,
}

/// Reads the body of a response with status 200. If the body is not valid, all records count as accepted, because the
/// status decides.
fn accepted(body: &[u8]) -> Response {
    let response: ExportLogsServiceResponse = serde_json::from_slice(body).unwrap_or_default();
    let ExportLogsPartialSuccess { rejected_log_records, error_message } = response.partial_success;
    let rejected = match &rejected_log_records {
        serde_json::Value::String(text) => text.parse().ok(),
        value => value.as_u64().and_then(|number| usize::try_from(number).ok()),
    };
    Response::Accepted { rejected: rejected.unwrap_or_default(), message: error_message }
}

fn start_of(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(MAX_LOGGED)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partial_success_is_read_from_strings_and_numbers() {
        for (body, rejected, message) in [
            ("{}", 0, ""),
            ("", 0, ""),
            (r#"{"partialSuccess":{}}"#, 0, ""),
            (r#"{"partialSuccess":{"rejectedLogRecords":"2","errorMessage":"too old"}}"#, 2, "too old"),
            (r#"{"partialSuccess":{"rejectedLogRecords":3}}"#, 3, ""),
        ] {
            let message = message.to_owned();
            assert_eq!(accepted(body.as_bytes()), Response::Accepted { rejected, message }, "{body}");
        }
    }
}
