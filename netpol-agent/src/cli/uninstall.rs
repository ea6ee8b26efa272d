//! `netpol-agent uninstall`: removes what agents have installed on the node.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use netpol_policy::text::Safe;
use nix::sys::signal::{SigSet, Signal};

use super::{FAILED, UninstallArgs, print, requirements};
use crate::gate;
use netpol_dataplane::uninstall;

pub(super) fn run(args: &UninstallArgs) -> Result<ExitCode> {
    requirements::check("uninstall")?;
    let mut report = uninstall(&args.pin_path)?;
    let (removed, remains) = remove_socket(&args.api_socket);
    report.removed.extend(removed);
    report.remains.extend(remains);
    // The executable of the CNI plugin stays: CRI-O calls the plugin when it removes pods that were started while the
    // plugin was configured.
    let plugin = gate::cni::uninstall(&args.cni_config, None);
    report.removed.extend(plugin.removed);
    report.remains.extend(plugin.remains);
    for line in &report.removed {
        print::out(format_args!("removed {}\n", Safe(line)))?;
    }
    if report.remains.is_empty() {
        let pin_path = args.pin_path.display();
        print::out(format_args!(
            "netpol was removed completely: nothing remains below {pin_path} or on any interface\n"
        ))?;
        if args.keep_running {
            wait_for_signal()?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    for line in &report.remains {
        print::error_line(format_args!("remains: {}", Safe(line)));
    }
    Ok(ExitCode::from(FAILED))
}

/// Removes the API socket of an agent that was killed. Also removes the socket's directory, if it is empty and has the
/// default name `netpol`. Returns what was removed, and what could not be removed.
fn remove_socket(socket: &Path) -> (Vec<String>, Option<String>) {
    let mut removed = Vec::new();
    let failed = |path: &Path, error: io::Error| Some(format!("{}: {error}", path.display()));
    let is_stale = UnixStream::connect(socket).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
    if is_stale && fs::symlink_metadata(socket).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        match fs::remove_file(socket) {
            Ok(()) => removed.push(format!("socket {}", socket.display())),
            Err(error) => return (removed, failed(socket, error)),
        }
    }
    let Some(directory) =
        socket.parent().filter(|directory| directory.file_name().is_some_and(|name| name == "netpol"))
    else {
        return (removed, None);
    };
    match fs::remove_dir(directory) {
        Ok(()) => removed.push(format!("directory {}", directory.display())),
        // The directory is missing, contains other files, or is a mount point (a volume of this container).
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty | ErrorKind::ResourceBusy) => {
        }
        Err(error) => return (removed, failed(directory, error)),
    }
    (removed, None)
}

/// Waits for SIGTERM or SIGINT. Blocks these signals first: for PID 1 of a container, the kernel discards a signal that
/// is not blocked and has no handler (`pid_namespaces(7)`).
fn wait_for_signal() -> Result<()> {
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block SIGTERM")?;
    print::out("waiting for SIGTERM\n")?;
    signals.wait().context("cannot wait for SIGTERM")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_stale_socket_and_its_empty_directory_are_removed() {
        let root = tempfile::tempdir().expect("cannot create a directory");
        let directory = root.path().join("netpol");
        let socket = directory.join("agent.sock");
        assert_eq!(remove_socket(&socket), (Vec::new(), None), "there is nothing to remove");
        fs::create_dir(&directory).expect("cannot create the directory");
        let listener = UnixListener::bind(&socket).expect("cannot create the socket");
        assert_eq!(remove_socket(&socket), (Vec::new(), None), "an agent is listening there");
        assert!(socket.exists());
        drop(listener);
        fs::write(directory.join("other"), "").expect("cannot write the file");
        assert_eq!(remove_socket(&socket).0.len(), 1, "the directory contains another file");
        fs::remove_file(directory.join("other")).expect("cannot remove the file");
        assert_eq!(remove_socket(&socket).0.len(), 1, "the empty directory");
        assert!(!directory.exists());
        fs::create_dir(&directory).expect("cannot create the directory");
        fs::write(&socket, "precious").expect("cannot write the file");
        assert_eq!(remove_socket(&socket), (Vec::new(), None), "not a socket");
        assert!(socket.exists());
    }

    #[test]
    fn a_directory_with_another_name_is_not_removed() {
        let root = tempfile::tempdir().expect("cannot create a directory");
        assert_eq!(remove_socket(&root.path().join("agent.sock")), (Vec::new(), None));
        assert!(root.path().exists());
    }
}
