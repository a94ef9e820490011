//! Reads the text of the human monitor's `info registers -a`, `info lapic N` and `info pic` of an x86 QEMU.
//! Pure: does no I/O and knows no clock.
//!
//! The formats are those of QEMU's target/i386/cpu-dump.c (5.0 to 10.0; before 7.0 it stood in
//! target/i386/helper.c), which prints `key=value` pairs and is the same under TCG and KVM. Whatever
//! isn't needed is passed over. A vCPU that lacks a needed field is an error and never a zero: a
//! guest must not be judged on a figure that was not read.
//!
//! # What a vCPU looks like that runs no guest code
//!
//! Seen on QEMU 7.2 with `-smp 2`, SeaBIOS and no operating system:
//!
//! | second vCPU | `info registers` | `info lapic` |
//! |---|---|---|
//! | parked by SeaBIOS, or by `maxcpus=1` after it | `HLT=1`, IF=0 at EIP=000fd09a | disabled, every LVT masked |
//! | waits for its start-up IPI, TCG | `HLT=1`, IF=0 at F000:FFF0 | disabled, every LVT masked |
//! | the same, KVM | **`HLT=0`**, IF=0 at F000:FFF0 | disabled, every LVT masked |
//!
//! So a vCPU that no operating system has started cannot be told from a crashed one by HLT and IF;
//! one that it has started has its local APIC software-enabled, until a panic disables it. The vCPU
//! that burns no time and whose APIC never was seen enabled is the one not to count; see also
//! [`VcpuRegisters::is_at_reset_vector`].

pub(super) mod aarch64;
mod lapic;
mod pic;
pub(super) mod system;

use std::hash::{DefaultHasher, Hash, Hasher};

pub use lapic::{Lapic, TimerMode, Vectors, has_no_lapic, parse_lapic};
pub use pic::{Pic, parse_pic};

/// The registers of a vCPU that say whether it can ever run again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuRegisters {
    /// QEMU's number of the vCPU.
    pub index: u32,
    /// The instruction pointer, an offset into the code segment. Under TCG it may be as old as the
    /// running translation block.
    pub ip: u64,
    /// The privilege level: 0 is the kernel, 3 is user mode.
    pub cpl: u8,
    /// Whether it waits in `hlt`.
    pub halted: bool,
    /// Whether it takes maskable interrupts (EFLAGS.IF).
    pub interrupts_enabled: bool,
    /// Whether paging is on (CR0.PG), as under every operating system, and under UEFI.
    pub paging: bool,
    /// Whether `ip` lies in the upper half of the address space, where operating systems have their kernels.
    pub in_upper_half: bool,
    /// A digest of the general registers, which changes when one of them does. Comparable only
    /// within this process.
    pub general_digest: u64,
}

impl VcpuRegisters {
    /// Whether it stands where a reset or an INIT puts it, interrupts off: not started yet, if this
    /// lasts. No operating system has kernel code at this address.
    #[must_use]
    pub fn is_at_reset_vector(&self) -> bool {
        self.ip == 0xfff0 && self.cpl == 0 && !self.interrupts_enabled
    }
}

/// Whether some vCPU runs an operating system: user code, or kernel code in the upper half of the paged address
/// space, where Linux, the BSDs and Windows have their kernels. Firmware and boot loaders run without paging
/// (BIOS), or at the identity-mapped addresses below (UEFI).
fn is_up(vcpus: &[VcpuRegisters]) -> bool {
    vcpus.iter().any(|vcpu| vcpu.paging && (vcpu.cpl == 3 || vcpu.in_upper_half))
}

