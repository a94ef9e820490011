//! The last words of a guest's kernel, where QEMU writes its serial console into a file.
//!
//! Only one line says for certain that a kernel is dead: `---[ end Kernel panic`, with which Linux ends its
//! panic. The one that begins it is followed by that only if no crash kernel was started and no reboot is due
//! (`panic` in Linux' kernel/panic.c): a guest that may be writing its dump, or will reboot in a moment, does
//! not say it. A silent guest that said how its panic begins, and of no end of it, has most likely jumped into its crash
//! kernel, which may say and write nothing for long: that is no proof, but it is given the time. An oops or a `BUG:` alone is survived. What the BSDs print leads to a dump, a reboot or a
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
mod words;

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
use words::{begun_panic, last_words};

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
/// From when a panic without an end is first found, the guest is taken to be in its crash kernel for so long: less than the
/// verdict leaves it to that, so that it isn't found again afterwards.
const CRASH_KERNEL_WITHIN: Duration = Duration::from_secs(30);

/// All that could be read, or why nothing could.
type Read = Result<Vec<Tail>, String>;

#[derive(Default)]
struct ConsoleMemory {
    under_way: UnderWay<Read>,
    /// Where what doesn't count ends.
    known: Vec<End>,
    /// Where the logs ended in the last round, and when that was.
    last: Option<(Instant, Vec<End>)>,
    /// When a panic was first found that was begun and not ended.
    begun_panic: Option<Instant>,
}

impl ConsoleMemory {
    /// What was there in a round of an earlier boot doesn't count.
    fn forget_earlier_boots(&mut self, now: Instant, boot_age: Duration) {
        if let Some((_, ends)) =
            self.last.take_if(|(at, _)| now.saturating_duration_since(*at) > boot_age)
        {
            (self.known, self.begun_panic) = (ends, None);
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
    let answer = judge(&tails, &memory.known, since);
    Ok(of_a_crash_kernel(answer, &mut memory.begun_panic, Instant::now()))
}

/// The answer; without the benefit of a crash kernel if that would have shown itself since the panic was found.
fn of_a_crash_kernel(answer: Answer, begun: &mut Option<Instant>, now: Instant) -> Answer {
    let Answer::OwnDump(_) = answer else {
        *begun = None;
        return answer;
    };
    let since = *begun.get_or_insert(now);
    if now.saturating_duration_since(since) <= CRASH_KERNEL_WITHIN {
        return answer;
    }
    Answer::Nothing(
        "its console tells of a panic that has no end, and nothing came of it".to_owned(),
    )
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
        None => {
            let of_now = tails.iter().filter(|tail| tail.written >= since);
            match of_now.filter_map(|tail| begun_panic(&tail.text(known))).next() {
                Some(words) => Answer::OwnDump(format!("its console tells of no end of: {words}")),
                None => Answer::Nothing("its console has no last words".to_owned()),
            }
        }
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

    use super::{words::tests::PANIC, *};

    #[test]
    fn a_panic_without_an_end_speaks_for_its_crash_kernel_for_so_long_and_if_it_is_of_this_silence()
    {
        let begun = PANIC.lines().take(3).collect::<Vec<_>>().join("\n");
        let (tails, begin, mut first) = ([tail(&begun)], Instant::now(), None);
        let mut said = |tails: &[Tail], seconds| {
            let answer = judge(tails, &[], SystemTime::UNIX_EPOCH);
            let now = begin + Duration::from_secs(seconds);
            matches!(of_a_crash_kernel(answer, &mut first, now), Answer::OwnDump(_))
        };
        assert_eq!((said(&tails, 0), said(&tails, 30), said(&tails, 31)), (true, true, false));
        assert_eq!((said(&[tail("x")], 40), said(&tails, 41)), (false, true));
        let lived = judge(&tails, &[], SystemTime::now() + Duration::from_secs(9));
        assert!(matches!(lived, Answer::Nothing(_)), "{lived:?}");
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
