//! The hosts that there are, and what is tried on each.

use crate::architecture::Architecture;

pub(super) mod arm;

/// A host: a kernel, and a QEMU that runs its guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Host {
    /// Its name on the command line.
    pub(super) name: &'static str,
    /// What its kernel's version begins with: the newest such that the suites hold.
    pub(super) kernel: &'static str,
    /// The suite of its guests' QEMU; `None`: the one that the host itself has, of Debian 12.
    pub(super) qemu_suite: Option<&'static str>,
    /// Its CPUs', and its guests'.
    pub(super) architecture: Architecture,
}

const fn x86(name: &'static str, kernel: &'static str, qemu_suite: Option<&'static str>) -> Host {
    Host { name, kernel, qemu_suite, architecture: Architecture::X86_64 }
}

impl Host {
    /// Why a column is not tried on it, if it is not: hosts that differ by their QEMU alone are all of one kernel.
    pub(super) fn omits(&self, column: &Column) -> Option<&'static str> {
        self.qemu_suite?;
        match column.trial {
            Trial::Tests(_) => Some("the kernel counts, whatever the QEMU: see linux-6.12"),
            Trial::Scenario(name) if KERNELS_OWN.contains(&name) => {
                Some("the vCPU's thread and the kernel tell it from a dead one: see linux-6.12")
            }
            _ => None,
        }
    }
}

/// Scenarios in which nothing is asked of QEMU that another does not ask.
const KERNELS_OWN: [&str; 2] = ["idle-poll", "masked-wait"];

/// In the order in which they are played, and stand in the document.
pub(super) const HOSTS: [Host; 9] = [
    x86("linux-5.10", "5.10.", None),
    x86("linux-6.1", "6.1.", None),
    x86("linux-6.12", "6.12.", None),
    x86("linux-6", "6.", None),
    x86("linux-7.2", "7.2.", None),
    x86("linux-7", "7.", None),
    x86("qemu-5.2", "6.12.", Some("bullseye")),
    x86("qemu-10", "6.12.", Some("trixie")),
    x86("qemu-11", "6.12.", Some("trixie-backports")),
];

/// Suites in which kernels and QEMUs are looked for, beside Debian 12's own.
pub(super) const SUITES: [&str; 5] =
    ["bullseye", "bookworm", "bookworm-backports", "trixie", "trixie-backports"];

/// How a cell comes about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trial {
    /// What is asked of the daemon's program before any guest runs.
    Check,
    /// A stage of an idle guest and a busy one, where the daemon also says what it has of its programs, and of the hook of a
    /// guest's tap: several columns.
    Shared,
    /// A scenario of the tests, by its name.
    Scenario(&'static str),
    /// A scenario, with guests of such a kernel.
    Guest(arm::Guests, &'static str),
    /// A healthy guest of a stage that it shares with others, by its name, with guests of such a kernel.
    Beside(arm::Guests, &'static str),
    /// End-to-end tests, by their names.
    Tests(&'static [&'static str]),
}

/// Something that is tried on a host.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    /// Its name, and the heading of its column.
    pub(super) name: &'static str,
    /// How it is played.
    pub(super) trial: Trial,
}

const fn column(name: &'static str, trial: Trial) -> Column {
    Column { name, trial }
}

/// What the host offers.
pub(super) const OFFERS: [Column; 3] = [
    column("check", Trial::Check),
    column("hook", Trial::Shared),
    column("programs", Trial::Shared),
];
/// Guests that crash.
pub(super) const CRASHES: [Column; 5] = [
    column("panic, 1 vCPU", Trial::Scenario("panic-1-vcpu")),
    column("panic, 2 vCPUs", Trial::Scenario("panic-2-vcpus")),
    column("halt", Trial::Scenario("linux-halt")),
    column("pvpanic", Trial::Scenario("pvpanic-pause")),
    column("hard lock-up", Trial::Scenario("hard-lockup-1-of-1")),
];
/// Guests that are to be left alone.
pub(super) const HEALTHY: [Column; 4] = [
    column("idle", Trial::Shared),
    column("busy", Trial::Shared),
    column("idle=poll", Trial::Scenario("idle-poll")),
    column("masked wait", Trial::Scenario("masked-wait")),
];
/// What is counted, beside the kernel's and QEMU's own counts.
pub(super) const COUNTS: [Column; 4] = [
    column(
        "packets",
        Trial::Tests(&[
            "a_taps_packets_and_bytes_equal_the_kernels_through_tcx",
            "a_taps_packets_and_bytes_equal_the_kernels_through_clsact",
        ]),
    ),
    column(
        "requests",
        Trial::Tests(&[
            "a_disks_requests_equal_qemus_with_aio_threads",
            "storage_of_a_real_guest_is_counted_exactly",
        ]),
    ),
    column(
        "written back",
        Trial::Tests(&["buffered_storage_is_counted_once_whoever_writes_it_back"]),
    ),
    column(
        "restart under load",
        Trial::Tests(&["programs_that_changed_are_exchanged_under_load_without_a_loss"]),
    ),
];

/// All columns of a host, in the order in which they are shown.
pub(super) fn columns(host: &Host) -> Vec<Column> {
    let rest: Vec<Column> = match host.architecture {
        Architecture::X86_64 => CRASHES.into_iter().chain(HEALTHY).chain(COUNTS).collect(),
        Architecture::Aarch64 => arm::ROWS.into_iter().flat_map(|(_, columns)| columns).collect(),
    };
    OFFERS.into_iter().chain(rest).collect()
}

/// All hosts, in the order in which they are played.
pub(super) fn hosts() -> impl Iterator<Item = Host> {
    HOSTS.into_iter().chain(arm::HOSTS)
}

/// The host of that name.
pub(super) fn host(name: &str) -> Option<Host> {
    hosts().find(|host| host.name == name)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use flatline_tests::scenario;

    use super::*;

    #[test]
    fn hosts_and_columns_have_names_of_their_own_and_scenarios_are_known() {
        let names: BTreeSet<&str> = hosts().map(|host| host.name).collect();
        assert_eq!(names.len(), hosts().count());
        let scenarios = [scenario::all(), scenario::arm_host::scenarios()].concat();
        for host in hosts() {
            let columns = columns(&host);
            let names: BTreeSet<&str> = columns.iter().map(|column| column.name).collect();
            assert_eq!(names.len(), columns.len());
            for column in columns {
                let (Trial::Scenario(name) | Trial::Guest(_, name)) = column.trial else {
                    continue;
                };
                assert!(scenarios.iter().any(|scenario| scenario.name == name), "{name}");
            }
        }
        assert!(hosts().all(|host| host.qemu_suite.is_none_or(|suite| SUITES.contains(&suite))));
    }
}
