//! The metrics page, parsed strictly by the definition of Prometheus' text format, version 0.0.4.
//!
//! Tests of attacks have names that start with `hostile_`: see docs/threat-model.md.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netpol_tests::{AgentOptions, Cluster, Lab, deny_all};

/// Addresses in the node's network namespace at which the agent serves metrics and health.
const METRICS_ADDRESS: &str = "127.0.0.1:9464";
const HEALTH_ADDRESS: &str = "127.0.0.1:9465";

/// A parsed metrics page.
#[derive(Debug, Default)]
struct Metrics {
    /// The type of each metric family, such as `counter`.
    types: BTreeMap<String, String>,
    /// The value of each series, by `name{labels}` as on the page.
    values: BTreeMap<String, f64>,
}

/// Requests a path from the metrics listener. Returns the head and the body of the response.
fn get(lab: &Lab, path: &str) -> Result<(String, String)> {
    get_at(lab, METRICS_ADDRESS, path)
}

/// Does the same as [`get`], at a given address.
fn get_at(lab: &Lab, address: &str, path: &str) -> Result<(String, String)> {
    lab.cluster.host("node-1").netns().run(|| {
        let mut stream = TcpStream::connect(address).context("connecting to the agent")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // In one segment, as buffered clients send it.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response).context("reading the agent's response")?;
        let (head, body) = response.split_once("\r\n\r\n").context("the response has no end of the header")?;
        Ok((head.to_owned(), body.to_owned()))
    })
}

/// Parses a metrics page. Returns an error if the page violates the definition of the format.
fn parse(text: &str) -> Result<Metrics> {
    ensure!(text.ends_with('\n'), "the last line does not end with a line feed");
    // `family` is the family of the current line. `earlier_families` are those before it.
    let (mut metrics, mut with_help, mut earlier_families, mut family) =
        (Metrics::default(), BTreeSet::new(), BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').with_context(|| format!("HELP has no text: {line}"))?;
            ensure!(!help.is_empty() && with_help.insert(name.to_owned()), "HELP is empty or repeated: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, metric_type) = rest.split_once(' ').with_context(|| format!("TYPE has no type: {line}"))?;
            ensure!(["counter", "gauge", "histogram", "summary"].contains(&metric_type), "unknown type: {line}");
            ensure!(with_help.contains(name), "there is no HELP before {line}");
            earlier_families.insert(std::mem::replace(&mut family, name.to_owned()));
            ensure!(!earlier_families.contains(name), "the series of a family are not in one group: {line}");
            ensure!(
                metric_type != "counter" || name.ends_with("_total"),
                "the name of a counter must end with _total: {line}"
            );
            metrics.types.insert(name.to_owned(), metric_type.to_owned());
        } else {
            let (series, value) = parse_sample(line).with_context(|| format!("invalid sample: {line}"))?;
            let name = series.split('{').next().unwrap_or_default();
            let base = match metrics.types.get(&family).map(String::as_str) {
                Some("histogram") => ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)),
                Some("summary") => ["_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)),
                _ => Some(name),
            };
            ensure!(base == Some(family.as_str()), "a series below {family} does not belong to it: {line}");
            ensure!(metrics.values.insert(series.to_owned(), value).is_none(), "the series is repeated: {line}");
        }
    }
    Ok(metrics)
}

