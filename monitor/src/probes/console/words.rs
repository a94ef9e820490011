//! Words of a kernel's on its console: its last ones, or the beginning of a panic that has no end there.

use flatline_samples::printable;

/// A dying kernel prints on what other CPUs have to say. Not measured: a trace has some 40 lines.
const MOST_LINES_AFTER: usize = 100;
/// A line is cut here.
const LINE_CHARS: usize = 160;
const LAST_WORDS: &str = "---[ end Kernel panic - not syncing";
/// How a panic begins, ..
const PANICS: &str = "Kernel panic - not syncing";
/// .. and what it says where it ends in a reboot.
const REBOOTS: &str = "Rebooting in ";
/// What a boot begins with: a kernel that isn't told to be quiet, ..
const KERNEL: &str = "Linux version ";
/// .. and firmware that writes to the console.
const FIRMWARE: [&str; 3] = ["SeaBIOS (", "BdsDxe: ", "UEFI firmware "];

/// The words with which a kernel died at the end of `text`.
pub(super) fn last_words(text: &str) -> Option<String> {
    let lines: Vec<ConsoleLine<'_>> = text.lines().map(ConsoleLine::parse).collect();
    let at = lines.iter().rposition(|line| line.text.starts_with(LAST_WORDS))?;
    let (words, after) = (&lines[at], &lines[at + 1..]);
    let goes_on = |line: &ConsoleLine<'_>| {
        line.text.contains("login:")
            || line.text.starts_with(KERNEL)
            || begins_with_firmware(line)
            // Another boot's clock begins anew.
            || matches!((words.clock, line.clock), (Some(then), Some(now)) if now < then)
    };
    let is_last = after.len() <= MOST_LINES_AFTER && !after.iter().any(goes_on);
    is_last.then(|| printable(words.text, LINE_CHARS))
}

/// The words with which a kernel began to panic, if its console tells of no end of that: then it boots its crash kernel, which
/// may say anything. A firmware's banner, a prompt for a login and a reboot that is due are ends.
pub(super) fn begun_panic(text: &str) -> Option<String> {
    let lines: Vec<ConsoleLine<'_>> = text.lines().map(ConsoleLine::parse).collect();
    let at = lines.iter().rposition(|line| line.text.starts_with(PANICS))?;
    let ends = |line: &ConsoleLine<'_>| {
        line.text.starts_with(LAST_WORDS)
            || line.text.starts_with(REBOOTS)
            || line.text.contains("login:")
            || begins_with_firmware(line)
    };
    let is_open = !lines[at + 1..].iter().any(ends);
    is_open.then(|| printable(lines[at].text, LINE_CHARS))
}

fn begins_with_firmware(line: &ConsoleLine<'_>) -> bool {
    FIRMWARE.iter().any(|banner| line.text.starts_with(banner))
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The end of a panic of Linux 6.1, as it came out of a serial port.
    pub(in super::super) const PANIC: &str = "[   12.200000] Kernel panic - not syncing: sysrq triggered crash\r\n\
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
    fn a_panic_without_an_end_is_told_whatever_its_crash_kernel_says() {
        let begun = PANIC.lines().take(3).collect::<Vec<_>>().join("\n");
        let words = "Kernel panic - not syncing: sysrq triggered crash";
        let boots = format!("{begun}\n[    0.000000] Linux version 6.1.0-37-amd64\n[    9.9] x");
        for text in [&begun, &boots] {
            assert_eq!(begun_panic(text).as_deref(), Some(words), "{text}");
        }
        let panics_too = format!("{boots}\n{PANIC}");
        for ended in [PANIC, &panics_too, "x"] {
            assert_eq!(begun_panic(ended), None, "{ended}");
        }
        for after in
            ["[   12.3] Rebooting in 5 seconds..", "SeaBIOS (version 1.16)", "web-1 login: "]
        {
            assert_eq!(begun_panic(&format!("{begun}\n{after}")), None, "{after}");
        }
    }
}
