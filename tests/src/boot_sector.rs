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

/// [`BootSector::MaskedWait`].
#[rustfmt::skip]
const MASKED_WAIT: &[u8] = &[
    0xfa, // cli
    // xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax; mov sp, 0x7c00
    0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0, 0x7c,
    0xe4, 0x92, 0x0c, 0x02, 0xe6, 0x92, // in al, 0x92; or al, 2; out 0x92, al: the gate of A20 opens
    0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1, // mov al, 0xff; out 0x21, al; out 0xa1, al: nothing comes by the PICs
    0x0f, 0x01, 0x16, 0xd8, 0x7c, // lgdt [0x7cd8]
    // mov eax, cr0; or al, 1; mov cr0, eax; jmp to the next; mov bx, 8; mov ds, bx; and al, 0xfe; mov cr0, eax: in
    // real mode again, and ds reaches 4 GiB.
    0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, 0xeb, 0, 0xbb, 8, 0, 0x8e, 0xdb, 0x24, 0xfe, 0x0f, 0x22, 0xc0,
    0xea, 0x36, 0x7c, 0, 0, // jmp 0:0x7c36, which is the next
    0x31, 0xc0, 0x8e, 0xc0, // xor ax, ax; mov es, ax
    0x26, 0xc7, 0x06, 0x40, 0x01, 0xb5, 0x7c, // mov word [es:0x50 * 4], 0x7cb5: the handler
    0x26, 0xc7, 0x06, 0x42, 0x01, 0, 0, // mov word [es:0x50 * 4 + 2], 0
    0x66, 0xbe, 0, 0, 0xe0, 0xfe, // mov esi, 0xfee00000: the local APIC
    0x66, 0x67, 0xc7, 0x86, 0xf0, 0, 0, 0, 0xff, 0x01, 0, 0, // mov dword [esi + 0xf0], 0x1ff: enabled
    0x66, 0x67, 0xc7, 0x86, 0x50, 0x03, 0, 0, 0, 0, 0x01, 0, // mov dword [esi + 0x350], 0x10000: LINT0 masked
    0x66, 0x67, 0xc7, 0x86, 0x80, 0, 0, 0, 0, 0, 0, 0, // mov dword [esi + 0x80], 0: every priority
    0x66, 0x67, 0xc7, 0x86, 0xe0, 0x03, 0, 0, 0x0b, 0, 0, 0, // mov dword [esi + 0x3e0], 0xb: divide by 1
    0x66, 0x67, 0xc7, 0x86, 0x20, 0x03, 0, 0, 0x50, 0, 0x02, 0, // mov dword [esi + 0x320], 0x20050: periodic, vector 0x50
    0x66, 0x67, 0xc7, 0x86, 0x80, 0x03, 0, 0, 0, 0xe1, 0xf5, 0x05, // mov dword [esi + 0x380], 100,000,000
    0x66, 0xbb, 0x20, 0x02, 0xe0, 0xfe, // mov ebx, 0xfee00220: which of the vectors from 0x40 to 0x5f are pending
    0x66, 0xb9, 0, 0, 0x01, 0, // mov ecx, 0x10000: vector 0x50 among them
    0x66, 0x31, 0xc0, 0x66, 0x31, 0xd2, // xor eax, eax; xor edx, edx
    0xf3, 0x90, 0x66, 0x67, 0x85, 0x0b, 0x74, 0xf8, // 0x7ca8: pause; test [ebx], ecx; jz 0x7ca8
    0xfb, 0x90, 0xfa, 0xeb, 0xf3, // sti; nop; cli; jmp 0x7ca8
    0x66, 0x67, 0xc7, 0x86, 0xb0, 0, 0, 0, 0, 0, 0, 0, // 0x7cb5: mov dword [esi + 0xb0], 0: it was taken
    0x26, 0x66, 0xff, 0x06, 0, 0x06, 0xcf, // inc dword [es:0x600]; iret
    0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0x92, 0xcf, 0, // the descriptors: none, and flat data
    0x0f, 0, 0xc8, 0x7c, 0, 0, // what lgdt loads: 16 bytes from 0x7cc8
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
    /// Healthy: waits with interrupts off until its local APIC's timer is pending, ten times a second, and lets it in, as
    /// an idle CPU does that waits by MWAIT with interrupts as break events. It counts them at
    /// [`BootSector::COUNTER_AT`].
    MaskedWait,
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
    /// The physical address of the dword in which [`Self::MaskedWait`] counts the interrupts that it took.
    pub const COUNTER_AT: u64 = 0x600;

    /// The machine code, 16 bit, to be loaded at 0x7c00.
    pub fn code(self) -> &'static [u8] {
        match self {
            Self::CliHlt => &[0xfa, 0xf4, 0xeb, 0xfd],
            Self::CliJmp => &[0xfa, 0xeb, 0xfe],
            Self::StiHlt => &[0xfb, 0xf4, 0xeb, 0xfd],
            Self::StiJmp => &[0xfb, 0xeb, 0xfe],
            Self::TimerCliHlt => TIMER_CLI_HLT,
            Self::MaskedWait => MASKED_WAIT,
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
    fn the_masked_wait_finds_its_handler_and_its_descriptors_behind_its_loop() {
        let code = BootSector::MaskedWait.code();
        let word = |at: usize| usize::from(u16::from_le_bytes([code[at], code[at + 1]])) - 0x7c00;
        // Where lgdt looks, where it sends lgdt's reader, where the far jump leads, and the vector.
        assert_eq!((word(0x1b), word(word(0x1b) + 2), word(0x32)), (0xd8, 0xc8, 0x36));
        assert_eq!((word(0x3f), code[0xb5], code[0xc7]), (0xb5, 0x66, 0xcf));
        assert_eq!((code[0xa8], code.len()), (0xf3, 0xde));
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
