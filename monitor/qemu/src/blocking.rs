//! A read that may block for as long as a hostile file system likes: of each kind one is under way at most.

use std::time::Duration;

use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

/// A read that is under way still, from this round or one before.
pub type UnderWay<T> = Option<JoinHandle<T>>;

/// Does `work` on a thread for such, and waits at most `limit` for it. One that takes longer goes on, and its
/// outcome is that of a later round; meanwhile no other is begun.
pub async fn within<T: Send + 'static>(
    limit: Duration,
    under_way: &mut UnderWay<T>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let mut thread = under_way.take().unwrap_or_else(|| spawn_blocking(work));
    match timeout(limit, &mut thread).await {
        Ok(done) => done.ok(),
        Err(_) => {
            *under_way = Some(thread);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_read_that_hangs_is_waited_for_in_later_rounds_and_no_second_one_is_begun() {
        let (release, hang) = mpsc::channel::<()>();
        let mut under_way = None;
        let limit = Duration::from_millis(50);
        let first = within(limit, &mut under_way, move || hang.recv().map_or(0, |()| 1)).await;
        assert_eq!(first, None);
        assert_eq!(within(limit, &mut under_way, || 2).await, None);
        release.send(()).unwrap();
        assert_eq!(within(Duration::from_secs(20), &mut under_way, || 3).await, Some(1));
        assert_eq!(within(Duration::from_secs(20), &mut under_way, || 4).await, Some(4));
    }
}
