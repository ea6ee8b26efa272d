//! Test servers on the hosts of a test cluster (pods and other network namespaces). A TCP server sends the host's name,
//! and then sends back what it receives. A UDP server responds with the host's name, followed by the received datagram.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::cluster::Host;

/// All servers of a test cluster, on one thread.
#[derive(Debug)]
pub struct Servers {
    commands: Option<Sender<Command>>,
    /// A pipe. A write wakes the thread, which then reads the commands.
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
enum Command {
    Add(Vec<Server>),
    Stop { host: Arc<str>, done: Sender<()> },
}

/// One socket of a host.
#[derive(Debug)]
struct Server {
    host: Arc<str>,
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Listener(TcpListener),
    Connection(TcpStream),
    Datagrams(UdpSocket),
}

impl Servers {
    /// Starts the thread.
    ///
    /// # Errors
    /// Returns an error if a pipe or a thread cannot be created.
    pub fn start() -> Result<Self> {
        let (reader, wake) = nix::unistd::pipe().context("creating a pipe")?;
        let (commands, inbox) = channel();
        let thread = std::thread::Builder::new()
            .name("servers".into())
            .spawn(move || serve_until_disconnected(&reader, &inbox))
            .context("starting the servers' thread")?;
        Ok(Self { commands: Some(commands), wake, thread: Some(thread) })
    }

    /// Serves ports at all addresses of a host.
    ///
    /// # Errors
    /// Returns an error that names the port that could not be bound. SCTP is not supported, because the kernel may
    /// have no SCTP sockets.
    pub fn serve(&self, host: &Host, ports: &[(Protocol, u16)]) -> Result<()> {
        let name: Arc<str> = host.name().into();
        let servers = host.netns().run(|| {
            let mut servers = Vec::new();
            for &address in host.addresses() {
                for &(protocol, port) in ports {
                    let socket = bind(protocol, SocketAddr::new(address, port)).with_context(|| {
                        format!("serving {port}/{} at {} ({address})", protocol.name(), host.name())
                    })?;
                    servers.push(Server { host: name.clone(), socket });
                }
            }
            Ok(servers)
        })?;
        self.send(Command::Add(servers))
    }

    /// Closes all sockets of a host, and waits until they are closed.
    pub fn stop(&self, host: &str) {
        let (done, closed) = channel();
        if self.send(Command::Stop { host: host.into(), done }).is_ok() {
            // If receiving fails, the thread has ended and its sockets are closed.
            let _ = closed.recv();
        }
    }

    fn send(&self, command: Command) -> Result<()> {
        self.commands
            .as_ref()
            .context("the servers were stopped")?
            .send(command)
            .ok()
            .context("the servers' thread has ended")?;
        nix::unistd::write(&self.wake, b"!").context("waking the servers")?;
        Ok(())
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = nix::unistd::write(&self.wake, b"!");
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn bind(protocol: Protocol, at: SocketAddr) -> Result<Socket> {
    match protocol {
        Protocol::Tcp => {
            let listener = TcpListener::bind(at)?;
            listener.set_nonblocking(true)?;
            Ok(Socket::Listener(listener))
        }
        Protocol::Udp => {
            let socket = UdpSocket::bind(at)?;
            socket.set_nonblocking(true)?;
            crate::flow::enlarge_receive_buffer(&socket)?;
            Ok(Socket::Datagrams(socket))
        }
        Protocol::Sctp => anyhow::bail!("SCTP is tested with raw packets, not served"),
    }
}

impl Server {
    fn fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Listener(listener) => listener.as_fd(),
            Socket::Connection(stream) => stream.as_fd(),
            Socket::Datagrams(socket) => socket.as_fd(),
        }
    }

    /// Handles a ready socket. Returns the connection that a listener accepted, and whether to keep the socket.
    fn handle(&mut self, buffer: &mut [u8]) -> (Option<Self>, bool) {
        match &mut self.socket {
            Socket::Listener(listener) => {
                let Ok((mut stream, _)) = listener.accept() else { return (None, true) };
                // Errors mean that the client has closed the connection.
                let _ = stream.set_nonblocking(true);
                let _ = stream.set_nodelay(true);
                let _ = stream.write_all(format!("{}\n", self.host).as_bytes());
                (Some(Self { host: self.host.clone(), socket: Socket::Connection(stream) }), true)
            }
            Socket::Connection(stream) => match stream.read(buffer) {
                Ok(0) => (None, false),
                Ok(length) => (None, stream.write_all(&buffer[..length]).is_ok()),
                Err(error) => (None, matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)),
            },
            Socket::Datagrams(socket) => {
                // An error is an ICMP error for an earlier response.
                if let Ok((length, from)) = socket.recv_from(buffer) {
                    let mut response = format!("{}\n", self.host).into_bytes();
                    response.extend_from_slice(&buffer[..length]);
                    let _ = socket.send_to(&response, from);
                }
                (None, true)
            }
        }
    }
}

fn serve_until_disconnected(wake: &OwnedFd, inbox: &Receiver<Command>) {
    let mut servers: Vec<Server> = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut ready: Vec<usize> = Vec::new();
        let woken = {
            let mut fds: Vec<_> = servers.iter().map(|server| PollFd::new(server.fd(), PollFlags::POLLIN)).collect();
            fds.push(PollFd::new(wake.as_fd(), PollFlags::POLLIN));
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            let is_ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            let woken = fds.pop().is_some_and(|fd| is_ready(&fd));
            ready.extend(fds.iter().enumerate().filter(|(_, fd)| is_ready(fd)).map(|(index, _)| index));
            woken
        };
        let mut closed = Vec::new();
        for index in ready {
            let (connection, is_open) = servers[index].handle(&mut buffer);
            servers.extend(connection);
            if !is_open {
                closed.push(index);
            }
        }
        for index in closed.into_iter().rev() {
            servers.swap_remove(index);
        }
        if woken {
            let mut bytes = [0; 64];
            let _ = nix::unistd::read(wake, &mut bytes);
            loop {
                match inbox.try_recv() {
                    Ok(Command::Add(more)) => servers.extend(more),
                    Ok(Command::Stop { host, done }) => {
                        servers.retain(|server| server.host != host);
                        let _ = done.send(());
                    }
                    Err(std::sync::mpsc::TryRecvError::Empty) => break,
                    Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
                }
            }
        }
    }
}