/// Why the text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistersError {
    /// No vCPU in it: an error message, or cut short.
    #[error("no vCPU in the text of info registers")]
    NoVcpus,
    /// A vCPU has no number.
    #[error("a vCPU without a number in the text of info registers")]
    NoIndex,
    /// More vCPUs than any QEMU has.
    #[error("more than {MAX_VCPUS} vCPUs in the text of info registers")]
    TooManyVcpus,
    /// Not an x86 guest, or a format that is not known.
    #[error("no x86 instruction pointer for vCPU {index}: not an x86 guest?")]
    NotX86 {
        /// The vCPU.
        index: u32,
    },
    /// A field is missing, or is not a number of its range.
    #[error("vCPU {index} has no readable {field}")]
    Field {
        /// The vCPU.
        index: u32,
        /// QEMU's name of the field.
        field: &'static str,
    },
    /// A line of the local APIC is missing, or is not understood.
    #[error("the local APIC has no readable {field}")]
    LapicField {
        /// QEMU's name of the field.
        field: &'static str,
    },
    /// The legacy interrupt controller's line is missing, or is not understood.
    #[error("the interrupt controller has no readable {field}")]
    PicField {
        /// QEMU's name of the field.
        field: &'static str,
    },
}

/// QEMU's own maximum (q35 since 9.0).
const MAX_VCPUS: usize = 4_096;

/// Reads `info registers -a`, in the order in which QEMU prints the vCPUs.
///
/// # Errors
/// [`RegistersError`]; one unreadable vCPU makes the whole text unreadable.
pub fn parse_registers(text: &str) -> Result<Vec<VcpuRegisters>, RegistersError> {
    each_vcpu(text, parse_vcpu)
}

/// Reads the block of each vCPU with `parse`.
fn each_vcpu<T>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, RegistersError>,
) -> Result<Vec<T>, RegistersError> {
    let mut vcpus = Vec::new();
    // What stands before the first heading belongs to no vCPU.
    for block in text.split("CPU#").skip(1) {
        if vcpus.len() == MAX_VCPUS {
            return Err(RegistersError::TooManyVcpus);
        }
        vcpus.push(parse(block)?);
    }
    if vcpus.is_empty() { Err(RegistersError::NoVcpus) } else { Ok(vcpus) }
}

fn parse_vcpu(block: &str) -> Result<VcpuRegisters, RegistersError> {
    let mut lines = block.lines();
    let index = lines
        .next()
        .and_then(|number| number.trim().parse().ok())
        .ok_or(RegistersError::NoIndex)?;
    let mut general = DefaultHasher::new();
    // One line has all the rest. Reading it alone keeps a value from being taken out of another one.
    let line = lines
        .find(|line| {
            let last = line.starts_with("RIP=") || line.starts_with("EIP=");
            if !last {
                line.hash(&mut general);
            }
            last
        })
        .ok_or(RegistersError::NotX86 { index })?;
    let field = |field: &'static str, radix: u32| {
        value(line, field)
            .and_then(|digits| u64::from_str_radix(digits, radix).ok())
            .ok_or(RegistersError::Field { index, field })
    };
    let (ip, flags) = if line.starts_with('R') { ("RIP", "RFL") } else { ("EIP", "EFL") };
    let bit = |name: &'static str| match field(name, 10)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(RegistersError::Field { index, field: name }),
    };
    let cpl = match u8::try_from(field("CPL", 10)?) {
        Ok(cpl @ 0..=3) => cpl,
        _ => {
            return Err(RegistersError::Field { index, field: "CPL" });
        }
    };
    let upper_half = if line.starts_with('R') { 1 << 63 } else { 1 << 31 };
    let ip = field(ip, 16)?;
    // On a line of its own, after the segments.
    let cr0 = lines
        .find_map(|line| value(line, "CR0"))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or(RegistersError::Field { index, field: "CR0" })?;
    Ok(VcpuRegisters {
        index,
        ip,
        paging: cr0 & CR0_PG != 0,
        in_upper_half: ip >= upper_half,
        cpl,
        halted: bit("HLT")?,
        interrupts_enabled: field(flags, 16)? & EFLAGS_IF != 0,
        general_digest: general.finish(),
    })
}

/// CR0.PG (SDM volume 3, 2.5).
const CR0_PG: u64 = 1 << 31;
/// EFLAGS.IF (SDM volume 1, 3.4.3).
const EFLAGS_IF: u64 = 1 << 9;

/// The value of `key=value` among the words of a line.
fn value<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

#[cfg(test)]
mod tests;
