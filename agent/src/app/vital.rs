//! Tasks without which the agent does not do its job.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::AbortHandle;

/// The tasks, by name. None of them ends before the agent does, unless it panics. Clones share one
/// list.
#[derive(Clone, Debug, Default)]
pub(super) struct VitalTasks(Arc<Mutex<Vec<(String, AbortHandle)>>>);

impl VitalTasks {
    /// Starts one more.
    pub(super) fn spawn(
        &self,
        name: impl Into<String>,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        let handle = tokio::spawn(task).abort_handle();
        self.0.lock().push((name.into(), handle));
    }

    /// Those that have ended.
    pub(super) fn ended(&self) -> Vec<String> {
        let tasks = self.0.lock();
        tasks
            .iter()
            .filter(|(_, task)| task.is_finished())
            .map(|(name, _)| name.clone())
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
}
