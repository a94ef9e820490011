//! Evidence that is kept of a crashed guest before it is restarted: what its console showed, its registers, what QEMU says of
//! its disks and networks, its console's last lines, flatline's own figures, and its memory where that is wanted.
//!
//! The restart waits for it, so that all of it is bounded: in time ([`Wanted::limit`] together, half of that each), in
//! size, and in what it may do to QEMU (nothing but for the memory dump, which stops the guest). Questions that QEMU
//! answers from its main loop stand in one row, the others beside it: a healthy QEMU is through in some 10 ms, and
//! nothing here waits for a clock. What fails or is late is left out, and `evidence.txt` says which and why:
//! missing is not empty. Nothing here ever keeps a guest from being restarted.
//!
//! Files are made of it ([`Evidence::into_files`]) when the reset is under way already.

mod answers;
pub(crate) mod dump;
mod picture;
mod ppm;

use std::{
    fmt::Write as _,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::warn;

use super::{Files, Kept};
use crate::{insight::Insight, probes::console, storage::evidence::LIST};
use flatline_qemu::{
    discover::Vm,
    qmp::{QmpHandle, operating_system},
    text::error_chain,
};
use flatline_samples::RunState;

/// QEMU gets so long to answer before its monitor counts as unresponsive, which is longer than anything here waits.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// The registers are looked at even where no evidence is wanted, for this long: they tell whether the guest was up.
const REGISTERS_LIMIT: Duration = Duration::from_millis(500);
/// A file of text is cut here: registers of some hundred vCPUs fit.
const TEXT_MAX_BYTES: usize = 1 << 20;

/// What is wanted of a guest.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The VM.
    pub(crate) vm: Arc<Vm>,
    /// The incident that it is for.
    pub(crate) incident: String,
    /// The time for all of it but the memory dump; zero: nothing is wanted.
    pub(crate) limit: Duration,
    /// The guest said itself that it panicked, and may have said more.
    pub(crate) announced: bool,
    /// flatline's own figures of it, as they were last read.
    pub(crate) figures: String,
    /// Its memory.
    pub(crate) memory: Option<dump::Wanted>,
    /// What there is to be read of it.
    pub(crate) insight: Insight,
    /// Before it is reset, it is sent an NMI, and has so long to begin a dump of its own; zero: it is not.
    pub(crate) own_dump: Duration,
    /// Whether QEMU is asked for anything: not where it fell silent over that once, before it could be told to reset this
    /// guest.
    pub(crate) asks: bool,
}

impl Wanted {
    /// Nothing: there is no guest left to look at.
    pub(crate) fn nothing(vm: Arc<Vm>, incident: String) -> Self {
        let (limit, figures) = (Duration::ZERO, String::new());
        let (insight, own_dump) = (Insight::begin(&vm), Duration::ZERO);
        let (announced, memory, asks) = (false, None, true);
        Self { vm, incident, limit, announced, figures, memory, insight, own_dump, asks }
    }
}

/// What was found, or why it wasn't.
type Found = Result<Content, String>;

#[derive(Debug)]
enum Content {
    Text(String),
    Picture(picture::Raw),
}

/// One file of the evidence.
#[derive(Debug)]
struct Piece {
    file: &'static str,
    /// What it is, for people.
    what: &'static str,
    took: Duration,
    found: Found,
    /// What else there is to say of it.
    remark: Option<String>,
}

/// What was gathered of one guest.
#[derive(Debug, Default)]
pub(crate) struct Evidence {
    incident: String,
    limit: Duration,
    /// All of it together.
    took: Duration,
    pieces: Vec<Piece>,
    /// What became of the memory dump, where one was wanted.
    memory: Option<Result<dump::Dump, String>>,
    /// The registers as QEMU wrote them.
    registers: Option<String>,
}

