//! Validates the pod specs in deploy/.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe, SecurityContext, Volume};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::check::Findings;
use crate::syntax::{is_dns_label, is_dns_subdomain, is_label_key, is_label_value, quantity};

const HOST_PATH_TYPES: [&str; 8] =
    ["", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket", "CharDevice", "BlockDevice"];
const SECCOMP: [&str; 3] = ["RuntimeDefault", "Localhost", "Unconfined"];
/// The Linux capabilities that a manifest in deploy/ might request.
const CAPABILITIES: [&str; 8] =
    ["ALL", "BPF", "NET_ADMIN", "NET_BROADCAST", "PERFMON", "NET_RAW", "SYS_ADMIN", "SYS_RESOURCE"];
/// Pod fields that an environment variable may refer to.
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
    let dns_policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    findings.one_of("dnsPolicy", pod.dns_policy.as_deref(), &dns_policies);
    for name in pod.priority_class_name.iter().chain(&pod.service_account_name) {
        findings.expect(is_dns_subdomain(name), format!("{name:?} is not a DNS name"));
    }
    for (key, value) in pod.node_selector.iter().flatten() {
        findings.expect(is_label_key(key) && is_label_value(value), format!("nodeSelector {key}: {value}"));
    }
    for toleration in pod.tolerations.iter().flatten() {
        findings.one_of("operator", toleration.operator.as_deref(), &["Exists", "Equal"]);
        findings.one_of("effect", toleration.effect.as_deref(), &["NoSchedule", "PreferNoSchedule", "NoExecute"]);
        let operator_exists = toleration.operator.as_deref() == Some("Exists");
        findings
            .expect(!operator_exists || toleration.value.is_none(), "a toleration with operator Exists has a value");
        findings.expect(
            operator_exists || toleration.key.is_some(),
            "a toleration without a key must have operator Exists",
        );
    }
    findings.expect(pod.termination_grace_period_seconds.is_none_or(|seconds| seconds >= 0), "negative grace period");
    let seccomp = pod.security_context.as_ref().and_then(|context| context.seccomp_profile.as_ref());
    findings.one_of("seccompProfile", seccomp.map(|profile| &*profile.type_), &SECCOMP);

    let volumes = pod.volumes.as_deref().unwrap_or_default();
    check_volumes(volumes, findings);
    let mut names = BTreeSet::new();
    for container in pod.init_containers.iter().flatten().chain(&pod.containers) {
        let mut findings = findings.at(format!("container {:?}", container.name));
        findings.expect(is_dns_label(&container.name), "the name is not a DNS label");
        findings.expect(names.insert(&container.name), "duplicate name");
        check_container(container, volumes, &mut findings);
    }
    for container in pod.init_containers.iter().flatten() {
        let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
        let mut findings = findings.at(format!("container {:?}", container.name));
        findings.expect(probes.into_iter().all(Option::is_none), "an init container has probes");
    }
}

fn check_volumes(volumes: &[Volume], findings: &mut Findings<'_>) {
    let mut names = BTreeSet::new();
    for volume in volumes {
        let mut findings = findings.at(format!("volume {:?}", volume.name));
        findings.expect(is_dns_label(&volume.name), "the name is not a DNS label");
        findings.expect(names.insert(&volume.name), "duplicate name");
        let Some(host) = &volume.host_path else {
            findings.expect(false, "only hostPath is supported by this test");
            continue;
        };
        findings.one_of("type", host.type_.as_deref(), &HOST_PATH_TYPES);
        let is_valid = host.path.starts_with('/') && !host.path.split('/').any(|step| step == "..");
        findings.expect(is_valid, format!("hostPath {:?} is not absolute, or contains `..`", host.path));
    }
}

fn check_container(container: &Container, volumes: &[Volume], findings: &mut Findings<'_>) {
    findings.expect(container.image.as_ref().is_some_and(|image| !image.trim().is_empty()), "has no image");
    let pull_policies = ["Always", "IfNotPresent", "Never"];
    findings.one_of("imagePullPolicy", container.image_pull_policy.as_deref(), &pull_policies);
    findings.expect(
        container.command.iter().flatten().next().is_some_and(|word| word.starts_with('/')),
        "no command with a path",
    );

    let mut paths = BTreeSet::new();
    for mount in container.volume_mounts.iter().flatten() {
        let has_volume = volumes.iter().any(|volume| volume.name == mount.name);
        findings.expect(has_volume, format!("mounts {:?}, but the pod has no volume of this name", mount.name));
        findings.expect(mount.mount_path.starts_with('/'), format!("mountPath {:?} is not absolute", mount.mount_path));
        findings.expect(paths.insert(&mount.mount_path), format!("duplicate mountPath {}", mount.mount_path));
        let modes = ["None", "HostToContainer", "Bidirectional"];
        findings.one_of("mountPropagation", mount.mount_propagation.as_deref(), &modes);
        let privileged = container.security_context.as_ref().is_some_and(|context| context.privileged == Some(true));
        let is_bidirectional = mount.mount_propagation.as_deref() == Some("Bidirectional");
        findings.expect(privileged || !is_bidirectional, "Bidirectional needs a privileged container");
    }
    check_variables(container, findings);
    if let Some(context) = &container.security_context {
        check_security(context, findings);
    }
    check_resources(container, findings);
    for (name, probe) in [
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ] {
        if let Some(probe) = probe {
            check_probe(probe, name == "readinessProbe", container, &mut findings.at(name));
        }
    }
}

