//! Sends one request to the agent, by HTTP/1.1 on its Unix socket.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use netpol_api::ErrorResponse;

/// Maximum size of a response in bytes.
const MAX_RESPONSE: u64 = 64 << 10;

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestError {
    /// No agent responded.
    Unavailable(String),
    /// The agent refused the request.
    Refused(String),
}

impl fmt::Display for RequestError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unavailable(reason) => write!(formatter, "no agent responds: {reason}"),
            Self::Refused(reason) => formatter.write_str(reason),
        }
    }
}

/// Sends a POST request and returns the body of the response.
///
/// # Errors
/// If the agent does not respond within `limit`, or the status of its response is not 200.
pub(crate) fn post(socket: &Path, path: &str, body: &str, limit: Duration) -> Result<String, RequestError> {
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: netpol\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    let unavailable = |reason: String| RequestError::Unavailable(format!("{}: {reason}", socket.display()));
    // The request is sent on a thread, because connecting to a Unix socket blocks without limit while the queue of the
    // socket is full, for example after SIGSTOP to the agent. The thread ends with the process.
    let (sender, response) = mpsc::channel();
    let path = socket.to_owned();
    let send_request = move || drop(sender.send(exchange(&path, &request)));
    thread::Builder::new().spawn(send_request).map_err(|error| unavailable(error.to_string()))?;
    let response = response.recv_timeout(limit).map_err(|_| unavailable(format!("no response within {limit:.1?}")))?;
    parse(&response.map_err(|error| unavailable(error.to_string()))?)
        .unwrap_or_else(|| Err(unavailable("the response is not valid HTTP".to_owned())))
}

fn exchange(socket: &Path, request: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(request.as_bytes())?;
    let mut response = Vec::new();
    stream.take(MAX_RESPONSE).read_to_end(&mut response)?;
    Ok(response)
}

/// Returns the body of a response with status 200. If the response has another status, returns its error. `None`: the
/// response is incomplete or not valid HTTP.
fn parse(response: &[u8]) -> Option<Result<String, RequestError>> {
    let response = std::str::from_utf8(response).ok()?;
    let (head, body) = response.split_once("\r\n\r\n")?;
    let (version, status) = head.lines().next()?.split_once(' ')?;
    if !version.starts_with("HTTP/1.") {
        return None;
    }
    if status.starts_with("200") {
        return Some(Ok(body.to_owned()));
    }
    let refusal =
        serde_json::from_str(body).map_or_else(|_| format!("status {status}"), |ErrorResponse { error }| error);
    Some(Err(RequestError::Refused(refusal)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// Sends a request to a server that sends this response, and returns the result.
    fn result_of(response: &'static str) -> Result<String, RequestError> {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap();
            stream.write_all(response.as_bytes()).unwrap();
            String::from_utf8_lossy(&request[..count]).into_owned()
        });
        let result = post(&socket, "/v1/pods/stop", "{\"a\":1}", LIMIT);
        let request = server.join().unwrap();
        assert!(request.starts_with("POST /v1/pods/stop HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("\r\nContent-Length: 7\r\n") && request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
        result
    }

    #[test]
    fn post_returns_the_body_or_the_agents_error() {
        assert_eq!(result_of("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnull"), Ok("null".to_owned()));
        let refused = |reason: &str| Err(RequestError::Refused(reason.to_owned()));
        assert_eq!(result_of("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"not yet\"}"), refused("not yet"));
        assert_eq!(result_of("HTTP/1.1 404 Not Found\r\n\r\nno"), refused("status 404 Not Found"));
    }

    #[test]
    fn without_a_valid_response_the_agent_is_unavailable() {
        for response in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0-x\r\n\r\n", "\r\n\r\n"] {
            assert!(matches!(result_of(response), Err(RequestError::Unavailable(_))), "{response:?}");
        }
    }

    #[test]
    fn without_a_socket_or_with_a_stale_one_the_agent_is_unavailable() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let result = || post(&socket, "/", "", LIMIT);
        assert!(matches!(result(), Err(RequestError::Unavailable(_))), "no socket");
        // The file of the socket stays when the listener is closed.
        drop(UnixListener::bind(&socket).unwrap());
        assert!(matches!(result(), Err(RequestError::Unavailable(_))), "a stale socket");
    }

    #[test]
    fn an_agent_that_accepts_no_connections_is_unavailable_after_the_limit() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("agent.sock");
        let _listener = UnixListener::bind(&socket).unwrap();
        // The kernel queues up to `net.core.somaxconn` connections that no process accepts. Clients with a queued
        // connection get no response. If the queue is full, further clients block in `connect`.
        let clients: Vec<_> = (0..200)
            .map(|_| {
                let socket = socket.clone();
                thread::spawn(move || post(&socket, "/", "", Duration::from_millis(200)))
            })
            .collect();
        let start = Instant::now();
        for client in clients {
            assert!(matches!(client.join().unwrap(), Err(RequestError::Unavailable(_))));
        }
        assert!(start.elapsed() < LIMIT, "{:?}", start.elapsed());
    }
}
