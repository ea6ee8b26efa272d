//! Parses the targets of `--flow-export`, to which the agent exports flow records.

use std::str::FromStr;

use hyper::Uri;

use super::memory::bytes;
use crate::export::{Endpoint, FileTarget, MAX_FILES, Target};

const FORMS: &str = "use file:PATH, file:PATH?max-size=64Mi&files=4, or otlp:http://HOST:4318";

/// The default value and the smallest value of `max-size`. The smallest value is larger than every record.
const DEFAULT_MAX_SIZE: u64 = 64 << 20;
const SMALLEST_MAX_SIZE: u64 = 1 << 20;
/// The default value of `files`, which includes the file that is being written.
const DEFAULT_FILES: u32 = 4;

/// The value of one `--flow-export`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlowExport(pub(super) Target);

impl FromStr for FlowExport {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("file", rest)) => parse_file(rest).map(Target::File),
            Some(("otlp", url)) => parse_otlp(url).map(Target::Otlp),
            _ => Err(format!("unknown target; {FORMS}")),
        }
        .map(Self)
    }
}

fn parse_file(text: &str) -> Result<FileTarget, String> {
    let (path, parameters) = text.split_once('?').unwrap_or((text, ""));
    if path.is_empty() || path.ends_with('/') {
        return Err(format!("the path must name a file; {FORMS}"));
    }
    let mut target = FileTarget { path: path.into(), max_size: DEFAULT_MAX_SIZE, files: DEFAULT_FILES };
    for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
        match parameter.split_once('=') {
            Some(("max-size", value)) => {
                let size = bytes(value).filter(|size| *size >= SMALLEST_MAX_SIZE);
                target.max_size = size.ok_or_else(|| format!("max-size={value}: use at least 1Mi"))?;
            }
            Some(("files", value)) => {
                let files = value.parse().ok().filter(|files| (1..=MAX_FILES).contains(files));
                target.files = files.ok_or_else(|| format!("files={value}: use a number from 1 to {MAX_FILES}"))?;
            }
            _ => return Err(format!("unknown parameter {parameter:?}; {FORMS}")),
        }
    }
    Ok(target)
}

/// Parses the base URL of a collector. Appends `/v1/logs` to its path, as OpenTelemetry defines it for
/// `OTEL_EXPORTER_OTLP_ENDPOINT`.
fn parse_otlp(url: &str) -> Result<Endpoint, String> {
    let uri: Uri = url.parse().map_err(|error| format!("{url:?} is not a URL ({error}); {FORMS}"))?;
    match (uri.scheme_str(), uri.query(), uri.authority()) {
        (Some("http"), None, Some(authority)) if !authority.as_str().contains('@') => {}
        (Some("https"), ..) => {
            return Err("https is not supported; send to a collector on the node or in the cluster".to_owned());
        }
        _ => return Err(format!("{url:?} must be http://HOST:PORT without a user or a query; {FORMS}")),
    }
    let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = uri.port_u16().ok_or_else(|| format!("{url:?} has no port; collectors use 4318"))?;
    let base = uri.path().trim_end_matches('/');
    let path = if base.ends_with("/v1/logs") { base.to_owned() } else { format!("{base}/v1/logs") };
    Ok(Endpoint { host, port, path })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Target, String> {
        text.parse::<FlowExport>().map(|target| target.0)
    }

    #[test]
    fn targets_are_parsed() {
        for (text, path, max_size, files) in [
            ("file:/var/log/flows.ndjson", "/var/log/flows.ndjson", 64 << 20, 4),
            ("file:flows?max-size=1Mi&files=1", "flows", 1 << 20, 1),
            ("file:/a:b?files=1000", "/a:b", 64 << 20, 1000),
        ] {
            assert_eq!(parse(text), Ok(Target::File(FileTarget { path: path.into(), max_size, files })), "{text}");
        }
        for (text, host, port, path) in [
            ("otlp:http://collector:4318", "collector", 4318, "/v1/logs"),
            ("otlp:http://collector.logs.svc:4318/", "collector.logs.svc", 4318, "/v1/logs"),
            ("otlp:http://10.0.0.1:80/otel/", "10.0.0.1", 80, "/otel/v1/logs"),
            ("otlp:http://[fd00::1]:4318/v1/logs", "fd00::1", 4318, "/v1/logs"),
        ] {
            let endpoint = Endpoint { host: host.to_owned(), port, path: path.to_owned() };
            assert_eq!(parse(text), Ok(Target::Otlp(endpoint)), "{text}");
        }
    }

    #[test]
    fn invalid_targets_are_rejected_with_the_reason() {
        for (text, reason) in [
            ("", "unknown target"),
            ("/var/log/flows", "unknown target"),
            ("file:", "the path must name a file"),
            ("file:/var/log/", "the path must name a file"),
            ("file:a?max-size=1Ki", "use at least 1Mi"),
            ("file:a?files=0", "use a number from 1 to 1000"),
            ("file:a?maxsize=1Mi", "unknown parameter"),
            ("otlp:collector:4318", "must be http://HOST:PORT"),
            ("otlp:http://collector", "has no port"),
            ("otlp:http://user:password@collector:4318", "without a user"),
            ("otlp:https://collector:4318", "https is not supported"),
            ("otlp:http://collector:4318?a=b", "without a user or a query"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn names_in_metrics_have_no_parameters() {
        for (text, name) in [
            ("file:/var/log/flows?files=2", "file:/var/log/flows"),
            ("otlp:http://[fd00::1]:4318/base/", "otlp:http://[fd00::1]:4318/base"),
        ] {
            assert_eq!(parse(text).expect(text).name(), name);
        }
    }

    /// With clap's `args_override_self`, a repeated option replaces its earlier value. This must not apply to
    /// `--flow-export`, which accepts several values.
    #[test]
    fn a_repeated_option_adds_a_target() {
        use clap::Parser;
        let words = ["run", "--source=dir:.", "--node=n", "--flow-export=file:a", "--flow-export=otlp:http://b:4318"];
        let cli = crate::cli::Cli::try_parse_from(["netpol-agent"].into_iter().chain(words)).expect("rejected");
        let crate::cli::Command::Run(args) = cli.command else { panic!("another command") };
        assert_eq!(args.flow_export.len(), 2);
    }
}
