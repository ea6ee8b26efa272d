//! Threads for work that must not block the agent's main loop. Examples are compiling policies, and everything that
//! takes `rtnl_lock`, the kernel's lock for all network devices: any process on the machine may hold this lock for tens
//! of milliseconds.

use std::io;
use std::sync::mpsc;
use std::thread;

use thiserror::Error;
use tokio::sync::mpsc as channel;

/// A thread that runs jobs one by one, in the order in which they were sent. It ends when the `Worker` is dropped.
#[derive(Debug)]
pub struct Worker<J> {
    jobs: mpsc::Sender<J>,
}

/// Receives the results of the jobs, in the same order.
#[derive(Debug)]
pub struct Outcomes<O> {
    activity: &'static str,
    results: channel::UnboundedReceiver<O>,
}

/// A thread that the agent needs has ended unexpectedly.
#[derive(Debug, Error)]
#[error("the thread that {0} has died; the agent exits and must be restarted; policies stay enforced")]
pub struct Died(&'static str);

impl<J: Send + 'static> Worker<J> {
    /// Starts a thread with this name. `activity` completes the phrase "the thread that …".
    ///
    /// # Errors
    /// If the kernel cannot create the thread.
    pub fn start<O: Send + 'static>(
        name: &str,
        activity: &'static str,
        mut work: impl FnMut(J) -> O + Send + 'static,
    ) -> io::Result<(Self, Outcomes<O>)> {
        let (jobs, received_jobs) = mpsc::channel();
        let (sender, results) = channel::unbounded_channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in received_jobs {
                // The receiver may be dropped already, when the agent exits.
                drop(sender.send(work(job)));
            }
        })?;
        Ok((Self { jobs }, Outcomes { activity, results }))
    }

    /// Sends a job and returns immediately. If the thread has died, [`Outcomes::next`] returns an error.
    pub fn send(&self, job: J) {
        drop(self.jobs.send(job));
    }
}

impl<O> Outcomes<O> {
    /// Waits for the next result.
    ///
    /// # Errors
    /// If the thread has died and all results were received.
    pub async fn next(&mut self) -> Result<O, Died> {
        self.results.recv().await.ok_or(Died(self.activity))
    }

    /// Returns the next result, if there is one.
    pub fn try_next(&mut self) -> Option<O> {
        self.results.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_order() {
        let (worker, mut outcomes) =
            Worker::start("double", "doubles", |number: u32| number * 2).expect("cannot start the thread");
        for number in 1..=3 {
            worker.send(number);
        }
        for doubled in [2, 4, 6] {
            assert_eq!(outcomes.next().await.expect("the thread runs"), doubled);
        }
    }

    #[tokio::test]
    async fn a_dead_thread_is_reported_after_its_last_result() {
        let (worker, mut outcomes) =
            Worker::start("divide", "divides", |number: u32| 8 / number).expect("cannot start the thread");
        // The job 0 panics, and ends the thread.
        for number in [2, 0, 4] {
            worker.send(number);
        }
        assert_eq!(outcomes.next().await.expect("the job before the panic"), 4);
        let died = outcomes.next().await.expect_err("the thread panicked").to_string();
        assert!(died.contains("the thread that divides has died"), "{died}");
        // A job for a dead thread is ignored, without a panic.
        worker.send(1);
    }
}
