//! Tests of flow tables: each pod interface has its own table, so a pod's flows evict no flow of another pod. Flows
//! survive a resize of their table. Also tests the records of `--flow-totals` (packets and bytes of flows).
//!
//! Tests of attacks have names that start with `hostile_`: see docs/threat-model.md.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::maps::MapInfo;
use netpol_common::LAYOUT_VERSION;
use netpol_tests::cluster::Families;
use netpol_tests::{AgentOptions, Cluster, Lab, policy};
use serde_json::Value;

/// Number of idle connections between `client` and `server` that must survive.
const IDLE: usize = 40;
/// Number of pods that flood: each starts many flows.
const FLOODING_PODS: usize = 10;
/// Number of flows that each of these pods starts. All together, these are three times as many flows as fit into the
/// node's tables.
const FLOWS_PER_POD: u16 = 40_000;
/// The default of `--max-flows-v4`: the number of entries in the IPv4 flow tables of all pods of the node.
const BUDGET: u32 = 131_072;
const PORT: u16 = 9000;

/// Returns policies that allow `client` to connect to `server`. The server is isolated for egress, without rules. So a
/// packet from the server passes only as a reply: the flow table must have the packet's flow. The flooding pods are
/// isolated without rules, so they can send only to the local node: this traffic is always allowed.
fn policies() -> Vec<String> {
    vec![
        policy(
            "shop/server",
            "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        ),
        policy("shop/client", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress]}"),
        policy("floods/deny", "{podSelector: {}, policyTypes: [Ingress, Egress]}"),
    ]
}

/// Opens [`IDLE`] connections from client to server and sends a byte each way. Returns the two sockets of each
/// connection: the server's and the client's.
fn open_connections(lab: &Lab) -> Result<Vec<(TcpStream, TcpStream)>> {
    let (server, client) = (lab.cluster.host("shop/server"), lab.cluster.host("shop/client"));
    let address = SocketAddr::new(IpAddr::V4(server.v4()), PORT);
    let listener = server.netns().run(|| TcpListener::bind(address).context("listening in the server"))?;
    (0..IDLE)
        .map(|_| {
            let client = client.netns().run(|| {
                TcpStream::connect_timeout(&address, Duration::from_secs(5)).context("connecting from the client")
            })?;
            let (server, _) = listener.accept()?;
            let mut connection = (server, client);
            for socket in [&connection.0, &connection.1] {
                socket.set_read_timeout(Some(Duration::from_secs(5)))?;
                socket.set_nodelay(true)?;
            }
            ensure!(carries_data(&mut connection)?, "a new connection carries no data");
            Ok(connection)
        })
        .collect()
}

/// Sends a byte each way and returns whether both arrive. The server sends first: this packet passes only if
/// the flow table has its flow.
fn carries_data((server, client): &mut (TcpStream, TcpStream)) -> Result<bool> {
    let mut byte = [0];
    server.write_all(b"s")?;
    if client.read_exact(&mut byte).is_err() {
        return Ok(false);
    }
    client.write_all(b"c")?;
    Ok(server.read_exact(&mut byte).is_ok() && byte == *b"c")
}

/// Returns whether a pin is an IPv4 flow table in use. A pin with the suffix `-next` is a larger table that will
/// replace the table in use.
fn is_table_in_use(path: &Path) -> bool {
    let path = path.to_string_lossy();
    path.contains("/v4-") && !path.ends_with("-next")
}

/// Returns the sizes of the pinned IPv4 flow tables.
fn table_sizes(pins: &Path) -> Result<Vec<u32>> {
    let directory = pins.join(format!("v{LAYOUT_VERSION}/flows"));
    let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    entries
        .map(|entry| Ok(entry?.path()))
        .filter(|path| path.as_ref().is_ok_and(|path| is_table_in_use(path)))
        .map(|path: Result<_>| Ok(MapInfo::from_pin(path?)?.max_entries()))
        .collect()
}

