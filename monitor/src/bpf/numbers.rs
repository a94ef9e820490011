//! What the programs must know of this host, put into their instructions before they are loaded.

use std::collections::BTreeMap;

use monitor_ebpf::placeholder;
use object::{Object as _, ObjectSection as _, SectionKind};

use super::ProbeError;

/// Numbers for the programs, by their names there.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    by_placeholder: BTreeMap<u32, u32>,
}

impl Numbers {
    /// The later of two with the same name stands.
    pub(super) fn set(&mut self, name: &str, number: u32) {
        self.by_placeholder.insert(placeholder::of(name), number);
    }

    /// A copy of the object with the numbers in their places.
    ///
    /// # Errors
    /// If it is no object, has no such place, or needs a number that there is not: it and this binary were built from
    /// different sources.
    pub(super) fn placed_in(&self, object: &[u8]) -> Result<Vec<u8>, ProbeError> {
        let incomplete = || ProbeError::Incomplete("instructions that can be read");
        let mut placed = object.to_vec();
        let mut places = 0;
        let file = object::File::parse(object).map_err(|_| incomplete())?;
        for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
            let (start, length) = section.file_range().ok_or_else(incomplete)?;
            let range = usize::try_from(start).ok().zip(usize::try_from(start + length).ok());
            let code = range.and_then(|(start, end)| placed.get_mut(start..end));
            let (instructions, _) = code.ok_or_else(incomplete)?.as_chunks_mut();
            for place in instructions.iter_mut().filter_map(placeholder::in_instruction) {
                let wanted = u32::from_le_bytes(*place);
                let number = self.by_placeholder.get(&wanted);
                *place = number.ok_or(ProbeError::UnknownNumber(wanted))?.to_le_bytes();
                places += 1;
            }
        }
        if places == 0 {
            return Err(ProbeError::Incomplete("place for what is this host's"));
        }
        Ok(placed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::bpf::{OBJECT, offsets};

    /// Of this host's, beside the kernel's.
    const OWN: [&str; 6] =
        ["TAPS_MASK", "IN_FLIGHT_MASK", "SLOTS_MASK", "LANES_ARE_EXCLUSIVE", "NETNS", "GENERATION"];

    fn names() -> BTreeSet<&'static str> {
        offsets::names().into_iter().chain(OWN).collect()
    }

    fn numbers(names: &BTreeSet<&str>) -> Numbers {
        let mut numbers = Numbers::default();
        names.iter().for_each(|name| numbers.set(name, 7));
        numbers
    }

    #[test]
    fn every_number_has_a_place_of_its_own() {
        let names = names();
        let numbers = numbers(&names);
        assert_eq!(numbers.by_placeholder.len(), names.len(), "two names make the same");
        let placed = numbers.placed_in(OBJECT).unwrap();
        assert_eq!(placed.len(), OBJECT.len());
        // Placed once, there is no place any more.
        let again = numbers.placed_in(&placed);
        assert!(matches!(again, Err(ProbeError::Incomplete(_))));
        for name in &names {
            let others = names.iter().filter(|other| *other != name).copied().collect();
            let refused = self::numbers(&others).placed_in(OBJECT);
            let wanted = placeholder::of(name);
            let is_missed = matches!(refused, Err(ProbeError::UnknownNumber(it)) if it == wanted);
            assert!(is_missed, "{name} has no place");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(matches!(Numbers::default().placed_in(b"none"), Err(ProbeError::Incomplete(_))));
    }
}
