//! A vCPU's local APIC, as `info lapic N` prints it: `x86_cpu_dump_local_apic_state` in target/i386/cpu-dump.c (before 7.0
//! helper.c) of QEMU 5.0 to 10.0. Under KVM's own irqchip QEMU asks the kernel for it first, so that what waits in a
//! posted-interrupt descriptor is in it.

use std::{fmt, time::Duration};

use super::RegistersError;

/// How a local APIC's timer works (SDM volume 3, 10.5.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimerMode {
    /// Counts down to zero once.
    OneShot,
    /// Counts down to zero again and again.
    Periodic,
    /// Fires when the time stamp counter reaches a value; has no count.
    TscDeadline,
}

/// A set of interrupt vectors.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Vectors([u64; 4]);

impl Vectors {
    /// Those of both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & other.0[word]))
    }

    /// Those that `other` lacks.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(std::array::from_fn(|word| self.0[word] & !other.0[word]))
    }

    /// Whether `vector` is one.
    #[must_use]
    pub fn contains(self, vector: u8) -> bool {
        self.0[usize::from(vector / 64)] & 1 << (vector % 64) != 0
    }

    /// The lowest of them.
    #[must_use]
    pub fn first(self) -> Option<u8> {
        (0..=u8::MAX).find(|vector| self.contains(*vector))
    }

    fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }
}

impl FromIterator<u8> for Vectors {
    fn from_iter<T: IntoIterator<Item = u8>>(vectors: T) -> Self {
        let mut all = Self::default();
        vectors.into_iter().for_each(|vector| all.insert(vector));
        all
    }
}