#[test]
fn hostile_floods_by_ten_pods_evict_no_idle_connection_of_another_pod() -> Result<()> {
    let names: Vec<String> = (0..FLOODING_PODS).map(|number| format!("floods/f{number}")).collect();
    let mut pods = vec![("shop/server", "app=server"), ("shop/client", "app=client")];
    pods.extend(names.iter().map(|name| (name.as_str(), "")));
    let lab = Lab::start(Cluster::builder().pods(&pods), &policies())?;
    let mut idle = open_connections(&lab)?;

    // The flood is allowed: traffic to the local node always is.
    let server = lab.cluster.host("shop/server").v4().into();
    let node = lab.cluster.host("node-1").address_of_same_family(server).context("node-1 has no IPv4 address")?;
    let sockets: Vec<UdpSocket> = names
        .iter()
        .map(|name| {
            let host = lab.cluster.host(name);
            host.netns().run(|| Ok(UdpSocket::bind((IpAddr::V4(host.v4()), 0))?))
        })
        .collect::<Result<_>>()?;
    let begun = Instant::now();
    let mut sent = 0_u32;
    for port in 0..FLOWS_PER_POD {
        for socket in &sockets {
            // An error of an earlier datagram (ICMP port unreachable) is returned here.
            sent += u32::from(socket.send_to(b"flood", (node, 20_000 + port)).is_ok());
        }
    }
    println!("{sent} flows started by {FLOODING_PODS} pods in {:?}", begun.elapsed());
    ensure!(sent > u32::from(FLOWS_PER_POD) * 5, "only {sent} datagrams were sent, too few for this test");

    let mut lost = 0;
    for connection in &mut idle {
        lost += u32::from(!carries_data(connection)?);
    }
    ensure!(lost == 0, "the floods evicted {lost} of {IDLE} idle connections");

    let sizes = table_sizes(lab.agent_ref().pin_path())?;
    let total: u32 = sizes.iter().sum();
    println!("{} tables of {total} entries: {sizes:?}", sizes.len());
    ensure!(
        sizes.len() >= FLOODING_PODS + 2 && total <= BUDGET,
        "expected {} tables with at most {BUDGET} entries, found {total} entries: {sizes:?}",
        FLOODING_PODS + 2
    );
    // A new table has at most 4,096 entries.
    ensure!(sizes.iter().any(|size| *size >= 8192), "no table of a flooding pod grew: {sizes:?}");
    Ok(())
}

/// Before a table is full, the agent replaces it with a larger table, and copies the flows. The next agent adopts the
/// tables.
#[test]
fn flows_survive_growing_tables_and_a_restart_of_the_agent() -> Result<()> {
    let pods = [("shop/server", "app=server"), ("shop/client", "app=client")];
    let mut lab = Lab::start(Cluster::builder().pods(&pods), &policies())?;
    let mut idle = open_connections(&lab)?;
    let before = table_sizes(lab.agent_ref().pin_path())?;
    let server = lab.cluster.host("shop/server");
    let from = lab.cluster.host("shop/client");
    // Policies allow these datagrams from client to server. So the tables of both pods record their flows and grow.
    let socket = from.netns().run(|| Ok(UdpSocket::bind((IpAddr::V4(from.v4()), 0))?))?;
    let begun = Instant::now();
    let mut grown = false;
    let mut port = 10_000;
    while !grown {
        // The flows start so slowly that the agent resizes a table before the table is full. In a full table, the pod's
        // new flows would evict its own older flows.
        for _ in 0..200 {
            port = if port == u16::MAX { 10_000 } else { port + 1 };
            let _ = socket.send_to(b"new", (IpAddr::V4(server.v4()), port));
        }
        for connection in &mut idle {
            ensure!(carries_data(connection)?, "a connection was lost while its table grew");
        }
        let now = table_sizes(lab.agent_ref().pin_path())?;
        grown = now.iter().max() > before.iter().max() && now.iter().filter(|size| **size > 8000).count() >= 2;
        ensure!(begun.elapsed() < Duration::from_mins(1), "the tables do not grow: {before:?}, {now:?}");
    }
    lab.agent().restart()?;
    for connection in &mut idle {
        ensure!(carries_data(connection)?, "a connection was lost when the agent restarted");
    }
    let after = table_sizes(lab.agent_ref().pin_path())?;
    ensure!(after.iter().max() > before.iter().max(), "the next agent created new tables: {after:?}");
    lab.expect("shop/client -> shop/server 80/TCP\nshop/server -x shop/client 80/TCP")
}

