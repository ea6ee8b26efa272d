//! Puts programs on interfaces, on a thread of its own. With TCX the kernel waits for a grace period per program before it
//! returns (`tcx_entry_sync`, `include/net/tcx.h`), some 13 ms each; policies must not wait behind that.

use std::io;
use std::sync::mpsc;
use std::thread;

use aya::Ebpf;
use netpol_common::IfIndex;
use tokio::sync::mpsc as channel;

use super::attach;
use super::pins::Pins;
use crate::dataplane::{AttachError, Attached};

/// The thread that has the programs.
#[derive(Debug)]
pub(super) struct Attacher {
    jobs: mpsc::Sender<Job>,
}

#[derive(Debug)]
struct Job {
    ifindex: IfIndex,
    /// The interface's name, when it was last looked at.
    name: String,
    /// Who waits for the outcome; nobody: it is told to all.
    waiting: Option<mpsc::Sender<Result<(), AttachError>>>,
}

impl Attacher {
    /// Starts the thread; it ends when this is dropped. What nobody waits for is told to the receiver.
    pub(super) fn start(
        mut ebpf: Ebpf,
        pins: Pins,
        tcx: bool,
    ) -> io::Result<(Self, channel::UnboundedReceiver<Attached>)> {
        let (jobs, asked) = mpsc::channel::<Job>();
        let (outcomes, told) = channel::unbounded_channel();
        thread::Builder::new().name("attach".to_owned()).spawn(move || {
            for Job { ifindex, name, waiting } in asked {
                let outcome = attach(&mut ebpf, &pins, tcx, ifindex, &name);
                // Whoever asked may be gone, at the agent's end.
                match waiting {
                    Some(waiting) => drop(waiting.send(outcome)),
                    None => drop(outcomes.send(Attached { ifindex, outcome })),
                }
            }
        })?;
        Ok((Self { jobs }, told))
    }

    /// Asks for it and goes on.
    pub(super) fn begin(&self, ifindex: IfIndex, name: &str) {
        // The thread lives as long as this.
        let _ = self.jobs.send(Job { ifindex, name: name.to_owned(), waiting: None });
    }

    /// Asks for it and waits.
    pub(super) fn wait(&self, ifindex: IfIndex, name: &str) -> Result<(), AttachError> {
        let (sender, outcome) = mpsc::channel();
        let _ = self.jobs.send(Job { ifindex, name: name.to_owned(), waiting: Some(sender) });
        outcome.recv().unwrap_or_else(|_| {
            let message = "the thread that attaches is gone: restart the agent".to_owned();
            Err(AttachError { interface: name.to_owned(), message, gone: false })
        })
    }
}

/// The kernel takes names, and by the time a job is taken up the name may be another interface's.
fn attach(ebpf: &mut Ebpf, pins: &Pins, tcx: bool, ifindex: IfIndex, name: &str) -> Result<(), AttachError> {
    let is_called_so = || attach::name_of(ifindex).is_some_and(|now| now == name);
    let gone = || AttachError { interface: name.to_owned(), message: "it has gone".to_owned(), gone: true };
    if !is_called_so() {
        return Err(gone());
    }
    attach::attach(ebpf, pins, tcx, ifindex, name)?;
    if !is_called_so() {
        attach::detach(pins, ifindex)?;
        return Err(gone());
    }
    Ok(())
}