impl fmt::Display for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = (0..=u8::MAX).filter(|vector| self.contains(*vector));
        for (n, vector) in all.enumerate() {
            write!(f, "{}{vector}", if n == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What a vCPU's local APIC lets through, and what waits in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lapic {
    /// Spurious interrupt vector, bit 8. Disabled, it takes no interrupts but NMI, INIT, start-up.
    pub software_enabled: bool,
    /// Whether its timer cannot interrupt.
    pub timer_masked: bool,
    /// With which vector it does.
    pub timer_vector: u8,
    /// How its timer works.
    pub timer_mode: TimerMode,
    /// What the timer counts down from; 0: it is not running.
    pub timer_initial_count: u64,
    /// What it divides the bus' clock by; `None`: not told.
    pub timer_divider: Option<u64>,
    /// What is left of the count. `None`: old QEMUs (4.0) don't print it, or the timer has none
    /// (TSC deadline). Under KVM's own irqchip QEMU computes it anew at each look, so that it stays
    /// at the initial count: there a count that stands still says nothing.
    pub timer_count: Option<u64>,
    /// Whether LINT0 passes on the legacy interrupt controller's interrupts: unmasked, delivery mode
    /// `ExtINT`. Firmware leaves the first vCPU so, and a guest on the PIT stays so.
    pub lint0_accepts_external: bool,
    /// Interrupts that were raised and not taken yet (IRR), whatever their priority. One leaves this set only when
    /// the vCPU takes it, or is reset.
    pub requested: Vectors,
    /// Interrupts that the vCPU took, and whose handling it has not ended (ISR).
    pub in_service: Vectors,
    /// The class of the least interrupts that the guest keeps away by priority (TPR, bits 4 to 7).
    pub priority_class: u8,
}

impl Lapic {
    /// How often its timer interrupts, where that is periodic and runs. Its bus has 1 GHz, in QEMU and in KVM.
    #[must_use]
    pub fn timer_period(&self) -> Option<Duration> {
        let runs = self.timer_mode == TimerMode::Periodic && !self.timer_masked;
        let ns = self.timer_initial_count.checked_mul(self.timer_divider?)?;
        (runs && self.software_enabled && ns > 0).then(|| Duration::from_nanos(ns))
    }

    /// The raised interrupts that it would hand to the vCPU as soon as that takes any: those that the guest has itself
    /// let in.
    #[must_use]
    pub fn pending(&self) -> Vectors {
        let let_in = |vector: &u8| vector >> 4 > self.priority_class;
        let all = (0..=u8::MAX).filter(|vector| self.requested.contains(*vector));
        if self.software_enabled { all.filter(let_in).collect() } else { Vectors::default() }
    }
}

// Bits of the local vector table and of the spurious vector register (SDM volume 3, 10.5.1, 10.9).
const LVT_MASKED: u32 = 1 << 16;
const LVT_DELIVERY_MODE: u32 = 7 << 8;
const LVT_DELIVERY_EXTINT: u32 = 7 << 8;
const LVT_TIMER_PERIODIC: u32 = 1 << 17;
const LVT_TIMER_TSC_DEADLINE: u32 = 1 << 18;
const SPIV_ENABLED: u32 = 1 << 8;

/// Whether QEMU says that the vCPU has no local APIC: the legacy controller's interrupts then reach it directly.
#[must_use]
pub fn has_no_lapic(text: &str) -> bool {
    text.trim_start().starts_with("local apic state not available")
}

/// Reads `info lapic N`. The register values are taken, not the words that explain them.
///
/// # Errors
/// [`RegistersError::LapicField`] with the first line that is missing: also if there is no such
/// vCPU, or no local APIC.
pub fn parse_lapic(text: &str) -> Result<Lapic, RegistersError> {
    let line = |field: &'static str| {
        text.lines()
            .find_map(|line| {
                let rest = line.strip_prefix(field)?;
                rest.starts_with(['\t', ' ']).then_some(rest)
            })
            .ok_or(RegistersError::LapicField { field })
    };
    let register = |field: &'static str| {
        line(field)?
            .split_ascii_whitespace()
            .next()
            .and_then(hex)
            .ok_or(RegistersError::LapicField { field })
    };
    let lint0 = register("LVT0")?;
    let timer = register("LVTT")?;
    let spurious = register("SPIV")?;
    let timer_mode = if timer & LVT_TIMER_TSC_DEADLINE != 0 {
        TimerMode::TscDeadline
    } else if timer & LVT_TIMER_PERIODIC != 0 {
        TimerMode::Periodic
    } else {
        TimerMode::OneShot
    };
    let counts = line("Timer")?;
    let count = |field: &'static str| {
        let after = counts.split_once(field)?.1.strip_prefix(" = ")?;
        after.split_ascii_whitespace().next()?.parse::<u64>().ok()
    };
    let timer_initial_count =
        count("initial_count").ok_or(RegistersError::LapicField { field: "initial_count" })?;
    let vectors =
        |field: &'static str| vectors(line(field)?).ok_or(RegistersError::LapicField { field });
    let (in_service, requested) = (vectors("ISR")?, vectors("IRR")?);
    let mut priorities = line("APR")?.split_ascii_whitespace().skip_while(|word| *word != "TPR");
    let priority = priorities.nth(1).and_then(hex).and_then(|priority| u8::try_from(priority).ok());
    Ok(Lapic {
        software_enabled: spurious & SPIV_ENABLED != 0,
        timer_masked: timer & LVT_MASKED != 0,
        timer_vector: timer.to_le_bytes()[0],
        timer_mode,
        timer_initial_count,
        timer_divider: counts
            .split_once("divide by ")
            .and_then(|(_, after)| after.split_once(')')?.0.parse().ok()),
        timer_count: count("current_count").filter(|_| timer_mode != TimerMode::TscDeadline),
        lint0_accepts_external: lint0 & LVT_MASKED == 0
            && lint0 & LVT_DELIVERY_MODE == LVT_DELIVERY_EXTINT,
        requested,
        in_service,
        priority_class: priority.ok_or(RegistersError::LapicField { field: "TPR" })? >> 4,
    })
}

fn hex(word: &str) -> Option<u32> {
    u32::from_str_radix(word.strip_prefix("0x")?, 16).ok()
}

/// `(none)`, or numbers, those of level-triggered interrupts with `(level)` behind them.
fn vectors(line: &str) -> Option<Vectors> {
    let line = line.trim();
    if line == "(none)" {
        return Some(Vectors::default());
    }
    let vector = |word: &str| word.strip_suffix("(level)").unwrap_or(word).parse().ok();
    // An empty line was cut.
    (!line.is_empty()).then(|| line.split_ascii_whitespace().map(vector).collect()).flatten()
}
