//! `netpol top`: shows the pairs of workloads with the most flows.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use netpol_api::{FlowDirection, FlowEnd, FlowQuery, FlowRecord, FlowVerdict, Record, WorkloadEnd};
use serde::Serialize;
use terminal_size::terminal_size;
use tokio::time::{Instant, sleep_until};

use crate::Exit;
use crate::args::{Output, TopOptions};
use crate::color::ColorMode;
use crate::columns::{TextCell, TextTable, Tone, number, table_width, text};
use crate::flows::{FlowEvent, ReceivedFlow, collect_flows, end_of_follow, protocol_port, read_flows, workload_end};
use crate::output::print_items;
use crate::remote::{Answer, Fleet, Lines, runtime};
use crate::scope::Scope;
use crate::table::{counted_u64, time_span};

/// The maximum number of records in memory. If there are more, the oldest ones are removed.
const MAX_FLOWS: usize = 200_000;
/// How long existing flows are collected before the table is first drawn. The same time is the minimum of `--interval`.
const FIRST_DRAW: Duration = Duration::from_millis(500);
/// The control sequences that move the cursor to the top left and clear the screen below it (ECMA-48, CUP and ED).
const CLEAR: &str = "\x1b[H\x1b[J";

pub(crate) fn run(options: &TopOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(top(options, out))
}

async fn top(options: &TopOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.list.agents).await?;
    let scope = Scope::new(&options.list.scope, &fleet)?;
    let width = table_width();
    // Live: the table is drawn again and again, in a terminal.
    let is_live = !options.once && width.is_some() && options.list.output == Output::Table;
    let query = FlowQuery {
        follow: is_live,
        since: Some(options.since),
        verdicts: options.verdicts.clone(),
        namespace: scope.namespace.clone(),
        labels: scope.labels.is_some(),
        ..FlowQuery::default()
    };
    let streams = fleet.lines(&format!("/v1/flows?{}", query.to_query())).await;
    let answered = streams.len();
    let mut window = Window { scope, ..Window::new(options.since) };
    if is_live {
        live(options, &mut fleet, streams, &mut window, out).await?;
        return fleet.finish(answered);
    }
    collect_flows(&mut fleet, streams, options.list.agents.request_timeout, |received| {
        window.add_record(&received);
        Ok(())
    })
    .await?;
    let pairs = window.pairs();
    match options.list.output {
        Output::Json => print_items(out, &pairs, fleet.failures())?,
        // No agent responded: `finish` returns an error.
        Output::Table if answered == 0 => {}
        Output::Table => print_table(out, &window, &pairs, width, usize::MAX)?,
    }
    fleet.finish(answered)
}

/// Redraws the table until interrupted, or until all agents have stopped.
async fn live(
    options: &TopOptions,
    fleet: &mut Fleet,
    streams: Vec<Answer<Lines>>,
    window: &mut Window,
    out: &mut impl Write,
) -> Result<()> {
    let nodes = fleet.failures().len() + streams.len();
    let mut events = read_flows(streams);
    let mut next = Instant::now() + FIRST_DRAW;
    let interval = options.interval.max(FIRST_DRAW);
    loop {
        tokio::select! {
            event = events.recv() => match event {
                Some(FlowEvent::Record(received)) => window.add_record(&received),
                Some(FlowEvent::Ended(node, error)) => fleet.fail(&node, end_of_follow(error)),
                None => return Ok(()),
            },
            () = sleep_until(next) => {
                next = Instant::now() + interval;
                window.expire();
                // The size of the terminal may have changed.
                let height = terminal_size().map_or(usize::MAX, |(_, height)| usize::from(height.0));
                write!(out, "{CLEAR}")?;
                let failed = fleet.failures().len();
                if failed > 0 {
                    writeln!(out, "{failed} of {nodes} nodes did not respond")?;
                }
                // Four lines are left for the heading and the notes.
                print_table(out, window, &window.pairs(), table_width(), height.saturating_sub(4))?;
                out.flush()?;
            }
        }
    }
}

/// The flows of a time window that ends now.
struct Window {
    duration: Duration,
    /// The flows, in the order in which they were received.
    flows: VecDeque<CountedFlow>,
    /// The namespace and the labels of the pods to show.
    scope: Scope,
    /// The number of records of the time window that were removed, because there were more than [`MAX_FLOWS`].
    removed: u64,
    /// The time of the latest removed record.
    last_removed: Option<Timestamp>,
    /// The time of the latest flow, and the time when it was received.
    latest: Option<(Timestamp, Instant)>,
}

/// The record of a flow in the window.
struct CountedFlow {
    time: Timestamp,
    pair: Pair,
    direction: FlowDirection,
    verdict: FlowVerdict,
    /// The number of flows that the record stands for, see [`FlowRecord::flow_count`].
    flow_count: u64,
}

/// The source and the destination workload of flows, and the destination port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
struct Pair {
    from: WorkloadEnd,
    to: WorkloadEnd,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    protocol: String,
}

/// A row of the table: a pair and its numbers of flows.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PairCounts {
    #[serde(flatten)]
    pair: Pair,
    allowed: u64,
    denied: u64,
    shadow: u64,
}

