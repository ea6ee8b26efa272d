//! Writes the log to standard error. Each event is one line, even if its fields contain line breaks: names of objects
//! and files are escaped here, for the whole agent.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;
use std::io;

use netpol_policy::text::{self, Safe};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{FormatFields, Writer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::LogFormat;

/// Starts the log. The log does not go to standard output, which is only for deny events.
pub(super) fn start(format: LogFormat, verbose: bool) {
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // The Kubernetes client logs every error response. The crate `netpol-source` logs each failure once, so the
    // messages of the client are logged only with --verbose.
    let client = if verbose { level } else { LevelFilter::OFF };
    let targets = Targets::new().with_default(level).with_target("kube_client", client);
    // The layer formats and writes each event. With `log_internal_errors`, it would panic if standard error is closed.
    let layer = tracing_subscriber::fmt::layer().with_target(false).log_internal_errors(false);
    let layer = match format {
        LogFormat::Json => layer.with_writer(|| SafeJson(io::stderr())).json().flatten_event(true).boxed(),
        LogFormat::Text => {
            let terminal = io::IsTerminal::is_terminal(&io::stderr());
            let colored = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            layer.with_writer(io::stderr).fmt_fields(SafeFields).with_ansi(colored).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
}

/// Writes the fields of an event as `message name=value …`, escaped.
#[derive(Debug)]
struct SafeFields;

impl<'w> FormatFields<'w> for SafeFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut visitor = SafeVisitor { writer, first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct SafeVisitor<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

impl SafeVisitor<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.writer.write_char(' ')?;
        }
        // Terminal codes: the name is italic and the `=` is dim, as the layer itself writes them.
        match (field.name(), self.writer.has_ansi_escapes()) {
            ("message", _) => {}
            (name, true) => write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m")?,
            (name, false) => write!(self.writer, "{name}=")?,
        }
        write!(self.writer, "{}", Safe(value))
    }

    fn record(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        if self.result.is_ok() {
            self.result = self.write(field, value);
        }
    }
}

impl Visit for SafeVisitor<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Fields `log.…` contain the origin of an event from the crate `log`. They are not written.
        if !field.name().starts_with("log.") {
            self.record(field, format_args!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.record(field, format_args!("{value}"));
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.record(field, format_args!("{value}"));
    }
}

/// The start of each line of JSON that the layer writes.
const TIMESTAMP: &str = "{\"timestamp\":";

/// Escapes lines of JSON, and renames the field `timestamp` to `time`, as in deny events. The layer writes each line
/// with one call.
#[derive(Debug)]
struct SafeJson<W>(W);

impl<W: io::Write> io::Write for SafeJson<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(bytes) {
            Ok(line) => {
                let line = match line.strip_prefix(TIMESTAMP) {
                    Some(rest) => Cow::Owned(format!("{{\"time\":{rest}")),
                    None => Cow::Borrowed(line),
                };
                self.0.write_all(text::json(&line).as_bytes())?;
            }
            Err(_) => self.0.write_all(bytes)?,
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A name that clears the screen, starts a forged log line, and has invisible characters.
    const HOSTILE: &str = "web\u{1b}[2J\r\n2026-01-01T00:00:00Z  INFO ready\u{202e}\u{200b}";

    #[derive(Clone, Debug, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("a writer panicked").extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("a writer panicked").clone()).expect("the log is not UTF-8")
        }
    }

    fn log() {
        tracing::warn!(pod = %HOSTILE, label = HOSTILE, path = ?HOSTILE, "cannot read {HOSTILE}");
    }

    #[test]
    fn a_name_cannot_forge_a_line_or_move_the_cursor() {
        let written = Written::default();
        let writer = written.clone();
        let layer = tracing_subscriber::fmt::layer().with_writer(move || writer.clone()).without_time();
        let layer = layer.fmt_fields(SafeFields).with_ansi(false);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = written.text();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end_matches('\n').chars().any(text::is_unsafe), "{text:?}");
        let start = r" WARN netpol_agent::cli::log::tests: cannot read web\u{1b}[2J\r\n2026-01-01T00:00:00Z";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains(r" pod=web\u{1b}[2J\r\n2026"), "{text}");
    }

    #[test]
    fn json_lines_keep_names_and_escape_hidden_characters() {
        let written = Written::default();
        let writer = written.clone();
        let layer =
            tracing_subscriber::fmt::layer().with_writer(move || SafeJson(writer.clone())).json().flatten_event(true);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let text = written.text();
        assert!(!text.trim_end_matches('\n').chars().any(text::is_unsafe), "{text:?}");
        let line: serde_json::Value = serde_json::from_str(&text).expect("invalid JSON");
        assert_eq!(line["pod"], HOSTILE);
        let time = line["time"].as_str().expect("no time");
        assert!(text.starts_with("{\"time\":") && time.ends_with('Z'), "{text}");
    }
}
