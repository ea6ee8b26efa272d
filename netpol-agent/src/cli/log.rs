//! The log, on standard error.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::LogFormat;

/// Starts it. Standard output is for denied packets alone.
pub(super) fn start(format: LogFormat, verbose: bool) {
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    // The client tells of every answer that is an error; the source says what follows from it, once.
    let client = if verbose { level } else { LevelFilter::OFF };
    let targets = Targets::new().with_default(level).with_target("kube_client", client);
    // Internal errors: it would tell on standard error that standard error is closed, and panic.
    let layer = fmt::layer().with_writer(std::io::stderr).with_target(false).log_internal_errors(false);
    let layer = match format {
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            layer.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).boxed()
        }
    };
    tracing_subscriber::registry().with(layer.with_filter(targets)).init();
}
