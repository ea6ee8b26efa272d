//! Writes flow records as lines of text: the formats `compact` and `wide` of `netpol flows`.

use std::io::{self, Write};
use std::net::IpAddr;

use netpol_api::{
    FlowDirection, FlowEnd, FlowRecord, FlowSide, FlowTotalsRecord, FlowVerdict, LostRecord, MulticastRecord,
    RateLimitedRecord, Record, WorkloadEnd,
};
use netpol_policy::model::WorkloadKind;
use netpol_policy::text::{Safe, wrap};

use crate::color::ColorMode;
use crate::columns::{Tone, some_of, some_of_all};
use crate::table::{counted_u64, shorten};

/// The maximum number of policies, changed objects or senders that a line names.
const NAMES_SHOWN: usize = 2;
/// The smallest width to which an end of a flow (source or destination) is shortened.
const MIN_END_WIDTH: usize = 16;
/// The smallest width to which the names of policies are shortened. If there is less room, they are omitted.
const MIN_POLICIES_WIDTH: usize = 12;
/// The width of the explanation below a line, if standard output is not a terminal.
const TEXT_WIDTH: usize = 120;
/// The indentation of the explanation below a line. It starts in the column of the verdict.
const INDENT: usize = 13;

/// Writes a record as one line.
pub(super) fn compact(out: &mut impl Write, record: &Record, width: Option<usize>, color: ColorMode) -> io::Result<()> {
    match record {
        Record::Flow(flow) => flow_line(out, flow, width, color),
        Record::FlowTotals(totals) => totals_line(out, totals, width, color),
        Record::Multicast(summary) => writeln!(out, "{}", Safe(multicast_line(summary))),
        Record::RateLimited(limited) => writeln!(out, "{}", Safe(limited_line(limited))),
        Record::Lost(lost) => writeln!(out, "{}", Safe(lost_line(lost))),
    }
}

/// Writes a record as a line, and an explanation of the verdict below it.
pub(super) fn wide(out: &mut impl Write, record: &Record, width: Option<usize>, color: ColorMode) -> io::Result<()> {
    compact(out, record, width, color)?;
    let Record::Flow(flow) = record else { return Ok(()) };
    let width = width.unwrap_or(TEXT_WIDTH).max(INDENT + MIN_END_WIDTH);
    let mut paragraph =
        |text: String| wrap(text, width, INDENT).into_iter().try_for_each(|line| writeln!(out, "{line}"));
    if let Some(revoked) = &flow.revoked_by {
        let objects = some_of(&revoked.objects, NAMES_SHOWN);
        paragraph(format!("revoked by a change of {objects} at {} (generation {})", revoked.time, revoked.generation))?;
    }
    if let Some(sender) = &flow.sender {
        paragraph(format!("sent by pod {sender} from another address than its own"))?;
    }
    for block in &flow.from.blocks {
        paragraph(format!("source is in {block}"))?;
    }
    for block in &flow.to.blocks {
        paragraph(format!("destination is in {block}"))?;
    }
    if let Some(unexplained) = &flow.unexplained {
        paragraph(format!("not explained: {unexplained}"))?;
    }
    for hint in &flow.hints {
        paragraph(format!("hint: {hint}"))?;
    }
    for (direction, side) in sides(flow) {
        if side.verdict != FlowVerdict::Allowed {
            write_side(out, direction, side, width)?;
        }
    }
    Ok(())
}

