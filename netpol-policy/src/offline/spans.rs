//! Sorted lists of ranges of numbers. A number stands for an address or a port.
//!
//! A merged list is sorted, and its ranges are neither overlapping nor adjacent.

/// The first and the last number of a range, both included.
pub(super) type Span<N> = (N, N);

/// A number that stands for an address or a port.
pub(super) trait Number: Copy + Ord {
    const ZERO: Self;

    /// Returns the next number; `None` for the last one.
    fn next(self) -> Option<Self>;

    /// Returns the number before this one; for 0, returns 0.
    fn previous(self) -> Self;
}

macro_rules! number {
    ($($type:ty),*) => {
        $(impl Number for $type {
            const ZERO: Self = 0;

            fn next(self) -> Option<Self> {
                self.checked_add(1)
            }

            fn previous(self) -> Self {
                self.saturating_sub(1)
            }
        })*
    };
}

number!(u16, u128);

/// Sorts ranges, and combines those that overlap or are adjacent.
pub(super) fn merge<N: Number>(spans: &mut Vec<Span<N>>) {
    spans.sort_unstable();
    spans.dedup_by(|(first, last), (_, end)| {
        let is_connected = end.next().is_none_or(|next| *first <= next);
        if is_connected {
            *end = (*last).max(*end);
        }
        is_connected
    });
}

/// Returns whether a merged list contains this number.
pub(super) fn contains<N: Number>(spans: &[Span<N>], number: N) -> bool {
    let index = spans.partition_point(|(_, last)| *last < number);
    spans.get(index).is_some_and(|(first, _)| *first <= number)
}

/// Returns the numbers that two merged lists have in common.
pub(super) fn common<N: Number>(one: &[Span<N>], other: &[Span<N>]) -> Vec<Span<N>> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let mut common = Vec::new();
    while let (Some(&&(first, last)), Some(&&(start, end))) = (one.peek(), other.peek()) {
        if first.max(start) <= last.min(end) {
            common.push((first.max(start), last.min(end)));
        }
        if last <= end {
            one.next();
        } else {
            other.next();
        }
    }
    common
}

/// Returns the numbers up to `max` that are not in a merged list.
pub(super) fn complement<N: Number>(spans: &[Span<N>], max: N) -> Vec<Span<N>> {
    let mut outside = Vec::new();
    let mut next = Some(N::ZERO);
    for (first, last) in spans {
        if let Some(start) = next.filter(|start| start < first) {
            outside.push((start, first.previous()));
        }
        next = last.next().filter(|next| *next <= max);
    }
    outside.extend(next.map(|start| (start, max)));
    outside
}

/// Splits the ranges of a merged list, so that each number in `starts` that is inside a range starts a new range.
pub(super) fn split<N: Number>(spans: &[Span<N>], starts: &mut Vec<N>) -> Vec<Span<N>> {
    starts.sort_unstable();
    starts.dedup();
    let mut parts = Vec::new();
    for (first, last) in spans {
        let inside = starts.iter().skip(starts.partition_point(|start| start <= first));
        let mut begin = *first;
        for start in inside.take_while(|start| *start <= last) {
            parts.push((begin, start.previous()));
            begin = *start;
        }
        parts.push((begin, *last));
    }
    parts
}
