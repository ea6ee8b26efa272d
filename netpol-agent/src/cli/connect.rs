//! `netpol-agent connect`: connects standard input and output to the socket of the agent's API. `netpol` runs it in the
//! agent's pod, through `pods/exec` of the API server.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::ConnectArgs;

/// Maximum number of bytes of one read.
const CHUNK: usize = 16 << 10;
/// Interval between checks whether a process still reads standard output.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(args: &ConnectArgs) -> Result<ExitCode> {
    let path = &args.api_socket;
    let socket = UnixStream::connect(path).with_context(|| {
        format!("cannot connect to the agent at {}; is an agent running here with this --api-socket?", path.display())
    })?;
    let to_agent = socket.try_clone().context("cannot use the socket twice")?;
    // Threads that still wait for input do not keep the process running.
    thread::Builder::new().spawn(move || send(io::stdin().lock(), &to_agent)).context("cannot start a thread")?;
    let watched = socket.try_clone().context("cannot use the socket twice")?;
    thread::Builder::new().spawn(move || watch_output(&watched)).context("cannot start a thread")?;
    match receive(&socket, io::stdout().lock()) {
        Ok(()) => Ok(ExitCode::SUCCESS),
        // The process that reads standard output has ended, so no message is needed.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("the connection to the agent failed"),
    }
}

/// Sends the input to the agent. The end of the input does not end the connection, because the response is still to be
/// read.
fn send(mut input: impl Read, mut socket: &UnixStream) {
    // An error here also ends the connection, and is reported where the response is read.
    let _ = io::copy(&mut input, &mut socket);
}

/// Copies the response until the agent closes the connection. Each part is written immediately, because the next part
/// may arrive much later.
fn receive(mut socket: &UnixStream, mut output: impl Write) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match socket.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                output.write_all(&buffer[..length])?;
                output.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Closes the connection when no process reads standard output any more. A failed write would also show this, but
/// nothing is written while the agent sends no data.
fn watch_output(socket: &UnixStream) {
    let stdout = io::stdout();
    while !is_reader_gone(stdout.as_fd()) {
        thread::sleep(CHECK_INTERVAL);
    }
    // An error means that the connection is closed already. In this case, this process is ending.
    let _ = socket.shutdown(Shutdown::Both);
}

/// Returns whether the other end of a pipe or socket is closed; false for other files.
fn is_reader_gone(output: BorrowedFd<'_>) -> bool {
    // Without requested events, only errors and hangups are reported: `poll(2)`.
    let mut polled = [PollFd::new(output, PollFlags::empty())];
    let result = poll(&mut polled, PollTimeout::ZERO);
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    result.is_ok() && polled[0].revents().is_some_and(|events| events.intersects(gone))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_response_is_read_to_its_end_after_the_input_has_ended() {
        let (client, agent) = UnixStream::pair().expect("cannot create sockets");
        send(&b"request"[..], &client);
        let agent = thread::spawn(move || {
            let (mut socket, mut request) = (agent, [0; 7]);
            socket.read_exact(&mut request).expect("cannot read the request");
            socket.set_nonblocking(true).expect("cannot change the socket");
            let error_kind =
                socket.read(&mut [0]).expect_err("the end of the input must not end the connection").kind();
            socket.write_all(b"response").expect("cannot send the response");
            (request, error_kind)
        });
        let mut output = Vec::new();
        receive(&client, &mut output).expect("cannot read the response");
        assert_eq!(output, b"response");
        assert_eq!(agent.join().expect("the agent failed"), (*b"request", io::ErrorKind::WouldBlock));
    }

    #[test]
    fn a_reader_that_has_gone_is_detected() {
        let (reader, writer) = io::pipe().expect("cannot create a pipe");
        assert!(!is_reader_gone(writer.as_fd()));
        drop(reader);
        assert!(is_reader_gone(writer.as_fd()));
    }
}
