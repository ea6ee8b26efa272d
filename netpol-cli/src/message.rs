//! Messages on standard error.

/// Prints a line to standard error, like `eprintln!`. Unlike it, it does not panic if standard error is closed, as in
/// `netpol lint … 2>&1 | head -1`.
macro_rules! message {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        // No other stream is left to report a failure.
        let _ = writeln!(std::io::stderr(), $($arguments)*);
    }};
}

pub(crate) use message;
