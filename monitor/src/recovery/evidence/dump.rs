//! The memory of a crashed guest, as a file that `crash` reads.
//!
//! QEMU writes it (`dump-guest-memory`) into a pipe, and what comes out of that is written here: so no descriptor of a
//! file is in the hands of a QEMU that may have been taken over, the quota holds for whatever it sends, and closing
//! the pipe ends a dump that takes too long, for which QEMU has no command. All formats that are asked for are written
//! from beginning to end without seeking.
//!
//! One dump is taken at a time of each user's VMs, and few on the host: they would only make each other late. None is waited
//! for (`turn`): that would delay a restart. QEMU stops the guest for it, and lets it go on afterwards if it ran.

mod room;
mod turn;
mod write;

use std::{
    fmt,
    path::PathBuf,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant, SystemTime},
};

use serde_json::{Value, json};
use tokio::{task::spawn_blocking, time::sleep};
use tracing::info;

use turn::Turn;
pub(crate) use turn::UnderWay;

use super::ANSWER_LIMIT;
use flatline_qemu::{discover::VmId, qmp::QmpHandle, text::error_chain};
use flatline_samples::{MAX_TEXT_CHARS, RunState, printable};

/// Under this name QEMU keeps the pipe until it is told to write to it.
const PIPE_NAME: &str = "flatline-dump";
/// Time between two looks at how far it is, and between two lines in the log.
const LOOK_EVERY: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(5);
/// QEMU gets so long to notice that its dump is not taken any more.
const ENDS_WITHIN: Duration = Duration::from_secs(5);
/// The formats that are asked for, the quickest first, and how a file of it is called. `elf` is not compressed.
const FORMATS: [(&str, &str); 4] =
    [("kdump-snappy", "kdump"), ("kdump-lzo", "kdump"), ("kdump-zlib", "kdump"), ("elf", "elf")];

/// The dump that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The directory for it, which is made if it is missing.
    pub(crate) directory: PathBuf,
    /// The most that all dumps there may take, in bytes; the oldest of the user that has most make room.
    pub(crate) quota_bytes: u64,
    /// Where the incidents are that tell whose dumps these are.
    pub(crate) incidents: PathBuf,
    /// The user of the VM's process.
    pub(crate) user: u32,
    /// How long it may take.
    pub(crate) limit: Duration,
    /// Where its progress is shown.
    pub(crate) under_way: UnderWay,
}

/// A dump that was taken.
#[derive(Clone, Debug)]
pub(crate) struct Dump {
    path: PathBuf,
    format: &'static str,
    bytes: u64,
    took: Duration,
}

impl fmt::Display for Dump {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, format, bytes, took } = self;
        write!(f, "{}: the guest's memory ({format}), {bytes} bytes, {took:.1?}", path.display())
    }
}

/// How far a dump is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// When it was begun.
    pub(crate) since: SystemTime,
    /// Bytes of the guest's memory that QEMU is done with.
    pub(crate) completed_bytes: u64,
    /// Of so many; `None` while QEMU doesn't tell.
    pub(crate) total_bytes: Option<u64>,
    /// Bytes of the file, which may be compressed.
    pub(crate) written_bytes: u64,
}

/// Takes the dump for the incident `incident`, for as long as [`Wanted::limit`] at most and some seconds in which QEMU
/// puts an end to one that was not done by then. Where this fails, no file is left.
///
/// # Errors
/// Why there is no dump.
pub(crate) async fn take(
    qmp: &QmpHandle,
    vm: VmId,
    incident: &str,
    wanted: &Wanted,
) -> Result<Dump, String> {
    let begun = Instant::now();
    let late = || format!("not done within {:?}", wanted.limit);
    let turn = wanted.under_way.begin(wanted.user)?;
    let capability = ask(qmp, "query-dump-guest-memory-capability", None).await?;
    let (format, extension) = format_of(&capability).ok_or("QEMU offers no format for it")?;
    let (reader, writer) = std::io::pipe().map_err(|error| format!("no pipe: {error}"))?;
    let named = json!({ "fdname": PIPE_NAME });
    let handed = qmp.execute_with(writer.into(), "getfd", Some(named), ANSWER_LIMIT).await;
    handed.map_err(|error| error_chain(&error))?;

    let progress = turn.progress().clone();
    let job = write::Job {
        directory: wanted.directory.clone(),
        name: format!("{incident}.{extension}"),
        quota_bytes: wanted.quota_bytes,
        incidents: wanted.incidents.clone(),
        turn,
    };
    let mut writing = spawn_blocking(move || write::write(reader, &job));
    let asked = json!({ "paging": false, "protocol": format!("fd:{PIPE_NAME}"), "detach": true,
        "format": format });
    if let Err(why) = ask(qmp, "dump-guest-memory", Some(asked)).await {
        // It may still hold the other end.
        let _ = ask(qmp, "closefd", Some(json!({ "fdname": PIPE_NAME }))).await;
        progress.give_up.store(true, Relaxed);
        let _ = writing.await;
        return Err(why);
    }
    info!(incident, format, "the guest's memory is being dumped");
    let shown = Shown::new(wanted.under_way.clone(), vm);
    let mut said = Instant::now();
    // QEMU closes the pipe when it is done, whatever came of it.
    let written = loop {
        tokio::select! {
            written = &mut writing => break written,
            () = sleep(LOOK_EVERY) => {}
        }
        if begun.elapsed() >= wanted.limit {
            progress.give_up.store(true, Relaxed);
        }
        let (_, completed, total) = status(qmp).await;
        let written = progress.written.load(Relaxed);
        shown.update(completed, total, written);
        if said.elapsed() >= SAY_EVERY {
            said = Instant::now();
            info!(incident, completed, total, written, "the guest's memory is being dumped");
        }
    };
    let ended = end(qmp).await;
    resumed(qmp).await;
    let is_late = progress.give_up.load(Relaxed);
    let file = written
        .map_err(|error| error_chain(&error))?
        .map_err(|why| if is_late { late() } else { why })?;
    match ended.as_str() {
        "completed" => {}
        _ if is_late => return Err(late()),
        other => return Err(format!("QEMU says that it {other}")),
    }
    let (path, bytes) = file.keep()?;
    let dump = Dump { path, format, bytes, took: begun.elapsed() };
    info!(incident, "{dump}");
    Ok(dump)
}

