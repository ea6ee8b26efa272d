//! A pod: what of it must fit together.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, SecurityContext, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::check::Findings;
use crate::words::{is_label, is_label_key, is_label_value, is_subdomain, quantity};

const HOST_PATHS: [&str; 8] =
    ["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice"];
const SECCOMP: [&str; 3] = ["RuntimeDefault", "Localhost", "Unconfined"];
/// Of capabilities(7), what anything here could ask for.
const CAPABILITIES: [&str; 8] =
    ["ALL", "BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON", "NET_RAW", "SYS_ADMIN", "SYS_RESOURCE"];
/// Those of a pod that an environment variable may name.
const FIELDS: [&str; 7] = [
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.podIP",
];

pub(crate) fn check(pod: &PodSpec, findings: &mut Findings<'_>) {
    findings.expect(!pod.containers.is_empty(), "has no container");
    findings.one_of("restartPolicy", pod.restart_policy.as_deref(), &["Always"]);
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    findings.one_of("dnsPolicy", pod.dns_policy.as_deref(), &policies);
    for name in pod.priority_class_name.iter().chain(&pod.service_account_name) {
        findings.expect(is_subdomain(name), format!("{name:?} is no name of DNS"));
    }
    for (key, value) in pod.node_selector.iter().flatten() {
        findings.expect(is_label_key(key) && is_label_value(value), format!("nodeSelector {key}: {value}"));
    }
    for one in pod.tolerations.iter().flatten() {
        findings.one_of("operator", one.operator.as_deref(), &["Exists", "Equal"]);
        findings.one_of("effect", one.effect.as_deref(), &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        let any = one.operator.as_deref() == Some("Exists");
        findings.expect(!any || one.value.is_none(), "a toleration of what exists has a value");
        findings.expect(any || one.key.is_some(), "a toleration without a key must be of what exists");
    }
    findings.expect(pod.termination_grace_period_seconds.is_none_or(|seconds| seconds >= 0), "negative grace period");
    let seccomp = pod.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    findings.one_of("seccompProfile", seccomp.map(|profile| &*profile.type_), &SECCOMP);

    let volumes = pod.volumes.as_deref().unwrap_or_default();
    volumes_of(volumes, findings);
    let mut names = BTreeSet::new();
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        let mut findings = findings.at(format!("container {:?}", container.name));
        findings.expect(is_label(&container.name), "the name is no label of DNS");
        findings.expect(names.insert(&container.name), "the name is there twice");
        container_of(container, volumes, &mut findings);
    }
    for container in pod.init_containers.iter().flatten() {
        let probed = container.startup_probe.is_some() || container.liveness_probe.is_some();
        let mut findings = findings.at(format!("container {:?}", container.name));
        findings.expect(!probed && container.readiness_probe.is_none(), "an init container has no probes");
    }
}

fn volumes_of(volumes: &[Volume], findings: &mut Findings<'_>) {
    let mut names = BTreeSet::new();
    for volume in volumes {
        let mut findings = findings.at(format!("volume {:?}", volume.name));
        findings.expect(is_label(&volume.name), "the name is no label of DNS");
        findings.expect(names.insert(&volume.name), "the name is there twice");
        let Some(host) = &volume.host_path else {
            findings.expect(false, "only hostPath is used here");
            continue;
        };
        findings.one_of("type", host.type_.as_deref(), &HOST_PATHS);
        let plain = host.path.starts_with('/') && !host.path.split('/').any(|step| step == "..");
        findings.expect(plain, format!("hostPath {:?} is not absolute, or goes up", host.path));
    }
}

fn container_of(container: &Container, volumes: &[Volume], findings: &mut Findings<'_>) {
    findings.expect(container.image.as_ref().is_some_and(|image| !image.trim().is_empty()), "has no image");
    let policies = ["Always", "IfNotPresent", "Never"];
    findings.one_of("imagePullPolicy", container.image_pull_policy.as_deref(), &policies);
    findings.expect(
        container.command.iter().flatten().next().is_some_and(|word| word.starts_with('/')),
        "no command with a path",
    );

    let mut paths = BTreeSet::new();
    for mount in container.volume_mounts.iter().flatten() {
        let known = volumes.iter().any(|volume| volume.name == mount.name);
        findings.expect(known, format!("mounts {:?}, which is no volume of the pod", mount.name));
        findings.expect(mount.mount_path.starts_with('/'), format!("mountPath {:?} is not absolute", mount.mount_path));
        findings.expect(paths.insert(&mount.mount_path), format!("mounts twice at {}", mount.mount_path));
        let kinds = ["None", "HostToContainer", "Bidirectional"];
        findings.one_of("mountPropagation", mount.mount_propagation.as_deref(), &kinds);
        let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
        let both = mount.mount_propagation.as_deref() == Some("Bidirectional");
        findings.expect(privileged || !both, "Bidirectional is for privileged containers");
    }
    variables(container, findings);
    if let Some(context) = &container.security_context {
        security(context, findings);
    }
    resources(container, findings);
    for (name, probe) in [
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ] {
        if let Some(probe) = probe {
            probe_of(probe, name == "readinessProbe", container, &mut findings.at(name));
        }
    }
}

