//! Offsets of the running kernel's structure members, from its own BTF.
//!
//! aya emits no CO-RE relocations for programs written in Rust, so the programs take these offsets as
//! globals. aya's own BTF type keeps the members to itself, and this walk over the raw bytes needs
//! 1 MiB where parsing takes 30: no types are built, only their places noted.
//!
//! Format: Documentation/bpf/btf.rst of Linux 6.12.

use std::{fs, io, path::PathBuf};

use thiserror::Error;

/// Where every kernel that was built with BTF shows it.
pub(crate) const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
/// Anonymous members nest two or three deep in the kernel; a cycle can only come from a torn file.
const MAX_NESTING: u32 = 16;

/// Why an offset could not be found.
#[derive(Debug, Error)]
pub enum KernelTypesError {
    /// The kernel shows no BTF, or not to us.
    #[error("cannot read the kernel's BTF at {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The bytes are not BTF as this parser knows it.
    #[error("the kernel's BTF is malformed at byte {at}: {what}")]
    Malformed {
        /// Offset into the file.
        at: usize,
        /// What was expected there.
        what: &'static str,
    },
    /// The structure has no such member on this kernel, or there is no such structure.
    #[error("this kernel's BTF has no {path}")]
    Missing {
        /// `struct.member.member`.
        path: String,
    },
}

/// The kernel's BTF, indexed by type id.
#[derive(Debug)]
pub(crate) struct KernelTypes {
    data: Vec<u8>,
    strings_at: usize,
    strings_end: usize,
    /// Place of each type's record; type ids begin at 1.
    types: Vec<u32>,
}

impl KernelTypes {
    /// Reads and indexes the running kernel's BTF.
    pub(crate) fn of_running_kernel() -> Result<Self, KernelTypesError> {
        let data = fs::read(VMLINUX_BTF)
            .map_err(|source| KernelTypesError::Read { path: VMLINUX_BTF.into(), source })?;
        Self::parse(data)
    }

    /// Indexes BTF in this machine's byte order.
    pub(crate) fn parse(data: Vec<u8>) -> Result<Self, KernelTypesError> {
        let malformed = |at, what| KernelTypesError::Malformed { at, what };
        let word = |at| word(&data, at).ok_or(malformed(at, "four more bytes"));
        if data.get(..2) != Some(&MAGIC.to_ne_bytes()) {
            return Err(malformed(0, "the magic number"));
        }
        let header_length = word(4)? as usize;
        let types_at = header_length.saturating_add(word(8)? as usize);
        let types_end = types_at.saturating_add(word(12)? as usize);
        let strings_at = header_length.saturating_add(word(16)? as usize);
        let strings_end = strings_at.saturating_add(word(20)? as usize);
        if types_end > data.len() || strings_end > data.len() {
            return Err(malformed(8, "sections inside the file"));
        }
        let mut types = Vec::new();
        let mut at = types_at;
        while at < types_end {
            types.push(u32::try_from(at).map_err(|_| malformed(at, "a file below 4 GiB"))?);
            let info = word(at + 4)?;
            let length = trailing_bytes(info)
                .ok_or_else(|| malformed(at, "a kind of type that is known"))?;
            at += 12 + length;
        }
        Ok(Self { data, strings_at, strings_end, types })
    }

    /// Offset in bytes of `path[0].path[1]...`: a structure, then members, each a structure itself but
    /// for the last one. Members of anonymous structures and unions count as their parent's.
    pub(crate) fn offset_of(&self, path: &[&str]) -> Result<u32, KernelTypesError> {
        let missing = || KernelTypesError::Missing { path: path.join(".") };
        let (structure, members) = path.split_first().ok_or_else(missing)?;
        let mut at = self.structure(structure).ok_or_else(missing)?;
        let mut bits = 0;
        for member in members {
            let (member_bits, member_type) = self.member(at, member, 0).ok_or_else(missing)?;
            bits += member_bits;
            at = self.resolve(member_type).ok_or_else(missing)?;
        }
        Ok(bits / 8)
    }

    /// The value of an enumerator, whichever enumeration it belongs to.
    pub(crate) fn enumerator(&self, name: &str) -> Result<u32, KernelTypesError> {
        let enumerations = self.types.iter().map(|at| *at as usize);
        enumerations
            .filter(|at| self.kind(*at) == Some(KIND_ENUM))
            .find_map(|at| {
                let entries = word(&self.data, at + 4)? & 0xffff;
                (0..entries as usize).map(|n| at + 12 + 8 * n).find_map(|entry| {
                    let named = self.string(word(&self.data, entry)?)? == name.as_bytes();
                    named.then(|| word(&self.data, entry + 4)).flatten()
                })
            })
            .ok_or_else(|| KernelTypesError::Missing { path: name.to_owned() })
    }

    fn structure(&self, name: &str) -> Option<usize> {
        self.types.iter().map(|at| *at as usize).find(|at| {
            self.kind(*at) == Some(KIND_STRUCT)
                && word(&self.data, *at).and_then(|name_at| self.string(name_at))
                    == Some(name.as_bytes())
        })
    }

