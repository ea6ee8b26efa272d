//! Connections that are older than a pod's enforcement: item 34 of docs/semantics.md.
//!
//! sNN in the name of a test is an item of docs/semantics.md.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::{Agent, AgentOptions, Cluster, Families, Lab, PodSpec, policy};

/// An allowed datagram or segment arrives within this time.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(3);
/// A packet that has not arrived within this time was dropped. TCP retransmits several times within it.
const DROP_TIMEOUT: Duration = Duration::from_millis(1200);
/// The addresses of a Service of `server`. There is no Service object: nftables rules of the node translate the
/// addresses.
const SERVICE: [&str; 2] = ["10.96.0.34", "fd00:96::34"];

/// One side of an open connection.
enum Side {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Side {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes)?,
            Self::Udp(socket) => drop(socket.send(bytes)?),
        }
        Ok(())
    }

    /// Returns whether these bytes arrive within a time.
    fn receives(&mut self, bytes: &[u8], timeout: Duration) -> Result<bool> {
        let mut buffer = [0; 64];
        let start = Instant::now();
        while let Some(left) = timeout.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
            let read = match self {
                Self::Tcp(stream) => {
                    stream.set_read_timeout(Some(left))?;
                    stream.read(&mut buffer)
                }
                Self::Udp(socket) => {
                    socket.set_read_timeout(Some(left))?;
                    socket.recv(&mut buffer)
                }
            };
            match read {
                Ok(count) if &buffer[..count] == bytes => return Ok(true),
                Ok(0) => anyhow::bail!("the connection was closed"),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(false)
    }
}

/// An open connection.
struct OpenConnection {
    /// A description for messages.
    what: String,
    /// The side that started the connection: the client.
    from: Side,
    /// The other side: the server.
    to: Side,
}

/// Opens a TCP and a UDP connection in each address family. The UDP client sends one datagram, and no other data is
/// sent. `at`: the only address to connect to, such as that of a Service. `None`: all addresses of the host `to`.
fn open(cluster: &Cluster, from: &str, to: &str, port: u16, at: Option<IpAddr>) -> Result<Vec<OpenConnection>> {
    let (source, destination) = (cluster.host(from), cluster.host(to));
    let mut opened = Vec::new();
    for address in destination.addresses().iter().copied() {
        let Some(source_address) = source.address_of_same_family(address) else { continue };
        if at.is_some_and(|at| at.is_ipv4() != address.is_ipv4()) {
            continue;
        }
        let target = SocketAddr::new(at.unwrap_or(address), port);
        let listener = destination.netns().run(|| Ok(TcpListener::bind(SocketAddr::new(address, port))?))?;
        let stream = source.netns().run(|| Ok(TcpStream::connect_timeout(&target, ARRIVAL_TIMEOUT)?));
        let stream = stream.with_context(|| format!("{from} to {target}"))?;
        let (accepted, _) = listener.accept()?;
        opened.push(OpenConnection {
            what: format!("TCP {from} to {target}"),
            from: Side::Tcp(stream),
            to: Side::Tcp(accepted),
        });

        let server = destination.netns().run(|| Ok(UdpSocket::bind(SocketAddr::new(address, port))?))?;
        let client = source.netns().run(|| {
            let client = UdpSocket::bind(SocketAddr::new(source_address, 0))?;
            client.connect(target)?;
            client.send(b"hello")?;
            Ok(client)
        })?;
        server.set_read_timeout(Some(ARRIVAL_TIMEOUT))?;
        let (_, peer) = server.recv_from(&mut [0; 64]).with_context(|| format!("UDP {from} to {target}"))?;
        server.connect(peer)?;
        opened.push(OpenConnection {
            what: format!("UDP {from} to {target}"),
            from: Side::Udp(client),
            to: Side::Udp(server),
        });
    }
    ensure!(!opened.is_empty(), "no connection from {from} to {to}");
    Ok(opened)
}