/// Writes why a side (egress at the source, or ingress at the destination) denies the flow: the policies, the nearest
/// rule, and the change that allows the flow.
fn write_side(out: &mut impl Write, direction: FlowDirection, side: &FlowSide, width: usize) -> io::Result<()> {
    let mut paragraph =
        |text: String| wrap(text, width, INDENT).into_iter().try_for_each(|line| writeln!(out, "{line}"));
    let would = if side.verdict == FlowVerdict::Shadow { "would be denied" } else { "denied" };
    let by = if side.policies.is_empty() { String::new() } else { format!(" by {}", side.policies.join(", ")) };
    paragraph(format!("{}: {would}{by} ({})", direction.name(), side.reason))?;
    if let Some(nearest) = &side.nearest {
        let unmet = nearest.unmet_conditions.join("; ");
        paragraph(format!("nearest rule: {} {}: {unmet}", nearest.policy, nearest.path))?;
    }
    if let Some(fix) = &side.fix {
        paragraph(format!("fix: add to NetworkPolicy {} at {}:", fix.policy, fix.path))?;
        // The YAML is not wrapped, so that the user can paste it.
        for line in fix.yaml.lines() {
            writeln!(out, "{:indent$}{}", "", Safe(line), indent = INDENT + 2)?;
        }
    }
    Ok(())
}

/// Writes `12:03:04.123 DENIED  shop/web-0:41234 → shop/db-0:5432/TCP  no-rule  shop/db (ingress)`.
fn flow_line(out: &mut impl Write, flow: &FlowRecord, width: Option<usize>, color: ColorMode) -> io::Result<()> {
    let (word, tone) = verdict_word(flow.verdict);
    let from = end_text(&flow.from, flow.from.port);
    let to = format!("{}/{}", end_text(&flow.to, flow.port), flow.protocol);
    let suppressed = if flow.suppressed > 0 { format!(" +{}", flow.suppressed) } else { String::new() };
    let direction = format!(" ({}){suppressed}", flow.direction.name());
    let mut policies = Safe(policies_text(flow)).to_string();
    let reason = Safe(&flow.reason).to_string();
    let time = time_of_day(&flow.header.time);
    let mut ends = [Safe(from).to_string(), Safe(to).to_string()];
    if let Some(width) = width {
        // The time, the verdict, the arrow, and the spaces between them.
        let fixed = time.chars().count() + 1 + 7 + 1 + 3 + 2;
        let fixed = fixed + reason.chars().count() + direction.chars().count();
        let rest = width.saturating_sub(fixed);
        let needed_for_ends = ends.iter().map(|end| end.chars().count()).sum::<usize>();
        // The ends get at least two thirds of the rest, if they need it.
        let reserved_for_ends = needed_for_ends.min((rest * 2 / 3).max(2 * MIN_END_WIDTH));
        let room = rest.saturating_sub(reserved_for_ends + 2);
        policies = if room < MIN_POLICIES_WIDTH { String::new() } else { shorten(&policies, room) };
        let policies_width = if policies.is_empty() { 0 } else { policies.chars().count() + 2 };
        fit(&mut ends, rest.saturating_sub(policies_width));
    }
    if !policies.is_empty() {
        policies.insert_str(0, "  ");
    }
    let [from, to] = ends;
    let word = color.tone(Some(tone), word);
    writeln!(out, "{time} {word} {from} → {to}  {reason}{policies}{direction}")
}

/// Writes `12:03:04.123 ENDED shop/web-0:41234 → shop/db-0:5432/TCP 12 packets 3.4 KiB / 10 packets 1.2 KiB`, and the
/// reason and direction: ` closed (ingress)`. The numbers before the slash are of the initiator's packets, those after
/// it of the replies. If the flow continues, writes `ACTIVE` instead of `ENDED`, and the numbers since the previous
/// record, if the record has them, instead of the total.
fn totals_line(
    out: &mut impl Write,
    totals: &FlowTotalsRecord,
    width: Option<usize>,
    color: ColorMode,
) -> io::Result<()> {
    let time = time_of_day(&totals.header.time);
    let counts = match (&totals.interval, totals.ended) {
        (Some(interval), None) => &interval.counts,
        _ => &totals.total,
    };
    let traffic = |packets, bytes| format!("{} {}", counted_u64(packets, "packet"), binary_size(bytes));
    let sent = traffic(counts.packets, counts.bytes);
    let numbers = format!("{sent} / {}", traffic(counts.reply_packets, counts.reply_bytes));
    let ended = totals.ended.map(|ending| format!("  {}", ending.name())).unwrap_or_default();
    let rest = format!("  {numbers}{ended} ({})", totals.direction.name());
    let to = format!("{}/{}", end_text(&totals.to, totals.port), totals.protocol);
    let mut ends = [Safe(end_text(&totals.from, totals.from.port)).to_string(), Safe(to).to_string()];
    if let Some(width) = width {
        let fixed = time.chars().count() + 1 + 7 + 1 + 3 + rest.chars().count();
        fit(&mut ends, width.saturating_sub(fixed));
    }
    let word = if totals.ended.is_some() { "ENDED  " } else { "ACTIVE " };
    let word = color.tone(Some(Tone::Notice), word);
    let [from, to] = ends;
    writeln!(out, "{time} {word} {from} → {to}{rest}")
}

