//! `netpol flows`: the flows of all nodes, sorted by time.

mod ends;
mod filter;
mod merge;
mod text;

use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use netpol_policy::text as escape;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::Exit;
use crate::args::{FlowsOptions, FlowsOutput};
use crate::color::ColorMode;
use crate::columns::table_width;
use crate::message::message;
use crate::remote::{Answer, Fleet, Lines, runtime};
use crate::scope::Scope;

pub(crate) use ends::EndMatch;
pub(crate) use merge::{
    Event as FlowEvent, Received as ReceivedFlow, collect as collect_flows, end_of_follow, read as read_flows,
};
pub(crate) use text::{protocol_port, workload_end};

use filter::Filter;
use merge::{Event, Merger, Received};

/// With `--follow`: how long to collect the backlog (the records that exist already). After this time, the backlog is
/// printed; with `--last N`, only its last N records.
const BACKLOG_TIME: Duration = Duration::from_millis(500);

pub(crate) fn run(options: &FlowsOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(flows(options, out))
}

async fn flows(options: &FlowsOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.agents).await?;
    let filter = Filter::new(options, Scope::new(&options.scope, &fleet)?)?;
    // The records of each agent that answered, as a stream of lines.
    let streams = fleet.lines(&filter.path()).await;
    let answered = streams.len();
    if options.follow {
        // Failures are printed before the first flow. Later, the user would not notice them among the flows.
        fleet.report_failures();
    }
    let mut printer =
        Printer { out, output: options.output, color: ColorMode::detect(), width: table_width(), unknown: 0 };
    if options.follow {
        follow(&mut fleet, &filter, &mut merge::read(streams), &mut printer).await?;
    } else {
        list(options, &mut fleet, &filter, streams, &mut printer).await?;
    }
    match printer.unknown {
        0 => {}
        1 => message!("netpol: 1 record of an unknown type is not shown; use -o json, or a newer netpol"),
        count => message!("netpol: {count} records of unknown types are not shown; use -o json, or a newer netpol"),
    }
    fleet.finish(answered)
}

/// Prints the flows that exist already.
async fn list(
    options: &FlowsOptions,
    fleet: &mut Fleet,
    filter: &Filter,
    streams: Vec<Answer<Lines>>,
    printer: &mut Printer<'_, impl Write>,
) -> Result<()> {
    let mut merger = Merger::default();
    merge::collect(fleet, streams, options.agents.request_timeout, |received| {
        if received.passes(filter) {
            merger.add(received);
            if let Some(last) = filter.query.last {
                merger.keep_last(last);
            }
        }
        Ok(())
    })
    .await?;
    while let Some(received) = merger.next() {
        printer.print(&received)?;
    }
    Ok(())
}

/// Prints flows until the output is closed, or the streams of all agents have ended.
async fn follow(
    fleet: &mut Fleet,
    filter: &Filter,
    events: &mut mpsc::Receiver<Event>,
    printer: &mut Printer<'_, impl Write>,
) -> Result<()> {
    let mut merger = Merger::default();
    let backlog_end = Instant::now() + BACKLOG_TIME;
    let mut in_backlog = true;
    loop {
        let event = tokio::select! {
            event = events.recv() => Some(event),
            () = sleep_until(backlog_end), if in_backlog => {
                in_backlog = false;
                if let Some(last) = filter.query.last {
                    merger.keep_last(last);
                }
                None
            }
            () = merger.wait(), if !in_backlog => None,
        };
        match event {
            Some(Some(Event::Record(received))) if received.passes(filter) => merger.add(*received),
            Some(Some(Event::Record(_))) | None => {}
            Some(Some(Event::Ended(node, error))) => {
                fleet.fail(&node, merge::end_of_follow(error));
                fleet.report_failures();
            }
            Some(None) => break,
        }
        if !in_backlog {
            let now = Instant::now();
            let mut printed = false;
            while let Some(received) = merger.due(now) {
                printer.print(&received)?;
                printed = true;
            }
            if printed {
                printer.out.flush()?;
            }
        }
    }
    while let Some(received) = merger.next() {
        printer.print(&received)?;
    }
    Ok(())
}

impl Received {
    /// Returns whether the record passes the filter. The filter does not apply to records of unknown types.
    fn passes(&self, filter: &Filter) -> bool {
        self.record.as_ref().is_none_or(|record| filter.matches(record))
    }
}

/// Writes records.
struct Printer<'o, W> {
    out: &'o mut W,
    output: FlowsOutput,
    color: ColorMode,
    width: Option<usize>,
    /// The number of records of unknown types.
    unknown: usize,
}

impl<W: Write> Printer<'_, W> {
    fn print(&mut self, received: &Received) -> Result<()> {
        match (&received.record, self.output) {
            (_, FlowsOutput::Json) => writeln!(self.out, "{}", escape::json(&received.line))?,
            (Some(record), FlowsOutput::Compact) => text::compact(self.out, record, self.width, self.color)?,
            (Some(record), FlowsOutput::Wide) => text::wide(self.out, record, self.width, self.color)?,
            (None, FlowsOutput::Compact | FlowsOutput::Wide) => self.unknown += 1,
        }
        Ok(())
    }
}
