//! Asking the daemon, and what its refusals mean for the exit code.

use crate::{
    api::{self, ClientError, RefusalKind, Request},
    config::Config,
};
use serde::de::DeserializeOwned;

use super::Failure;

/// The daemon's answer to `request`.
pub(super) fn ask<T: DeserializeOwned>(config: &Config, request: &Request) -> Result<T, Failure> {
    api::ask(&config.paths.runtime_dir, request).map_err(failure)
}

/// What it means for a command that there is no answer.
pub(super) fn failure(error: ClientError) -> Failure {
    match &error {
        ClientError::Unreachable { .. } | ClientError::NotUnderstood { .. } => {
            Failure::Unreachable(error.into())
        }
        ClientError::Refused(refusal) => match refusal.kind {
            RefusalKind::NoSuchVm | RefusalKind::AmbiguousVm | RefusalKind::Nothing => {
                Failure::BadNews(error.into())
            }
            RefusalKind::BadRequest
            | RefusalKind::Busy
            | RefusalKind::Internal
            | RefusalKind::Other => Failure::Unreachable(error.into()),
        },
    }
}
