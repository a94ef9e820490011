//! The daemon as a process, by the names that Prometheus' own libraries give to that, as every dashboard of processes
//! expects. Read when the text is made.

use std::{
    fmt, fs,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Registry};
use rustix::{
    param::{clock_ticks_per_second, page_size},
    process::{Resource, getrlimit},
};

use super::families::{Family, Plain, Value};

/// This process, which began then.
#[derive(Debug)]
struct Process {
    began: SystemTime,
}

/// What `/proc/self/stat` has of it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    resident_bytes: u64,
}

/// Has this process served, as one that began at `began`.
pub(super) fn register(registry: &mut Registry, began: SystemTime) {
    registry.register_collector(Box::new(Process { began }));
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut one = |family: Family, value: Option<Value>| {
            family.encode(&mut encoder, value.map(|value| (Plain(None), value)))
        };
        let began = self.began.duration_since(UNIX_EPOCH).ok();
        one(
            Family::gauge("process_start_time", "When the daemon started, since 1970.").seconds(),
            began.map(|began| began.as_secs_f64().into()),
        )?;
        let usage = fs::read_to_string("/proc/self/stat").ok().and_then(|stat| usage(&stat));
        one(
            Family::counter("process_cpu", "CPU time of the daemon, in user space and kernel.")
                .seconds(),
            usage.map(|usage| usage.cpu_seconds.into()),
        )?;
        one(
            Family::gauge("process_resident_memory", "What the daemon has of the host's memory.")
                .bytes(),
            usage.map(|usage| usage.resident_bytes.into()),
        )?;
        // One of them is the directory itself.
        let open = fs::read_dir("/proc/self/fd").ok().map(|all| all.count().saturating_sub(1));
        one(
            Family::gauge("process_open_fds", "File descriptors that the daemon has open."),
            open.map(Into::into),
        )?;
        one(
            Family::gauge("process_max_fds", "File descriptors that it may have open."),
            getrlimit(Resource::Nofile).current.map(Into::into),
        )
    }
}

/// Fields 14, 15 and 24 of `proc_pid_stat(5)`. The name before them may have blanks and parentheses.
fn usage(stat: &str) -> Option<Usage> {
    let (_, fields) = stat.rsplit_once(") ")?;
    // The first one here is field 3.
    let field = |number: usize| fields.split_ascii_whitespace().nth(number - 3)?.parse().ok();
    let (user, kernel, resident): (u64, u64, u64) = (field(14)?, field(15)?, field(24)?);
    #[expect(clippy::cast_precision_loss, reason = "exact for millions of years")]
    let seconds = |ticks: u64| ticks as f64 / clock_ticks_per_second() as f64;
    let page = u64::try_from(page_size()).ok()?;
    Some(Usage {
        cpu_seconds: seconds(user.checked_add(kernel)?),
        resident_bytes: resident.checked_mul(page)?,
    })
}

#[cfg(test)]
mod tests {
    use super::usage;

    #[test]
    fn usage_is_read_behind_whatever_the_process_is_called() {
        let stat = "7 (a) b (c) 1 2) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 9 0 12345 99999 \
                    3 18446744073709551615";
        let read = usage(stat).expect("well-formed");
        assert!((read.cpu_seconds - 3.0).abs() < 1e-9, "{read:?}");
        assert_eq!(read.resident_bytes, 3 * rustix::param::page_size() as u64);
        for torn in ["", "7 (a) S", "7 (a) S 1 7 7 0 -1 4194560 100 0 0 0 x 50 0 0 20 0 9 0 1 9 3"]
        {
            assert_eq!(usage(torn), None, "{torn}");
        }
    }
}
