//! Streams records of flows to one client, as JSON lines. If the client is too slow, records are dropped and counted,
//! so that the client does not delay the agent.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use hyper::body::Bytes;
use netpol_api::{FlowQuery, LostRecord, RECORD_SCHEMA, Record, RecordHeader};
use netpol_policy::model::Labels;
use netpol_policy::text;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::AbortHandle;

use crate::events::{BufferedRecord, rfc3339};

/// Maximum number of records that wait for a client.
pub(super) const MAX_QUEUED: usize = 1024;
/// Maximum number of records in one part of the response.
const RECORDS_PER_PART: usize = 64;
/// Maximum number of labels of a pod in a record. With all labels of an object, a record could be too long for clients.
const MAX_LABELS: usize = 64;

/// The lines of a response.
#[derive(Debug)]
pub(super) struct RecordStream {
    /// Records that existed when the request arrived.
    existing: VecDeque<Arc<BufferedRecord>>,
    live: Option<LiveRecords>,
    /// Whether the client requested the labels of pods.
    labels: bool,
    node: String,
    /// Values that must not be dropped before the stream ends, such as a permit that limits the number of requests.
    kept_until_end: Vec<Box<dyn std::any::Any + Send + Sync>>,
}

/// Records that are created after the request arrived. The task moves them to the queue.
#[derive(Debug)]
struct LiveRecords {
    queue: Arc<Queue>,
    task: AbortHandle,
}

impl Drop for LiveRecords {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Records that wait for the client.
#[derive(Debug, Default)]
struct Queue(Mutex<QueueState>);

#[derive(Debug, Default)]
struct QueueState {
    items: VecDeque<QueueItem>,
    /// Number of records that were dropped after the last item was added.
    lost: u64,
    /// Whether no more records will be added.
    ended: bool,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum QueueItem {
    Record(Arc<BufferedRecord>),
    /// The number of records that were dropped at this place.
    Lost(u64),
}

impl RecordStream {
    /// Creates a stream of existing records, and then of new ones if `new` is given. Needs a tokio runtime.
    pub(super) fn new(
        query: &FlowQuery,
        node: &str,
        existing: Vec<Arc<BufferedRecord>>,
        new: Option<Receiver<Arc<BufferedRecord>>>,
    ) -> Self {
        let live = new.map(|new| {
            let queue = Arc::new(Queue::default());
            let task = tokio::spawn(receive(new, query.clone(), Arc::clone(&queue)));
            LiveRecords { queue, task: task.abort_handle() }
        });
        let existing = existing.into();
        Self { existing, live, labels: query.labels, node: node.to_owned(), kept_until_end: Vec::new() }
    }

    /// Keeps a value until the stream ends: see the field `kept_until_end`.
    #[must_use]
    pub(super) fn holding(mut self, value: impl std::any::Any + Send + Sync) -> Self {
        self.kept_until_end.push(Box::new(value));
        self
    }

    /// Returns the next lines; `None` at the end.
    pub(super) fn poll_lines(&mut self, context: &Context<'_>) -> Poll<Option<Bytes>> {
        let mut lines = String::new();
        let existing = self.existing.len().min(RECORDS_PER_PART);
        for record in self.existing.drain(..existing) {
            add_line(&mut lines, &record, self.labels);
        }
        if !lines.is_empty() {
            return Poll::Ready(Some(lines.into()));
        }
        let Some(live) = &self.live else { return Poll::Ready(None) };
        let Some(items) = live.queue.take_items(context) else { return Poll::Pending };
        for item in &items {
            match item {
                QueueItem::Record(record) => add_line(&mut lines, record, self.labels),
                QueueItem::Lost(records) => add_json(&mut lines, &lost_record(*records, &self.node)),
            }
        }
        Poll::Ready((!lines.is_empty()).then(|| lines.into()))
    }
}

/// Moves records that match the query to the queue of the client.
async fn receive(mut new: Receiver<Arc<BufferedRecord>>, query: FlowQuery, queue: Arc<Queue>) {
    loop {
        match new.recv().await {
            Ok(record) if query.matches(&record.record) => queue.push(record),
            Ok(_) => {}
            Err(RecvError::Lagged(records)) => queue.add_lost(records),
            Err(RecvError::Closed) => return queue.end(),
        }
    }
}

impl Queue {
    fn push(&self, record: Arc<BufferedRecord>) {
        let mut state = self.lock();
        if state.items.len() >= MAX_QUEUED {
            state.lost += 1;
            return;
        }
        let lost = std::mem::take(&mut state.lost);
        if lost > 0 {
            state.items.push_back(QueueItem::Lost(lost));
        }
        state.items.push_back(QueueItem::Record(record));
        state.wake();
    }

    fn add_lost(&self, records: u64) {
        let mut state = self.lock();
        state.lost += records;
        state.wake();
    }

    fn end(&self) {
        let mut state = self.lock();
        state.ended = true;
        state.wake();
    }

