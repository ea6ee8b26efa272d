//! Keeps the last flow records in memory, for clients of the API. Each event budget (of a pod, a direction and a kind
//! of event) has a share of the buffer, and all summaries (records that count several events) have one share together.
//! If the buffer is full, the oldest record of the share with the most bytes is removed. So a flood of records of one
//! pod does not remove the records of other pods.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use netpol_api::Record;
use netpol_policy::model::Labels;
use tokio::sync::broadcast;

use super::bounds::json_len;
use super::queue::KeyedQueue;

/// Number of records that a subscription can lag behind. A small number is enough, because the receiver of a
/// subscription only moves records to its own queue.
const CHANNEL_CAPACITY: usize = 1024;
/// Maximum size of all records in bytes.
const MAX_BYTES: usize = 64 << 20;

/// A record, and data about it that is not part of the record.
#[derive(Debug)]
pub struct BufferedRecord {
    /// The record, without labels.
    pub record: Arc<Record>,
    /// The labels of the source and the destination, if they are pods.
    pub labels: [Option<Labels>; 2],
    /// The time of the record.
    pub time: SystemTime,
}

/// The buffer. A clone uses the same buffer.
#[derive(Clone, Debug)]
pub struct FlowBuffer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    /// Sends each new record to all subscriptions.
    new_records: broadcast::Sender<Arc<BufferedRecord>>,
}

#[derive(Debug, Default)]
struct Buffer {
    /// Maximum number of records.
    capacity: usize,
    records: KeyedQueue<Arc<BufferedRecord>>,
}

impl FlowBuffer {
    /// Creates a buffer for this number of records. With 0, records are only sent to subscriptions.
    pub fn new(capacity: usize) -> Self {
        let buffer = Buffer { capacity, ..Buffer::default() };
        let new_records = broadcast::Sender::new(CHANNEL_CAPACITY);
        Self(Arc::new(Shared { buffer: Mutex::new(buffer), new_records }))
    }

    /// Adds a record. `key` identifies the share of the buffer that the record uses: `SUMMARY_KEY`, or the index of an
    /// event budget of a pod, see [`netpol_common::FlowEvent::budget`].
    pub(crate) fn push(&self, key: u32, record: BufferedRecord) {
        let record = Arc::new(record);
        // The record is added and sent under one lock, so that a new subscription gets each record once.
        let mut buffer = self.lock();
        buffer.push(key, Arc::clone(&record));
        if self.0.new_records.receiver_count() > 0 {
            // An error means that there is no subscription any more.
            let _ = self.0.new_records.send(record);
        }
    }

    /// Returns the records in the order of their arrival.
    pub fn records(&self) -> Vec<Arc<BufferedRecord>> {
        self.lock().records()
    }

    /// Returns the records so far, and a receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<BufferedRecord>>, broadcast::Receiver<Arc<BufferedRecord>>) {
        let buffer = self.lock();
        (buffer.records(), self.0.new_records.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // No thread panics while it changes the buffer.
        self.0.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for FlowBuffer {
    fn default() -> Self {
        Self::new(super::DEFAULT_FLOW_BUFFER)
    }
}

impl Buffer {
    fn records(&self) -> Vec<Arc<BufferedRecord>> {
        self.records.iter().map(Arc::clone).collect()
    }

    /// Adds a record. While there is no room, removes the oldest record of the key with the most bytes in the buffer.
    /// If `key` (of the new record) has just as many bytes, removes the oldest record of `key`.
    fn push(&mut self, key: u32, record: Arc<BufferedRecord>) {
        if self.capacity == 0 {
            return;
        }
        let bytes = size_of::<BufferedRecord>() + json_len(&*record.record);
        while (self.records.len() >= self.capacity || self.records.bytes() + bytes > MAX_BYTES)
            && let Some((largest, most)) = self.records.largest()
        {
            self.records.remove_oldest(if self.records.bytes_of(key) >= most { key } else { largest });
        }
        self.records.push(key, bytes, record);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use netpol_api::{FlowDirection, FlowVerdict, RateLimitedRecord};

    use super::super::describe::header;
    use super::*;

    /// Returns a record of a pod. `number` identifies the record; it is stored in the field `suppressed`.
    pub(crate) fn record(pod: &str, number: u64) -> BufferedRecord {
        let time = SystemTime::now();
        let record = RateLimitedRecord {
            header: header(time, "n1"),
            verdict: FlowVerdict::Denied,
            direction: FlowDirection::Egress,
            pod: pod.to_owned(),
            suppressed: number,
        };
        BufferedRecord { record: Arc::new(Record::RateLimited(record)), labels: [None, None], time }
    }

    /// Returns the numbers of a pod's records.
    fn numbers(records: &[Arc<BufferedRecord>], pod: &str) -> Vec<u64> {
        let number = |record: &Arc<BufferedRecord>| match &*record.record {
            Record::RateLimited(limited) if limited.pod == pod => Some(limited.suppressed),
            _ => None,
        };
        records.iter().filter_map(number).collect()
    }

    #[test]
    fn a_flood_removes_its_own_oldest_records_only() {
        let buffer = FlowBuffer::new(100);
        for number in 0..40 {
            buffer.push(1, record("shop/victim", number));
        }
        for number in 0..10_000 {
            buffer.push(2, record("bad/flood", number));
        }
        let records = buffer.records();
        assert_eq!(numbers(&records, "shop/victim"), (0..40).collect::<Vec<_>>());
        assert_eq!(numbers(&records, "bad/flood"), (9940..10_000).collect::<Vec<_>>());
    }

    #[test]
    fn many_pods_share_the_buffer_equally() {
        let buffer = FlowBuffer::new(100);
        for number in 0..1000 {
            for pod in 0..20 {
                buffer.push(pod, record(&format!("shop/{pod}"), number));
            }
        }
        let records = buffer.records();
        assert_eq!(records.len(), 100);
        for pod in 0..20 {
            let own = numbers(&records, &format!("shop/{pod}")).len();
            assert!((4..=6).contains(&own), "pod {pod} has {own} records");
        }
        let buffer = buffer.lock();
        assert_eq!((0..20).map(|pod| buffer.records.checked_len_of(pod)).sum::<usize>(), 100);
    }

    #[test]
    fn large_records_remove_records_of_their_own_pod_only() {
        let buffer = FlowBuffer::new(10_000);
        for number in 0..1000 {
            buffer.push(1, record("shop/victim", number));
        }
        // Each record contains the name of its pod. So a pod with a long name has large records.
        let large = "x".repeat(MAX_BYTES / 100);
        for number in 0..120 {
            buffer.push(2, record(&large, number));
            assert!(buffer.lock().records.bytes() <= MAX_BYTES);
        }
        let records = buffer.records();
        assert_eq!(numbers(&records, "shop/victim").len(), 1000);
        assert!((90..100).contains(&numbers(&records, &large).len()), "{}", records.len());
    }

    #[test]
    fn a_subscription_gets_each_record_once() {
        let buffer = FlowBuffer::new(10);
        buffer.push(1, record("shop/web", 1));
        let (existing, mut new) = buffer.subscribe();
        buffer.push(1, record("shop/web", 2));
        let mut records = existing;
        while let Ok(record) = new.try_recv() {
            records.push(record);
        }
        assert_eq!(numbers(&records, "shop/web"), [1, 2]);
    }

    #[test]
    fn a_buffer_without_capacity_keeps_nothing() {
        let buffer = FlowBuffer::new(0);
        let (_, mut new) = buffer.subscribe();
        buffer.push(1, record("shop/web", 1));
        assert!(buffer.records().is_empty());
        assert!(new.try_recv().is_ok());
    }
}
