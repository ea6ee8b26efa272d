//! The metrics page, read as strictly as Prometheus' text format (version 0.0.4) is written down.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use netpol_tests::{AgentOptions, Cluster, Lab, deny_all};

/// Where the agent serves, within its node.
const ADDRESS: &str = "127.0.0.1:9464";
const HEALTH: &str = "127.0.0.1:9465";

/// Values by series, `name{labels}` as it stands there.
#[derive(Debug, Default)]
struct Page {
    kinds: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

fn get(lab: &Lab, path: &str) -> Result<(String, String)> {
    get_at(lab, ADDRESS, path)
}

fn get_at(lab: &Lab, address: &str, path: &str) -> Result<(String, String)> {
    lab.cluster.host("node-1").netns().run(|| {
        let mut stream = TcpStream::connect(address).context("connecting to the agent")?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        // In one segment, as clients with a buffer send it.
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).context("reading the agent's answer")?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no end of the answer's head")?;
        Ok((head.to_owned(), body.to_owned()))
    })
}

fn read(text: &str) -> Result<Page> {
    ensure!(text.ends_with('\n'), "the last line has no end");
    let (mut page, mut helped, mut done, mut family) =
        (Page::default(), BTreeSet::new(), BTreeSet::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').with_context(|| format!("no text: {line}"))?;
            ensure!(!help.is_empty() && helped.insert(name.to_owned()), "twice, or empty: {line}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').with_context(|| format!("no type: {line}"))?;
            ensure!(["counter", "gauge", "histogram", "summary"].contains(&kind), "no such type: {line}");
            ensure!(helped.contains(name), "no HELP before {line}");
            done.insert(std::mem::replace(&mut family, name.to_owned()));
            ensure!(!done.contains(name), "the family is in two places: {line}");
            ensure!(kind != "counter" || name.ends_with("_total"), "a counter ends in _total: {line}");
            page.kinds.insert(name.to_owned(), kind.to_owned());
        } else {
            let (series, value) = sample(line).with_context(|| format!("no sample: {line}"))?;
            let name = series.split('{').next().unwrap_or_default();
            let base = match page.kinds.get(&family).map(String::as_str) {
                Some("histogram") => ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)),
                Some("summary") => ["_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)),
                _ => Some(name),
            };
            ensure!(base == Some(family.as_str()), "it is not of {family}, which it stands under: {line}");
            ensure!(page.values.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    Ok(page)
}

/// `name{label="value",…} number`.
fn sample(line: &str) -> Result<(&str, f64)> {
    let is_name = |name: &str| {
        let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
        first && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    let (series, value) = line.rsplit_once(' ').context("no value")?;
    let value = value.parse().context("the value is no number")?;
    let Some((name, labels)) = series.split_once('{') else {
        ensure!(is_name(series), "{series:?} is no name");
        return Ok((series, value));
    };
    ensure!(is_name(name), "{name:?} is no name");
    let mut rest = labels;
    let mut seen = BTreeSet::new();
    while rest != "}" {
        let (label, after) = rest.split_once("=\"").context("no label")?;
        ensure!(is_name(label) && seen.insert(label), "{label:?} is no label, or twice");
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().context("a label without an end")? {
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

impl Page {
    fn value(&self, series: &str) -> Result<f64> {
        self.values.get(series).copied().with_context(|| format!("no {series}"))
    }

    /// Buckets grow with their bounds, and the last has everything.
    fn check_histogram(&self, name: &str) -> Result<()> {
        let start = format!("{name}_bucket{{le=\"");
        let mut buckets = Vec::new();
        for (series, count) in &self.values {
            if let Some(bound) = series.strip_prefix(&start).and_then(|rest| rest.strip_suffix("\"}")) {
                buckets.push((bound.parse::<f64>().with_context(|| format!("the bound of {series}"))?, *count));
            }
        }
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        ensure!(buckets.len() > 2 && buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        let (bound, all) = buckets[buckets.len() - 1];
        ensure!(
            bound.is_infinite() && (all - self.value(&format!("{name}_count"))?).abs() < 0.5,
            "{name}: {buckets:?}"
        );
        ensure!(self.value(&format!("{name}_sum"))? >= 0.0, "{name}: its sum is negative");
        Ok(())
    }
}

#[test]
fn the_page_is_what_prometheus_reads_and_changes_are_measured() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server")]);
    let mut lab = Lab::start_with(cluster, &[], AgentOptions::default().arguments(&["--metrics", ADDRESS]))?;
    let (head, body) = get(&lab, "/metrics")?;
    ensure!(head.starts_with("HTTP/1.1 200 ") && head.contains("text/plain; version=0.0.4"), "{head}");
    let before = read(&body)?;
    lab.policies(&[deny_all("shop")])?;
    let said = lab.agent().wait(&["--for", "policy/shop/deny-all"])?;
    ensure!(said.code == Some(0), "{said:?}");
    lab.expect("shop/client -x shop/server 80/TCP")?;
    let after = read(&get(&lab, "/metrics")?.1)?;
    for (name, kind) in &after.kinds {
        if kind == "histogram" {
            after.check_histogram(name)?;
        }
    }
    let grows = |series: &str| Ok::<_, anyhow::Error>(after.value(series)? > before.value(series)?);
    for series in ["netpol_convergence_seconds_count", "netpol_convergence_seconds_sum", "netpol_generation"] {
        ensure!(grows(series)?, "{series} did not grow with a change");
    }
    ensure!(after.value("netpol_generation")?.to_bits() == after.value("netpol_generation_received")?.to_bits());
    let denied =
        r#"netpol_packets_total{namespace="shop",pod="client",direction="egress",reason="no-rule",verdict="deny"}"#;
    ensure!(after.value(denied)? >= 1.0, "no denied packet is counted");
    for (path, status) in [("/healthz", "200"), ("/readyz", "200"), ("/v1/status", "404"), ("/v1/wait?for=sync", "404")]
    {
        let (head, _) = get(&lab, path)?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
    }
    Ok(())
}

/// Clients that send their requests byte by byte and come back when they are closed; until dropped.
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
        ended.context("it is ended once")?.map_err(|_| anyhow!("the slow clients' thread panicked"))?
    }
}

impl Drop for SlowClients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// The median time of several answers, none of which may be missing.
fn median(lab: &Lab, address: &str, path: &str) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..21 {
        let begun = Instant::now();
        let (head, _) = get_at(lab, address, path)?;
        times.push(begun.elapsed());
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
    let options = AgentOptions::default().arguments(&["--metrics", ADDRESS, "--health", HEALTH]);
    let lab = Lab::start_with(cluster, &[], options)?;
    let clients = SlowClients::start(&lab, ADDRESS, 300)?;
    let health = median(&lab, HEALTH, "/healthz")?;
    ensure!(health < Duration::from_millis(100), "/healthz took {health:?} beside slow clients of metrics");
    let metrics = median(&lab, ADDRESS, "/metrics")?;
    ensure!(metrics < Duration::from_secs(1), "/metrics took {metrics:?} beside slow clients");
    clients.end()?;

    let clients = SlowClients::start(&lab, HEALTH, 300)?;
    let health = median(&lab, HEALTH, "/healthz")?;
    ensure!(health < Duration::from_secs(1), "/healthz took {health:?} beside slow clients of its own");
    clients.end()?;
    Ok(())
}

#[test]
fn health_has_a_listener_of_its_own_without_metrics() -> Result<()> {
    let cluster = Cluster::builder().pods(&[("shop/client", "app=client")]);
    let lab = Lab::start_with(cluster, &[], AgentOptions::default().arguments(&["--health", HEALTH]))?;
    for (path, status) in [("/healthz", "200"), ("/readyz", "200"), ("/metrics", "404"), ("/v1/status", "404")] {
        let (head, body) = get_at(&lab, HEALTH, path)?;
        ensure!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{path}: {head}");
        ensure!(status == "200" || body == "no such page; available: /healthz, /readyz\n", "{body}");
    }
    Ok(())
}
