//! Tries one after another, each with a head start (the way of RFC 8305 section 5).

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

/// The first success among `items`, or every failure in the order of time.
///
/// The next item is tried when the last one started has failed, or after `interval` without a
/// result. The tries still running when one succeeds are dropped.
pub(crate) async fn first_success<I, T, E, F>(
    items: impl IntoIterator<Item = I>,
    interval: Duration,
    mut start: impl FnMut(I) -> F,
) -> Result<T, Vec<E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut items = items.into_iter().peekable();
    let mut running: Vec<Pin<Box<F>>> = Vec::new();
    let mut failures = Vec::new();
    loop {
        if let Some(item) = items.next() {
            running.push(Box::pin(start(item)));
        }
        if running.is_empty() {
            return Err(failures);
        }
        let mut pause = pin!(tokio::time::sleep(interval));
        // Until the next one may start.
        loop {
            let finished = poll_fn(|cx| {
                for (index, attempt) in running.iter_mut().enumerate() {
                    if let Poll::Ready(result) = attempt.as_mut().poll(cx) {
                        return Poll::Ready((index, result));
                    }
                }
                Poll::Pending
            });
            tokio::select! {
                biased;
                (index, result) = finished => {
                    let was_last = index + 1 == running.len();
                    drop(running.remove(index));
                    match result {
                        Ok(success) => return Ok(success),
                        Err(failure) => failures.push(failure),
                    }
                    if was_last || running.is_empty() {
                        break;
                    }
                }
                () = &mut pause, if items.peek().is_some() => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use tokio::time::{Instant, sleep};

    /// Waits `millis`, then succeeds or fails with `name`.
    async fn attempt(
        (name, millis, succeeds): (&'static str, u64, bool),
    ) -> Result<&'static str, &'static str> {
        sleep(Duration::from_millis(millis)).await;
        if succeeds { Ok(name) } else { Err(name) }
    }

    async fn run(
        items: &[(&'static str, u64, bool)],
    ) -> (Result<&'static str, Vec<&'static str>>, u128) {
        let start = Instant::now();
        let interval = Duration::from_millis(250);
        let result = first_success(items.iter().copied(), interval, attempt).await;
        (result, start.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn the_next_starts_after_the_interval_or_a_failure() {
        let silent = ("silent", 60_000, false);
        assert_eq!(run(&[("a", 10, true), silent]).await, (Ok("a"), 10));
        assert_eq!(run(&[silent, ("b", 10, true)]).await, (Ok("b"), 260));
        assert_eq!(
            run(&[("bad", 10, false), ("b", 10, true)]).await,
            (Ok("b"), 20)
        );
        // A slow first one still wins if it is done before the second.
        assert_eq!(
            run(&[("a", 300, true), ("b", 100, true)]).await,
            (Ok("a"), 300)
        );
        // A failure of an old one does not hurry the next one on.
        assert_eq!(
            run(&[("a", 260, false), silent, ("c", 10, true)]).await,
            (Ok("c"), 510)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn all_failures_are_told_in_the_order_of_time() {
        assert_eq!(
            run(&[("a", 700, false), ("b", 300, false), ("c", 10, false)]).await,
            (Err(vec!["c", "b", "a"]), 700)
        );
        assert_eq!(run(&[]).await, (Err(vec![]), 0));
    }
}