/// Checks environment variables, and references to them. Kubernetes does not replace `$(NAME)` if there is no variable
/// of this name, so such a reference is a mistake.
fn check_variables(container: &Container, findings: &mut Findings<'_>) {
    let mut names = BTreeSet::new();
    for variable in container.env.iter().flatten() {
        findings.expect(names.insert(&*variable.name), format!("duplicate variable {}", variable.name));
        let source = variable.value_from.as_ref();
        findings.expect(source.is_none() || variable.value.is_none(), "a variable has both value and valueFrom");
        let field = source.and_then(|source| source.field_ref.as_ref());
        findings.expect(source.is_none() || field.is_some(), "only fieldRef is supported by this test");
        findings.one_of("fieldPath", field.map(|field| &*field.field_path), &FIELDS);
    }
    for word in container.args.iter().chain(&container.command).flatten() {
        for part in word.split("$(").skip(1) {
            let name = part.split(')').next().unwrap_or_default();
            findings.expect(names.contains(name), format!("{word} refers to a variable that is not in env"));
        }
    }
}

fn check_security(context: &SecurityContext, findings: &mut Findings<'_>) {
    let capabilities = context.capabilities.as_ref();
    let added: Vec<&str> = capabilities
        .and_then(|capabilities| capabilities.add.as_ref())
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect();
    let dropped = capabilities.and_then(|capabilities| capabilities.drop.as_ref());
    for name in added.iter().copied().chain(dropped.into_iter().flatten().map(String::as_str)) {
        // containerd rejects names with the prefix CAP_, and does not start the container.
        findings.one_of("capability", Some(name), &CAPABILITIES);
    }
    let is_privileged = context.privileged == Some(true) || added.contains(&"SYS_ADMIN");
    findings.expect(
        !(is_privileged && context.allow_privilege_escalation == Some(false)),
        "privileged without privilege escalation",
    );
    let seccomp = context.seccomp_profile.as_ref().map(|profile| &*profile.type_);
    findings.one_of("seccompProfile", seccomp, &SECCOMP);
}

fn check_resources(container: &Container, findings: &mut Findings<'_>) {
    let Some(resources) = &container.resources else { return };
    let limits = resources.limits.clone().unwrap_or_default();
    for (name, amount) in resources.requests.iter().flatten().chain(&limits) {
        findings.one_of("resource", Some(name), &["cpu", "memory"]);
        findings.expect(quantity(&amount.0).is_some(), format!("{name}: {:?} is not a quantity", amount.0));
        findings.expect(name != "memory" || !amount.0.ends_with('m'), format!("memory in thousandths: {}", amount.0));
    }
    for (name, amount) in resources.requests.iter().flatten() {
        let within = limits.get(name).is_none_or(|limit| quantity(&amount.0) <= quantity(&limit.0));
        findings.expect(within, format!("the request for {name} exceeds its limit"));
    }
}

/// Checks that a probe uses the agent's `--health` address. Requests to `--metrics` must not delay probes.
fn check_probe(probe: &Probe, is_readiness: bool, container: &Container, findings: &mut Findings<'_>) {
    let Some(get) = &probe.http_get else { return findings.expect(false, "only httpGet is supported by this test") };
    let others = probe.exec.is_some() || probe.grpc.is_some() || probe.tcp_socket.is_some();
    findings.expect(!others, "more than one handler");
    let health_address = container.args.iter().flatten().find_map(|word| word.strip_prefix("--health="));
    let probed = match &get.port {
        IntOrString::Int(port) => format!("{}:{port}", get.host.as_deref().unwrap_or_default()),
        IntOrString::String(name) => name.clone(),
    };
    findings
        .expect(health_address == Some(&*probed), format!("probes {probed}, but the agent serves {health_address:?}"));
    findings.one_of("path", get.path.as_deref().or(Some("")), &["/healthz", "/readyz"]);
    findings.one_of("scheme", get.scheme.as_deref(), &["HTTP"]);
    let positive = |value: Option<i32>| value.is_none_or(|value| value >= 1);
    let numbers = [probe.period_seconds, probe.timeout_seconds, probe.failure_threshold, probe.success_threshold];
    findings.expect(numbers.into_iter().all(positive), "a number below 1");
    findings
        .expect(is_readiness || probe.success_threshold.is_none_or(|count| count == 1), "successThreshold must be 1");
}