/// Checks that a connection continues: first the server sends, then the client.
fn check_continues(mut open: OpenConnection) -> Result<()> {
    let OpenConnection { what, from, to } = &mut open;
    to.send(b"from the server")?;
    ensure!(from.receives(b"from the server", ARRIVAL_TIMEOUT)?, "{what}: data from the server is dropped");
    from.send(b"from the client")?;
    ensure!(to.receives(b"from the client", ARRIVAL_TIMEOUT)?, "{what}: data from the client is dropped");
    Ok(())
}

/// Sends data from both sides, and checks that the client's data does not reach the server.
fn check_stopped(mut open: OpenConnection) -> Result<()> {
    let OpenConnection { what, from, to } = &mut open;
    to.send(b"from the server")?;
    from.send(b"from the client")?;
    ensure!(
        !to.receives(b"from the client", DROP_TIMEOUT)?,
        "{what}: the connection continues, although no rule allows it"
    );
    Ok(())
}

/// Isolates the pods `client` and `guarded` for ingress, and the pod `server` for egress. In these directions, only
/// replies are allowed.
fn policies() -> String {
    let isolated = |app: &str, direction: &str| {
        policy(
            &format!("shop/{app}"),
            &format!("podSelector: {{matchLabels: {{app: {app}}}}}\npolicyTypes: [{direction}]"),
        )
    };
    [isolated("client", "Ingress"), isolated("server", "Egress"), isolated("guarded", "Ingress")].concat()
}

fn cluster() -> Result<Cluster> {
    Cluster::builder()
        .families(Families::Dual)
        .pods(&[("shop/client", "app=client"), ("shop/server", "app=server"), ("shop/guarded", "app=guarded")])
        .build()
}

/// Adds nftables rules to the node. The rules track connections, including those across the node's bridge, and
/// translate the addresses in [`SERVICE`] to those of the pod `server`.
fn track_connections(cluster: &Cluster) -> Result<()> {
    let node = cluster.host("node-1").netns();
    node.sysctl(&[("bridge/bridge-nf-call-iptables", "1"), ("bridge/bridge-nf-call-ip6tables", "1")])?;
    let server = cluster.host("shop/server");
    let (v4, v6) = (server.v4(), server.v6());
    node.nft(&format!(
        "table inet npt_older {{
           chain tracked {{ type filter hook forward priority filter; ct state established,new accept; }}
           chain local {{ type filter hook output priority filter; ct state established,new accept; }}
           chain service {{
             type nat hook prerouting priority dstnat;
             ip daddr {} dnat ip to {v4}
             ip6 daddr {} dnat ip6 to {v6}
           }}
         }}",
        SERVICE[0], SERVICE[1]
    ))
}

/// Opens connections that the policies allow, and connections that the policies deny. Returns both lists. `port`: the
/// lowest port of the servers. `with_service`: whether to also connect to the addresses in [`SERVICE`].
fn connections(cluster: &Cluster, port: u16, with_service: bool) -> Result<(Vec<OpenConnection>, Vec<OpenConnection>)> {
    let mut allowed = Vec::new();
    let pairs = [
        ("shop/client", "shop/server"),
        ("shop/client", "outside"),
        ("outside", "shop/server"),
        ("node-1", "shop/server"),
    ];
    for (index, (from, to)) in pairs.iter().enumerate() {
        allowed.extend(open(cluster, from, to, port + u16::try_from(index)?, None)?);
    }
    if with_service {
        for (index, service) in SERVICE.iter().enumerate() {
            let at = Some(service.parse()?);
            allowed.extend(open(cluster, "shop/client", "shop/server", port + 10 + u16::try_from(index)?, at)?);
        }
    }
    let denied = ["outside", "shop/server"].iter().enumerate();
    let denied =
        denied.map(|(index, from)| open(cluster, from, "shop/guarded", port + 20 + u16::try_from(index)?, None));
    Ok((allowed, denied.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect()))
}