    /// Returns the next items, or an empty list if the stream has ended. Returns `None` if no item is waiting yet. In
    /// this case, the task of `context` is woken when an item arrives or the stream ends.
    fn take_items(&self, context: &Context<'_>) -> Option<Vec<QueueItem>> {
        let mut state = self.lock();
        let count = state.items.len().min(RECORDS_PER_PART);
        let mut items: Vec<QueueItem> = state.items.drain(..count).collect();
        if items.is_empty() && state.lost > 0 {
            items.push(QueueItem::Lost(std::mem::take(&mut state.lost)));
        }
        if items.is_empty() && !state.ended {
            state.waker = Some(context.waker().clone());
            return None;
        }
        Some(items)
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        // No thread panics while it changes the queue.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueState {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

fn lost_record(records: u64, node: &str) -> Record {
    let time = rfc3339(SystemTime::now());
    let header = RecordHeader { schema: RECORD_SCHEMA.to_owned(), time, node: node.to_owned() };
    Record::Lost(LostRecord { header, records })
}

/// Adds a record as a line of JSON. `labels`: also adds the labels of pods.
fn add_line(lines: &mut String, record: &BufferedRecord, labels: bool) {
    match &*record.record {
        Record::Flow(flow) if labels && record.labels.iter().any(Option::is_some) => {
            let mut flow = flow.clone();
            [flow.from.labels, flow.to.labels] = label_maps(record);
            add_json(lines, &Record::Flow(flow));
        }
        Record::FlowTotals(totals) if labels && record.labels.iter().any(Option::is_some) => {
            let mut totals = totals.clone();
            [totals.from.labels, totals.to.labels] = label_maps(record);
            add_json(lines, &Record::FlowTotals(totals));
        }
        record => add_json(lines, record),
    }
}

/// Returns the labels of the source and the destination.
fn label_maps(record: &BufferedRecord) -> [Option<BTreeMap<String, String>>; 2] {
    record.labels.each_ref().map(|labels| labels.as_ref().map(label_map))
}

fn label_map(labels: &Labels) -> BTreeMap<String, String> {
    labels.iter().take(MAX_LABELS).map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

fn add_json(lines: &mut String, record: &Record) {
    // A record contains only strings, numbers and maps with keys that are strings, so this does not fail.
    if let Ok(json) = serde_json::to_string(record) {
        lines.push_str(&text::json(&json));
        lines.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::events::FlowBuffer;
    use crate::events::test_record;

    fn parsed(lines: &Bytes) -> Vec<Record> {
        let text = std::str::from_utf8(lines).expect("the lines are not UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// Returns the numbers that were given to [`test_record`], which stores them in `suppressed`.
    fn numbers(records: &[Record]) -> Vec<u64> {
        let number = |record: &Record| match record {
            Record::RateLimited(limited) => Some(limited.suppressed),
            _ => None,
        };
        records.iter().filter_map(number).collect()
    }

    #[tokio::test]
    async fn a_stream_without_follow_ends_after_the_existing_records() {
        let existing = (0..100).map(|number| Arc::new(test_record("shop/web", number))).collect();
        let mut stream = RecordStream::new(&FlowQuery::default(), "n1", existing, None);
        let mut records = Vec::new();
        while let Some(lines) = poll_fn(|context| stream.poll_lines(context)).await {
            records.extend(parsed(&lines));
        }
        assert_eq!(numbers(&records), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_slow_client_gets_the_number_of_lost_records() {
        let buffer = FlowBuffer::new(10);
        let (_, new) = buffer.subscribe();
        let query = FlowQuery::parse("namespace=shop").expect("invalid query");
        let mut stream = RecordStream::new(&query, "n1", Vec::new(), Some(new));
        let total = 2 * MAX_QUEUED as u64;
        for number in 0..total {
            buffer.push(1, test_record("shop/web", number));
            buffer.push(2, test_record("bank/web", number));
            // The task of the stream receives the records now. The client does not read them yet.
            tokio::task::yield_now().await;
        }
        let (mut received, mut lost) = (Vec::new(), 0);
        while received.len() as u64 + lost < total {
            let lines = poll_fn(|context| stream.poll_lines(context)).await.expect("the stream has ended");
            for record in parsed(&lines) {
                match record {
                    Record::Lost(record) => lost += record.records,
                    record => received.extend(numbers(&[record])),
                }
            }
        }
        assert_eq!(received, (0..MAX_QUEUED as u64).collect::<Vec<_>>());
        assert_eq!(lost, total - MAX_QUEUED as u64, "records that were not requested must not count");
        buffer.push(1, test_record("shop/web", 7));
        let lines = poll_fn(|context| stream.poll_lines(context)).await.expect("the stream has ended");
        assert_eq!(numbers(&parsed(&lines)), [7]);
    }

    #[tokio::test]
    async fn a_stream_ends_when_the_agent_ends() {
        let buffer = FlowBuffer::new(10);
        let (_, new) = buffer.subscribe();
        let mut stream = RecordStream::new(&FlowQuery::default(), "n1", Vec::new(), Some(new));
        drop(buffer);
        assert_eq!(poll_fn(|context| stream.poll_lines(context)).await, None);
    }
}
