//! `/v1/flows`: the last records of flows, and new records as they are written.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use netpol_api::FlowQuery;

use super::body::ApiBody;
use super::connections::AnswerTracker;
use super::requests::Requests;
use super::routes::{HttpResponse, refuse};
use super::stream::RecordStream;
use crate::events::BufferedRecord;

/// The content type of NDJSON: one JSON object a line.
const NDJSON: &str = "application/x-ndjson";

/// Handles a request. `answering` marks the connection as in use until all records are sent. So the agent does not
/// close this connection to make room for another one.
pub(super) fn answer(query: &str, requests: &Requests, answering: &AnswerTracker) -> HttpResponse {
    let query = match FlowQuery::parse(query) {
        Ok(query) => query,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let Ok(permit) = Arc::clone(&requests.streams).try_acquire_owned() else {
        let error = "too many clients read flows; close one of them, or retry later".to_owned();
        return refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    };
    let buffer = &requests.about.flows;
    let (existing, new) = if query.follow {
        let (existing, new) = buffer.subscribe();
        (existing, Some(new))
    } else {
        (buffer.records(), None)
    };
    let existing = requested_records(&query, existing);
    let stream = RecordStream::new(&query, &requests.about.node, existing, new);
    let stream = stream.holding(permit).holding(answering.stream());
    let mut response = Response::new(ApiBody::Records(Box::new(stream)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(NDJSON));
    response
}

/// Returns the existing records that a client requests. A client with `follow=true` gets only new records, unless it
/// requests existing ones with `since` or `last`.
fn requested_records(query: &FlowQuery, existing: Vec<Arc<BufferedRecord>>) -> Vec<Arc<BufferedRecord>> {
    if query.follow && query.since.is_none() && query.last.is_none() {
        return Vec::new();
    }
    let start = query.since.map(|since| SystemTime::now().checked_sub(since).unwrap_or(UNIX_EPOCH));
    let is_requested =
        |record: &Arc<BufferedRecord>| start.is_none_or(|start| record.time >= start) && query.matches(&record.record);
    let mut records: Vec<_> = existing.into_iter().filter(is_requested).collect();
    let skipped = query.last.map_or(0, |last| records.len().saturating_sub(last));
    records.split_off(skipped)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netpol_api::Record;

    use super::*;
    use crate::events::test_record;

    #[test]
    fn existing_records_are_selected_by_age_number_and_filters() {
        let now = SystemTime::now();
        // The records are 10 to 6 minutes old. `test_record` returns a record with the verdict `denied`.
        let record = |(index, pod): (u64, &str)| {
            let time = now.checked_sub(Duration::from_mins(10 - index)).expect("the clock is before 1970");
            Arc::new(BufferedRecord { time, ..test_record(pod, index) })
        };
        let pods = ["shop/a", "bank/a", "shop/b", "bank/b", "shop/c"];
        let records: Vec<_> = (0..).zip(pods).map(record).collect();
        for (query, expected) in [
            ("", &pods[..]),
            ("last=2", &["bank/b", "shop/c"]),
            ("since=8500ms&namespace=shop", &[]),
            ("since=9m&namespace=shop", &["shop/b", "shop/c"]),
            ("since=9m&last=1&namespace=bank", &["bank/b"]),
            ("follow=true", &[]),
            ("follow=true&last=1", &["shop/c"]),
            ("last=100&verdict=allowed", &[]),
        ] {
            let parsed = FlowQuery::parse(query).expect(query);
            let name = |record: &Arc<BufferedRecord>| match &*record.record {
                Record::RateLimited(limited) => limited.pod.clone(),
                other => panic!("{other:?}"),
            };
            let names: Vec<String> = requested_records(&parsed, records.clone()).iter().map(name).collect();
            assert_eq!(names, expected, "{query}");
        }
    }
}
