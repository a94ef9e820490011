//! The last words of a guest's kernel, where QEMU writes its serial console into a file.
//!
//! Only one line says for certain that a kernel is dead: `---[ end Kernel panic`, with which Linux ends its
//! panic. The one that begins it is followed by that only if no crash kernel was started and no reboot is due
//! (`panic` in Linux' kernel/panic.c): a guest that may be writing its dump, or will reboot in a moment, does
//! not say it. An oops or a `BUG:` alone is survived. What the BSDs print leads to a dump, a reboot or a
//! debugger's prompt, and Windows prints nothing there by itself: none of that counts.
//!
//! Words count if they are the last, and belong to this silence:
//!
//! - the file ends with them, but for what a dying kernel prints on: no prompt for a login follows, no other
//!   boot's banner or clock, and no more than `MOST_LINES_AFTER` lines;
//! - it was last written in this boot, and not before the guest's last sign of life that was seen (but for `SLACK`:
//!   requests of a dead guest still complete). So the words of a guest that went on don't count, and no hold since then
//!   makes them too old;
//! - they were not there yet when the witnesses were last asked while all was well, nor in a round of an earlier
//!   boot: a quiet kernel may add a line to the last boot's words, which makes the file new.
//!
//! The file's time is compared with the host's; a file server whose clock is slow makes words too old, which loses
//! a witness and nothing else.
//!
//! A user in the guest that may write to its console can write such words. That harms none but the guest: it
//! has to be silent as well for as long as any suspect, with a vCPU that spins all along, no witness may acquit it, and
//! what comes of it is its own restart. Such a user can stop the guest without that. The healthy guest that looks most
//! like it is a hypervisor with one vCPU, which shows its inner guest's console on its own, and that one panics: an
//! interrupt that it takes, its address or its agent acquit it.

mod file;

