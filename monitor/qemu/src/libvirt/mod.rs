//! libvirt's own protocol over its socket: one connection for all domains of a host.
//!
//! A `virsh` for each question costs 14 ms of a CPU and 60 ms, and one for each domain's events 19 MB; libvirt's library would
//! have to be linked to. Eight messages do ([`Link`]), in a protocol that libvirt keeps for its older clients. What comes from there is
//! bounded: a user's own libvirt is the user's, and what QEMUs say comes through it.

mod calls;
mod endpoint;
mod hearing;
mod link;
mod message;
#[cfg(test)]
mod tests;
mod wire;
mod xdr;

pub use calls::CallError;
pub use endpoint::Endpoint;
pub use hearing::Hearing;
pub use link::{Link, LinkState, Links};
pub use message::Domain;
pub(crate) use message::fuzz;
