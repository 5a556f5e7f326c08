//! Tasks without which the agent does not do its job.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

/// The tasks, by name. None of them ends before the agent does or it is told to, unless it panics.
/// Clones share one list.
#[derive(Clone, Debug, Default)]
pub(super) struct VitalTasks(Arc<Mutex<Vec<Task>>>);

#[derive(Debug)]
struct Task {
    name: String,
    handle: AbortHandle,
    /// Tells it to end.
    closing: Option<CancellationToken>,
}

impl Task {
    fn was_to_end(&self) -> bool {
        let closing = self.closing.as_ref();
        closing.is_some_and(CancellationToken::is_cancelled)
    }
}

impl VitalTasks {
    /// Starts one more.
    pub(super) fn spawn(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.start(name.into(), None, task);
    }

    /// Starts one more, which ends some time after `closing`.
    pub(super) fn spawn_until(
        &self,
        closing: CancellationToken,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.start(name.into(), Some(closing), task);
    }

    fn start(
        &self,
        name: String,
        closing: Option<CancellationToken>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let mut tasks = self.0.lock();
        tasks.retain(|task| !task.was_to_end());
        tasks.push(Task {
            name,
            handle: tokio::spawn(task).abort_handle(),
            closing,
        });
    }

    /// Those that have ended.
    pub(super) fn ended(&self) -> Vec<String> {
        let tasks = self.0.lock();
        tasks
            .iter()
            .filter(|task| task.handle.is_finished() && !task.was_to_end())
            .map(|task| task.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panicked_is_named() {
        let tasks = VitalTasks::default();
        tasks.spawn("goes on", std::future::pending());
        assert!(tasks.ended().is_empty());
        tasks.spawn("panics", async { panic!("as the test wants it") });
        while tasks.ended().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.ended(), ["panics"]);
    }

    #[tokio::test]
    async fn a_task_that_was_told_to_end_is_not() {
        let tasks = VitalTasks::default();
        let closing = CancellationToken::new();
        let told = closing.clone().cancelled_owned();
        tasks.spawn_until(closing.clone(), "ends", told);
        closing.cancel();
        tokio::task::yield_now().await;
        assert!(tasks.ended().is_empty());

        tasks.spawn_until(CancellationToken::new(), "ends too soon", async {});
        while tasks.ended().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(tasks.ended(), ["ends too soon"]);
    }
}