use std::{
    borrow::Cow,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::{Note, ProbeContext, Witness, of_suspects};
use file::{End, Tail};
use flatline_detector::verdict::{Answer, Questions};
use flatline_qemu::blocking::{UnderWay, within};
use flatline_qemu::discover::Vm;
use flatline_samples::printable;

/// The row in the table.
pub(super) const WITNESS: Witness = Witness {
    name: "console log",
    looks_for: "a kernel's last words",
    asked_in: |questions| of_suspects(questions) || questions == Questions::Calibrate,
    only_excuses: false,
    ask: |context, note| Box::pin(ask(context, note)),
};

/// More logs of one VM are not read: a machine has four serial ports.
const MOST_LOGS: usize = 4;
/// How long a round waits for the files.
const READ_WITHIN: Duration = Duration::from_millis(300);
/// A dead guest's requests may complete, and packets leave the host's queue, so long after its words. Not
/// measured: far more than a request takes where the host is well.
const SLACK: Duration = Duration::from_secs(2);
/// A dying kernel prints on what other CPUs have to say. Not measured: a trace has some 40 lines.
const MOST_LINES_AFTER: usize = 100;
/// A line is cut here.
const LINE_CHARS: usize = 160;
const LAST_WORDS: &str = "---[ end Kernel panic - not syncing";
/// What a boot begins with: a kernel that isn't told to be quiet, and firmware that writes to the console.
const BANNERS: [&str; 4] = ["Linux version ", "SeaBIOS (", "BdsDxe: ", "UEFI firmware "];

/// All that could be read, or why nothing could.
type Read = Result<Vec<Tail>, String>;

#[derive(Default)]
struct ConsoleMemory {
    under_way: UnderWay<Read>,
    /// Where what doesn't count ends.
    known: Vec<End>,
    /// Where the logs ended in the last round, and when that was.
    last: Option<(Instant, Vec<End>)>,
}

impl ConsoleMemory {
    /// What was there in a round of an earlier boot doesn't count.
    fn forget_earlier_boots(&mut self, now: Instant, boot_age: Duration) {
        if let Some((_, ends)) =
            self.last.take_if(|(at, _)| now.saturating_duration_since(*at) > boot_age)
        {
            self.known = ends;
        }
    }
}

async fn ask(context: &ProbeContext, note: &mut Note) -> Result<Answer, String> {
    if context.vm.console_logs.is_empty() {
        return Err("no file has its console".to_owned());
    }
    let mut memory: ConsoleMemory = note.take().unwrap_or_default();
    let answer = question(context, &mut memory).await;
    note.put(memory);
    answer
}

async fn question(context: &ProbeContext, memory: &mut ConsoleMemory) -> Result<Answer, String> {
    let ProbeContext { vm, questions, boot_age, silence, .. } = context;
    memory.forget_earlier_boots(Instant::now(), *boot_age);
    let since = counts_since(SystemTime::now(), *boot_age, *silence);
    let vm = vm.clone();
    let read = within(READ_WITHIN, &mut memory.under_way, move || read_all(&vm)).await;
    let tails = read.unwrap_or_else(|| Err("reading it takes too long".to_owned()))?;
    let since = since.ok_or("the host's clock makes no sense")?;
    let ends: Vec<End> = tails.iter().map(|tail| tail.end).collect();
    memory.last = Some((Instant::now(), ends.clone()));
    if *questions == Questions::Calibrate && *silence <= SLACK {
        // It lives now, whatever it said before.
        memory.known = ends;
    }
    Ok(judge(&tails, &memory.known, since))
}

/// A log that was last written before this holds no words of this silence.
fn counts_since(now: SystemTime, boot_age: Duration, silence: Duration) -> Option<SystemTime> {
    now.checked_sub(boot_age.min(silence.saturating_add(SLACK)))
}

fn judge(tails: &[Tail], known: &[End], since: SystemTime) -> Answer {
    let said = tails.iter().find_map(|tail| Some((last_words(&tail.text(known))?, tail.written)));
    match said {
        Some((words, written)) if written >= since => {
            Answer::LastWords(format!("its console says: {words}"))
        }
        Some(_) => Answer::Nothing("its console has last words of another time".to_owned()),
        None => Answer::Nothing("its console has no last words".to_owned()),
    }
}

impl Tail {
    /// What came after all that is known already.
    fn text(&self, known: &[End]) -> Cow<'_, str> {
        let new = known
            .iter()
            .find(|end| end.file == self.end.file)
            // A log that is shorter than it was began anew.
            .and_then(|end| self.end.length.checked_sub(end.length))
            .and_then(|bytes| usize::try_from(bytes).ok())
            .unwrap_or(usize::MAX);
        let from = self.bytes.len().saturating_sub(new);
        String::from_utf8_lossy(self.bytes.get(from..).unwrap_or_default())
    }
}

/// The words with which a kernel died at the end of `text`.
fn last_words(text: &str) -> Option<String> {
    let lines: Vec<ConsoleLine<'_>> = text.lines().map(ConsoleLine::parse).collect();
    let at = lines.iter().rposition(|line| line.text.starts_with(LAST_WORDS))?;
    let (words, after) = (&lines[at], &lines[at + 1..]);
    let goes_on = |line: &ConsoleLine<'_>| {
        line.text.contains("login:")
            || BANNERS.iter().any(|banner| line.text.starts_with(banner))
            // Another boot's clock begins anew.
            || matches!((words.clock, line.clock), (Some(then), Some(now)) if now < then)
    };
    let is_last = after.len() <= MOST_LINES_AFTER && !after.iter().any(goes_on);
    is_last.then(|| printable(words.text, LINE_CHARS))
}

/// A line of a console.
struct ConsoleLine<'a> {
    /// Microseconds since the kernel's start, if it is a kernel's line that has them.
    clock: Option<u64>,
    /// Without that, and without its caller.
    text: &'a str,
}

impl<'a> ConsoleLine<'a> {
    /// Takes `[   12.283862] ` off, and the `[    T1] ` that CONFIG_PRINTK_CALLER adds.
    fn parse(line: &'a str) -> Self {
        let line = line.trim();
        let stamped = |line: &'a str| {
            let (stamp, text) = line.strip_prefix('[')?.split_once(']')?;
            let (seconds, micros) = stamp.trim().split_once('.')?;
            let (seconds, micros): (u64, u64) = (seconds.parse().ok()?, micros.parse().ok()?);
            Some((seconds.checked_mul(1_000_000)?.checked_add(micros)?, text.trim_start()))
        };
        let Some((clock, text)) = stamped(line) else {
            return Self { clock: None, text: line };
        };
        let caller = text.strip_prefix('[').and_then(|text| text.split_once(']'));
        let text = match caller {
            Some((caller, text)) if caller.trim_start().starts_with(['T', 'C']) => {
                text.trim_start()
            }
            _ => text,
        };
        Self { clock: Some(clock), text }
    }
}

