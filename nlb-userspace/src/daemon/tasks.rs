//! The lasting tasks of the daemon, by name. None of them ends before the daemon does.

use std::collections::HashMap;
use std::convert::Infallible;

use anyhow::{Context, anyhow};
use tokio::task::{Id, JoinSet};

#[derive(Default)]
pub(super) struct Tasks {
    tasks: JoinSet<anyhow::Result<()>>,
    names: HashMap<Id, &'static str>,
}

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) {
        let spawned = self.tasks.spawn(task);
        self.names.insert(spawned.id(), name);
    }

    pub(super) fn spawn_endless(
        &mut self,
        name: &'static str,
        task: impl Future<Output = Infallible> + Send + 'static,
    ) {
        self.spawn(name, async move { match task.await {} });
    }

    /// Waits until a task ends, and returns which one and why.
    pub(super) async fn first_to_end(&mut self) -> anyhow::Error {
        let Some(ended) = self.tasks.join_next_with_id().await else {
            return std::future::pending().await;
        };
        let id = match &ended {
            Ok((id, _)) => *id,
            Err(error) => error.id(),
        };
        let name = self.names.get(&id).copied().unwrap_or("unnamed");
        match ended.context("it panicked").and_then(|(_, ended)| ended) {
            Ok(()) => anyhow!("the task \"{name}\" has ended"),
            Err(error) => error.context(format!("the task \"{name}\" has failed")),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[tokio::test]
    async fn the_task_that_ends_is_named_with_the_reason() {
        let mut tasks = Tasks::default();
        tasks.spawn_endless("endless", std::future::pending());
        tasks.spawn("ending", async { Ok(()) });
        assert_eq!(tasks.first_to_end().await.to_string(), "the task \"ending\" has ended");
        tasks.spawn("failing", async { bail!("no route") });
        assert_eq!(format!("{:#}", tasks.first_to_end().await), "the task \"failing\" has failed: no route");
        tasks.spawn("panicking", async { panic!("a defect") });
        let panicked = format!("{:#}", tasks.first_to_end().await);
        assert!(panicked.starts_with("the task \"panicking\" has failed: it panicked: "), "{panicked}");
    }
}
