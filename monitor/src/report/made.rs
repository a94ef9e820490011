//! What is made once of something for however many ask, such as the text of a tick.

use std::{io, sync::Arc};

use tokio::{sync::Mutex, task::spawn_blocking};

/// What was made last, and of what; clones are the same one.
#[derive(Debug)]
pub(crate) struct Made<K, V>(Arc<Mutex<Option<(K, V)>>>);

impl<K, V> Default for Made<K, V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: PartialEq + Send + 'static, V: Clone + Send + 'static> Made<K, V> {
    /// What belongs to `key`, which `make` makes, on a thread that may take its time, where the last one was another.
    ///
    /// # Errors
    /// That of `make`.
    pub(crate) async fn get(
        &self,
        key: K,
        make: impl FnOnce() -> io::Result<V> + Send + 'static,
    ) -> io::Result<V> {
        // Whoever comes meanwhile waits for this one: so much work and memory, however many ask.
        let mut made = Arc::clone(&self.0).lock_owned().await;
        if let Some((of, value)) = &*made
            && *of == key
        {
            return Ok(value.clone());
        }
        // It takes the lock along, since whoever asked may go away before it is done.
        let task = spawn_blocking(move || {
            let value = make()?;
            *made = Some((key, value.clone()));
            Ok(value)
        });
        task.await.map_err(io::Error::other)?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_made_once_for_each_key_and_again_after_a_failure() {
        let made = Made::default();
        assert!(made.get(1, || Err::<char, _>(io::Error::other("no"))).await.is_err());
        assert_eq!(made.get(1, || Ok('a')).await.unwrap(), 'a');
        assert_eq!(made.get(1, || panic!("it is there")).await.unwrap(), 'a');
        assert_eq!(made.get(2, || Ok('b')).await.unwrap(), 'b');
    }
}
