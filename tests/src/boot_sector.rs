//! Guests of a few bytes: each shows one state of a vCPU, and needs no kernel.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};

/// A sector holds 512 bytes, of which the last two are the signature.
const CODE_BYTES: usize = 510;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// QEMU wants more of a disk than one sector.
const IMAGE_BYTES: usize = 1 << 20;

/// [`BootSector::TimerCliHlt`].
#[rustfmt::skip]
const TIMER_CLI_HLT: &[u8] = &[
    0xfa, // cli
    // rdmsr 0x1b; or eax, 0xc00; wrmsr: the x2APIC on.
    0x66, 0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x66, 0x0d, 0, 0x0c, 0, 0, 0x0f, 0x30,
    // xor edx, edx; wrmsr 0x80f, 0x1ff: enabled by software, too.
    0x66, 0x31, 0xd2, 0x66, 0xb9, 0x0f, 0x08, 0, 0, 0x66, 0xb8, 0xff, 0x01, 0, 0, 0x0f, 0x30,
    // wrmsr 0x83e, 0xb: divide by 1.
    0x66, 0xb9, 0x3e, 0x08, 0, 0, 0x66, 0xb8, 0x0b, 0, 0, 0, 0x0f, 0x30,
    // wrmsr 0x832, 0x20040: periodic, vector 0x40.
    0x66, 0xb9, 0x32, 0x08, 0, 0, 0x66, 0xb8, 0x40, 0, 0x02, 0, 0x0f, 0x30,
    // wrmsr 0x838, 10,000,000: KVM counts nanoseconds.
    0x66, 0xb9, 0x38, 0x08, 0, 0, 0x66, 0xb8, 0x80, 0x96, 0x98, 0, 0x0f, 0x30,
    0xf4, 0xeb, 0xfd, // hlt; jmp to the hlt
];

/// [`BootSector::OnCommand`].
#[rustfmt::skip]
const ON_COMMAND: &[u8] = &[
    0xfb, // sti
    0xf4, // hlt, until the timer's next tick
    // int 0x13: read the first sector of the first disk to 0x8000.
    0xb8, 0x01, 0x02, 0xbb, 0, 0x80, 0xb9, 1, 0, 0xba, 0x80, 0, 0xcd, 0x13,
    0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xe9, // nothing on the serial line: back to the hlt
    0xba, 0xf8, 0x03, 0xec, 0x3c, 0x70, 0x74, 0x04, // `p`?
    0xfa, 0xf4, 0xeb, 0xfd, // no: cli; hlt
    0xb0, 0x01, 0xba, 0x05, 0x05, 0xee, 0xfa, 0xf4, 0xeb, 0xfd, // yes: as Pvpanic
];

/// [`BootSector::NmiDump`].
#[rustfmt::skip]
const NMI_DUMP: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, // cli; xor ax, ax; mov ds, ax
    0xc7, 0x06, 0x08, 0, 0x13, 0x7c, 0xa3, 0x0a, 0, // the NMI's vector: 0:0x7c13
    0xf4, 0xeb, 0xfd, 0x90, 0x90, // hlt; jmp to the hlt
    0xfb, 0x31, 0xc0, 0x8e, 0xc0, // sti; xor ax, ax; mov es, ax
    // int 0x13: write the second sector of the first disk from 0x8000.
    0xb8, 0x01, 0x03, 0xbb, 0, 0x80, 0xb9, 2, 0, 0xba, 0x80, 0, 0xcd, 0x13,
    0xf4, 0xeb, 0xef, // hlt, until the timer's next tick; jmp to the write
];

/// [`BootSector::NowhereJmp`].
#[rustfmt::skip]
const NOWHERE_JMP: &[u8] = &[
    0xfa, // cli
    0x0f, 0x01, 0x16, 0x2a, 0x7c, // lgdt [0x7c2a]
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // mov eax, cr0; or al, 1; mov cr0, eax
    0xea, 0x13, 0x7c, 0x08, 0, // jmp 8:0x7c13, which is the next instruction, of 32 bits
    0xb8, 0, 0, 0, 0xd0, 0xff, 0xe0, // mov eax, 0xd0000000; jmp eax
    0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0x9a, 0xcf, 0, // the descriptors: none, and flat code
    0x0f, 0, 0x1a, 0x7c, 0, 0, // what lgdt loads: 16 bytes from 0x7c1a
];

