//! The last records, in memory, for clients of the API. If the buffer is full, the oldest record of the pod with the
//! largest records in total is removed, so that a flood of one pod does not remove the records of others.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use netpol_api::Record;
use netpol_policy::model::Labels;
use tokio::sync::broadcast;

use super::bounds::json_len;

/// Records that a subscription can lag behind. A subscription only moves them to its own queue.
const CHANNEL: usize = 1024;
/// Maximum size of all records in bytes.
const MAX_BYTES: usize = 64 << 20;

/// A record, and what is not part of it.
#[derive(Debug)]
pub struct BufferedRecord {
    /// The record, without labels.
    pub record: Arc<Record>,
    /// Labels of the source and the destination.
    pub labels: [Option<Labels>; 2],
    /// The time of the record.
    pub time: SystemTime,
}

/// The buffer. Clones share it.
#[derive(Clone, Debug)]
pub struct FlowBuffer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    buffer: Mutex<Buffer>,
    new: broadcast::Sender<Arc<BufferedRecord>>,
}

#[derive(Debug, Default)]
struct Buffer {
    capacity: usize,
    next: u64,
    records: BTreeMap<u64, (u32, usize, Arc<BufferedRecord>)>,
    by_key: HashMap<u32, RecordsOfKey>,
    /// The size of each key's records.
    sizes: BTreeSet<(usize, u32)>,
    /// The size of all records.
    bytes: usize,
}

/// The records of a key.
#[derive(Debug, Default)]
struct RecordsOfKey {
    /// Their numbers, the oldest first.
    numbers: VecDeque<u64>,
    bytes: usize,
}

impl FlowBuffer {
    /// Creates a buffer for this number of records. With 0, records are only sent to subscriptions.
    pub fn new(capacity: usize) -> Self {
        let buffer = Buffer { capacity, ..Buffer::default() };
        Self(Arc::new(Shared { buffer: Mutex::new(buffer), new: broadcast::Sender::new(CHANNEL) }))
    }

    /// Adds a record. `key` identifies the budget of the pod that it is counted for.
    pub(crate) fn push(&self, key: u32, record: BufferedRecord) {
        let record = Arc::new(record);
        // Under the lock, so that a new subscription gets each record once.
        let mut buffer = self.lock();
        buffer.push(key, Arc::clone(&record));
        if self.0.new.receiver_count() > 0 {
            // An error means that there is no subscription any more.
            let _ = self.0.new.send(record);
        }
    }

    /// Returns the records in the order of their arrival.
    pub fn records(&self) -> Vec<Arc<BufferedRecord>> {
        self.lock().records()
    }

    /// Returns the records so far, and a receiver of all later ones.
    pub fn subscribe(&self) -> (Vec<Arc<BufferedRecord>>, broadcast::Receiver<Arc<BufferedRecord>>) {
        let buffer = self.lock();
        (buffer.records(), self.0.new.subscribe())
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
        self.records.values().map(|(_, _, record)| Arc::clone(record)).collect()
    }

    fn push(&mut self, key: u32, record: Arc<BufferedRecord>) {
        if self.capacity == 0 {
            return;
        }
        let bytes = size_of::<BufferedRecord>() + json_len(&*record.record);
        while !self.records.is_empty() && (self.records.len() >= self.capacity || self.bytes + bytes > MAX_BYTES) {
            self.remove_oldest_of_largest(key);
        }
        let number = self.next;
        self.next += 1;
        self.records.insert(number, (key, bytes, record));
        self.bytes += bytes;
        self.change(key, |of_key| {
            of_key.numbers.push_back(number);
            of_key.bytes += bytes;
        });
    }

    /// Removes a record of the key with the largest records in total; if those of `key` are as large, of `key`.
    fn remove_oldest_of_largest(&mut self, key: u32) {
        let Some(&(most, largest)) = self.sizes.last() else { return };
        let own = self.by_key.get(&key).map_or(0, |of_key| of_key.bytes);
        let from = if own >= most { key } else { largest };
        let oldest = self.by_key.get(&from).and_then(|of_key| of_key.numbers.front());
        let Some((_, bytes, _)) = oldest.and_then(|number| self.records.remove(number)) else { return };
        self.bytes -= bytes;
        self.change(from, |of_key| {
            of_key.numbers.pop_front();
            of_key.bytes -= bytes;
        });
    }

    /// Changes the records of a key, and updates its size.
    fn change(&mut self, key: u32, change: impl FnOnce(&mut RecordsOfKey)) {
        let of_key = self.by_key.entry(key).or_default();
        self.sizes.remove(&(of_key.bytes, key));
        change(of_key);
        if of_key.numbers.is_empty() {
            self.by_key.remove(&key);
        } else {
            self.sizes.insert((of_key.bytes, key));
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use netpol_api::{FlowDirection, FlowVerdict, RateLimitedRecord};

    use super::super::describe::header;
    use super::*;

    /// A record of this pod; its number identifies it.
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

    fn numbers(records: &[Arc<BufferedRecord>], of: &str) -> Vec<u64> {
        let number = |record: &Arc<BufferedRecord>| match &*record.record {
            Record::RateLimited(limited) if limited.pod == of => Some(limited.suppressed),
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
        assert_eq!(buffer.sizes.len(), buffer.by_key.len());
        assert_eq!(buffer.by_key.values().map(|of_key| of_key.numbers.len()).sum::<usize>(), 100);
        assert_eq!(buffer.by_key.values().map(|of_key| of_key.bytes).sum::<usize>(), buffer.bytes);
    }

    #[test]
    fn large_records_remove_records_of_their_own_pod_only() {
        let buffer = FlowBuffer::new(10_000);
        for number in 0..1000 {
            buffer.push(1, record("shop/victim", number));
        }
        let large = "x".repeat(MAX_BYTES / 100);
        for number in 0..120 {
            buffer.push(2, record(&large, number));
            assert!(buffer.lock().bytes <= MAX_BYTES);
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
