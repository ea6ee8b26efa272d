//! The start gate in the output of `netpol-agent status`. The start gate delays the start of each pod until its
//! policies are enforced.

use std::fmt::Write;

use netpol_api::{GateStatus, RecentStart, StartOutcome};
use netpol_policy::text::{Safe, wrap};

use super::status::aligned;

/// Returns the mode of the gate and why it was chosen, the error if the gate does not delay starts, and a table of the
/// last starts. Lines are wrapped at `width`, except for rows of the table.
pub(super) fn text(gate: &GateStatus, width: usize) -> String {
    let mut text = String::new();
    for line in wrap(summary(gate), width, 0) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    }
    if !gate.recent.is_empty() {
        text.push('\n');
        text.push_str(&starts(&gate.recent, width));
    }
    text
}

/// Returns a line with the mode of the gate, its state, and why the mode was chosen.
fn summary(gate: &GateStatus) -> String {
    let mode = match &*gate.mode {
        "off" => "off: pods start without waiting until their policies are enforced".to_owned(),
        mode => match (&gate.runtime, &gate.configuration, &gate.error) {
            (Some(runtime), ..) => format!("{mode}, connected to {runtime}"),
            (None, Some(file), _) => format!("{mode}, netpol-cni is in {file}"),
            (None, None, Some(error)) => format!("{mode}, STARTS ARE NOT DELAYED: {error}"),
            (None, None, None) => format!("{mode}, STARTS ARE NOT DELAYED: not connected yet"),
        },
    };
    let reason = gate.reason.as_ref().map(|reason| format!("; chosen because: {reason}")).unwrap_or_default();
    format!("start gate: {mode}{reason}")
}

/// Returns a table of starts. The reason of a result, if any, is in the same line. If this line would be too long, the
/// reason is in separate lines.
fn starts(recent: &[RecentStart], width: usize) -> String {
    let mut rows = vec![["LAST START", "POD", "VIA", "DELAY", "RESULT"].map(str::to_owned)];
    rows.extend(recent.iter().map(|start| {
        let result = match start.outcome {
            StartOutcome::Enforced => "enforced",
            StartOutcome::Exempt => "STARTED UNENFORCED",
            StartOutcome::Refused => "REFUSED",
        };
        [start.time.clone(), start.pod.clone(), start.via.clone(), format!("{} ms", start.took_ms), result.to_owned()]
    }));
    // The heading has no reason.
    let reasons = std::iter::once(None).chain(recent.iter().map(|start| start.reason.as_ref()));
    let mut text = String::new();
    // Writing to a string does not fail.
    for (line, reason) in aligned(&rows, 3..4).lines().zip(reasons) {
        let _ = match reason {
            None => writeln!(text, "{line}"),
            Some(reason) => {
                let one_line = format!("{line}: {}", Safe(reason));
                if one_line.chars().count() <= width {
                    writeln!(text, "{one_line}")
                } else {
                    writeln!(text, "{line}:\n{}", wrap(reason, width, 4).join("\n"))
                }
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(mode: &str) -> GateStatus {
        GateStatus { mode: mode.to_owned(), ..GateStatus::default() }
    }

    fn recent(pod: &str, outcome: StartOutcome, took_ms: u64, reason: Option<&str>) -> RecentStart {
        let (time, via) = ("2026-11-29T07:46:52.120Z".to_owned(), "nri".to_owned());
        RecentStart { time, pod: pod.to_owned(), via, outcome, took_ms, reason: reason.map(str::to_owned) }
    }

    #[test]
    fn the_gate_and_the_last_starts_are_shown_at_each_width() {
        let reason = "cannot get pod shop/a-job-with-a-long-name: the API server did not respond in time";
        let gate = GateStatus {
            runtime: Some("containerd v2.1.0".to_owned()),
            reason: Some("the container runtime serves NRI at /var/run/nri/nri.sock".to_owned()),
            recent: vec![
                recent("shop/web-0", StartOutcome::Enforced, 3, None),
                recent("shop/a-job-with-a-long-name", StartOutcome::Refused, 1_000, Some(reason)),
                // The right-to-left override must be escaped.
                recent("kube-system/dns", StartOutcome::Exempt, 12, Some("x\u{202e}y")),
            ],
            ..gate("nri")
        };
        let expected = [
            (
                80,
                "\
start gate: nri, connected to containerd v2.1.0; chosen because: the container
  runtime serves NRI at /var/run/nri/nri.sock

LAST START                POD                          VIA    DELAY  RESULT
2026-11-29T07:46:52.120Z  shop/web-0                   nri     3 ms  enforced
2026-11-29T07:46:52.120Z  shop/a-job-with-a-long-name  nri  1000 ms  REFUSED:
    cannot get pod shop/a-job-with-a-long-name: the API server did not respond
      in time
2026-11-29T07:46:52.120Z  kube-system/dns              nri    12 ms  STARTED UNENFORCED:
    x\\u{202e}y
",
            ),
            (
                200,
                "\
start gate: nri, connected to containerd v2.1.0; chosen because: the container runtime serves NRI at /var/run/nri/nri.sock

LAST START                POD                          VIA    DELAY  RESULT
2026-11-29T07:46:52.120Z  shop/web-0                   nri     3 ms  enforced
2026-11-29T07:46:52.120Z  shop/a-job-with-a-long-name  nri  1000 ms  REFUSED: cannot get pod shop/a-job-with-a-long-name: the API server did not respond in time
2026-11-29T07:46:52.120Z  kube-system/dns              nri    12 ms  STARTED UNENFORCED: x\\u{202e}y
",
            ),
        ];
        for (width, expected) in expected {
            assert_eq!(text(&gate, width), expected, "{width} columns");
        }
    }

    #[test]
    fn a_gate_without_a_connected_runtime_shows_its_state() {
        let failed = GateStatus { error: Some("connection refused".to_owned()), ..gate("nri") };
        let installed = GateStatus { configuration: Some("/etc/cni/net.d/10-a.conflist".to_owned()), ..gate("cni") };
        let off = GateStatus { reason: Some("no NRI".to_owned()), ..gate("off") };
        let table = [
            (gate("nri"), "start gate: nri, STARTS ARE NOT DELAYED: not connected yet\n"),
            (failed, "start gate: nri, STARTS ARE NOT DELAYED: connection refused\n"),
            (installed, "start gate: cni, netpol-cni is in /etc/cni/net.d/10-a.conflist\n"),
            (gate("off"), "start gate: off: pods start without waiting until their policies are enforced\n"),
            (
                off,
                "start gate: off: pods start without waiting until their policies are enforced; chosen because: no NRI\n",
            ),
        ];
        for (gate, expected) in table {
            assert_eq!(text(&gate, 200), expected);
        }
    }
}