/// Returns a size such as `3.4 KiB`.
fn binary_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // The size in tenths of the unit, rounded to the nearest tenth.
    let (mut tenths, mut unit) = (u128::from(bytes) * 10, None);
    for next in UNITS {
        // From 1023.5 on, the next unit is used: `1.0 MiB` instead of `1023.5 KiB`.
        if tenths < 10_235 {
            break;
        }
        (tenths, unit) = ((tenths + 512) / 1024, Some(next));
    }
    match unit {
        None => format!("{bytes} B"),
        Some(unit) => format!("{}.{} {unit}", tenths / 10, tenths % 10),
    }
}

/// Shortens source and destination, the longer one first, so that together they fit into this width.
fn fit(ends: &mut [String; 2], width: usize) {
    let lengths = ends.each_ref().map(|end| end.chars().count());
    if lengths[0] + lengths[1] <= width {
        return;
    }
    let half = (width / 2).max(MIN_END_WIDTH);
    let from = lengths[0].min(half.max(width.saturating_sub(lengths[1])));
    let to = lengths[1].min(width.saturating_sub(from).max(MIN_END_WIDTH));
    *ends = [shorten(&ends[0], from), shorten(&ends[1], to)];
}

fn verdict_word(verdict: FlowVerdict) -> (&'static str, Tone) {
    match verdict {
        FlowVerdict::Allowed => ("ALLOWED", Tone::Good),
        FlowVerdict::Denied => ("DENIED ", Tone::Bad),
        FlowVerdict::Shadow => ("SHADOW ", Tone::Notice),
    }
}

/// Returns the time of day, in UTC. The date is omitted: most flows are of today, and `-o json` has the date.
fn time_of_day(time: &str) -> String {
    let of_day = time.split_once('T').map_or(time, |(_, of_day)| of_day).trim_end_matches('Z');
    let (seconds, fraction) = of_day.split_once('.').unwrap_or((of_day, ""));
    Safe(format!("{seconds}.{fraction:0<3.3}")).to_string()
}

/// Returns text such as `shop/web-0:41234`, `svc/shop/db:5432`, `node/n1` or `[fd00::1]:53`.
fn end_text(end: &FlowEnd, port: Option<u16>) -> String {
    let port = |is_address: bool| match (port, end.address) {
        (Some(port), Some(IpAddr::V6(address))) if is_address => format!("[{address}]:{port}"),
        (Some(port), Some(address)) if is_address => format!("{address}:{port}"),
        (None, Some(address)) if is_address => address.to_string(),
        (Some(port), _) => format!(":{port}"),
        (None, _) => String::new(),
    };
    match (&end.namespace, &end.pod, end.services.first(), &end.node) {
        (Some(namespace), Some(pod), ..) => format!("{namespace}/{pod}{}", port(false)),
        (.., Some(service), _) => format!("svc/{service}{}", port(false)),
        (.., Some(node)) => format!("node/{node}{}", port(false)),
        _ if end.address.is_some() => port(true),
        _ => "-".to_owned(),
    }
}