/// Gathers all that is wanted but the memory.
pub(crate) async fn gather(qmp: &QmpHandle, run_state: &RunState, wanted: &Wanted) -> Evidence {
    let begun = Instant::now();
    let each = wanted.limit / 2;
    if !wanted.asks {
        return Evidence { incident: wanted.incident.clone(), ..Evidence::default() };
    }
    let registers =
        piece("registers.txt", "the vCPUs' registers", each.max(REGISTERS_LIMIT), async {
            wanted.insight.encryption(qmp).await.registers()?;
            let text = qmp.human("info registers -a").await.map_err(|error| error_chain(&error))?;
            Ok(Content::Text(text.replace('\r', "")))
        });
    let mut evidence =
        Evidence { incident: wanted.incident.clone(), limit: wanted.limit, ..Evidence::default() };
    if wanted.limit.is_zero() {
        let registers = registers.await;
        evidence.registers = registers.text().map(ToOwned::to_owned);
        return evidence;
    }
    let known = |file, what, text| {
        let (took, found) = (Duration::ZERO, Ok(Content::Text(text)));
        Piece { file, what, took, found, remark: None }
    };
    let said = known("run-state.txt", "QEMU's run state", format!("{run_state}\n"));
    let figures = known("figures.json", "what flatline knew of it", wanted.figures.clone());
    let screen = piece("screen.png", "what the console showed", each, async {
        picture::take(qmp).await.map(Content::Picture)
    });
    let vm = wanted.vm.clone();
    let console = piece("console.txt", "the last lines of the serial console", each, async {
        console_text(vm).await.map(Content::Text)
    });
    let answers = answers::ask(qmp, wanted.announced, each, begun + wanted.limit);
    let (registers, answers, screen, console) = tokio::join!(registers, answers, screen, console);
    evidence.registers = registers.text().map(ToOwned::to_owned);
    evidence.pieces = vec![said, screen, console, registers, figures];
    evidence.pieces.extend(answers);
    evidence.took = begun.elapsed();
    evidence
}

/// Dumps the guest's memory, where that is wanted, and notes in `evidence` what came of it. Whether QEMU was told
/// to, after which its run state is to be asked for again.
pub(crate) async fn dump_memory(qmp: &QmpHandle, wanted: &Wanted, evidence: &mut Evidence) -> bool {
    let Some(memory) = wanted.memory.as_ref().filter(|_| wanted.asks) else { return false };
    if let Err(why) = wanted.insight.encryption(qmp).await.memory() {
        evidence.memory = Some(Err(why));
        return false;
    }
    let dump = dump::take(qmp, wanted.vm.id, &wanted.incident, memory).await;
    if let Err(why) = &dump {
        warn!(incident = wanted.incident, "no memory dump: {}", fit_for_people(why).0);
    }
    evidence.memory = Some(dump);
    true
}

/// Looks for one piece, for no longer than `limit`.
async fn piece(
    file: &'static str,
    what: &'static str,
    limit: Duration,
    look: impl Future<Output = Found>,
) -> Piece {
    let begun = Instant::now();
    let found = timeout(limit, look).await;
    let found = found.unwrap_or_else(|_| Err(format!("not there within {limit:?}")));
    Piece { file, what, took: begun.elapsed(), found, remark: None }
}

/// The end of the files that have the guest's serial consoles.
async fn console_text(vm: Arc<Vm>) -> Result<String, String> {
    if vm.console_logs.is_empty() {
        return Err("QEMU writes no serial console to a file".to_owned());
    }
    // On a thread of its own, which a file system that hangs keeps for as long as it likes.
    let tails = spawn_blocking(move || console::tails(&vm)).await;
    let tails = tails.map_err(|error| error_chain(&error))??;
    let several = tails.len() > 1;
    let tail = |(path, text): &(PathBuf, String)| {
        let title = if several { format!("==> {} <==\n", path.display()) } else { String::new() };
        title + text
    };
    Ok(tails.iter().map(tail).collect::<Vec<_>>().join("\n"))
}

