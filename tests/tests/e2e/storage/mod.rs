//! Storage is counted right in whatever way a VM's disk is kept: what the daemon shows is what QEMU and the
//! kernel counted, whatever submits it and however many layers are below; and what can't be seen is said.

mod apart;
mod direct;
mod figures;
mod machine;
mod requests;
mod stalled;
mod unseen;
mod written_back;

use libtest_mimic::Trial;

use crate::rig::{trial, trial_that_may_skip};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial_that_may_skip("storage_is_counted_exactly_with_aio_native", || {
            direct::with_aio("native")
        }),
        trial_that_may_skip("storage_is_counted_exactly_with_aio_threads", || {
            direct::with_aio("threads")
        }),
        trial_that_may_skip("storage_is_counted_exactly_with_aio_io_uring", || {
            direct::with_aio("io_uring")
        }),
        trial(
            "storage_on_block_devices_is_counted_once_and_not_once_a_layer",
            direct::on_block_devices,
        ),
        trial_that_may_skip("storage_on_xfs_is_counted_exactly", || direct::on("xfs")),
        trial_that_may_skip("storage_on_btrfs_is_counted_exactly", || direct::on("btrfs")),
        trial("buffered_storage_is_counted_once_whoever_writes_it_back", written_back::table),
        trial(
            "storage_that_holds_qemus_own_program_is_not_its_guests",
            direct::by_a_program_that_is_read_itself,
        ),
        trial_that_may_skip("buffered_storage_on_xfs_is_counted_once", || written_back::on("xfs")),
        trial_that_may_skip("buffered_storage_on_btrfs_is_counted_once", || {
            written_back::on("btrfs")
        }),
        trial("buffered_storage_is_read_ahead_for_the_vm_that_reads", written_back::reads_ahead),
        trial("storage_of_vms_on_one_file_system_is_not_mixed_up", apart::on_one_file_system),
        trial("storage_read_from_one_backing_file_is_each_vms_own", apart::on_one_backing_file),
        trial_that_may_skip(
            "storage_of_files_that_are_numbered_alike_is_nobodys",
            apart::numbered_alike,
        ),
        trial_that_may_skip("storage_that_cannot_be_seen_is_named", unseen::is_named),
        trial_that_may_skip(
            "storage_that_cannot_be_seen_is_asked_of_qemu",
            unseen::is_asked_of_qemu,
        ),
        trial("storage_discards_and_flushes_are_counted_exactly", requests::discards_and_flushes),
        trial("storage_of_a_real_guest_is_counted_exactly", requests::by_a_real_guest),
        trial("storage_requests_that_fail_are_counted_as_failed", requests::failures),
        trial_that_may_skip("storage_that_stalls_behind_fuse_holds_a_vm", stalled::behind_fuse),
        trial(
            "storage_that_stalls_behind_a_frozen_file_system_holds_a_vm",
            stalled::behind_a_frozen_file_system,
        ),
    ]
}
