//! Limits the connections of one listener, in total and for each peer (client address or process). If a peer at its
//! limit opens a new connection, the agent closes the oldest connection of this peer. At the total limit, the agent
//! closes the oldest connection of the peer with the most connections. So a client that sends its request slowly, or
//! reads the response slowly, does not delay other clients. While the agent prepares a response or sends a stream (the
//! records of `/v1/flows`), it does not close the connection.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// The client of a connection, for [`Limits::per_peer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// An IPv4 address, or the first 64 bits of an IPv6 address: one host may use all addresses that have the
    /// same first 64 bits.
    Address(IpAddr),
    /// Process ID of a client of the Unix socket.
    Process(i32),
}

impl Peer {
    pub(super) fn of_address(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64)),
        })
    }
}

/// Maximum number of connections of a listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For all peers together.
    pub(super) all: usize,
    /// For each peer.
    pub(super) per_peer: usize,
}

/// Open connections of one listener; clones share them.
#[derive(Clone, Debug)]
pub(super) struct Connections {
    limits: Limits,
    open: Arc<Mutex<OpenConnections>>,
}

/// Connections by number. Each new connection gets a higher number, so the first entry is the oldest connection.
#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    connections: BTreeMap<u64, Connection>,
}

#[derive(Debug)]
struct Connection {
    peer: Peer,
    /// Whether the agent is answering the request. If not, the connection waits for its client, and may be closed.
    answering: AnswerTracker,
    /// Closes the connection when dropped.
    _close: oneshot::Sender<()>,
}

/// Tracks whether the agent is answering a request on a connection: preparing a response, or sending a stream.
#[derive(Clone, Debug, Default)]
pub(super) struct AnswerTracker(Arc<AnswersInProgress>);

/// How many responses are being prepared, and how many streams are being sent.
#[derive(Debug, Default)]
struct AnswersInProgress {
    responses: AtomicUsize,
    streams: AtomicUsize,
}

impl AnswerTracker {
    /// Awaits `answer`. In the meantime, the connection is not closed to make room for another one.
    pub(super) async fn during<T>(&self, answer: impl Future<Output = T>) -> T {
        self.0.responses.fetch_add(1, Ordering::Relaxed);
        let answer = answer.await;
        self.0.responses.fetch_sub(1, Ordering::Relaxed);
        answer
    }

    /// Marks the connection as streaming until the returned value is dropped. Until then, the connection is not closed
    /// to make room for another one, and has no time limit.
    pub(super) fn stream(&self) -> Streaming {
        self.0.streams.fetch_add(1, Ordering::Relaxed);
        Streaming(Arc::clone(&self.0))
    }

    /// Returns whether a stream is being sent.
    pub(super) fn is_streaming(&self) -> bool {
        self.0.streams.load(Ordering::Relaxed) > 0
    }

    fn waits_for_client(&self) -> bool {
        self.0.responses.load(Ordering::Relaxed) == 0 && !self.is_streaming()
    }
}

/// A stream that is being sent.
#[derive(Debug)]
pub(super) struct Streaming(Arc<AnswersInProgress>);

impl Drop for Streaming {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An admitted connection. It counts towards the limits until this value is dropped.
#[derive(Debug)]
pub(super) struct AdmittedConnection {
    number: u64,
    open: Arc<Mutex<OpenConnections>>,
    closed: oneshot::Receiver<()>,
    pub(super) answering: AnswerTracker,
}

impl Connections {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, open: Arc::default() }
    }

    /// Admits a new connection. If a limit is reached, first closes another connection. Returns `None` if none can be
    /// closed, because the agent is answering a request on each of them.
    pub(super) fn admit(&self, peer: Peer) -> Option<AdmittedConnection> {
        let mut open = lock(&self.open);
        if open.count_of(peer) >= self.limits.per_peer {
            open.close_oldest(peer)?;
        }
        if open.connections.len() >= self.limits.all {
            let victim = open.peer_with_most_connections()?;
            open.close_oldest(victim)?;
        }
        let number = open.next;
        open.next += 1;
        let (close, closed) = oneshot::channel();
        let answering = AnswerTracker::default();
        open.connections.insert(number, Connection { peer, answering: answering.clone(), _close: close });
        Some(AdmittedConnection { number, open: Arc::clone(&self.open), closed, answering })
    }
}

impl AdmittedConnection {
    /// Serves the connection until it ends or is closed to make room for another one.
    pub(super) async fn run(mut self, serve: impl Future) {
        tokio::select! {
            biased;
            _ = &mut self.closed => {}
            _ = serve => {}
        }
    }
}

