//! Writes the output of commands. It is not an error if the reader closes the pipe early, as in
//! `netpol-agent status | head -1`. In this case, `println!` would panic.

use std::fmt::Display;
use std::io::{self, ErrorKind, Write};

/// Writes to standard output, without adding a newline. A closed pipe is not an error.
pub(super) fn out(text: impl Display) -> io::Result<()> {
    write(&mut io::stdout().lock(), text)
}

/// Writes a line to standard error. Ignores a failure, because there is no other place to report it.
pub(super) fn error_line(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

fn write(out: &mut impl Write, text: impl Display) -> io::Result<()> {
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FailingWriter(ErrorKind);

    impl Write for FailingWriter {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_no_error_but_a_full_disk_is_an_error() {
        assert!(write(&mut FailingWriter(ErrorKind::BrokenPipe), "text").is_ok());
        assert!(write(&mut FailingWriter(ErrorKind::StorageFull), "text").is_err());
    }
}