/// The ends of all logs, or why the first can't be read where none can. Blocks for as long as the file systems like.
fn read_all(vm: &Vm) -> Read {
    let mut failed = Ok(());
    let mut tails = Vec::new();
    for path in vm.console_logs.iter().take(MOST_LOGS) {
        match file::read(vm, path) {
            Ok(tail) => tails.push(tail),
            Err(why) => failed = failed.and(Err(why)),
        }
    }
    if tails.is_empty() { failed.map(|()| tails) } else { Ok(tails) }
}

/// The end of each log that can be read, as it stands there: to be cleared of what a guest may have put into it.
/// Blocks for as long as the file systems like.
///
/// # Errors
/// Where none can be read: why the first can't.
pub(crate) fn tails(vm: &Vm) -> Result<Vec<(PathBuf, String)>, String> {
    let text = |tail: Tail| (tail.path, String::from_utf8_lossy(&tail.bytes).into_owned());
    Ok(read_all(vm)?.into_iter().map(text).collect())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{FileType, Mode};

    use super::*;

    /// The end of a panic of Linux 6.1, as it came out of a serial port.
    const PANIC: &str = "[   12.200000] Kernel panic - not syncing: sysrq triggered crash\r\n\
         [   12.271233]  proc_reg_write+0x53/0xa0\r\n\
         [   12.283381] Kernel Offset: disabled\r\n\
         [   12.283862] ---[ end Kernel panic - not syncing: sysrq triggered crash ]---\r\n";

    #[test]
    fn a_panic_that_ended_is_found_with_and_without_a_clock_or_a_caller() {
        let words = "---[ end Kernel panic - not syncing: sysrq triggered crash ]---";
        assert_eq!(last_words(PANIC).as_deref(), Some(words));
        assert_eq!(last_words(words).as_deref(), Some(words));
        let caller = format!("[    1.0][    T1] x\n[    1.5][    T1] {words}\n");
        assert_eq!(last_words(&caller).as_deref(), Some(words));
        let warned = format!("{PANIC}[   12.290000] ------------[ cut here ]------------\r\n");
        assert!(last_words(&warned).is_some());
    }

    #[test]
    fn a_panic_that_may_lead_to_a_dump_or_a_reboot_is_not_the_end() {
        let begun = PANIC.lines().take(3).collect::<Vec<_>>().join("\n");
        assert_eq!(last_words(&begun), None);
        assert_eq!(last_words(&format!("{begun}\n[   12.3] Rebooting in 5 seconds..")), None);
        assert_eq!(last_words("[  1.0] BUG: unable to handle page fault\n[ 1.1] Oops: 0002"), None);
    }

    #[test]
    fn words_that_were_followed_by_life_are_not_the_last() {
        for after in [
            "[    0.000000] Linux version 6.1.0-37-amd64",
            "[    0.210000] pci 0000:00:01.0: quirk",
            "Debian GNU/Linux 12 web-1 ttyS0\n\nweb-1 login: ",
            "SeaBIOS (version 1.16.2-debian-1.16.2-1)",
        ] {
            assert_eq!(last_words(&format!("{PANIC}{after}")), None, "{after}");
        }
        assert_eq!(last_words(&format!("{PANIC}{}", "x\n".repeat(MOST_LINES_AFTER + 1))), None);
    }

    #[test]
    fn a_quotation_of_last_words_is_none() {
        assert_eq!(last_words("$ grep '---[ end Kernel panic - not syncing' log"), None);
        let journal = "Nov 24 23:50:01 web kernel: ---[ end Kernel panic - not syncing: x ]---";
        assert_eq!(last_words(journal), None);
    }

    #[test]
    fn hostile_text_is_taken_as_it_is() {
        for text in ["[", "[]", "[.]", "[99999999999999999999.9] x", "[ 18446744073709551615.0] x"]
        {
            assert_eq!(last_words(text), None, "{text}");
        }
        let long = format!("{LAST_WORDS}\u{1b}[2J{}", "x".repeat(100_000));
        let words = last_words(&long).unwrap();
        assert!(words.len() <= LINE_CHARS && !words.contains('\u{1b}'), "{words}");
    }

    #[test]
    fn words_of_another_boot_or_before_the_last_sign_of_life_do_not_count() {
        let now = SystemTime::now();
        let seconds = Duration::from_secs;
        let judged = |age, boot_age, silence| {
            let tails = [Tail { written: now - seconds(age), ..tail(PANIC) }];
            judge(&tails, &[], counts_since(now, seconds(boot_age), seconds(silence)).unwrap())
        };
        assert!(matches!(judged(10, 1000, 10), Answer::LastWords(_)));
        assert!(matches!(judged(11, 1000, 10), Answer::LastWords(_)), "a request completed late");
        assert!(matches!(judged(30, 1000, 10), Answer::Nothing(_)), "it lived on");
        assert!(matches!(judged(10, 9, 10), Answer::Nothing(_)), "it has booted since");
    }

    fn tail(text: &str) -> Tail {
        let end = End { file: (1, 2), length: 1_000_000 };
        let (path, written) = (PathBuf::from("log"), SystemTime::now());
        Tail { path, end, bytes: text.as_bytes().to_owned(), written }
    }

    #[test]
    fn words_that_were_there_when_the_guest_lived_do_not_count_but_new_ones_do() {
        let halted = format!("{PANIC}[   19.000000] reboot: System halted\n");
        let (old, since) = (tail(&halted), SystemTime::UNIX_EPOCH);
        let judged = |known: End| judge(&[tail(&halted)], &[known], since);
        assert!(matches!(judge(&[old], &[], since), Answer::LastWords(_)));
        let added = u64::try_from(halted.len() - PANIC.len()).unwrap();
        let known = End { file: (1, 2), length: 1_000_000 - added };
        assert!(matches!(judged(known), Answer::Nothing(_)));
        assert!(matches!(judged(End { length: 1_000_000, ..known }), Answer::Nothing(_)));
        assert!(matches!(judged(End { length: 2_000_000, ..known }), Answer::LastWords(_)));
        assert!(matches!(judged(End { length: 7, ..known }), Answer::LastWords(_)));
        assert!(matches!(judged(End { file: (1, 3), ..known }), Answer::LastWords(_)));
    }

    #[test]
    fn only_a_round_of_an_earlier_boot_ends_what_is_known() {
        let ends = vec![End { file: (1, 2), length: 9 }];
        let at = Instant::now();
        let mut record =
            ConsoleMemory { last: Some((at, ends.clone())), ..ConsoleMemory::default() };
        let now = at + Duration::from_secs(10);
        record.forget_earlier_boots(now, Duration::from_secs(30));
        assert_eq!(record.known, []);
        record.forget_earlier_boots(now, Duration::from_secs(5));
        assert_eq!(record.known, ends);
    }

    #[test]
    fn only_the_end_of_a_long_log_is_read_and_a_pipe_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let (log, fifo) = (dir.path().join("log"), dir.path().join("fifo"));
        let mut written = std::fs::File::create(&log).unwrap();
        let text = format!("{}\n{PANIC}", "y".repeat(200_000));
        std::io::Write::write_all(&mut written, text.as_bytes()).unwrap();
        let read = |paths: &[&PathBuf]| {
            let console_logs = paths.iter().map(|path| (*path).clone()).collect();
            read_all(&Vm { console_logs, ..file::tests::own() })
        };
        let tails = read(&[&log]).unwrap();
        assert_eq!(tails[0].text(&[]), PANIC);
        assert_eq!(tails[0].end.length, std::fs::metadata(&log).unwrap().len());
        let (mode, kind) = (Mode::RUSR | Mode::WUSR, FileType::Fifo);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, kind, mode, 0).unwrap();
        let _pipe = std::fs::File::options().read(true).write(true).open(&fifo).unwrap();
        assert!(read(&[&fifo]).unwrap_err().contains("not a regular file"));
        assert_eq!(read(&[&fifo, &log]).unwrap().len(), 1);
        assert!(read(&[&dir.path().join("none")]).is_err());
    }
}
