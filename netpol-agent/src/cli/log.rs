//! The log, on standard error.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt;

use super::LogFormat;

/// Starts it. Standard output is for denied packets alone.
pub(super) fn start(format: LogFormat, verbose: bool) {
    let level = if verbose { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let builder = fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    // It would tell on standard error that standard error is closed, and panic.
    let builder = builder.log_internal_errors(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(terminal && std::env::var_os("NO_COLOR").is_none()).init();
        }
    }
}