    /// Offset in bits, and type id, of a member.
    fn member(&self, structure_at: usize, name: &str, depth: u32) -> Option<(u32, u32)> {
        let info = word(&self.data, structure_at + 4)?;
        if depth > MAX_NESTING || !matches!(kind(info), KIND_STRUCT | KIND_UNION) {
            return None;
        }
        (0..info & 0xffff).find_map(|n| {
            let at = structure_at + 12 + 12 * n as usize;
            let member_name = self.string(word(&self.data, at)?)?;
            let member_type = word(&self.data, at + 4)?;
            let offset = word(&self.data, at + 8)?;
            // With the kind flag set, the upper byte is the size of a bit field.
            let bits = if info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
            if member_name == name.as_bytes() {
                return Some((bits, member_type));
            }
            if !member_name.is_empty() {
                return None;
            }
            let (inner_bits, inner_type) =
                self.member(self.resolve(member_type)?, name, depth + 1)?;
            Some((bits + inner_bits, inner_type))
        })
    }

    /// The record of a type, behind its typedefs and qualifiers.
    fn resolve(&self, mut type_id: u32) -> Option<usize> {
        for _ in 0..MAX_NESTING {
            let at = *self.types.get((type_id as usize).checked_sub(1)?)? as usize;
            // typedef, volatile, const, restrict, type tag
            match self.kind(at)? {
                8..=11 | 18 => type_id = word(&self.data, at + 8)?,
                _ => return Some(at),
            }
        }
        None
    }

    fn kind(&self, at: usize) -> Option<u32> {
        word(&self.data, at + 4).map(kind)
    }

    fn string(&self, offset: u32) -> Option<&[u8]> {
        let start = self.strings_at.checked_add(offset as usize)?;
        let tail = self.data.get(start..self.strings_end)?;
        tail.iter().position(|byte| *byte == 0).map(|end| &tail[..end])
    }
}

fn word(data: &[u8], at: usize) -> Option<u32> {
    data.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_ne_bytes)
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

/// Bytes that follow a type's common 12; `None` for a kind that is newer than this parser.
fn trailing_bytes(info: u32) -> Option<usize> {
    let entries = (info & 0xffff) as usize;
    Some(match kind(info) {
        2 | 7..=12 | 16 | 18 => 0,
        1 | 14 | 17 => 4,
        3 => 12,
        KIND_STRUCT | KIND_UNION | 15 | 19 => 12 * entries,
        KIND_ENUM | 13 => 8 * entries,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct inner { int a; int b; }`, `struct outer { int x; union { struct inner i; }; }`,
    /// `enum { RED, BLUE = 7 }`.
    fn small_btf() -> Vec<u8> {
        let strings = b"\0int\0inner\0a\0b\0outer\0x\0i\0RED\0BLUE\0";
        let name = |text: &str| {
            let needle = [b"\0", text.as_bytes(), b"\0"].concat();
            u32::try_from(strings.windows(needle.len()).position(|w| w == needle).unwrap() + 1)
                .unwrap()
        };
        let types: Vec<u32> = [
            vec![name("int"), 1 << 24, 4, 32],
            vec![name("inner"), KIND_STRUCT << 24 | 2, 8, name("a"), 1, 0, name("b"), 1, 32],
            vec![0, KIND_UNION << 24 | 1, 8, name("i"), 2, 0],
            vec![name("outer"), KIND_STRUCT << 24 | 2, 12, name("x"), 1, 0, 0, 3, 32],
            vec![0, KIND_ENUM << 24 | 2, 4, name("RED"), 0, name("BLUE"), 7],
        ]
        .concat();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = |n: usize| u32::try_from(n).unwrap().to_ne_bytes();
        let mut data = MAGIC.to_ne_bytes().to_vec();
        data.extend([1, 0]);
        for field in [24, 0, types.len(), types.len(), strings.len()] {
            data.extend(length(field));
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn a_member_is_found_through_an_anonymous_union() {
        let types = KernelTypes::parse(small_btf()).unwrap();
        assert_eq!(types.offset_of(&["outer", "x"]).unwrap(), 0);
        assert_eq!(types.offset_of(&["outer", "i", "b"]).unwrap(), 8);
    }

    #[test]
    fn an_enumerator_is_found_by_its_name_alone() {
        let types = KernelTypes::parse(small_btf()).unwrap();
        assert_eq!(types.enumerator("BLUE").unwrap(), 7);
        let error = types.enumerator("GREEN").unwrap_err();
        assert_eq!(error.to_string(), "this kernel's BTF has no GREEN");
    }

    #[test]
    fn a_missing_member_is_an_error_that_names_it() {
        let types = KernelTypes::parse(small_btf()).unwrap();
        let error = types.offset_of(&["outer", "i", "c"]).unwrap_err();
        assert_eq!(error.to_string(), "this kernel's BTF has no outer.i.c");
    }

    #[test]
    fn btf_that_is_cut_anywhere_is_an_error_and_no_panic() {
        let whole = small_btf();
        for length in 0..whole.len() {
            assert!(KernelTypes::parse(whole[..length].to_vec()).is_err(), "cut at {length}");
        }
    }

    #[test]
    fn any_flipped_byte_is_an_answer_or_an_error_and_no_panic() {
        let whole = small_btf();
        for at in 0..whole.len() {
            for value in [0, 0x7f, 0xff] {
                let mut torn = whole.clone();
                torn[at] = value;
                if let Ok(types) = KernelTypes::parse(torn) {
                    let _ = types.offset_of(&["outer", "i", "b"]);
                }
            }
        }
    }
}
