//! Single-flight cache: computes a value once per key, such as the text of a tick, however many callers wait.

use std::{io, sync::Arc};

use tokio::{sync::Mutex, task::spawn_blocking};

/// The last value that was computed, and its key; shared by all readers.
#[derive(Debug)]
pub(crate) struct SingleFlight<K, V>(Arc<Mutex<Option<(K, V)>>>);

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: PartialEq + Send + 'static, V: Clone + Send + 'static> SingleFlight<K, V> {
    /// The value of `key`: the last one if it was of the same key, or that of `make`, which runs on a blocking thread.
    ///
    /// # Errors
    /// That of `make`.
    pub(crate) async fn get(
        &self,
        key: K,
        make: impl FnOnce() -> io::Result<V> + Send + 'static,
    ) -> io::Result<V> {
        // Callers that come meanwhile wait for this one, which bounds work and memory.
        let mut last = Arc::clone(&self.0).lock_owned().await;
        if let Some((of, value)) = &*last
            && *of == key
        {
            return Ok(value.clone());
        }
        // The task owns the lock: its caller may be dropped before it is done.
        let task = spawn_blocking(move || {
            let value = make()?;
            *last = Some((key, value.clone()));
            Ok(value)
        });
        task.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_value_is_computed_once_for_each_key_and_again_after_a_failure() {
        let cache = SingleFlight::default();
        assert!(cache.get(1, || Err::<char, _>(io::Error::other("no"))).await.is_err());
        assert_eq!(cache.get(1, || Ok('a')).await.unwrap(), 'a');
        assert_eq!(cache.get(1, || panic!("it is there")).await.unwrap(), 'a');
        assert_eq!(cache.get(2, || Ok('b')).await.unwrap(), 'b');
    }
}
