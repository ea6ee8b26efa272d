//! Checks the manifests in deploy/. They are built in the same way as by `kubectl apply -k`, and validated as strictly
//! as by an API server.
//!
//! These tests use no API server. The types of k8s-openapi define the known fields; any other field is an error.
//! Further validation is implemented in `check` and `pod`.

mod check;
mod kubectl;
mod mistakes;
mod monitoring;
mod operator;
mod pod;
mod syntax;

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::VolumeMount;
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use netpol_tests::agent;
use serde_json::Value;

use check::Objects;

/// Every folder of deploy/ that users apply.
const FOLDERS: [&str; 6] =
    ["base", "overlays/k3s", "overlays/kubeadm", "overlays/kubeadm-events", "overlays/kind", "uninstall"];

/// Every Kustomize component that users can add to a folder. It is also valid to add all of them.
const COMPONENTS: [&str; 5] = [
    "components/events",
    "components/start-gate-cni",
    "components/pod-monitor",
    "components/open-start",
    "components/viewer",
];

/// The resources that the agent reads, by API group.
const READ_RESOURCES: [(&str, &[&str]); 3] = [
    ("", &["pods", "namespaces", "nodes", "services"]),
    ("networking.k8s.io", &["networkpolicies"]),
    ("discovery.k8s.io", &["endpointslices"]),
];

/// Validates all objects that kustomize built from a folder, and returns them.
fn checked(built: &[Value]) -> Result<Objects> {
    let mut findings = Vec::new();
    let objects = Objects::read(built, &mut findings);
    ensure!(findings.is_empty(), "an API server would reject this:\n  {}", findings.join("\n  "));
    Ok(objects)
}

fn only<T>(what: &str, mut objects: Vec<T>) -> Result<T> {
    ensure!(objects.len() == 1, "expected one {what}, found {}", objects.len());
    objects.pop().context("no element")
}

#[test]
fn every_folder_is_valid() -> Result<()> {
    for folder in FOLDERS {
        checked(&kubectl::build(folder, &[])?).with_context(|| format!("deploy/{folder}"))?;
    }
    Ok(())
}

#[test]
fn every_overlay_and_component_is_checked() -> Result<()> {
    for entry in std::fs::read_dir(kubectl::deploy().join("overlays"))? {
        let name = format!("overlays/{}", entry?.file_name().to_string_lossy());
        ensure!(FOLDERS.contains(&name.as_str()), "deploy/{name} is not in FOLDERS");
    }
    for entry in std::fs::read_dir(kubectl::deploy().join("components"))? {
        let name = format!("components/{}", entry?.file_name().to_string_lossy());
        ensure!(COMPONENTS.contains(&name.as_str()), "deploy/{name} is not in COMPONENTS");
    }
    Ok(())
}

#[test]
fn the_agent_may_read_what_it_needs_and_nothing_else() -> Result<()> {
    for folder in ["base", "overlays/k3s", "overlays/kubeadm", "overlays/kind"] {
        let objects = checked(&kubectl::build(folder, &[])?)?;
        let role: ClusterRole = only("ClusterRole", objects.cluster_roles)?;
        ensure!(
            single_permissions(&role.rules.unwrap_or_default()) == expected_permissions(),
            "deploy/{folder}: unexpected permissions"
        );
    }
    Ok(())
}

#[test]
fn the_events_component_adds_one_rbac_rule_and_one_option() -> Result<()> {
    let base = checked(&kubectl::build("base", &[])?)?;
    let with_component = checked(&kubectl::build("base", &["components/events"])?)?;
    let rules = only("ClusterRole", with_component.cluster_roles)?.rules.unwrap_or_default();
    let mut expected = expected_permissions();
    expected.extend(["create", "patch"].map(|verb| ("events.k8s.io".into(), "events".into(), verb.into())));
    expected.sort();
    ensure!(single_permissions(&rules) == expected, "{rules:?}");
    let mut expected_arguments = args(&only("DaemonSet", base.daemon_sets)?);
    expected_arguments.push("--kube-events".into());
    ensure!(args(&only("DaemonSet", with_component.daemon_sets)?) == expected_arguments);
    Ok(())
}