impl Window {
    fn new(duration: Duration) -> Self {
        let scope = Scope { namespace: None, default_namespace: String::new(), labels: None };
        Self { duration, flows: VecDeque::new(), scope, removed: 0, last_removed: None, latest: None }
    }

    fn add_record(&mut self, received: &ReceivedFlow) {
        if let Some(Record::Flow(flow)) = &received.record {
            self.add(received.time, flow);
        }
    }

    fn add(&mut self, time: Timestamp, flow: &FlowRecord) {
        let has_labels = |end: &FlowEnd| end.labels.as_ref().is_some_and(|labels| self.scope.has_labels(labels));
        if self.scope.labels.is_some() && !has_labels(&flow.from) && !has_labels(&flow.to) {
            return;
        }
        if self.latest.is_none_or(|(latest, _)| time > latest) {
            self.latest = Some((time, Instant::now()));
        }
        if self.flows.len() >= MAX_FLOWS {
            let removed = self.flows.pop_front().map(|flow| flow.time);
            self.last_removed = self.last_removed.max(removed);
            self.removed += 1;
        }
        self.flows.push_back(CountedFlow {
            time,
            pair: Pair {
                from: workload_or_address(&flow.from),
                to: workload_or_address(&flow.to),
                port: flow.port,
                protocol: flow.protocol.clone(),
            },
            direction: flow.direction,
            verdict: flow.verdict,
            flow_count: flow.flow_count(),
        });
    }

    /// Removes flows that are too old. The current time is computed from the time of the latest flow, because the clock
    /// of this machine may differ from the clocks of the nodes.
    fn expire(&mut self) {
        let Some((latest, received_at)) = self.latest else { return };
        let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
        let now = latest.as_second().saturating_add(seconds(received_at.elapsed()));
        let first = Timestamp::from_second(now.saturating_sub(seconds(self.duration))).unwrap_or(Timestamp::MIN);
        self.flows.retain(|flow| flow.time >= first);
        if self.last_removed.is_none_or(|last| last < first) {
            self.removed = 0;
        }
    }

    /// Counts the flows of each pair. The pairs are sorted by their numbers of denied flows, of flows that policies in
    /// shadow mode would deny, and of allowed flows, the highest first.
    fn pairs(&self) -> Vec<PairCounts> {
        let mut counts: BTreeMap<&Pair, [[u64; 3]; 2]> = BTreeMap::new();
        for flow in &self.flows {
            let pair_counts = counts.entry(&flow.pair).or_default();
            pair_counts[flow.direction as usize][flow.verdict as usize] += flow.flow_count;
        }
        let mut pairs: Vec<PairCounts> = counts
            .into_iter()
            .map(|(pair, [ingress, egress])| {
                // A flow between two pods is recorded at both pods, so the two numbers must not be added.
                let flows = |verdict: FlowVerdict| ingress[verdict as usize].max(egress[verdict as usize]);
                let [allowed, denied, shadow] = FlowVerdict::ALL.map(flows);
                PairCounts { pair: pair.clone(), allowed, denied, shadow }
            })
            .collect();
        pairs.sort_by_key(|pair| std::cmp::Reverse((pair.denied, pair.shadow, pair.allowed)));
        pairs
    }
}

/// Returns the workload of an end of a flow. Without a workload, returns the pod, the node or the address.
fn workload_or_address(end: &FlowEnd) -> WorkloadEnd {
    let is_named = end.pod.is_some() || end.node.is_some();
    WorkloadEnd {
        namespace: end.namespace.clone(),
        workload: end.workload.clone(),
        pod: end.pod.clone().filter(|_| end.workload.is_none()),
        node: end.node.clone().filter(|_| end.pod.is_none()),
        address: end.address.filter(|_| !is_named),
        services: if is_named { Vec::new() } else { end.services.clone() },
    }
}

/// Prints at most `rows` of the pairs.
fn print_table(
    out: &mut impl Write,
    window: &Window,
    pairs: &[PairCounts],
    width: Option<usize>,
    rows: usize,
) -> Result<()> {
    if pairs.is_empty() {
        writeln!(out, "no flows{} in the last {}", window.scope.describe(), time_span(window.duration))?;
        return Ok(());
    }
    let mut table = TextTable::new(&[
        text("FROM"),
        text("TO"),
        text("PORT"),
        number("DENIED"),
        number("SHADOW").optional(1),
        number("ALLOWED"),
    ]);
    for PairCounts { pair, allowed, denied, shadow } in pairs.iter().take(rows) {
        table.add_row([
            workload_end(&pair.from).into(),
            workload_end(&pair.to).into(),
            protocol_port(pair.port, &pair.protocol).into(),
            TextCell::toned(denied, (*denied > 0).then_some(Tone::Bad)),
            TextCell::toned(shadow, (*shadow > 0).then_some(Tone::Notice)),
            allowed.into(),
        ]);
    }
    table.print(out, width, ColorMode::detect())?;
    if pairs.len() > rows {
        writeln!(out, "{} more: see netpol top --once", pairs.len() - rows)?;
    }
    if window.removed > 0 {
        writeln!(
            out,
            "{} not counted: only the newest {MAX_FLOWS} are counted",
            counted_u64(window.removed, "older record")
        )?;
    }
    Ok(())
}
