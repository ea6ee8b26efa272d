//! Prints Services that have other backends than before, if this changes a verdict.

use netpol_policy::explain::Verdict;
use netpol_policy::offline::difference::{ServiceBackend, ServiceBackends, ServiceChange};
use serde::Serialize;

use super::causes::listed;
use super::names::Names;

/// A port of a Service in JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct JsonService {
    service: String,
    protocol: &'static str,
    port: u16,
    /// The old backends, such as `shop/deployment/web TCP 8080`.
    old_backends: Vec<String>,
    new_backends: Vec<String>,
    /// The verdicts that change.
    verdicts: Vec<JsonVerdicts>,
}

/// Sources for which the verdict on connections to the Service changes in the same way.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonVerdicts {
    from: Vec<String>,
    before: Verdict,
    now: Verdict,
}

impl JsonService {
    pub(super) fn of(change: &ServiceChange, names: &Names<'_>) -> Self {
        let [old_backends, new_backends] = change.backends.each_ref().map(|backends| backend_names(change, backends));
        let verdicts = change.sources.iter().map(|([before, now], sources)| JsonVerdicts {
            from: names.full(sources),
            before: *before,
            now: *now,
        });
        Self {
            service: change.service.to_string(),
            protocol: change.protocol.name(),
            port: change.port,
            old_backends,
            new_backends,
            verdicts: verdicts.collect(),
        }
    }
}

/// Returns the changes of verdicts on connections to a Service's port: the kind of change, the new verdict, and the
/// sources. `Verdict::Partial` means that only some backends are allowed.
pub(super) fn kinds(change: &ServiceChange) -> impl Iterator<Item = (&'static str, Verdict, &[usize])> {
    change.sources.iter().map(|([before, now], sources)| {
        let kind = match (before, now) {
            (_, Verdict::Unknown) => "unknown",
            (_, Verdict::Allow) => "now allowed",
            (Verdict::Allow, Verdict::Partial) => "now denied for some backends",
            (_, Verdict::Partial) => "now allowed for some backends",
            (_, Verdict::Deny) => "now denied",
        };
        (kind, *now, &sources[..])
    })
}

/// Returns `Service shop/db`.
pub(super) fn title(change: &ServiceChange) -> String {
    format!("Service {}", change.service)
}

/// Returns `TCP 5432`.
pub(super) fn port(change: &ServiceChange) -> String {
    format!("{} {}", change.protocol.name(), change.port)
}

/// Returns `backends before: shop/statefulset/db TCP 5432; now: none`.
pub(super) fn cause(change: &ServiceChange) -> String {
    let [old, new] = change.backends.each_ref().map(|backends| match &backend_names(change, backends)[..] {
        [] => "none".to_owned(),
        names => listed("", names),
    });
    format!("backends before: {old}; now: {new}")
}

fn backend_names(change: &ServiceChange, backends: &ServiceBackends) -> Vec<String> {
    let name = |(backend, port): &(ServiceBackend, u16)| format!("{backend} {} {port}", change.protocol.name());
    backends.iter().map(name).collect()
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::{Protocol, ServiceKey};

    use super::*;

    #[test]
    fn the_kind_of_a_change_depends_on_both_verdicts() {
        use Verdict::{Allow, Deny, Partial, Unknown};
        for (verdicts, expected) in [
            ([Deny, Allow], "now allowed"),
            ([Partial, Allow], "now allowed"),
            ([Deny, Partial], "now allowed for some backends"),
            ([Allow, Partial], "now denied for some backends"),
            ([Partial, Deny], "now denied"),
            ([Allow, Unknown], "unknown"),
        ] {
            let change = ServiceChange {
                service: ServiceKey::new("shop", "db"),
                protocol: Protocol::Tcp,
                port: 5432,
                backends: Default::default(),
                sources: [(verdicts, vec![0])].into(),
            };
            let kinds: Vec<_> = kinds(&change).map(|(kind, now, _)| (kind, now)).collect();
            assert_eq!(kinds, [(expected, verdicts[1])]);
        }
    }
}
