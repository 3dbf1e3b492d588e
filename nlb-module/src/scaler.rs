//! A [`Control`] that scales: at the NLB's `Scale` request it starts further instances of a program, or ends
//! some.
//!
//! This is the reference for what the NLB expects of the instance that it asks: the number of instances,
//! including its own process, is brought within the bounds of the request. An instance to be ended gets
//! SIGTERM, so that it drains. Instances that have ended are reaped, also those that end by themselves. The
//! scaler holds the other end of each instance's standard input: an instance that
//! [`ends_with_stdin`](crate::Instance::ends_with_stdin) does not outlive the scaler.

use std::io;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlb_proto::{Error, ScaleRequest, ScaleResponse, StatusCode};
use tokio::signal::unix::{SignalKind, signal};
use tonic::{Status, async_trait};
use tracing::{info, warn};

use crate::{Control, State};

/// Starts and ends further instances. A scaler counts only its own process and the instances that it started,
/// so a group must have one scaler.
pub struct Scaler {
    program: Box<dyn Fn(u32) -> Command + Send + Sync>,
    started: Arc<Mutex<Started>>,
}

/// Processes that have not been reaped: until then their pids are not reused.
#[derive(Default)]
struct Started {
    /// Oldest first.
    instances: Vec<Instance>,
    /// Whether a task waits for the end of processes.
    watched: bool,
}

struct Instance {
    number: u32,
    process: Child,
    /// Whether it was sent SIGTERM.
    ending: bool,
}

impl Scaler {
    /// `program` returns the command of the further instance of this number, from 1 on. A number is free
    /// again when its process has ended.
    pub fn new(program: impl Fn(u32) -> Command + Send + Sync + 'static) -> Scaler {
        Scaler { program: Box::new(program), started: Arc::default() }
    }

    /// Returns how many instances there were and are to be, including this one. Has to be called in a
    /// runtime.
    fn scale_within(&self, min: u32, max: u32) -> io::Result<(u32, u32)> {
        let mut started = lock(&self.started);
        if !started.watched {
            tokio::spawn(reap(signal(SignalKind::child())?, Arc::downgrade(&self.started)));
            started.watched = true;
        }
        let current = 1 + started.instances.iter().filter(|instance| !instance.ending).count() as u32;
        let desired = current.clamp(min, max).max(1);
        for _ in current..desired {
            started.start(&self.program)?;
        }
        for _ in desired..current {
            let youngest = started.instances.iter_mut().rev().find(|instance| !instance.ending);
            youngest.expect("there are as many as counted").terminate();
        }
        Ok((current, desired))
    }
}

#[async_trait]
impl Control for Scaler {
    /// Answers when the processes have started; they register by themselves.
    async fn scale(&self, _: &State, request: ScaleRequest) -> Result<ScaleResponse, Status> {
        let config = request.config.unwrap_or_default();
        let min = bound("min_instances", config.min_instances)?.unwrap_or(1);
        let max = bound("max_instances", config.max_instances)?.unwrap_or(u32::MAX);
        if min > max {
            let problem = format!("config.min_instances: {min} is above max_instances, which is {max}");
            return Err(Status::invalid_argument(problem));
        }
        let signed = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Ok(match self.scale_within(min, max) {
            Ok((current, desired)) => {
                info!(current, desired, "scaled");
                ScaleResponse {
                    success: true,
                    message: format!("{desired} instances in place of {current}"),
                    current_instances: signed(current),
                    desired_instances: signed(desired),
                    error: None,
                }
            }
            Err(error) => {
                let message = format!("an instance did not start: {error}");
                warn!("{message}");
                let error = Error { code: StatusCode::Error.into(), message, ..Error::default() };
                ScaleResponse {
                    message: error.message.clone(),
                    error: Some(error),
                    ..ScaleResponse::default()
                }
            }
        })
    }
}

impl Started {
    fn start(&mut self, program: impl Fn(u32) -> Command) -> io::Result<()> {
        let number = (1..).find(|number| self.instances.iter().all(|other| other.number != *number));
        let number = number.expect("there are fewer processes than numbers");
        let process = program(number).stdin(Stdio::piped()).spawn()?;
        info!(number, pid = process.id(), "instance started");
        self.instances.push(Instance { number, process, ending: false });
        Ok(())
    }

    fn reap(&mut self) {
        self.instances.retain_mut(|instance| match instance.process.try_wait() {
            Ok(None) => true,
            Ok(Some(status)) => {
                info!(number = instance.number, %status, "instance ended");
                false
            }
            Err(error) => {
                warn!(number = instance.number, %error, "instance cannot be waited for");
                false
            }
        });
    }
}

impl Instance {
    fn terminate(&mut self) {
        info!(number = self.number, pid = self.process.id(), "sent SIGTERM to an instance");
        self.ending = true;
        if let Err(error) = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGTERM) {
            warn!(number = self.number, %error, "cannot send SIGTERM to an instance");
        }
    }
}

/// Waits for processes that end, so that none stays a zombie, while the scaler exists.
async fn reap(mut ended: tokio::signal::unix::Signal, started: Weak<Mutex<Started>>) {
    while ended.recv().await.is_some() {
        let Some(started) = started.upgrade() else { return };
        lock(&started).reap();
    }
}

fn bound(field: &str, number: i32) -> Result<Option<u32>, Status> {
    let number = u32::try_from(number);
    let number = number.map_err(|_| Status::invalid_argument(format!("config.{field} is negative")))?;
    Ok(Some(number).filter(|number| *number != 0))
}

fn lock(started: &Mutex<Started>) -> MutexGuard<'_, Started> {
    started.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    impl Scaler {
        fn pids(&self) -> Vec<u32> {
            lock(&self.started).instances.iter().map(|instance| instance.process.id()).collect()
        }

        async fn wait_for(&self, processes: usize) {
            for _ in 0..500 {
                if self.pids().len() == processes {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{} processes, not {processes}", self.pids().len());
        }
    }

    /// Each process ends at the end of its standard input, so that none outlives the test.
    fn scaler(program: &'static str) -> Scaler {
        Scaler::new(move |_| Command::new(program))
    }

    #[tokio::test]
    async fn processes_are_started_ended_and_reaped() {
        let scaler = scaler("cat");
        assert_eq!(
            scaler.scale_within(1, u32::MAX).unwrap(),
            (1, 1),
            "the scaler's own process is an instance"
        );
        assert_eq!(scaler.scale_within(4, 4).unwrap(), (1, 4));
        assert_eq!(scaler.scale_within(2, 4).unwrap(), (4, 4));
        let oldest = scaler.pids()[0];
        assert_eq!(scaler.scale_within(1, 2).unwrap(), (4, 2));
        assert_eq!(scaler.scale_within(2, 2).unwrap(), (2, 2), "instances that are ending do not count");
        scaler.wait_for(1).await;
        assert_eq!(scaler.pids(), [oldest]);
        // An instance that ends by itself is reaped and can be replaced.
        kill(Pid::from_raw(oldest as i32), Signal::SIGKILL).unwrap();
        scaler.wait_for(0).await;
        assert_eq!(scaler.scale_within(2, 2).unwrap(), (1, 2));
        assert_eq!(scaler.scale_within(0, 0).unwrap(), (2, 1), "never the scaler's own process");
        scaler.wait_for(0).await;
    }

    #[tokio::test]
    async fn a_program_that_does_not_start_is_an_error() {
        let scaler = scaler("/nonexistent/program");
        assert!(scaler.scale_within(2, 2).is_err());
        assert_eq!(scaler.pids(), [0; 0]);
    }
}