/// The role allows only what the commands of `netpol` for a cluster need: to list the agents' pods, and to run a
/// command in each of them. The component binds the role to no user.
#[test]
fn the_viewer_component_adds_one_role() -> Result<()> {
    let base = checked(&kubectl::build("base", &[])?)?;
    let with_component = checked(&kubectl::build("base", &["components/viewer"])?)?;
    ensure!(base.roles.is_empty() && with_component.cluster_role_bindings.len() == base.cluster_role_bindings.len());
    let role = only("Role", with_component.roles)?;
    ensure!(role.metadata.namespace.as_deref() == Some("kube-system"), "{:?}", role.metadata);
    let expected = [("pods", "list"), ("pods/exec", "create"), ("pods/exec", "get")];
    let expected: Vec<_> = expected.map(|(resource, verb)| (String::new(), resource.into(), verb.into())).into();
    ensure!(single_permissions(&role.rules.unwrap_or_default()) == expected);
    Ok(())
}

/// Kubernetes requires that a pod is isolated before it starts, if a policy selects it. So the agent delays the start
/// of each pod until its policies are enforced (the start gate), and drops the traffic of pods that it does not know.
#[test]
fn new_pods_start_isolated_unless_a_component_turns_this_off() -> Result<()> {
    let isolating_options = ["--start-gate=auto", "--unknown-pods=deny"].map(str::to_owned);
    for folder in FOLDERS.into_iter().filter(|folder| *folder != "uninstall") {
        let objects = checked(&kubectl::build(folder, &[])?)?;
        let set = only("DaemonSet", objects.daemon_sets)?;
        ensure!(isolating_options.iter().all(|word| args(&set).contains(word)), "deploy/{folder}: {:?}", args(&set));
        // For NRI, the agent needs the runtime's socket and the network namespaces of pods. The runtime mounts new
        // namespaces while the agent runs, so these mounts must propagate to the agent's container.
        let mounts: Vec<_> =
            mounts(&set).into_iter().filter(|mount| mount.mount_path.starts_with("/var/run/")).collect();
        let found = mounts.iter().map(|mount| (&*mount.mount_path, mount.mount_propagation.as_deref()));
        ensure!(found.eq([("/var/run/nri", None), ("/var/run/netns", Some("HostToContainer"))]), "{mounts:?}");
    }
    // `open-start` appends its options. If an option appears twice, the agent uses the last value.
    let objects = checked(&kubectl::build("base", &["components/open-start"])?)?;
    let arguments = args(&only("DaemonSet", objects.daemon_sets)?);
    ensure!(arguments.ends_with(&["--start-gate=off", "--unknown-pods=allow"].map(str::to_owned)), "{arguments:?}");
    Ok(())
}

/// The start gate can use a CNI plugin, which the agent installs. The agent can write the CNI configuration only with
/// the component `start-gate-cni`. The `DaemonSet` of the folder `uninstall` can write it, too, to remove the
/// plugin from the configuration.
#[test]
fn the_cni_gate_can_be_installed_and_uninstalled() -> Result<()> {
    let writable = |folder: &str, components: &[&str]| -> Result<Vec<String>> {
        let objects = checked(&kubectl::build(folder, components)?)?;
        let mounts = mounts(&only("DaemonSet", objects.daemon_sets)?);
        let cni = mounts.into_iter().filter(|mount| mount.mount_path.contains("cni") && mount.read_only != Some(true));
        Ok(cni.map(|mount| mount.mount_path).collect())
    };
    ensure!(writable("base", &[])?.is_empty());
    let with_component = writable("base", &["components/start-gate-cni"])?;
    ensure!(with_component == ["/etc/cni/net.d", "/opt/cni/bin"], "{with_component:?}");
    let uninstall = writable("uninstall", &[])?;
    ensure!(uninstall == ["/etc/cni/net.d"], "{uninstall:?}");
    Ok(())
}

#[test]
fn the_uninstall_folder_has_no_service_account_and_no_role() -> Result<()> {
    let objects = checked(&kubectl::build("uninstall", &[])?)?;
    ensure!(objects.cluster_roles.is_empty() && objects.cluster_role_bindings.is_empty());
    let spec = only("DaemonSet", objects.daemon_sets)?.spec.context("no spec")?.template.spec.context("no pod spec")?;
    ensure!(spec.service_account_name.is_none() && spec.automount_service_account_token == Some(false));
    Ok(())
}

