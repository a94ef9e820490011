//! The host's and the daemon's families, as of the last tick.

use std::{fmt, time::UNIX_EPOCH};

use prometheus_client::encoding::DescriptorEncoder;

use super::{
    families::{Family, Plain, Value},
    snapshot::Snapshot,
};
use flatline_detector::{policy::Mode, verdict::State};

const LAST_TICK: Family = Family::gauge(
    "last_tick_timestamp",
    "When the tick ended of which all other figures are, since 1970; one that grows old is a daemon that hangs.",
)
.seconds();
const MODE: Family = Family::gauge("mode", "1 for the host's mode, 0 for the other.");
const STORM: Family = Family::gauge(
    "storm",
    "1 while so many VMs are silent together that the host is at fault, and no VM is restarted.",
);
const DEGRADED: Family = Family::gauge(
    "degraded",
    "1 while something doesn't work as it should; `flatline status --json` says what.",
);
const PROGRAM: Family =
    Family::gauge("ebpf_program_attached", "1 for each eBPF program that is in place, 0 if not.");
const MAP_USED: Family = Family::gauge("map_entries", "Rows of the eBPF maps that are taken.");
const MAP_SIZE: Family = Family::gauge("map_entries_max", "Rows that these maps have.");
const VMS: Family = Family::gauge("vms", "VMs in this state.");
const UNCOUNTED_VMS: Family = Family::gauge(
    "vms_uncounted",
    "VMs of which nothing can be counted, mostly for want of room (probes.max_vms).",
);
const UNCOUNTED_TAPS: Family = Family::gauge(
    "taps_uncounted",
    "Taps whose packets can't be counted; their VMs are unobservable.",
);

pub(super) fn encode(snapshot: &Snapshot, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let none = |value: Value| [(Plain(None), value)];
    let at = snapshot.at.duration_since(UNIX_EPOCH).unwrap_or_default();
    LAST_TICK.encode(encoder, none(at.as_secs_f64().into()))?;
    let modes = [Mode::Recover, Mode::Observe]
        .map(|mode| (Plain(Some(("mode", mode.as_str()))), Value::from(mode == snapshot.mode)));
    MODE.encode(encoder, modes)?;
    STORM.encode(encoder, none(snapshot.is_storm.into()))?;
    DEGRADED.encode(encoder, none(snapshot.is_degraded.into()))?;
    let programs = snapshot
        .programs
        .iter()
        .map(|program| (Plain(Some(("program", program.name))), Value::from(program.is_attached)));
    PROGRAM.encode(encoder, programs)?;
    let maps = |value: fn(&super::MapFill) -> u64| {
        snapshot.maps.iter().map(move |fill| (Plain(Some(("map", fill.map))), value(fill).into()))
    };
    MAP_USED.encode(encoder, maps(|fill| fill.used))?;
    MAP_SIZE.encode(encoder, maps(|fill| fill.of))?;
    let states = State::NAMES.map(|state| {
        let those = snapshot.vms.iter().filter(|figures| figures.state == state);
        (Plain(Some(("state", state))), Value::from(those.count()))
    });
    VMS.encode(encoder, states)?;
    let uncounted = snapshot.vms.iter().filter(|figures| !figures.is_counted).count();
    UNCOUNTED_VMS.encode(encoder, none(uncounted.into()))?;
    UNCOUNTED_TAPS.encode(encoder, none(snapshot.uncounted_taps.into()))
}
