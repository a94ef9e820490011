//! Commands on their way from callers to a session's task.
//!
//! A caller whose command can't be sent is told so at once, unless a connection is about to be made for it.

use std::{collections::VecDeque, os::fd::OwnedFd, time::Duration};

use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::notice::QmpError;

/// The longest that a command may wait: far beyond any use, and short enough for any clock.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 60 * 60);

/// A way to the session's task. The task ends when the last clone is dropped, or at
/// [`QmpHandle::close`].
#[derive(Debug, Clone)]
pub struct QmpHandle {
    /// In boxes: a channel has room for many of them from the start, and there is one for each VM of the host.
    pub(super) requests: mpsc::Sender<Box<Request>>,
    pub(super) closing: CancellationToken,
}

impl QmpHandle {
    /// Sends a command and waits at most `limit` (or a day) for its result. Commands of several
    /// callers are pipelined.
    ///
    /// # Errors
    /// [`QmpError`]; which variants mean that nothing was sent stands there.
    pub async fn execute(
        &self,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, limit, None).await
    }

    /// The same, and hands QEMU a file descriptor, for the commands that ask for one (`add-fd`, `getfd`).
    ///
    /// # Errors
    /// As [`QmpHandle::execute`].
    pub async fn execute_with(
        &self,
        descriptor: OwnedFd,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, limit, Some(descriptor)).await
    }

    async fn request(
        &self,
        command: &str,
        arguments: Option<Value>,
        limit: Duration,
        descriptor: Option<OwnedFd>,
    ) -> Result<Value, QmpError> {
        let (reply, answer) = oneshot::channel();
        let limit = limit.min(LONGEST_LIMIT);
        let deadline = Instant::now() + limit;
        let command = command.to_owned();
        let request =
            Request { command: command.clone(), arguments, descriptor, limit, deadline, reply };
        self.requests.try_send(Box::new(request)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => QmpError::Busy,
            mpsc::error::TrySendError::Closed(_) => QmpError::SessionClosed,
        })?;
        match timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(QmpError::SessionClosed),
            Err(_) => Err(QmpError::Timeout { command, limit }),
        }
    }

    /// Ends the session; commands that wait for an answer get [`QmpError::SessionClosed`].
    pub fn close(&self) {
        self.closing.cancel();
    }
}

/// The session is closed, or its last handle is gone.
#[derive(Debug)]
pub(super) struct Ended;

/// A command on its way from a handle to the task.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) command: String,
    pub(super) arguments: Option<Value>,
    pub(super) descriptor: Option<OwnedFd>,
    pub(super) limit: Duration,
    pub(super) deadline: Instant,
    pub(super) reply: oneshot::Sender<Result<Value, QmpError>>,
}

impl Request {
    /// A caller that no longer waits is no reason to fail.
    pub(super) fn refuse(self, error: QmpError) {
        let _ = self.reply.send(Err(error));
    }
}

pub(super) struct Inbox {
    pub(super) requests: mpsc::Receiver<Box<Request>>,
    pub(super) closing: CancellationToken,
    /// Commands that wait for a connection.
    pub(super) kept: VecDeque<Request>,
    /// So many of them may; none, where a caller is told at once that there is no connection.
    pub(super) keeps: usize,
}

impl Inbox {
    pub(super) async fn next(&mut self) -> Result<Request, Ended> {
        tokio::select! {
            // What comes after the end is not carried out any more.
            biased;
            () = self.closing.cancelled() => Err(Ended),
            request = self.requests.recv() => request.map(|request| *request).ok_or(Ended),
        }
    }

    /// Does `work`; meanwhile tells every command that there is no connection, and why, or keeps it.
    pub(super) async fn meanwhile<T>(
        &mut self,
        reason: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Ended> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                request = self.next() => {
                    let request = request?;
                    if self.kept.len() < self.keeps {
                        self.kept.push_back(request);
                    } else {
                        request.refuse(QmpError::NotConnected { reason: reason.to_owned() });
                    }
                }
            }
        }
    }

    /// Waits for a command, which is kept, or for `work`.
    pub(super) async fn first_or(&mut self, work: impl Future<Output = ()>) -> Result<(), Ended> {
        if self.kept.is_empty() {
            tokio::select! {
                request = self.next() => self.kept.push_back(request?),
                () = work => {}
            }
        }
        Ok(())
    }

    /// Tells those that wait that there will be no connection, and keeps no others.
    pub(super) fn refuse_kept(&mut self, reason: &str) {
        self.keeps = 0;
        for request in self.kept.drain(..) {
            request.refuse(QmpError::NotConnected { reason: reason.to_owned() });
        }
    }
}
