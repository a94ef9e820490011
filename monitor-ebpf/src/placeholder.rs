//! Numbers that user space puts into the programs' instructions before it loads them: offsets of the kernel's structures,
//! sizes of maps.
//!
//! A program that needs one loads a register with what its name makes; user space finds these instructions and puts the
//! number in its place. Until then the number is one that no program has of its own.

/// The upper byte of each: none of the programs' own numbers has it.
const MARK: u32 = 0x5f00_0000;
/// The bits that a name makes.
const BITS: u32 = 0x00ff_ffff;

/// What stands in the programs for the number with this name: a digest of it (FNV-1a).
pub const fn of(name: &str) -> u32 {
    let mut digest = 0x811c_9dc5_u32;
    let mut at = 0;
    while at < name.len() {
        digest = (digest ^ name.as_bytes()[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    MARK | (digest ^ digest >> 24) & BITS
}

/// The place in an instruction, which is eight bytes, that holds one: those that load a register with a number
/// (`BPF_MOV | BPF_K` of `BPF_ALU` and `BPF_ALU64`, include/uapi/linux/bpf.h), and nothing else in the code is so marked.
#[cfg(feature = "user")]
pub fn in_instruction(instruction: &mut [u8; 8]) -> Option<&mut [u8; 4]> {
    let [0xb4 | 0xb7, _, 0, 0, number @ ..] = instruction else { return None };
    (u32::from_le_bytes(*number) & !BITS == MARK).then_some(number)
}