impl Drop for AdmittedConnection {
    fn drop(&mut self) {
        lock(&self.open).connections.remove(&self.number);
    }
}

impl OpenConnections {
    fn count_of(&self, peer: Peer) -> usize {
        self.connections.values().filter(|connection| connection.peer == peer).count()
    }

    fn waiting_for_client(&self) -> impl Iterator<Item = (u64, Peer)> {
        let waiting = self.connections.iter().filter(|(_, connection)| connection.answering.waits_for_client());
        waiting.map(|(number, connection)| (*number, connection.peer))
    }

    /// Returns the peer with the most connections. Skips peers without a connection that may be closed.
    fn peer_with_most_connections(&self) -> Option<Peer> {
        self.waiting_for_client().map(|(_, peer)| peer).max_by_key(|peer| self.count_of(*peer))
    }

    /// Closes the oldest of the peer's connections that wait for the client. Returns `None` if there is none.
    fn close_oldest(&mut self, peer: Peer) -> Option<()> {
        let (oldest, _) = self.waiting_for_client().find(|(_, client)| *client == peer)?;
        self.connections.remove(&oldest).map(drop)
    }
}

fn lock(open: &Mutex<OpenConnections>) -> MutexGuard<'_, OpenConnections> {
    // Each change is one insertion or removal, so the map is consistent even after a panic.
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> Peer {
        Peer::of_address([10, 0, 0, last].into())
    }

    fn is_open(admitted: &mut AdmittedConnection) -> bool {
        admitted.closed.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn a_client_at_its_limit_loses_its_own_oldest_connection() {
        let connections = Connections::new(Limits { all: 8, per_peer: 2 });
        let mut other = connections.admit(peer(9)).expect("the connection was refused");
        let mut admitted: Vec<_> =
            (0..4).map(|_| connections.admit(peer(1)).expect("the connection was refused")).collect();
        let open: Vec<bool> = admitted.iter_mut().map(is_open).collect();
        assert_eq!(open, [false, false, true, true]);
        assert!(is_open(&mut other));
    }

    #[test]
    fn over_the_total_limit_the_peer_with_the_most_connections_loses_one() {
        let connections = Connections::new(Limits { all: 4, per_peer: 3 });
        let mut of_peer_1 = connections.admit(peer(1)).expect("the connection was refused");
        let mut of_peer_2: Vec<_> =
            (0..3).map(|_| connections.admit(peer(2)).expect("the connection was refused")).collect();
        let mut of_peer_3 = connections.admit(peer(3)).expect("the connection was refused");
        assert!(is_open(&mut of_peer_1) && is_open(&mut of_peer_3));
        assert_eq!(of_peer_2.iter_mut().map(is_open).collect::<Vec<_>>(), [false, true, true]);
    }

    #[tokio::test]
    async fn a_connection_with_a_request_that_is_being_answered_is_not_closed() {
        let connections = Connections::new(Limits { all: 8, per_peer: 1 });
        let first = connections.admit(peer(1)).expect("the connection was refused");
        let refused = first.answering.during(async { connections.admit(peer(1)).is_none() }).await;
        assert!(refused, "a connection that is being answered must not be closed");
        assert!(connections.admit(peer(1)).is_some(), "a connection that waits for its client must be closed");
    }

    #[test]
    fn a_connection_with_a_stream_is_not_closed_until_the_stream_ends() {
        let connections = Connections::new(Limits { all: 8, per_peer: 1 });
        let first = connections.admit(peer(1)).expect("the connection was refused");
        let stream = first.answering.stream();
        assert!(connections.admit(peer(1)).is_none(), "the stream must not be closed");
        drop(stream);
        assert!(connections.admit(peer(1)).is_some(), "the connection must be closed, because its stream has ended");
    }

    #[test]
    fn a_connection_that_ends_makes_room() {
        let connections = Connections::new(Limits { all: 1, per_peer: 1 });
        drop(connections.admit(peer(1)));
        let mut next = connections.admit(peer(2)).expect("the connection was refused");
        assert!(is_open(&mut next));
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_peer() {
        let peer_of = |text: &str| Peer::of_address(text.parse().expect("invalid address"));
        assert_eq!(peer_of("2001:db8::1"), peer_of("2001:db8::2:3:4:5"));
        assert_ne!(peer_of("2001:db8::1"), peer_of("2001:db8:0:1::1"));
        assert_eq!(peer_of("::ffff:10.0.0.1"), peer(1));
    }
}
