//! Starts the start gate, which delays the start of each pod until its policies are enforced. The mode is that of
//! `--start-gate`: an NRI plugin or a CNI plugin of the container runtime, or off.

use std::os::unix::net::UnixStream;
use std::path::Path;

use netpol_cni::Settings;
use nix::unistd::{AccessFlags, access};

use super::{RunArgs, StartGate};
use crate::api::Requests;
use crate::gate::cni::Installation;
use crate::gate::{self, Gate};

/// Starts the gate, as a task in the current tokio runtime.
pub(super) fn start(args: &RunArgs, requests: &Requests) {
    // Replaces `Auto` by the chosen mode.
    let (mode, reason) = match args.start_gate {
        StartGate::Auto => {
            let (mode, reason) = choose(&args.nri_socket, [&args.cni_config, &args.cni_bin]);
            (mode, Some(reason))
        }
        mode => (mode, None),
    };
    let name = match mode {
        StartGate::Nri => "nri",
        StartGate::Cni => "cni",
        StartGate::Auto | StartGate::Off => "off",
    };
    tracing::info!(mode = name, reason, "start gate");
    let stats = requests.gate.clone();
    stats.set_mode(name, reason);
    match mode {
        StartGate::Nri => {
            tokio::spawn(gate::serve_nri(args.nri_socket.clone(), Gate::new(requests.clone()), stats));
        }
        StartGate::Cni => match installation(args) {
            Ok(installation) => {
                tokio::spawn(gate::cni::watch(installation, move |result| gate::cni::report(result, &stats)));
            }
            Err(error) => {
                tracing::error!(%error, "CNI plugin not installed: the agent's own path is unknown");
                stats.record_error(format!("the agent's own path is unknown: {error}"));
            }
        },
        StartGate::Auto | StartGate::Off => {}
    }
}

/// Returns the mode for `auto`: NRI if the container runtime serves it, else CNI if the CNI plugin can be installed,
/// else off. Also returns why this mode was chosen. `cni_directories`: the runtime's directories of CNI
/// configurations and of CNI plugins. A deployment that must not use the CNI plugin mounts these directories read-only,
/// or not at all.
fn choose(nri_socket: &Path, cni_directories: [&Path; 2]) -> (StartGate, String) {
    let nri_path = nri_socket.display();
    let no_nri = match UnixStream::connect(nri_socket) {
        Ok(_) => return (StartGate::Nri, format!("the container runtime serves NRI at {nri_path}")),
        Err(error) => format!("no NRI at {nri_path} ({error})"),
    };
    for directory in cni_directories {
        if let Err(error) = access(directory, AccessFlags::W_OK) {
            let directory = directory.display();
            return (StartGate::Off, format!("{no_nri}, and {directory} is not writable ({})", error.desc()));
        }
    }
    let [configuration, plugins] = cni_directories.map(Path::display);
    (StartGate::Cni, format!("{no_nri}; {configuration} and {plugins} are writable"))
}

/// Returns what is needed to install the CNI plugin.
fn installation(args: &RunArgs) -> std::io::Result<Installation> {
    let (socket, when_agent_away) = (args.api_socket.clone(), args.when_agent_away);
    Ok(Installation {
        config_dir: args.cni_config.clone(),
        bin_dir: args.cni_bin.clone(),
        binary: gate::cni::bundled()?,
        settings: Settings { socket, when_agent_away, ..Settings::default() },
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn auto_prefers_nri_and_then_cni() {
        let directory = tempfile::tempdir().expect("no temporary directory");
        let at = |name: &str| directory.path().join(name);
        let (socket, config, bin, missing) = (at("nri.sock"), at("net.d"), at("bin"), at("missing"));
        std::fs::create_dir(&config).expect("cannot create a directory");
        std::fs::create_dir(&bin).expect("cannot create a directory");
        let check = |directories: [&Path; 2], expected: StartGate, part_of_reason: &str| {
            let (mode, reason) = choose(&socket, directories);
            assert!(mode == expected && reason.contains(part_of_reason), "{mode:?}: {reason}");
        };
        check([&missing, &bin], StartGate::Off, "missing is not writable (No such file or directory)");
        check([&config, &missing], StartGate::Off, "no NRI at");
        check([&config, &bin], StartGate::Cni, "are writable");
        let listener = UnixListener::bind(&socket).expect("cannot listen");
        check([&config, &bin], StartGate::Nri, "serves NRI at");
        drop(listener);
        check([&config, &bin], StartGate::Cni, "Connection refused");
    }
}
