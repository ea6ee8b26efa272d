//! Threads for what the loop must not wait for: whatever takes the kernel's lock of all network devices (`rtnl_lock`), which
//! anybody on the machine may hold for tens of milliseconds.

use std::io;
use std::sync::mpsc;
use std::thread;

use thiserror::Error;
use tokio::sync::mpsc as channel;

/// A thread that does jobs one by one, in the order in which they were given; it ends when this is dropped.
#[derive(Debug)]
pub struct Worker<J> {
    jobs: mpsc::Sender<J>,
}

/// What became of the jobs, in the same order.
#[derive(Debug)]
pub struct Outcomes<O> {
    does: &'static str,
    told: channel::UnboundedReceiver<O>,
}

/// A thread that the agent cannot do without is gone.
#[derive(Debug, Error)]
#[error(
    "the thread that {0} has died, and the agent ends with it: it must be started again; what is enforced stays enforced"
)]
pub struct Died(&'static str);

impl<J: Send + 'static> Worker<J> {
    /// Starts a thread of this name; `does` completes the sentence "the thread that …".
    ///
    /// # Errors
    /// Where the kernel refuses a thread.
    pub fn start<O: Send + 'static>(
        name: &str,
        does: &'static str,
        mut work: impl FnMut(J) -> O + Send + 'static,
    ) -> io::Result<(Self, Outcomes<O>)> {
        let (jobs, given) = mpsc::channel();
        let (tell, told) = channel::unbounded_channel();
        thread::Builder::new().name(name.to_owned()).spawn(move || {
            for job in given {
                // Whoever asked may be gone, at the agent's end.
                drop(tell.send(work(job)));
            }
        })?;
        Ok((Self { jobs }, Outcomes { does, told }))
    }

    /// Gives it a job and goes on. That it is dead, its outcomes tell.
    pub fn give(&self, job: J) {
        drop(self.jobs.send(job));
    }
}

impl<O> Outcomes<O> {
    /// Waits for the next one.
    ///
    /// # Errors
    /// Where the thread has died; no more come then.
    pub async fn next(&mut self) -> Result<O, Died> {
        self.told.recv().await.ok_or(Died(self.does))
    }

    /// The next one, if it is there.
    pub fn ready(&mut self) -> Option<O> {
        self.told.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn jobs_are_done_in_order() {
        let (worker, mut outcomes) = Worker::start("double", "doubles", |number: u32| number * 2).expect("a thread");
        for number in 1..=3 {
            worker.give(number);
        }
        for doubled in [2, 4, 6] {
            assert_eq!(outcomes.next().await.expect("it lives"), doubled);
        }
    }

    #[tokio::test]
    async fn a_thread_that_dies_is_noticed_after_its_last_outcome() {
        let (worker, mut outcomes) = Worker::start("halve", "halves", |number: u32| 8 / number).expect("a thread");
        for number in [2, 0, 4] {
            worker.give(number);
        }
        assert_eq!(outcomes.next().await.expect("before it dies"), 4);
        let died = outcomes.next().await.expect_err("it divided by zero").to_string();
        assert!(died.contains("the thread that halves has died"), "{died}");
        worker.give(1);
    }
}
