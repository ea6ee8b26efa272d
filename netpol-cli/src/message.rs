//! Messages on standard error.

/// Prints a line to standard error, like `eprintln!`. In contrast to `eprintln!`, this macro does not panic if standard
/// error is closed, as in `netpol lint … 2>&1 | head -1`.
macro_rules! message {
    ($($arguments:tt)*) => {{
        use std::io::Write as _;
        // If writing fails, there is no other stream to report it.
        let _ = writeln!(std::io::stderr(), $($arguments)*);
    }};
}

pub(crate) use message;
