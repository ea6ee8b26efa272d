//! Connections that are older than a pod's enforcement: line 34 of docs/semantics.md.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::{Agent, AgentOptions, Cluster, Families, Lab, PodSpec, policy};

/// A datagram or segment that is allowed is there by then.
const ARRIVES: Duration = Duration::from_secs(3);
/// What has not come by then was dropped; TCP has repeated it several times.
const DROPPED: Duration = Duration::from_millis(1200);
/// A Service's address, which the node translates.
const SERVICE: [&str; 2] = ["10.96.0.34", "fd00:96::34"];

/// One end of a connection that is open.
enum End {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl End {
    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes)?,
            Self::Udp(socket) => drop(socket.send(bytes)?),
        }
        Ok(())
    }

    /// Whether these bytes come.
    fn receives(&mut self, bytes: &[u8], patience: Duration) -> Result<bool> {
        let mut buffer = [0; 64];
        let start = Instant::now();
        while let Some(left) = patience.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
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

/// A connection: what it is, the end that started it, and the other one.
struct Open {
    what: String,
    from: End,
    to: End,
}

/// Opens a connection of each protocol; nothing is sent on it after that. `at`: the address that is connected to, where it is not
/// the host's.
fn open(cluster: &Cluster, from: &str, to: &str, port: u16, at: Option<IpAddr>) -> Result<Vec<Open>> {
    let (source, destination) = (cluster.host(from), cluster.host(to));
    let mut found = Vec::new();
    for own in destination.addresses().iter().copied() {
        let Some(local) = source.address_like(own) else { continue };
        if at.is_some_and(|at| at.is_ipv4() != own.is_ipv4()) {
            continue;
        }
        let target = SocketAddr::new(at.unwrap_or(own), port);
        let listener = destination.netns().run(|| Ok(TcpListener::bind(SocketAddr::new(own, port))?))?;
        let stream = source.netns().run(|| Ok(TcpStream::connect_timeout(&target, ARRIVES)?));
        let stream = stream.with_context(|| format!("{from} to {target}"))?;
        let (accepted, _) = listener.accept()?;
        found.push(Open { what: format!("TCP {from} to {target}"), from: End::Tcp(stream), to: End::Tcp(accepted) });

        let server = destination.netns().run(|| Ok(UdpSocket::bind(SocketAddr::new(own, port))?))?;
        let client = source.netns().run(|| {
            let client = UdpSocket::bind(SocketAddr::new(local, 0))?;
            client.connect(target)?;
            client.send(b"hello")?;
            Ok(client)
        })?;
        server.set_read_timeout(Some(ARRIVES))?;
        let (_, peer) = server.recv_from(&mut [0; 64]).with_context(|| format!("UDP {from} to {target}"))?;
        server.connect(peer)?;
        found.push(Open { what: format!("UDP {from} to {target}"), from: End::Udp(client), to: End::Udp(server) });
    }
    ensure!(!found.is_empty(), "no connection from {from} to {to}");
    Ok(found)
}

/// The far side speaks first, then the other one.
fn goes_on(mut open: Open) -> Result<()> {
    let Open { what, from, to } = &mut open;
    to.send(b"from the far side")?;
    ensure!(from.receives(b"from the far side", ARRIVES)?, "{what}: what the far side sends is dropped");
    from.send(b"from the near side")?;
    ensure!(to.receives(b"from the near side", ARRIVES)?, "{what}: what the near side sends is dropped");
    Ok(())
}

/// Neither side reaches the other.
fn is_stopped(mut open: Open) -> Result<()> {
    let Open { what, from, to } = &mut open;
    to.send(b"from the far side")?;
    from.send(b"from the near side")?;
    ensure!(!to.receives(b"from the near side", DROPPED)?, "{what}: it goes on, and no rule allows it");
    Ok(())
}

/// `client` is isolated for ingress and `server` for egress: what each of them may do is to answer and to be answered.
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

/// Has the node's connections tracked, those across its bridge too, and a Service translated.
fn track(cluster: &Cluster) -> Result<()> {
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

/// Connections that policies allow, and some that they do not.
fn connections(cluster: &Cluster, port: u16, services: bool) -> Result<(Vec<Open>, Vec<Open>)> {
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
    if services {
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
    track(&cluster)?;
    cluster.apply("first", &policies())?;
    let (mut allowed, mut denied) = (Vec::new(), Vec::new());
    for round in 0..5 {
        let (more, others) = connections(&cluster, 7000 + round * 100, true)?;
        allowed.extend(more);
        denied.extend(others);
    }
    let agent = Agent::start_with(&cluster, AgentOptions::default())?;
    let lab = Lab::of(cluster, agent);
    let count = allowed.len();
    let broken: Vec<String> =
        allowed.into_iter().filter_map(|open| goes_on(open).err()).map(|error| format!("{error:#}")).collect();
    ensure!(broken.is_empty(), "{} of {count} broken:\n{}", broken.len(), broken.join("\n"));
    println!("0 of {count} allowed connections broken");
    let handles: Vec<_> = denied.into_iter().map(|open| std::thread::spawn(move || is_stopped(open))).collect();
    for handle in handles {
        handle.join().expect("it does not panic")?;
    }
    drop(lab);
    Ok(())
}

/// Nothing says which side started a connection: its next packet is evaluated as what it looks like.
#[test]
fn s34_untracked_connections_go_on_once_the_side_that_started_them_sends() -> Result<()> {
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
        let Open { what, from, to } = &mut open;
        to.send(b"from the far side")?;
        let at_once = from.receives(b"from the far side", Duration::from_millis(300))?;
        waited += usize::from(!at_once);
        from.send(b"from the near side")?;
        ensure!(to.receives(b"from the near side", ARRIVES)?, "{what}: what the near side sends is dropped");
        // TCP repeats it; what was a datagram is sent again.
        if !at_once && matches!(to, End::Udp(_)) {
            to.send(b"from the far side")?;
        }
        ensure!(at_once || from.receives(b"from the far side", ARRIVES)?, "{what}: what the far side sends is dropped");
    }
    println!("{waited} of {count} untracked connections waited for the side that started them");
    ensure!(waited > 0, "the far side needs no policy and no record: this test shows nothing");
    denied.into_iter().filter(|open| open.what.contains("outside")).try_for_each(|mut open| {
        let Open { what, from, to } = &mut open;
        from.send(b"from the near side")?;
        ensure!(!to.receives(b"from the near side", DROPPED)?, "{what}: it goes on, and no rule allows it");
        Ok(())
    })
}

#[test]
fn s34_a_pod_that_connects_before_its_address_is_published_gets_its_answers() -> Result<()> {
    let cluster = cluster()?;
    track(&cluster)?;
    cluster.apply("first", &policies())?;
    let agent = Agent::start_with(&cluster, AgentOptions::default())?;
    let mut lab = Lab::of(cluster, agent);
    for round in 0..3_u16 {
        let name = format!("shop/new-{round}");
        lab.cluster.add_pod_without_manifest(PodSpec::new(&name).labels("app=client"))?;
        let mut early = open(&lab.cluster, &name, "outside", 7000 + round, None)?;
        // A pod of this node answers a neighbor solicitation over IPv6 once it knows the address as a neighbor's (32).
        let server = IpAddr::from(lab.cluster.host("shop/server").v4());
        early.extend(open(&lab.cluster, &name, "shop/server", 7100 + round, Some(server))?);
        let denied = open(&lab.cluster, "outside", &name, 7200 + round, None)?;
        lab.cluster.write_manifest(&name)?;
        lab.agent().wait_log(&[" enforced ", &format!("pod={name} ")])?;
        // Longer than connections are taken over after that.
        std::thread::sleep(Duration::from_millis(200));
        early.into_iter().try_for_each(goes_on)?;
        denied.into_iter().try_for_each(is_stopped)?;
    }
    Ok(())
}