/// Parses `name{label="value",…} number` into series and value.
fn parse_sample(line: &str) -> Result<(&str, f64)> {
    let is_name = |name: &str| {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (series, value) = line.rsplit_once(' ').context("the line has no value")?;
    let value = value.parse().context("the value is not a number")?;
    let Some((name, labels)) = series.split_once('{') else {
        ensure!(is_name(series), "{series:?} is not a valid name");
        return Ok((series, value));
    };
    ensure!(is_name(name), "{name:?} is not a valid name");
    let mut rest = labels;
    let mut seen = BTreeSet::new();
    while rest != "}" {
        let (label, after) = rest.split_once("=\"").context("a label is incomplete")?;
        ensure!(is_name(label) && seen.insert(label), "the label {label:?} is invalid or repeated");
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().context("a label has no end")? {
                (at, '"') => break at,
                (_, '\\') => match characters.next() {
                    Some((_, '\\' | '"' | 'n')) => {}
                    other => bail!("{other:?} after a backslash"),
                },
                _ => {}
            }
        };
        rest = &after[end + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    Ok((series, value))
}

impl Metrics {
    fn value(&self, series: &str) -> Result<f64> {
        self.values.get(series).copied().with_context(|| format!("there is no series {series}"))
    }

    /// Checks that the buckets of a histogram are cumulative and that the last has all observations, for each
    /// combination of labels.
    fn check_histogram(&self, name: &str) -> Result<()> {
        let start = format!("{name}_bucket{{");
        let mut histograms: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
        for (series, count) in &self.values {
            let Some((labels, bound)) = series.strip_prefix(&start).and_then(|rest| rest.split_once("le=\"")) else {
                continue;
            };
            let bound =
                bound.trim_end_matches("\"}").parse().with_context(|| format!("parsing the bound of {series}"))?;
            histograms.entry(labels.trim_end_matches(',')).or_default().push((bound, *count));
        }
        ensure!(!histograms.is_empty(), "{name} has no buckets");
        for (labels, mut buckets) in histograms {
            let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            buckets.sort_by(|left, right| left.0.total_cmp(&right.0));
            ensure!(
                buckets.len() > 2 && buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1),
                "{name}{labels}: {buckets:?}"
            );
            let (bound, all) = buckets[buckets.len() - 1];
            ensure!(
                bound.is_infinite() && (all - self.value(&format!("{name}_count{labels}"))?).abs() < 0.5,
                "{name}{labels}: {buckets:?}"
            );
            ensure!(self.value(&format!("{name}_sum{labels}"))? >= 0.0, "{name}{labels}: its sum is negative");
        }
        Ok(())
    }
}

#[test]
fn the_metrics_page_is_valid_and_changes_are_measured() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server")]);
    let mut lab = Lab::start_with(cluster, &[], AgentOptions::default().arguments(&["--metrics", METRICS_ADDRESS]))?;
    let (head, body) = get(&lab, "/metrics")?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    let before = parse(&body)?;
    lab.set_policies(&[deny_all("shop")])?;
    let output = lab.agent().wait(&["--for", "policy/shop/deny-all"])?;
    ensure!(output.code == Some(0), "{output:?}");
    lab.expect("shop/client -x shop/server 80/TCP")?;
    let after = parse(&get(&lab, "/metrics")?.1)?;
    for (name, metric_type) in &after.types {
        if metric_type == "histogram" {
            after.check_histogram(name)?;
        }
    }
    let grows = |series: &str| Ok::<_, anyhow::Error>(after.value(series)? > before.value(series)?);
    // A generation is the number of a batch of changes.
    for series in ["netpol_convergence_seconds_count", "netpol_convergence_seconds_sum", "netpol_generation"] {
        ensure!(grows(series)?, "{series} did not grow after a change");
    }
    // `wait` has ended, so the last received batch is enforced.
    ensure!(after.value("netpol_generation")?.to_bits() == after.value("netpol_generation_received")?.to_bits());
    let denied =
        r#"netpol_packets_total{namespace="shop",pod="client",direction="egress",reason="no-rule",verdict="deny"}"#;
    ensure!(after.value(denied)? >= 1.0, "the denied packet is not counted");
    for (path, status) in [("/healthz", "200"), ("/readyz", "200"), ("/v1/status", "404"), ("/v1/wait?for=sync", "404")]
    {
        let (head, _) = get(&lab, path)?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }
    Ok(())
}

/// Clients that send their requests byte by byte, and that reconnect when the agent disconnects them. They end when
/// this value is dropped.
struct SlowClients {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl SlowClients {
    fn start(lab: &Lab, address: &'static str, count: usize) -> Result<Self> {
        let netns = lab.cluster.host("node-1").netns();
        let connect = move || Ok(TcpStream::connect(address)?);
        let mut streams = netns.run(|| (0..count).map(|_| connect()).collect::<Result<Vec<_>>>())?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let netns = netns.clone();
        let thread = std::thread::spawn(move || {
            netns.run(|| {
                while !stopped.load(Ordering::Relaxed) {
                    for stream in &mut streams {
                        if stream.write_all(b"G").is_err() {
                            *stream = connect()?;
                        }
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                Ok(())
            })
        });
        Ok(Self { stop, thread: Some(thread) })
    }

    fn end(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ended
            .context("the slow clients were ended before")?
            .map_err(|_| anyhow!("the slow clients' thread panicked"))?
    }
}

impl Drop for SlowClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sends several requests and returns the median response time. Each request must succeed.
fn median_response_time(lab: &Lab, address: &str, path: &str) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let start = Instant::now();
        let (head, _) = get_at(lab, address, path)?;
        times.push(start.elapsed());
        ensure!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        std::thread::sleep(Duration::from_millis(20));
    }
    times.sort_unstable();
    println!("{path} at {address}: median {:?}, slowest {:?}", times[10], times[20]);
    Ok(times[10])
}

#[test]
fn hostile_slow_clients_of_metrics_do_not_delay_health() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client")]);
    let options = AgentOptions::default().arguments(&["--metrics", METRICS_ADDRESS, "--health", HEALTH_ADDRESS]);
    let lab = Lab::start_with(cluster, &[], options)?;
    let clients = SlowClients::start(&lab, METRICS_ADDRESS, 300)?;
    let health = median_response_time(&lab, HEALTH_ADDRESS, "/healthz")?;
    ensure!(health < Duration::from_millis(100), "/healthz took {health:?} with slow clients of /metrics");
    let metrics = median_response_time(&lab, METRICS_ADDRESS, "/metrics")?;
    ensure!(metrics < Duration::from_secs(1), "/metrics took {metrics:?} with slow clients");
    clients.end()?;

    let clients = SlowClients::start(&lab, HEALTH_ADDRESS, 300)?;
    let health = median_response_time(&lab, HEALTH_ADDRESS, "/healthz")?;
    ensure!(health < Duration::from_secs(1), "/healthz took {health:?} with slow clients of /healthz");
    clients.end()?;
    Ok(())
}

#[test]
fn the_health_listener_works_without_metrics() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client")]);
    let lab = Lab::start_with(cluster, &[], AgentOptions::default().arguments(&["--health", HEALTH_ADDRESS]))?;
    for (path, status) in [("/healthz", "200"), ("/readyz", "200"), ("/metrics", "404"), ("/v1/status", "404")] {
        let (head, body) = get_at(&lab, HEALTH_ADDRESS, path)?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        ensure!(status == "200" || body.contains("no such path; available: /healthz, /readyz"), "{body}");
    }
    Ok(())
}
