//! Runs Prometheus and promtool.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::cleanup::{register_process, unregister_process};
use crate::netns::Netns;

/// Environment variable with the directory of `prometheus` and `promtool`.
const OVERRIDE: &str = "NETPOL_PROMETHEUS";
/// Where the server listens, in its network namespace.
const ADDRESS: &str = "127.0.0.1:9090";
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Runs promtool in a directory, with text on its standard input. The caller checks the exit status.
///
/// # Errors
/// Returns an error if promtool cannot be started.
pub fn promtool<I: AsRef<std::ffi::OsStr>>(
    folder: &Path,
    arguments: impl IntoIterator<Item = I>,
    input: &str,
) -> Result<Output> {
    let program = program("promtool");
    let mut command = Command::new(&program);
    command.args(arguments).current_dir(folder);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| start_error(&program))?;
    child.stdin.take().context("no standard input")?.write_all(input.as_bytes())?;
    child.wait_with_output().context("waiting for promtool")
}

/// A running server. Dropping it kills the process.
#[derive(Debug)]
pub struct Prometheus {
    netns: Netns,
    child: Child,
}

impl Prometheus {
    /// Starts a server in a network namespace, with this configuration file. The server stores its data next to the
    /// file.
    ///
    /// # Errors
    /// Returns an error if the server cannot be started, or does not become ready.
    pub fn start(netns: &Netns, configuration: &Path) -> Result<Self> {
        let program = program("prometheus");
        let folder = configuration.parent().context("the configuration has no directory")?;
        let mut command = netns.command(&program);
        command.arg(format!("--config.file={}", configuration.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.args([&format!("--web.listen-address={ADDRESS}"), "--log.level=warn"]);
        let child = command.stdin(Stdio::null()).spawn().with_context(|| start_error(&program))?;
        register_process(child.id());
        let mut server = Self { netns: netns.clone(), child };
        let begin = Instant::now();
        while !server.get("/-/ready").is_ok_and(|(head, _)| head.contains(" 200 ")) {
            ensure!(server.child.try_wait()?.is_none(), "prometheus ended; see its log above");
            ensure!(begin.elapsed() < START_TIMEOUT, "prometheus is not ready after {START_TIMEOUT:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(server)
    }

    /// Returns the result of an instant query: a list of series.
    ///
    /// # Errors
    /// Returns an error if the query is invalid.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let response = self.api(&format!("/api/v1/query?query={}", encoded(query)))?;
        response["result"].as_array().cloned().with_context(|| format!("no list of series: {response}"))
    }

    /// Returns the field `data` of a response of the API.
    ///
    /// # Errors
    /// Returns an error that contains the response if its status is not `success`.
    pub fn api(&self, path: &str) -> Result<Value> {
        let (head, body) = self.get(path)?;
        let mut response: Value = serde_json::from_str(&body).with_context(|| format!("{path}: {head}"))?;
        ensure!(response["status"] == "success", "{path}: {response}");
        Ok(response["data"].take())
    }

    fn get(&self, path: &str) -> Result<(String, String)> {
        self.netns.run(|| {
            let mut stream = TcpStream::connect(ADDRESS).context("connecting to prometheus")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            // HTTP 1.0, so that the body is not chunked.
            stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: prometheus\r\n\r\n").as_bytes())?;
            let mut response = String::new();
            stream.read_to_string(&mut response).context("reading the response of prometheus")?;
            let (head, body) = response.split_once("\r\n\r\n").context("the header of the response is incomplete")?;
            Ok((head.to_owned(), body.to_owned()))
        })
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        unregister_process(self.child.id());
    }
}

/// Encodes a value of a URL's query.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).into() } else { format!("%{byte:02X}") })
        .collect()
}

fn start_error(program: &Path) -> String {
    format!(
        "cannot start {}: run `cargo xtask setup`, or set {OVERRIDE} to the directory of prometheus and promtool",
        program.display()
    )
}

/// Returns the program in the directory that [`OVERRIDE`] names, or else the program that `cargo xtask setup`
/// downloaded, or else the program on the PATH.
fn program(name: &str) -> PathBuf {
    if let Some(folder) = std::env::var_os(OVERRIDE) {
        return Path::new(&folder).join(name);
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let downloaded = target.join("tools/prometheus").join("root/usr/bin").join(name);
    if downloaded.is_file() { downloaded } else { name.into() }
}
