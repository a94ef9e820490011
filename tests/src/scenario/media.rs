//! Healthy guests that are no operating system: a memory test, boot loaders that wait for a key, firmware with nothing
//! to boot, an installer that asks its first question. None can be asked anything.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Error, Result};
use serde_json::json;

use super::stage::BOOT_LIMIT;
use super::{Expected, Place, Programs, Scenario, Stage};
use crate::guest::{Guest, GuestConfig};
use crate::interrupt;
use crate::media::{self, Medium};

/// The installer unpacks itself and starts a hundred programs before it asks: 20 s of a CPU that is its own.
const INSTALLER_LIMIT: Duration = Duration::from_secs(240);
/// What cannot be asked may stay suspected.
const UNASKED: Expected = Expected::LeftAlone { states: &["alive", "suspect"] };

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "guest-hypervisor",
        what: "Linux runs a guest of its own that spins with interrupts off: its registers are mostly that one's",
        guests: |place| Ok(vec![place.hypervisor("guest")?]),
        boots: true,
        pins: 1,
        fault: |stage| {
            stage.guest().send("hypervisor")?;
            stage.guest().wait_for("hypervisor: its guest spins", BOOT_LIMIT)?;
            Ok(SystemTime::now())
        },
        expected: UNASKED,
    },
    Scenario {
        name: "memtest86",
        what: "Memtest86+ tests the memory, with interrupts off and the timer pending: it moves on, and polls",
        guests: |place| {
            let mut config = screen(place, 128);
            boots(&mut config, media::MEMTEST, "")?;
            Ok(vec![config])
        },
        boots: false,
        pins: 1,
        fault: |stage| shows(stage, "Errors: 0"),
        expected: UNASKED,
    },
    Scenario {
        name: "grub-prompt",
        what: "GRUB waits at its prompt",
        guests: |place| {
            let mut config = screen(place, 64);
            let image = needed(media::GRUB)?;
            config.extra_args.extend(["-drive".to_owned()]);
            config.extra_args.push(format!("file={image},format=raw,if=floppy,readonly=on"));
            Ok(vec![config])
        },
        boots: false,
        pins: 1,
        fault: |stage| {
            shows(stage, "GNU/Linux")?;
            press(stage.guest(), &["c"])?;
            shows(stage, "grub> ")
        },
        expected: UNASKED,
    },
    Scenario {
        name: "ovmf-shell",
        what: "OVMF finds nothing to boot, and waits at its shell's prompt",
        guests: |place| {
            let mut config = screen(place, 128);
            let variables = place.dir().join("variables.fd");
            std::fs::copy(needed(media::OVMF_VARIABLES)?, &variables)?;
            let code = needed(media::OVMF_CODE)?;
            let flash = "if=pflash,format=raw";
            config.extra_args.extend([
                "-drive".to_owned(),
                format!("{flash},unit=0,readonly=on,file={code}"),
                "-drive".to_owned(),
                format!("{flash},unit=1,file={}", utf8(&variables)?),
            ]);
            Ok(vec![config])
        },
        boots: false,
        pins: 1,
        fault: |stage| {
            stage.guest().wait_for("Shell> ", BOOT_LIMIT)?;
            Ok(SystemTime::now())
        },
        expected: UNASKED,
    },
    Scenario {
        name: "ipxe-shell",
        what: "iPXE waits at its shell's prompt",
        guests: |place| {
            let mut config = screen(place, 64);
            boots(&mut config, media::IPXE, "shell")?;
            Ok(vec![config])
        },
        boots: false,
        pins: 0,
        fault: |stage| shows(stage, "iPXE> "),
        expected: UNASKED,
    },
    Scenario {
        name: "debian-installer",
        what: "Debian's installer asks for a language, and waits for a key",
        guests: |place| {
            // With less, it asks whether that is enough.
            let mut config = screen(place, 1024);
            boots(&mut config, media::INSTALLER_KERNEL, "console=ttyS0 quiet")?;
            config.extra_args.extend(["-initrd".to_owned(), needed(media::INSTALLER_INITRAMFS)?]);
            Ok(vec![config])
        },
        boots: false,
        pins: 1,
        fault: |stage| {
            stage.guest().wait_for("Select a language", INSTALLER_LIMIT)?;
            Ok(SystemTime::now())
        },
        expected: UNASKED,
    },
];

/// Why such a scenario can't be played here, if so; of all others nothing is known.
pub fn lacks(scenario: &Scenario, programs: &Programs) -> Option<String> {
    if scenario.name == "guest-hypervisor" {
        return programs.images.with_hypervisor().err();
    }
    needs(scenario).iter().find_map(|medium| medium.needed().err())
}

/// What such a scenario boots, which `cargo xtask` fetches.
pub fn needs(scenario: &Scenario) -> &'static [Medium] {
    match scenario.name {
        "memtest86" => &[media::MEMTEST],
        "grub-prompt" => &[media::GRUB],
        "ovmf-shell" => &[media::OVMF_CODE, media::OVMF_VARIABLES],
        "ipxe-shell" => &[media::IPXE],
        "debian-installer" => &[media::INSTALLER_KERNEL, media::INSTALLER_INITRAMFS],
        _ => &[],
    }
}

/// A machine with a display, and this much memory in MiB.
fn screen(place: &Place, memory_mib: u32) -> GuestConfig {
    let mut config = place.nothing("guest");
    (config.vga, config.memory_mib) = (true, memory_mib);
    config
}

fn boots(config: &mut GuestConfig, kernel: Medium, words: &str) -> Result<()> {
    config.extra_args.extend(["-kernel".to_owned(), needed(kernel)?]);
    config.extra_args.extend(["-append", words].map(str::to_owned));
    Ok(())
}

fn needed(medium: Medium) -> Result<String> {
    utf8(&medium.needed().map_err(Error::msg)?).map(str::to_owned)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("a path is UTF-8")
}

/// Waits until the display, in text mode, has these words in a line.
fn shows(stage: &Stage, words: &str) -> Result<SystemTime> {
    let mut last = String::new();
    let shown = interrupt::wait_until("words on the display", BOOT_LIMIT, || {
        last = stage.guest().text_on_display()?;
        Ok(last.contains(words).then(SystemTime::now))
    });
    shown.with_context(|| format!("no {words:?} in {last}"))
}

/// Presses keys, one after the other, by QEMU's names of them.
fn press(guest: &Guest, keys: &[&str]) -> Result<()> {
    for key in keys {
        let keys = json!({ "keys": [{ "type": "qcode", "data": key }] });
        guest.qmp("send-key", &keys)?;
        interrupt::sleep(Duration::from_millis(300))?;
    }
    Ok(())
}