/// Returns the name of an end of aggregated flows, as in the matrix: `shop/deployment/web`.
pub(crate) fn workload_end(end: &WorkloadEnd) -> String {
    match (&end.namespace, &end.workload, &end.pod) {
        (Some(namespace), Some(workload), _) => {
            let kind = WorkloadKind::from_name(&workload.kind).map(WorkloadKind::resource);
            let kind = kind.map_or_else(|| workload.kind.to_lowercase(), str::to_owned);
            format!("{namespace}/{kind}/{}", workload.name)
        }
        (Some(namespace), None, Some(pod)) => format!("{namespace}/{pod}"),
        _ => match (end.services.first(), &end.node, end.address) {
            (Some(service), ..) => format!("svc/{service}"),
            (None, Some(node), _) => format!("node/{node}"),
            (None, None, Some(address)) => address.to_string(),
            (None, None, None) => "-".to_owned(),
        },
    }
}

/// Returns `53/UDP`, or only the protocol if there is no port.
pub(crate) fn protocol_port(port: Option<u16>, protocol: &str) -> String {
    port.map_or_else(|| protocol.to_owned(), |port| format!("{port}/{protocol}"))
}

/// Returns the sides of a flow that the record contains: egress at the source, and ingress at the destination.
fn sides(flow: &FlowRecord) -> impl Iterator<Item = (FlowDirection, &FlowSide)> {
    let sides = [(FlowDirection::Egress, &flow.egress), (FlowDirection::Ingress, &flow.ingress)];
    sides.into_iter().filter_map(|(direction, side)| Some((direction, side.as_ref()?)))
}

/// Returns the policies that denied the flow, such as `shop/db`, or the rule that allowed it, such as
/// `shop/web spec.egress[1]`.
fn policies_text(flow: &FlowRecord) -> String {
    let reporting_side = sides(flow).find(|(direction, _)| *direction == flow.direction).map(|(_, side)| side);
    match (flow.verdict, reporting_side) {
        (_, None) => String::new(),
        (FlowVerdict::Allowed, Some(side)) => {
            side.rule.as_ref().map(|rule| format!("{} {}", rule.policy, rule.path)).unwrap_or_default()
        }
        (FlowVerdict::Denied | FlowVerdict::Shadow, Some(side)) => some_of(&side.policies, NAMES_SHOWN),
    }
}

fn multicast_line(summary: &MulticastRecord) -> String {
    let (word, _) = verdict_word(summary.verdict);
    let (time, packets) = (time_of_day(&summary.header.time), counted_u64(summary.packets, "packet"));
    let senders = some_of_all(&summary.senders, summary.sender_count, NAMES_SHOWN);
    let to = format!("{}/{}", end_text(&summary.to, summary.port), summary.protocol);
    format!("{time} {word} {senders} → {to}  {} ({}), {packets} to a group", summary.reason, summary.direction.name())
}

fn limited_line(limited: &RateLimitedRecord) -> String {
    let what = match limited.verdict {
        FlowVerdict::Denied => "denied packets",
        FlowVerdict::Allowed => "allowed flows",
        FlowVerdict::Shadow => "would-be denials",
    };
    format!(
        "{} ...     {}: {} {what} without a record ({}), beyond the pod's rate limit",
        time_of_day(&limited.header.time),
        limited.pod,
        limited.suppressed,
        limited.direction.name()
    )
}

fn lost_line(lost: &LostRecord) -> String {
    format!(
        "{} ...     node {}: {} records lost, this command reads too slowly",
        time_of_day(&lost.header.time),
        lost.header.node,
        lost.records
    )
}

