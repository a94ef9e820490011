//! Guests of a few bytes: each shows one state of a vCPU, and needs no kernel.

use std::path::Path;

use anyhow::{Context as _, Result};

/// A sector holds 512 bytes, of which the last two are the signature.
const CODE_BYTES: usize = 510;
const SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// QEMU wants more of a disk than one sector.
const IMAGE_BYTES: usize = 1 << 20;

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
    /// Loads an empty interrupt table and traps: the machine resets itself again and again.
    TripleFault,
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
            Self::TripleFault => {
                // lidt [0x7c08], int3, hlt, and the empty descriptor that it loads.
                &[0xfa, 0x0f, 0x01, 0x1e, 0x08, 0x7c, 0xcc, 0xf4, 0, 0, 0, 0, 0, 0]
            }
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
        std::fs::write(path, self.image())
            .with_context(|| format!("cannot write {}", path.display()))
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
}