impl Piece {
    fn text(&self) -> Option<&str> {
        match &self.found {
            Ok(Content::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The file's content, and a remark on it for people.
    fn into_content(self) -> Result<(Vec<u8>, String), String> {
        match self.found? {
            Content::Text(text) => {
                let (text, cut) = fit_for_people(&text);
                Ok((text.into_bytes(), if cut { ", cut".to_owned() } else { String::new() }))
            }
            Content::Picture(raw) => {
                let (png, (width, height)) = raw.to_png()?;
                Ok((png, format!(", {width}x{height}")))
            }
        }
    }
}

impl Evidence {
    /// Whether the guest had come further than its firmware, by its registers; `None` if they don't tell.
    fn was_up(&self) -> Option<bool> {
        operating_system(self.registers.as_deref()?).ok().map(|(is_up, _)| is_up)
    }

    /// Makes the files, on a thread that begins at once, and whether or not the future is waited for.
    pub(super) fn keep(self) -> impl Future<Output = Kept> {
        let was_up = self.was_up();
        let files = spawn_blocking(|| self.into_files());
        async move { Kept { files: files.await.unwrap_or_default(), was_up } }
    }

    /// The files for the incident's directory, the list of them first. Computes for as long as it takes to
    /// compress a picture.
    fn into_files(self) -> Files {
        let Self { incident, limit, took, pieces, memory, registers: _ } = self;
        if pieces.is_empty() && memory.is_none() {
            return Vec::new();
        }
        let mut files = Vec::new();
        // Writing to a string cannot fail, here and below.
        let mut list = format!("Evidence of {incident}, from before the restart.\n");
        if !pieces.is_empty() {
            let _ = writeln!(list, "It took {took:.1?}, and might have taken {limit:?}.");
        }
        list.push('\n');
        for piece in pieces {
            let Piece { file, what, took, .. } = piece;
            let said =
                piece.remark.as_ref().map(|remark| fit_for_people(&format!(" ({remark})")).0);
            match piece.into_content() {
                Ok((content, remark)) => {
                    let (bytes, remark) = (content.len(), said.unwrap_or_default() + &remark);
                    let _ = writeln!(
                        list,
                        "kept     {file:<16} {what}{remark}: {bytes} bytes, {took:.1?}"
                    );
                    files.push((file, content));
                }
                Err(why) => {
                    let _ =
                        writeln!(list, "missing  {file:<16} {what}: {}", fit_for_people(&why).0);
                }
            }
        }
        match memory {
            None => {}
            Some(Ok(dump)) => {
                let _ = writeln!(list, "kept     {dump}");
            }
            Some(Err(why)) => {
                let what = "the guest's memory";
                let _ = writeln!(list, "missing  {:<16} {what}: {}", "-", fit_for_people(&why).0);
            }
        }
        files.insert(0, (LIST, list.into_bytes()));
        files
    }
}

/// Text of a guest's or a QEMU's without what could move a terminal's cursor, and whether it was cut.
fn fit_for_people(text: &str) -> (String, bool) {
    let fit = |c: char| match c {
        '\n' | '\t' | ' ' => Some(c),
        '\r' => None,
        c if c.is_ascii_graphic() => Some(c),
        _ => Some('?'),
    };
    let mut out: String = text.chars().filter_map(fit).take(TEXT_MAX_BYTES).collect();
    let cut = out.len() >= TEXT_MAX_BYTES;
    if !out.ends_with('\n') && text.ends_with('\n') {
        out.push('\n');
    }
    (out, cut)
}

/// What fuzzers throw at what a QEMU writes: see [`crate::fuzzing`].
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) {
    ppm::fuzz(bytes);
}

/// A JSON value that a QEMU answered with, for people; no more of it than a file may have: indented, a deep one takes a
/// multiple of its room.
fn pretty(value: &serde_json::Value) -> String {
    // A little more than a file may have, so that it is seen to be cut.
    let mut text = Bounded::new(TEXT_MAX_BYTES + 1);
    // What was JSON can be written as such, and what ends it early is its length.
    let _ = serde_json::to_writer_pretty(&mut text, value);
    String::from_utf8_lossy(&text.bytes).into_owned() + "\n"
}

/// Takes the start of what is written, as far as it has room.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl Bounded {
    fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most }
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let fits = bytes.len().min(self.most - self.bytes.len());
        if fits == 0 && !bytes.is_empty() {
            return Err(io::Error::other(format!("it is larger than {} bytes", self.most)));
        }
        self.bytes.extend_from_slice(&bytes[..fits]);
        Ok(fits)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests;