#[test]
fn s34_tracked_connections_are_taken_over_at_the_first_start() -> Result<()> {
    let cluster = cluster()?;
    track_connections(&cluster)?;
    cluster.apply("first", &policies())?;
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let (more_allowed, more_denied) = connections(&cluster, 7000 + round * 100, true)?;
        allowed.extend(more_allowed);
        denied.extend(more_denied);
    }
    let agent = Agent::start_with(&cluster, AgentOptions::default())?;
    let _lab = Lab::of(cluster, agent);
    let count = allowed.len();
    let broken: Vec<String> =
        allowed.into_iter().filter_map(|open| check_continues(open).err()).map(|error| format!("{error:#}")).collect();
    ensure!(broken.is_empty(), "{} of {count} broken:\n{}", broken.len(), broken.join("\n"));
    println!("0 of {count} allowed connections broken");
    let handles: Vec<_> = denied.into_iter().map(|open| std::thread::spawn(move || check_stopped(open))).collect();
    for handle in handles {
        handle.join().expect("a checking thread panicked")?;
    }
    Ok(())
}

/// Without conntrack entries, the agent cannot find out which side started a connection. The next packet of the
/// connection is evaluated as if it started a flow in its own direction. So a reply may be denied until the side that
/// started the connection sends.
#[test]
fn s34_untracked_connections_continue_once_the_side_that_started_them_sends() -> Result<()> {
    let cluster = cluster()?;
    cluster
        .host("node-1")
        .netns()
        .sysctl(&[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")])?;
    cluster.apply("first", &policies())?;
    let (allowed, denied) = connections(&cluster, 7000, false)?;
    let agent = Agent::start_with(&cluster, AgentOptions::default())?;
    let _lab = Lab::of(cluster, agent);
    let count = allowed.len();
    let mut waited = 0;
    for mut open in allowed {
        let OpenConnection { what, from, to } = &mut open;
        to.send(b"from the server")?;
        let arrives_immediately = from.receives(b"from the server", Duration::from_millis(300))?;
        waited += usize::from(!arrives_immediately);
        from.send(b"from the client")?;
        ensure!(to.receives(b"from the client", ARRIVAL_TIMEOUT)?, "{what}: data from the client is dropped");
        // A dropped TCP segment is retransmitted. A dropped datagram must be sent again.
        if !arrives_immediately && matches!(to, Side::Udp(_)) {
            to.send(b"from the server")?;
        }
        ensure!(
            arrives_immediately || from.receives(b"from the server", ARRIVAL_TIMEOUT)?,
            "{what}: data from the server is dropped"
        );
    }
    println!("{waited} of {count} untracked connections waited for the side that started them");
    ensure!(
        waited > 0,
        "no reply was dropped, so no connection had to wait for the side that started it: the agent may have taken over \
         the connections"
    );
    denied.into_iter().filter(|open| open.what.contains("outside")).try_for_each(|mut open| {
        let OpenConnection { what, from, to } = &mut open;
        from.send(b"from the client")?;
        ensure!(
            !to.receives(b"from the client", DROP_TIMEOUT)?,
            "{what}: the connection continues, although no rule allows it"
        );
        Ok(())
    })
}

#[test]
fn s34_a_pod_that_connects_before_its_address_is_published_gets_its_replies() -> Result<()> {
    let cluster = cluster()?;
    track_connections(&cluster)?;
    cluster.apply("first", &policies())?;
    let agent = Agent::start_with(&cluster, AgentOptions::default())?;
    let mut lab = Lab::of(cluster, agent);
    for round in 0..3_u16 {
        let name = format!("shop/new-{round}");
        lab.cluster.add_pod_without_manifest(PodSpec::new(&name).labels("app=client"))?;
        let mut allowed = open(&lab.cluster, &name, "outside", 7000 + round, None)?;
        // Only IPv4: the server can send a neighbor advertisement to the new pod only after the agent has received the
        // pod's address (item 32).
        let server = IpAddr::from(lab.cluster.host("shop/server").v4());
        allowed.extend(open(&lab.cluster, &name, "shop/server", 7100 + round, Some(server))?);
        let denied = open(&lab.cluster, "outside", &name, 7200 + round, None)?;
        lab.cluster.write_manifest(&name)?;
        lab.agent().wait_log(&[" enforced ", &format!("pod={name} ")])?;
        // Connections are taken over within this time after the attach.
        std::thread::sleep(Duration::from_millis(200));
        allowed.into_iter().try_for_each(check_continues)?;
        denied.into_iter().try_for_each(check_stopped)?;
    }
    Ok(())
}
