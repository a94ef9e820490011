//! What recording what is judged costs.

use anyhow::Result;

use super::report::Report;
use super::stage::Stage;
use crate::process::heading;

/// Measures the recorder by itself: it needs no daemon.
pub(crate) fn measure(stage: &Stage<'_>, report: &mut Report) -> Result<()> {
    heading("records");
    let figures = stage.measure("records", &[])?;
    let section = report.section("Recording a VM", "ns", RECORDS);
    for vcpus in [1, 16] {
        let rounds = |figure: &str| figures.rounds(&format!("records/{vcpus}_vcpus/{figure}"));
        let of = if vcpus == 1 { "1 vCPU".to_owned() } else { format!("{vcpus} vCPUs") };
        section.value(&format!("a tick that is judged, {of}"), &rounds("nanoseconds")?, None, "");
        for (what, figure) in [("in memory", "bytes_in_memory"), ("in a file", "bytes_in_file")] {
            let what = format!("five minutes of such ticks {what}, {of}");
            section.in_unit(&what, &rounds(figure)?, "bytes", None, "");
        }
    }
    Ok(())
}

const RECORDS: &str = "CPU time of recording a tick, less that of judging it; each tick of an idle guest that sends a packet, \
    as none is that rests: of the ticks in which a VM rests, half a minute is one record.";