/// What the guest does once the firmware jumps to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootSector {
    /// Halted for good: interrupts off, then `hlt`.
    CliHlt,
    /// Spinning for good: interrupts off, then a jump to itself.
    CliJmp,
    /// Healthy and idle: `hlt` with interrupts on.
    StiHlt,
    /// Healthy and busy: a jump to itself with interrupts on.
    StiJmp,
    /// Halted for good while the timer of its local APIC fires 100 times a second. Needs an x2APIC, which
    /// KVM has and TCG has not.
    TimerCliHlt,
    /// Spinning for good, but asking the keyboard controller for its status all the time.
    PortCliJmp,
    /// Loads an empty interrupt table and traps: the machine resets itself again and again.
    TripleFault,
    /// Jumps to where no memory is. KVM can't fetch an instruction from there, and gives up: `internal-error`.
    NowhereJmp,
    /// Healthy: reads its disk at each tick of its timer, 18 times a second. Of what comes over the serial line, `p` makes
    /// it report a panic, and anything else halt for good.
    OnCommand,
    /// Halted for good until an NMI comes: then it writes to its disk at each tick of its timer, as a kernel that saves
    /// its own dump.
    NmiDump,
    /// Reports a panic to `-device pvpanic` (port 0x505), then halts for good.
    Pvpanic,
}

impl BootSector {
    /// The machine code, 16 bit, to be loaded at 0x7c00.
    pub fn code(self) -> &'static [u8] {
        match self {
            Self::CliHlt => &[0xfa, 0xf4, 0xeb, 0xfd],
            Self::CliJmp => &[0xfa, 0xeb, 0xfe],
            Self::StiHlt => &[0xfb, 0xf4, 0xeb, 0xfd],
            Self::StiJmp => &[0xfb, 0xeb, 0xfe],
            Self::TimerCliHlt => TIMER_CLI_HLT,
            // cli; in al, 0x64; jmp to the in.
            Self::PortCliJmp => &[0xfa, 0xe4, 0x64, 0xeb, 0xfc],
            Self::TripleFault => {
                // lidt [0x7c08], int3, hlt, and the empty descriptor that it loads.
                &[0xfa, 0x0f, 0x01, 0x1e, 0x08, 0x7c, 0xcc, 0xf4, 0, 0, 0, 0, 0, 0]
            }
            Self::NowhereJmp => NOWHERE_JMP,
            Self::OnCommand => ON_COMMAND,
            Self::NmiDump => NMI_DUMP,
            Self::Pvpanic => {
                // mov al, 1; mov dx, 0x505; out dx, al; hlt; jmp to the hlt.
                &[0xfa, 0xb0, 0x01, 0xba, 0x05, 0x05, 0xee, 0xf4, 0xeb, 0xfd]
            }
        }
    }

    /// A whole disk image with the sector at its start.
    pub fn image(self) -> Vec<u8> {
        let mut image = vec![0; IMAGE_BYTES];
        image[..self.code().len()].copy_from_slice(self.code());
        image[CODE_BYTES..CODE_BYTES + SIGNATURE.len()].copy_from_slice(&SIGNATURE);
        image
    }

    /// Writes [`Self::image`] to a file.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn write(self, path: &Path) -> Result<()> {
        let write = || {
            let mut file = std::fs::File::create(path)?;
            file.write_all(&self.image())?;
            // What is still to be written back would count as the guest's.
            file.sync_all()
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sector_ends_with_the_boot_signature() {
        let image = BootSector::CliHlt.image();
        assert_eq!(image[..5], [0xfa, 0xf4, 0xeb, 0xfd, 0]);
        assert_eq!(image[509..513], [0, 0x55, 0xaa, 0]);
        assert_eq!(image.len(), 1_048_576);
    }

    #[test]
    fn the_triple_fault_loads_the_descriptor_behind_its_code() {
        let code = BootSector::TripleFault.code();
        let operand = usize::from(u16::from_le_bytes([code[4], code[5]]));
        assert_eq!(operand - 0x7c00, 8);
        assert!(code[8..].iter().all(|byte| *byte == 0) && code[8..].len() == 6);
    }

    #[test]
    fn the_nmi_s_vector_leads_to_its_handler() {
        let code = BootSector::NmiDump.code();
        assert_eq!(usize::from(u16::from_le_bytes([code[9], code[10]])) - 0x7c00, 0x13);
        assert_eq!((code[0x13], code[0x18], code[0x28]), (0xfb, 0xb8, 0xef));
    }

    #[test]
    fn the_jump_to_nowhere_finds_its_descriptors_behind_its_code() {
        let code = BootSector::NowhereJmp.code();
        let word = |at: usize| usize::from(u16::from_le_bytes([code[at], code[at + 1]])) - 0x7c00;
        // Where lgdt looks, where it sends lgdt's reader, and where the far jump leads.
        assert_eq!((word(4), word(word(4) + 2), word(15)), (0x2a, 0x1a, 0x13));
        assert_eq!(code[word(15)], 0xb8);
        assert_eq!(code.len(), 0x30);
    }
}