#[test]
fn the_agent_accepts_the_arguments_in_the_manifests() -> Result<()> {
    let without_components = FOLDERS.map(|folder| (folder, &[][..]));
    for (folder, components) in without_components.into_iter().chain([("base", &COMPONENTS[..])]) {
        let objects = checked(&kubectl::build(folder, components)?)?;
        let spec =
            only("DaemonSet", objects.daemon_sets)?.spec.context("no spec")?.template.spec.context("no pod spec")?;
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let mut words = container.command.clone().unwrap_or_default();
            words.extend(container.args.clone().unwrap_or_default());
            // On a cluster, the kubelet replaces this variable.
            let words: Vec<_> = words.iter().map(|word| word.replace("$(HOST_IP)", "192.0.2.1")).collect();
            let parsed = parses(&words[1..])?;
            ensure!(parsed.is_ok(), "deploy/{folder}, {}: {parsed:?}", container.name);
        }
    }
    Ok(())
}

/// With a constant tag, an upgrade would not change the `DaemonSet`, so the agent would not be restarted. A name
/// without a registry would be looked up on Docker Hub.
#[test]
fn every_image_has_this_version_and_is_never_pulled() -> Result<()> {
    let expected = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"));
    for folder in FOLDERS {
        let objects = checked(&kubectl::build(folder, &[])?)?;
        let spec =
            only("DaemonSet", objects.daemon_sets)?.spec.context("no spec")?.template.spec.context("no pod spec")?;
        for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
            let (image, pull) = (container.image.as_deref(), container.image_pull_policy.as_deref());
            ensure!(
                (image, pull) == (Some(expected), Some("Never")),
                "deploy/{folder}, {}: {image:?}, {pull:?}; expected {expected}, Never",
                container.name
            );
        }
    }
    Ok(())
}

/// `cargo xtask image` must use the tag in the manifests, and no document may use the tag `latest`.
#[test]
fn the_image_has_the_tag_in_the_manifests() -> Result<()> {
    let source = std::fs::read_to_string(kubectl::deploy().join("../xtask/src/cli.rs"))?;
    ensure!(source.contains(r#"default_value = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION"))"#));
    let files = ["Dockerfile", "README.md", "UPGRADE.md", "../README.md"];
    for file in files {
        let text = std::fs::read_to_string(kubectl::deploy().join(file)).with_context(|| file.to_owned())?;
        ensure!(!text.contains("netpol:latest"), "deploy/{file} contains netpol:latest");
    }
    Ok(())
}

#[test]
fn unknown_arguments_are_rejected() -> Result<()> {
    for wrong in ["--no-such-option", "--metrics=nowhere", "--log-format=yaml"] {
        let words = ["run", "--source=kube", "--node=n", wrong].map(str::to_owned);
        ensure!(parses(&words)?.is_err(), "{wrong} was accepted");
    }
    Ok(())
}

/// Runs the agent with these arguments and `--help`, so that the agent only parses the arguments. Returns its error
/// message if it rejects them.
fn parses(words: &[String]) -> Result<Result<(), String>> {
    let output = std::process::Command::new(agent::binary()?).args(words).arg("--help").output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(stderr) })
}

/// Returns the mounts of the container that starts first: in `uninstall`, an init container that removes netpol from
/// the node; in the other folders, the agent.
fn mounts(set: &DaemonSet) -> Vec<VolumeMount> {
    let spec = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let first = spec.and_then(|spec| spec.init_containers.iter().flatten().chain(&spec.containers).next());
    first.and_then(|container| container.volume_mounts.clone()).unwrap_or_default()
}

fn args(set: &DaemonSet) -> Vec<String> {
    let spec = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    spec.and_then(|spec| spec.containers[0].args.clone()).unwrap_or_default()
}

/// Returns the permissions of the agent's `ClusterRole`.
fn expected_permissions() -> Vec<(String, String, String)> {
    let mut expected_permissions: Vec<_> = READ_RESOURCES
        .iter()
        .flat_map(|(group, resources)| resources.iter().map(move |resource| (*group, *resource)))
        .flat_map(|(group, resource)| {
            ["get", "list", "watch"].map(|verb| (group.to_owned(), resource.to_owned(), verb.to_owned()))
        })
        .collect();
    expected_permissions.sort();
    expected_permissions
}

/// Returns the permissions of RBAC rules, one for each combination of API group, resource and verb.
fn single_permissions(rules: &[PolicyRule]) -> Vec<(String, String, String)> {
    let mut permissions = Vec::new();
    for rule in rules {
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                permissions.extend(rule.verbs.iter().map(|verb| (group.clone(), resource.clone(), verb.clone())));
            }
        }
    }
    permissions.sort();
    permissions
}
