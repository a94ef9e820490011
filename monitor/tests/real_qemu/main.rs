//! Discovery, the QMP client and KVM as a witness, against QEMUs that really run.
//!
//! They run through libtest-mimic, so that a test that can't run here says *ignored*, and why.

mod discover;
mod kvm;
mod qmp;

use std::path::PathBuf;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

/// How a test ended: with its assertions held, or with the reason why it can't run here.
type Outcome = Result<(), String>;

fn main() -> ExitCode {
    let trials = vec![
        trial("a_running_qemu_is_found_with_what_it_was_told", discover::a_running_qemu_is_found_with_what_it_was_told),
        trial("only_the_users_in_scope_are_found_and_nothing_of_one_that_ended", discover::only_the_users_in_scope_are_found_and_nothing_of_one_that_ended),
        trial("vcpu_threads_are_told_by_name_where_they_have_one", discover::vcpu_threads_are_told_by_name_where_they_have_one),
        trial("a_kvm_guest_is_told_by_its_descriptor", discover::a_kvm_guest_is_told_by_its_descriptor),
        trial("a_daemonized_qemu_is_found_once_and_its_launcher_never", discover::a_daemonized_qemu_is_found_once_and_its_launcher_never),
        trial("the_launcher_of_a_daemonized_qemu_is_no_vm_in_a_session_without_a_leader_either", discover::the_launcher_of_a_daemonized_qemu_is_no_vm_in_a_session_without_a_leader_either),
        trial("a_qemu_whose_executable_was_replaced_is_still_found", discover::a_qemu_whose_executable_was_replaced_is_still_found),
        trial("a_qemu_that_only_answers_questions_is_no_vm", discover::a_qemu_that_only_answers_questions_is_no_vm),
        trial("a_tap_with_two_queues_is_found_once_in_the_namespace_of_its_qemu", discover::a_tap_with_two_queues_is_found_once_in_the_namespace_of_its_qemu),
        trial("a_tap_that_moved_is_found_in_whatever_namespace_it_is", discover::a_tap_that_moved_is_found_in_whatever_namespace_it_is),
        trial("code_inside_a_namespace_sees_that_one_and_code_outside_does_not", discover::code_inside_a_namespace_sees_that_one_and_code_outside_does_not),
        trial("guests_that_take_interrupts_under_kvm_live_and_dead_ones_are_silent_however_often_they_are_woken", kvm::guests_that_take_interrupts_live_and_dead_ones_are_silent),
        trial("a_real_qemu_is_asked_stopped_and_shared", qmp::a_real_qemu_is_asked_stopped_and_shared),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(name: &str, test: fn() -> Outcome) -> Trial {
    Trial::ignorable_test(name, move || {
        Ok(match test() {
            Ok(()) => Completion::Completed,
            Err(why) => Completion::ignored_with(format!("skipped: {why}")),
        })
    })
}

/// The QEMU to be tried.
fn qemu() -> Result<PathBuf, String> {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .find_map(|folder| folder.join("qemu-system-x86_64").canonicalize().ok())
        .ok_or_else(|| "qemu-system-x86_64 is not installed".to_owned())
}
