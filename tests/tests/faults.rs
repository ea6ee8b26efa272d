//! Invalid, renamed and removed files in the directory of manifests that the agent reads. Invalid input does not affect
//! other objects, and is reported with its file and line.

use anyhow::Result;
use netpol_tests::ProbeResult::{Allowed, Dropped};
use netpol_tests::{Cluster, ClusterBuilder, Lab, deny_all, policy};

fn pods() -> ClusterBuilder {
    Cluster::builder().pods(&[("shop/client", "app=client"), ("shop/server", "app=server"), ("blog/web", "app=web")])
}

#[test]
fn a_half_written_file_does_not_change_its_objects() -> Result<()> {
    let mut lab = Lab::start(pods(), &[deny_all("shop")])?;
    lab.expect("shop/client -x shop/server 80/TCP")?;

    // `policy-first.yaml` is the file that `Lab::start` wrote. Now its document ends in the middle, as it does while an
    // editor writes the file. The agent keeps the old policy. The reference evaluator cannot read such a file.
    let whole = deny_all("shop");
    lab.cluster.manifests().write_in_place("policy-first.yaml", &format!("{whole}  ingress: [{{from"))?;
    lab.agent().wait_log(&["policy-first.yaml:"])?;
    lab.expect_without_reference_evaluator("shop/client -x shop/server 80/TCP\nblog/web -> blog/web 80/TCP")?;

    // Changes of other files still take effect. `apply` writes `policy-second.yaml`.
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect_without_reference_evaluator("blog/web -x shop/server 80/TCP\nshop/client -x blog/web 80/TCP")?;

    // A valid `policy-first.yaml` takes effect again.
    lab.set_policies(&[policy(
        "shop/open",
        "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{podSelector: {}}]}]}",
    )])?;
    lab.expect("shop/client -> shop/server 80/TCP\nblog/web -x shop/server 80/TCP")
}

#[test]
fn an_invalid_document_does_not_affect_the_others_in_its_file() -> Result<()> {
    let cluster = pods().build()?;
    cluster.manifests().write(
        "mixed.yaml",
        &format!(
            "{}\n---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: broken, namespace: ops}}\n\
             spec: [this is not an object]\n{}",
            policy("shop/one", "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress]}"),
            policy("blog/two", "{podSelector: {}, policyTypes: [Egress]}"),
        ),
    )?;
    cluster.manifests().write("notes.txt", "not a manifest at all: {[")?;
    cluster.manifests().write("empty.yaml", "")?;
    let mut agent = netpol_tests::Agent::start(&cluster)?;
    agent.wait_log(&["mixed.yaml:", "broken"])?;
    let results = cluster.try_all(&[
        cluster.probe("shop/client", "shop/server", netpol_policy::model::Protocol::Tcp, 80),
        cluster.probe("blog/web", "shop/client", netpol_policy::model::Protocol::Tcp, 80),
        cluster.probe("shop/server", "shop/client", netpol_policy::model::Protocol::Tcp, 80),
    ])?;
    assert_eq!(results, [Dropped, Dropped, Allowed]);
    agent.stop()
}

#[test]
fn files_can_be_renamed_and_removed() -> Result<()> {
    let lab = Lab::start(pods(), &[deny_all("shop")])?;
    let directory = lab.cluster.manifests().path().to_owned();
    std::fs::rename(directory.join("policy-first.yaml"), directory.join("policy-renamed.yaml"))?;
    lab.cluster.apply("second", &deny_all("blog"))?;
    lab.expect("blog/web -x shop/client 80/TCP\nshop/client -x shop/server 80/TCP\nblog/web -> blog/web 80/TCP")?;
    // Removes `policy-renamed.yaml`.
    lab.cluster.delete("renamed")?;
    lab.expect("shop/client -> shop/server 80/TCP\nshop/client -x blog/web 80/TCP")?;
    // Subdirectories are read, because a mounted volume may have them.
    std::fs::create_dir(directory.join("more"))?;
    std::fs::write(directory.join("more/policy.yaml"), deny_all("shop"))?;
    lab.expect_without_reference_evaluator("shop/client -x shop/server 80/TCP")
}