async fn ask(qmp: &QmpHandle, command: &str, arguments: Option<Value>) -> Result<Value, String> {
    qmp.execute(command, arguments, ANSWER_LIMIT).await.map_err(|error| error_chain(&error))
}

/// The quickest format that QEMU offers.
fn format_of(capability: &Value) -> Option<(&'static str, &'static str)> {
    let offered = capability.get("formats")?.as_array()?;
    FORMATS.into_iter().find(|(format, _)| offered.iter().any(|one| one == format))
}

/// The dump's state in QEMU's word, and how many bytes of the guest's memory are done of how many.
async fn status(qmp: &QmpHandle) -> (String, u64, u64) {
    let answer = ask(qmp, "query-dump", None).await.unwrap_or_default();
    let number = |field: &str| answer.get(field).and_then(Value::as_u64).unwrap_or(0);
    let word = answer.get("status").and_then(Value::as_str).unwrap_or("does not tell");
    (printable(word, MAX_TEXT_CHARS), number("completed"), number("total"))
}

/// Waits until QEMU is done with it; its last word.
async fn end(qmp: &QmpHandle) -> String {
    let begun = Instant::now();
    loop {
        let (word, _, _) = status(qmp).await;
        if word != "active" || begun.elapsed() >= ENDS_WITHIN {
            return word;
        }
        sleep(LOOK_EVERY / 5).await;
    }
}

/// Waits until QEMU lets the guest go on: it closes the pipe a moment earlier.
async fn resumed(qmp: &QmpHandle) {
    let begun = Instant::now();
    while matches!(qmp.query_status().await, Ok(RunState::SaveVm)) && begun.elapsed() < ENDS_WITHIN
    {
        sleep(LOOK_EVERY / 25).await;
    }
}

/// The entry of a dump among those under way, for as long as this lives.
struct Shown {
    under_way: UnderWay,
    vm: VmId,
    since: SystemTime,
}

impl Shown {
    fn new(under_way: UnderWay, vm: VmId) -> Self {
        let shown = Self { under_way, vm, since: SystemTime::now() };
        shown.update(0, 0, 0);
        shown
    }

    fn update(&self, completed: u64, total: u64, written_bytes: u64) {
        let state = State {
            since: self.since,
            completed_bytes: completed,
            total_bytes: (total > 0).then_some(total),
            written_bytes,
        };
        self.under_way.states().insert(self.vm, state);
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.under_way.states().remove(&self.vm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_format_that_is_offered_is_asked_for() {
        let offered = |formats: &[&str]| format_of(&json!({ "formats": formats }));
        assert_eq!(offered(&["elf", "kdump-zlib", "kdump-lzo"]), Some(("kdump-lzo", "kdump")));
        assert_eq!(offered(&["elf", "win-dmp"]), Some(("elf", "elf")));
        assert_eq!(offered(&["win-dmp"]), None);
        assert_eq!(format_of(&json!({ "formats": 7 })), None);
        assert_eq!(format_of(&Value::Null), None);
    }

    #[test]
    fn a_dump_is_shown_for_as_long_as_it_is_taken() {
        let (under_way, vm) = (UnderWay::default(), VmId { pid: 7, start_ticks: 8 });
        let shown = Shown::new(under_way.clone(), vm);
        assert_eq!(under_way.of(vm).unwrap().total_bytes, None);
        shown.update(5, 10, 3);
        assert_eq!(under_way.of(vm).unwrap().total_bytes, Some(10));
        assert_eq!(under_way.of(VmId { pid: 9, ..vm }), None);
        drop(shown);
        assert_eq!(under_way.of(vm), None);
    }
}
