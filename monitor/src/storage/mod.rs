//! The state directory: incidents with their evidence, and the ledger of holds and resets.
//!
//! Everything that has to outlive the daemon is written here as a whole or not at all, as JSON that people can read,
//! and is bounded when it is read again.

pub(crate) mod by_user;
pub(crate) mod evidence;
pub(crate) mod incident;
pub(crate) mod incident_user;
pub(crate) mod incidents;
pub(crate) mod ledger;
mod record_quota;
pub(crate) mod remembered;
mod restart_index;
pub(crate) mod retention;
