//! Merges the flow records of several nodes, sorted by time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::Duration;

use anyhow::Result;
use jiff::Timestamp;
use netpol_api::Record;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::remote::{Answer, Fleet, Lines};

/// How long a record waits, because earlier records of other nodes may still arrive.
const REORDER_WINDOW: Duration = Duration::from_millis(300);
/// The maximum number of records, from all nodes together, that wait to be processed.
const QUEUE: usize = 1_024;

/// A record that was received.
#[derive(Debug)]
pub(crate) struct Received {
    pub(crate) time: Timestamp,
    /// `None` if the record has a type that this version does not know.
    pub(crate) record: Option<Record>,
    /// The record as a line of JSON. It can have fields that this version does not know.
    pub(crate) line: String,
    arrived: Instant,
    /// The position in the order of arrival.
    sequence: u64,
}

/// An event of a stream.
#[derive(Debug)]
pub(crate) enum Event {
    Record(Box<Received>),
    /// A stream has ended. The first value is the node. The second value is the error, if the stream has failed.
    Ended(String, Option<String>),
}

/// Reads all streams concurrently, and sends their events to the returned receiver. If the receiver is slow, the
/// streams are not read. Meanwhile, the agents count the records that they cannot send.
pub(crate) fn read(streams: Vec<Answer<Lines>>) -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    for Answer { node, content: mut lines } in streams {
        let sender = sender.clone();
        tokio::spawn(async move {
            let error = loop {
                match lines.next().await {
                    Ok(Some(line)) if line.is_empty() => {}
                    Ok(Some(line)) => match parse_line(&line) {
                        Ok(received) => {
                            if sender.send(Event::Record(Box::new(received))).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => break Some(error),
                    },
                    Ok(None) => break None,
                    Err(error) => break Some(error),
                }
            };
            // If this fails, the command has stopped receiving events.
            let _ = sender.send(Event::Ended(node, error)).await;
        });
    }
    receiver
}

/// Reads streams until all have ended, and passes the records to `on_record` in the order of arrival. If a stream
/// has an error, [`Fleet::fail`] is called for its node. If no stream sends anything for the time `silence`,
/// [`Fleet::fail`] is called for the node of each stream that has not ended.
pub(crate) async fn collect(
    fleet: &mut Fleet,
    streams: Vec<Answer<Lines>>,
    silence: Duration,
    mut on_record: impl FnMut(Received) -> Result<()>,
) -> Result<()> {
    let mut open: BTreeSet<String> = streams.iter().map(|stream| stream.node.clone()).collect();
    let mut events = read(streams);
    while !open.is_empty() {
        match timeout(silence, events.recv()).await {
            Ok(Some(Event::Record(received))) => on_record(*received)?,
            Ok(Some(Event::Ended(node, error))) => {
                open.remove(&node);
                if let Some(error) = error {
                    fleet.fail(&node, error);
                }
            }
            Ok(None) => break,
            Err(_) => {
                for node in std::mem::take(&mut open) {
                    fleet.fail(&node, "the response stopped before its end".to_owned());
                }
            }
        }
    }
    Ok(())
}

/// Returns why a stream of `netpol flows --follow` has ended, although it should not end.
pub(crate) fn end_of_follow(error: Option<String>) -> String {
    error.unwrap_or_else(|| "the agent has closed the connection".to_owned())
}

/// Parses a line. If the record has a type that this version does not know, `record` is `None`.
fn parse_line(line: &[u8]) -> Result<Received, String> {
    let invalid = |error: &dyn std::fmt::Display| format!("the agent sent an invalid record: {error}");
    let line = std::str::from_utf8(line).map_err(|error| invalid(&error))?;
    let value: serde_json::Value = serde_json::from_str(line).map_err(|error| invalid(&error))?;
    let time = value["time"].as_str().unwrap_or_default();
    let time = time.parse().map_err(|error: jiff::Error| invalid(&error))?;
    let record = serde_json::from_value(value).ok();
    Ok(Received { time, record, line: line.to_owned(), arrived: Instant::now(), sequence: 0 })
}

/// Sorts records. Each record waits, because earlier records may still arrive.
#[derive(Default)]
pub(crate) struct Merger {
    waiting: BinaryHeap<Reverse<Received>>,
    sequence: u64,
}

impl Merger {
    /// Adds a record.
    pub(crate) fn add(&mut self, mut received: Received) {
        self.sequence += 1;
        received.sequence = self.sequence;
        self.waiting.push(Reverse(received));
    }

    /// Removes the earliest records until only `count` records are left.
    pub(crate) fn keep_last(&mut self, count: usize) {
        while self.waiting.len() > count {
            self.waiting.pop();
        }
    }

    /// Removes and returns the earliest record, if it has waited long enough at the time `now`.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Received> {
        let Reverse(first) = self.waiting.peek()?;
        if first.arrived + REORDER_WINDOW > now {
            return None;
        }
        self.waiting.pop().map(|Reverse(received)| received)
    }

    /// Removes and returns the earliest record.
    pub(crate) fn next(&mut self) -> Option<Received> {
        self.waiting.pop().map(|Reverse(received)| received)
    }

    /// Waits until the earliest record has waited long enough. Without a record, waits forever.
    pub(crate) async fn wait(&self) {
        match self.waiting.peek() {
            Some(Reverse(first)) => sleep_until(first.arrived + REORDER_WINDOW).await,
            None => std::future::pending().await,
        }
    }
}

impl Ord for Received {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.time, self.sequence).cmp(&(other.time, other.sequence))
    }
}

impl PartialOrd for Received {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Received {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Received {}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(time: &str) -> Received {
        parse_line(format!("{{\"type\":\"other\",\"time\":\"2026-11-29T12:00:{time}Z\"}}").as_bytes())
            .expect("a record")
    }

    #[test]
    fn records_are_sorted_by_time_and_then_by_arrival() {
        let mut merger = Merger::default();
        for time in ["02.5", "01.000", "03", "01.000"] {
            merger.add(record(time));
        }
        assert!(merger.due(Instant::now()).is_none(), "an earlier record may still arrive");
        assert!(merger.due(Instant::now() + REORDER_WINDOW).is_some());
        merger.keep_last(2);
        let rest: Vec<String> =
            std::iter::from_fn(|| merger.next()).map(|received| received.time.to_string()).collect();
        assert_eq!(rest, ["2026-11-29T12:00:02.5Z", "2026-11-29T12:00:03Z"]);
    }

    #[test]
    fn an_invalid_line_is_an_error_and_an_unknown_type_is_not() {
        assert!(record("00").record.is_none());
        for line in ["", "{", "{}", "{\"time\": \"noon\"}"] {
            assert!(parse_line(line.as_bytes()).is_err(), "{line}");
        }
        assert!(parse_line(b"\xff").is_err());
    }
}
