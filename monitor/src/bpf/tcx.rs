//! Which programs stand in an interface's tcx, asked by its index and in one call: aya asks by name, and opens each program.
//!
//! Works in the network namespace of the calling thread (`BPF_PROG_QUERY`, include/uapi/linux/bpf.h of Linux 6.12).

use std::{io, mem::size_of};

use aya::programs::TcAttachType;

const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
/// `BPF_MPROG_MAX`.
const MOST_PROGRAMS: usize = 64;

/// The `query` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    reserved: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Whether the program with this id stands there.
///
/// # Errors
/// What the kernel said: before 6.6 it has no tcx.
pub(super) fn has(ifindex: u32, direction: TcAttachType, program: u32) -> io::Result<bool> {
    let attach_type = match direction {
        TcAttachType::Ingress => BPF_TCX_INGRESS,
        TcAttachType::Egress => BPF_TCX_EGRESS,
        TcAttachType::Custom(_) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut query = Query {
        target_ifindex: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(ids.len()).map_err(io::Error::other)?,
        ..Query::default()
    };
    // SAFETY: the attribute is whole and of the size given; the kernel writes at most `count` ids of four bytes, for which
    // there is room. Both outlive the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if answer != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ids.iter().take(query.count as usize).any(|id| *id == program))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_and_a_direction_that_is_none_are_errors() {
        assert!(has(u32::MAX >> 1, TcAttachType::Ingress, 1).is_err());
        assert!(has(1, TcAttachType::Custom(3), 1).is_err());
    }
}