/// Returns the records of type `flowTotals` (packets and bytes of a flow) of flows to the server. `direction` selects
/// the interface at which the packets were counted: the client's (`egress`) or the server's (`ingress`).
fn totals(lab: &Lab, direction: &str, server: IpAddr, protocol: &str) -> Result<Vec<Value>> {
    let records = lab.agent_ref().get("/v1/flows?verdict=allowed")?;
    let mut records = records.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    records.retain(|record| {
        record["type"] == "flowTotals"
            && record["direction"] == direction
            && record["to"]["address"] == server.to_string()
            && record["protocol"] == protocol
    });
    Ok(records)
}

/// Waits until [`totals`] has a record, and returns the first one.
fn wait_totals(lab: &Lab, direction: &str, server: IpAddr, protocol: &str) -> Result<Value> {
    let begun = Instant::now();
    loop {
        if let Some(record) = totals(lab, direction, server, protocol)?.into_iter().next() {
            return Ok(record);
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "no totals of {protocol} to {server} ({direction})");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Returns packets, bytes, packets of replies, and their bytes.
fn counts(record: &Value) -> [u64; 4] {
    ["packets", "bytes", "replyPackets", "replyBytes"].map(|field| record[field].as_u64().unwrap_or(u64::MAX))
}

#[test]
fn totals_have_the_packets_and_bytes_of_a_flow_when_it_ends() -> Result<()> {
    let pods = [("shop/server", "app=server"), ("shop/client", "app=client")];
    let allow_ingress = "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress], ingress: [{}]}";
    let cluster = Cluster::builder().families(Families::Dual).pods(&pods);
    let options = AgentOptions::default().arguments(&["--flow-totals", "end"]);
    let mut lab = Lab::start_with(cluster, &[policy("shop/server", allow_ingress)], options)?;
    let mut sockets = Vec::new();
    let servers = lab.cluster.host("shop/server").addresses().to_vec();
    for server in &servers {
        let bind = |host: &str, address| lab.cluster.host(host).netns().run(|| Ok(UdpSocket::bind((address, PORT))?));
        let client =
            lab.cluster.host("shop/client").address_of_same_family(*server).context("no address of this family")?;
        let (server_socket, client_socket) = (bind("shop/server", *server)?, bind("shop/client", client)?);
        for _ in 0..3 {
            client_socket.send_to(&[0; 100], (*server, PORT))?;
            server_socket.recv(&mut [0; 200])?;
        }
        for _ in 0..2 {
            server_socket.send_to(&[0; 50], (client, PORT))?;
            client_socket.recv(&mut [0; 200])?;
        }
        sockets.push((server_socket, client_socket));
    }
    let listening = servers.iter().map(|server| {
        lab.cluster
            .host("shop/server")
            .netns()
            .run(|| Ok(TcpListener::bind((*server, PORT))?))
            .map(|listener| (*server, listener))
    });
    for (server, listener) in listening.collect::<Result<Vec<_>>>()? {
        let connect = || Ok(TcpStream::connect_timeout(&(server, PORT).into(), Duration::from_secs(5))?);
        let mut client = lab.cluster.host("shop/client").netns().run(connect)?;
        client.write_all(&[0; 1000])?;
        drop(client);
        listener.accept()?.0.read_to_end(&mut Vec::new())?;
        let closed = wait_totals(&lab, "ingress", server, "TCP")?;
        let [packets, bytes, ..] = counts(&closed);
        ensure!(closed["ended"] == "closed" && packets >= 4 && bytes > 1100 && bytes < 2000, "{closed}");
    }

    // The policy now denies ingress to the server. The flows at the server's interface end at their next packet. The
    // flows at the client's interface continue.
    let deny_ingress = "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}";
    lab.set_policies(&[policy("shop/server", deny_ingress)])?;
    lab.expect("shop/client -x shop/server 80/TCP")?;
    for ((_, client), server) in sockets.iter().zip(&servers) {
        client.send_to(&[0; 100], (*server, PORT))?;
    }
    // The length of an IP packet with a UDP datagram, as the totals count it.
    let length = |server: &IpAddr, payload: u64| payload + 8 + if server.is_ipv4() { 20 } else { 40 };
    for server in &servers {
        let revoked = wait_totals(&lab, "ingress", *server, "UDP")?;
        let expected = [3, 3 * length(server, 100), 2, 2 * length(server, 50)];
        ensure!(counts(&revoked) == expected && revoked["ended"] == "revoked", "expected {expected:?}: {revoked}");
        ensure!(revoked["from"]["pod"] == "client" && revoked["to"]["pod"] == "server", "{revoked}");
    }
    drop(sockets);
    lab.cluster.remove_pod("shop/client")?;
    for server in &servers {
        let deleted = wait_totals(&lab, "egress", *server, "UDP")?;
        let expected = [4, 4 * length(server, 100), 2, 2 * length(server, 50)];
        ensure!(counts(&deleted) == expected && deleted["ended"] == "podDeleted", "expected {expected:?}: {deleted}");
        ensure!(deleted["from"]["pod"] == "client", "the record does not name the deleted pod: {deleted}");
    }
    Ok(())
}

#[test]
fn totals_of_an_open_flow_are_recorded_every_minute() -> Result<()> {
    const SIZE: usize = 100;
    let pods = [("shop/server", ""), ("shop/client", "")];
    let options = AgentOptions::default().arguments(&["--flow-totals", "minute"]);
    let allow_ingress = "{podSelector: {}, policyTypes: [Ingress], ingress: [{}]}";
    let mut lab = Lab::start_with(Cluster::builder().pods(&pods), &[policy("shop/open", allow_ingress)], options)?;
    let server = IpAddr::V4(lab.cluster.host("shop/server").v4());
    let bind = |host: &str| {
        let host = lab.cluster.host(host);
        host.netns().run(|| Ok(UdpSocket::bind((host.v4(), PORT))?))
    };
    let (server_socket, client_socket) = (bind("shop/server")?, bind("shop/client")?);
    let (begun, mut sent) = (Instant::now(), 0);
    let after_a_minute = loop {
        client_socket.send_to(&[0; SIZE], (server, PORT))?;
        server_socket.recv(&mut [0; SIZE])?;
        sent += 1;
        if let Some(record) = totals(&lab, "egress", server, "UDP")?.pop() {
            break record;
        }
        ensure!(begun.elapsed() < Duration::from_secs(90), "no totals of an open flow");
        std::thread::sleep(Duration::from_secs(2));
    };
    let [packets, ..] = counts(&after_a_minute);
    ensure!(begun.elapsed() > Duration::from_secs(50), "the totals are recorded too early: {after_a_minute}");
    ensure!(after_a_minute["ended"].is_null() && packets > 20 && packets <= sent, "sent {sent}: {after_a_minute}");

    // The last record has the totals of the whole flow and, in `interval`, the packets and bytes since the previous
    // record.
    client_socket.send_to(&[0; SIZE], (server, PORT))?;
    server_socket.recv(&mut [0; SIZE])?;
    sent += 1;
    // Waits until the agent has read the flow table once more: it does not read the table after the pod is removed.
    std::thread::sleep(Duration::from_secs(6));
    lab.cluster.remove_pod("shop/client")?;
    let ended = loop {
        let mut records = totals(&lab, "egress", server, "UDP")?;
        if records.len() > 1 {
            break records.pop().context("no record")?;
        }
        ensure!(begun.elapsed() < Duration::from_secs(150), "no totals of the ended flow");
        std::thread::sleep(Duration::from_millis(100));
    };
    let (length, added) = (u64::try_from(SIZE)? + 28, sent - packets);
    ensure!(counts(&ended)[..2] == [sent, sent * length] && ended["ended"] == "podDeleted", "sent {sent}: {ended}");
    ensure!(
        counts(&ended["interval"])[..2] == [added, added * length],
        "sent {added} since the previous record: {ended}"
    );
    Ok(())
}