/// `$(NAME)` is left as it is where there is no such variable: then it is a mistake.
fn variables(container: &Container, findings: &mut Findings<'_>) {
    let mut names = BTreeSet::new();
    for variable in container.env.iter().flatten() {
        findings.expect(names.insert(&*variable.name), format!("variable {} is there twice", variable.name));
        let source = variable.value_from.as_ref();
        findings.expect(source.is_none() || variable.value.is_none(), "a variable has a value, and another one");
        let field = source.and_then(|source| source.field_ref.as_ref());
        findings.expect(source.is_none() || field.is_some(), "only fieldRef is used here");
        findings.one_of("fieldPath", field.map(|field| &*field.field_path), &FIELDS);
    }
    for word in container.args.iter().chain(&container.command).flatten() {
        for part in word.split("$(").skip(1) {
            let name = part.split(')').next().unwrap_or_default();
            findings.expect(names.contains(name), format!("{word} names a variable that is not in env"));
        }
    }
}

fn security(context: &SecurityContext, findings: &mut Findings<'_>) {
    let capabilities = context.capabilities.as_ref();
    let added: Vec<&str> =
        capabilities.and_then(|both| both.add.as_ref()).into_iter().flatten().map(String::as_str).collect();
    let dropped = capabilities.and_then(|both| both.drop.as_ref());
    for name in added.iter().copied().chain(dropped.into_iter().flatten().map(String::as_str)) {
        // containerd takes a name with CAP_ before it as another one, and starts nothing.
        findings.one_of("capability", Some(name), &CAPABILITIES);
    }
    let gains = context.privileged == Some(true) || added.contains(&"SYS_ADMIN");
    findings.expect(!(gains && context.allow_privilege_escalation == Some(false)), "privileged, and no escalation");
    let seccomp = context.seccomp_profile.as_ref().map(|profile| &*profile.type_);
    findings.one_of("seccompProfile", seccomp, &SECCOMP);
}

fn resources(container: &Container, findings: &mut Findings<'_>) {
    let Some(resources) = &container.resources else { return };
    let limits = resources.limits.clone().unwrap_or_default();
    for (name, amount) in resources.requests.iter().flatten().chain(&limits) {
        findings.one_of("resource", Some(name), &["cpu", "memory"]);
        findings.expect(quantity(&amount.0).is_some(), format!("{name}: {:?} is no quantity", amount.0));
        findings.expect(name != "memory" || !amount.0.ends_with('m'), format!("memory in thousandths: {}", amount.0));
    }
    for (name, amount) in resources.requests.iter().flatten() {
        let within = limits.get(name).is_none_or(|limit| quantity(&amount.0) <= quantity(&limit.0));
        findings.expect(within, format!("{name} asks for more than its limit"));
    }
}

/// A probe asks where the agent's `--health` says it answers: what others ask for on `--metrics` must not delay it.
fn probe_of(probe: &Probe, readiness: bool, container: &Container, findings: &mut Findings<'_>) {
    let Some(get) = &probe.http_get else { return findings.expect(false, "only httpGet is used here") };
    let others = probe.exec.is_some() || probe.grpc.is_some() || probe.tcp_socket.is_some();
    findings.expect(!others, "more than one handler");
    let served = container.args.iter().flatten().find_map(|word| word.strip_prefix("--health="));
    let asked = match &get.port {
        IntOrString::Int(port) => format!("{}:{port}", get.host.as_deref().unwrap_or_default()),
        IntOrString::String(name) => name.clone(),
    };
    findings.expect(served == Some(&*asked), format!("asks {asked}, the agent answers at {served:?}"));
    findings.one_of("path", get.path.as_deref().or(Some("")), &["/healthz", "/readyz"]);
    findings.one_of("scheme", get.scheme.as_deref(), &["HTTP"]);
    let positive = |value: Option<i32>| value.is_none_or(|value| value >= 1);
    let numbers = [probe.period_seconds, probe.timeout_seconds, probe.failure_threshold, probe.success_threshold];
    findings.expect(numbers.into_iter().all(positive), "a number below 1");
    findings.expect(readiness || probe.success_threshold.is_none_or(|count| count == 1), "successThreshold must be 1");
}