#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests {
    use expect_test::expect;
    use serde_json::{Value, json};

    use super::*;

    /// Returns a denied flow between pods with long names. Fields in `changes` replace fields of this flow.
    fn flow(changes: &Value) -> FlowRecord {
        let policies = ["team-with-a-long-name/policy-of-the-backend-database", "team-with-a-long-name/default-deny"];
        let mut flow = json!({
            "schema": "netpol.io/v1", "time": "2026-11-29T12:03:04.5Z", "node": "n1",
            "verdict": "denied", "direction": "ingress", "reason": "no-rule", "protocol": "TCP", "port": 5432,
            "from": {"namespace": "team-with-a-long-name", "pod": "frontend-with-a-long-name-7d9c5b6f4-x2x4q", "port": 41234},
            "to": {"namespace": "team-with-a-long-name", "pod": "backend-database-with-a-long-name-0"},
            "ingress": {"verdict": "denied", "reason": "no-rule", "policies": policies},
            "suppressed": 0, "length": 60,
        });
        for (name, value) in changes.as_object().into_iter().flatten() {
            flow[name] = value.clone();
        }
        serde_json::from_value(flow).expect("a record")
    }

    fn line_of(changes: &Value, width: Option<usize>) -> String {
        let mut out = Vec::new();
        flow_line(&mut out, &flow(changes), width, ColorMode::NEVER).expect("writing to memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn a_line_fits_the_terminal() {
        let ipv6 = json!({
            "from": {"address": "2001:db8:1234:5678:9abc:def0:1234:5678", "port": 41234},
            "to": {"address": "2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff", "port": 443}, "protocol": "SCTP",
        });
        let long_names = json!({});
        let mut lines = String::new();
        for changes in [&long_names, &ipv6] {
            for width in [Some(80), Some(200), None] {
                let line = line_of(changes, width);
                assert!(width.is_none_or(|width| line.trim_end().chars().count() <= width), "{line}");
                lines.push_str(&line);
            }
        }
        expect![[r#"
            12:03:04.500 DENIED  team-wit…x4q:41234 → team-with…:5432/TCP  no-rule (ingress)
            12:03:04.500 DENIED  team-with-a-long-name/fro…name-7d9c5b6f4-x2x4q:41234 → team-with-a-long-name/bac…ith-a-long-name-0:5432/TCP  no-rule  team-with-a-long-name/pol…-a-long-name/default-deny (ingress)
            12:03:04.500 DENIED  team-with-a-long-name/frontend-with-a-long-name-7d9c5b6f4-x2x4q:41234 → team-with-a-long-name/backend-database-with-a-long-name-0:5432/TCP  no-rule  team-with-a-long-name/policy-of-the-backend-database, team-with-a-long-name/default-deny (ingress)
            12:03:04.500 DENIED  [2001:db…78]:41234 → [2001:db8…5432/SCTP  no-rule (ingress)
            12:03:04.500 DENIED  [2001:db8:1234:5678:9abc:def0:1234:5678]:41234 → [2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:5432/SCTP  no-rule  team-with-a-long-name/policy-…with-a-long-name/default-deny (ingress)
            12:03:04.500 DENIED  [2001:db8:1234:5678:9abc:def0:1234:5678]:41234 → [2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:5432/SCTP  no-rule  team-with-a-long-name/policy-of-the-backend-database, team-with-a-long-name/default-deny (ingress)
        "#]].assert_eq(&lines);
    }

    #[test]
    fn ends_are_pods_services_nodes_or_addresses() {
        for (to, text) in [
            (json!({"address": "10.0.0.9"}), "10.0.0.9:5432/TCP"),
            (json!({"address": "10.96.0.1", "services": ["shop/db", "shop/other"]}), "svc/shop/db:5432/TCP"),
            (json!({"address": "10.0.0.9", "node": "n1"}), "node/n1:5432/TCP"),
            (json!({}), "-/TCP"),
        ] {
            let line = line_of(&json!({"to": to}), None);
            assert!(line.contains(&format!("→ {text}  no-rule")), "{line}");
        }
        let ping = json!({"protocol": "ICMPv6", "port": null, "to": {"address": "fd00::1"}, "verdict": "shadow", "suppressed": 9});
        let line = line_of(&ping, None);
        assert!(
            line.contains("SHADOW ") && line.contains("→ fd00::1/ICMPv6  no-rule") && line.ends_with(" +9\n"),
            "{line}"
        );
    }
}
