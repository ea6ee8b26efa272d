//! Tables of Prometheus metrics. A metric is one row of a table: its name, help text and type, and a function that adds
//! its samples. `cargo xtask tidy` compares the rows with the docs.

use std::fmt::{Display, Write};
use std::time::Duration;

use netpol_policy::text::Safe;

/// A row of a table. `F` is the type of the function that adds the metric's samples.
#[derive(Debug)]
pub(super) struct Metric<F> {
    kind: &'static str,
    name: &'static str,
    help: &'static str,
    add_samples: F,
}

/// A table of metrics. `S` is the type of the data from which the values come.
pub(super) type Table<S> = &'static [Metric<fn(&S, &mut Samples)>];

/// A value that can increase and decrease.
pub(super) const fn gauge<F: Copy>(name: &'static str, help: &'static str, add_samples: F) -> Metric<F> {
    Metric { kind: "gauge", name, help, add_samples }
}

/// A value that increases until the agent stops. Its name ends with `_total`.
pub(super) const fn counter<F: Copy>(name: &'static str, help: &'static str, add_samples: F) -> Metric<F> {
    Metric { kind: "counter", name, help, add_samples }
}

/// For each bound, the number of observations that are not higher: see [`Samples::histogram`].
pub(super) const fn histogram<F: Copy>(name: &'static str, help: &'static str, add_samples: F) -> Metric<F> {
    Metric { kind: "histogram", name, help, add_samples }
}

/// Number and sum of observations: see [`Samples::summary`].
pub(super) const fn summary<F: Copy>(name: &'static str, help: &'static str, add_samples: F) -> Metric<F> {
    Metric { kind: "summary", name, help, add_samples }
}

/// The samples of one metric, as lines of the Prometheus text format.
#[derive(Debug)]
pub(super) struct Samples {
    name: &'static str,
    lines: String,
}

impl Samples {
    /// Adds the only sample of a metric.
    pub(super) fn value(&mut self, value: impl Display) {
        self.add("", &[], value);
    }

    /// Adds a sample with labels.
    pub(super) fn labeled(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.add("", labels, value);
    }

    /// Adds the samples of a metric with one label: one sample for each value of the label.
    pub(super) fn each<'a, V: Display>(&mut self, label: &str, values: impl IntoIterator<Item = (&'a str, V)>) {
        for (label_value, value) in values {
            self.add("", &[(label, label_value)], value);
        }
    }

    /// Adds the buckets, the sum and the number of observations. Each bucket has a bound in seconds, and the number of
    /// observations that are not higher than this bound.
    pub(super) fn histogram(&mut self, buckets: impl Iterator<Item = (f64, u64)>, sum: Duration, count: u64) {
        self.labeled_histogram(&[], buckets, sum, count);
    }

    /// Adds a histogram with labels.
    pub(super) fn labeled_histogram(
        &mut self,
        labels: &[(&str, &str)],
        buckets: impl Iterator<Item = (f64, u64)>,
        sum: Duration,
        count: u64,
    ) {
        for (bound, up_to_bound) in buckets {
            self.add("_bucket", &[labels, &[("le", &bound.to_string())]].concat(), up_to_bound);
        }
        self.add("_bucket", &[labels, &[("le", "+Inf")]].concat(), count);
        self.add("_sum", labels, sum.as_secs_f64());
        self.add("_count", labels, count);
    }

    /// Adds the sum and the number of observations.
    pub(super) fn summary(&mut self, sum: Duration, count: u64) {
        self.add("_sum", &[], sum.as_secs_f64());
        self.add("_count", &[], count);
    }

    fn add(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        // Writing to a string does not fail.
        let _ = writeln!(self.lines, "{}{suffix}{labels} {value}", self.name);
    }
}

/// Appends the metrics of a table. A metric without samples is omitted.
pub(super) fn append<S, F: Fn(&S, &mut Samples)>(text: &mut String, table: &[Metric<F>], source: &S) {
    for Metric { kind, name, help, add_samples } in table {
        let mut samples = Samples { name, lines: String::new() };
        add_samples(source, &mut samples);
        if !samples.lines.is_empty() {
            let _ = write!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{}", samples.lines);
        }
    }
}

/// Escapes the value of a label. The first step escapes characters that are not visible, such as line feeds. The second
/// step escapes the other characters that the exposition format requires to escape.
fn escaped(value: &str) -> String {
    Safe(value).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table<u64> = &[
        gauge("a", "A.", |value, samples| {
            samples.labeled(&[("x", "plain"), ("y", "q\"\\\n\u{e9}\u{202e}'")], value);
        }),
        counter("b_total", "B.", |_, _| {}),
        gauge("e", "E.", |value, samples| samples.each("z", [("one", 1), ("two", *value)])),
        histogram("c_seconds", "C.", |value, samples| {
            samples.histogram([(0.5, 1)].into_iter(), Duration::from_millis(1500), *value);
        }),
        summary("d_seconds", "D.", |value, samples| samples.summary(Duration::ZERO, *value)),
    ];

    #[test]
    fn a_table_becomes_a_page_without_metrics_that_have_no_samples() {
        let mut text = String::new();
        append(&mut text, TABLE, &2);
        let expected = "\
# HELP a A.
# TYPE a gauge
a{x=\"plain\",y=\"q\\\"\\\\\\\\n\u{e9}\\\\u{202e}'\"} 2
# HELP e E.
# TYPE e gauge
e{z=\"one\"} 1
e{z=\"two\"} 2
# HELP c_seconds C.
# TYPE c_seconds histogram
c_seconds_bucket{le=\"0.5\"} 1
c_seconds_bucket{le=\"+Inf\"} 2
c_seconds_sum 1.5
c_seconds_count 2
# HELP d_seconds D.
# TYPE d_seconds summary
d_seconds_sum 0
d_seconds_count 2
";
        assert_eq!(text, expected);
    }
}
