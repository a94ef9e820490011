//! Makes the names in an object's BTF acceptable to the kernel.
//!
//! The kernel refuses BTF in which a structure's or union's name is no C identifier. bpf-linker 0.10
//! rewrites the names of Rust's structures, but not of its unions, and aya-log brings one along:
//! `MaybeUninit<u8>`, inside the global that holds its level.

use anyhow::{Context, Result};
use object::{Object, ObjectSection};

const SECTION: &str = ".BTF";
/// Offsets into the section's header (Documentation/bpf/btf.rst): its length, and the strings' place.
const HEADER_LENGTH_AT: usize = 4;
const STRINGS_OFFSET_AT: usize = 16;

/// Replaces, in place, what no C identifier may have in the names of Rust's generic unions.
///
/// # Errors
/// If `elf` is no object with BTF.
pub(crate) fn sanitize(elf: &mut [u8]) -> Result<()> {
    let (start, length) = {
        let file = object::File::parse(&*elf).context("the object is no ELF file")?;
        let section = file.section_by_name(SECTION).context("the object has no BTF")?;
        section.file_range().context("the object's BTF takes no room")?
    };
    let (start, length) = (usize::try_from(start)?, usize::try_from(length)?);
    let section = elf.get_mut(start..start + length).context("the object is cut short")?;
    let word = |at: usize| -> Result<usize> {
        let bytes = section.get(at..at + 4).context("the object's BTF is cut short")?;
        Ok(usize::try_from(u32::from_le_bytes(bytes.try_into()?))?)
    };
    let strings_at = word(HEADER_LENGTH_AT)? + word(STRINGS_OFFSET_AT)?;
    let strings = section.get_mut(strings_at..).context("the object's BTF is cut short")?;
    for name in strings.split_mut(|byte| *byte == 0) {
        if name.starts_with(b"MaybeUninit<") {
            for byte in name.iter_mut().filter(|byte| !is_identifier(**byte)) {
                *byte = b'_';
            }
        }
    }
    Ok(())
}

fn is_identifier(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}
