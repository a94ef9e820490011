//! How the kernel finds the first page of a compound one from another page of it.

/// Set in what all but the first page of a compound one have of it.
pub const TAIL_PAGE: u32 = 1;

/// The address of the first `struct page` of a compound one, or of the page itself, from its own address and what it has of the
/// compound one (`_compound_head` in include/linux/page-flags.h).
///
/// Up to Linux 7.0 that is the first one's address (`compound_head`). From 7.1 on (`compound_info`) it is that, or a mask of
/// the page's own address, by how the kernel was built: BTF doesn't tell which. The upper half of a mask is all ones, since no
/// compound page has 4 GiB of `struct page`; and no `struct page` is within the last 4 GiB of the address space, on x86
/// (`vmemmap` in Documentation/arch/x86/x86_64/mm.rst) or on arm64 (`VMEMMAP_START` in its memory.h).
#[must_use]
#[inline(always)]
pub const fn first_page(page: u64, compound: u64) -> u64 {
    let tail = TAIL_PAGE as u64;
    if compound & tail == 0 {
        page
    } else if compound >> 32 == u32::MAX as u64 {
        // The page's own address has no such mark.
        page & compound
    } else {
        compound - tail
    }
}

#[cfg(test)]
mod tests {
    use super::first_page;

    /// The first of a folio of 16 pages of 64 bytes each, and its fifth.
    const FIRST: u64 = 0xffff_ea00_0412_3400;
    const FIFTH: u64 = FIRST + 5 * 64;

    #[test]
    fn a_page_by_itself_is_its_own_first() {
        // The same field is the list of a page that is in none of a compound one's.
        for other in [0, 0xffff_ea00_0000_0008, 0xffff_8880_1234_5678] {
            assert_eq!(first_page(FIRST, other), FIRST);
        }
    }

    #[test]
    fn another_page_has_the_firsts_address_or_a_mask_of_its_own() {
        assert_eq!(first_page(FIFTH, FIRST | 1), FIRST);
        let mask = |order: u32| !((64 << order) - 1) | 1;
        assert_eq!(first_page(FIFTH, mask(4)), FIRST);
        // The largest there are: 16 GiB of pages of 4 KiB.
        let (first, order) = (0xfffe_fc00_1000_0000, 22);
        for at in [1, 4096, (1 << order) - 1] {
            assert_eq!(first_page(first + at * 64, mask(order)), first, "{at}");
            assert_eq!(first_page(first + at * 64, first | 1), first, "{at}");
        }
    }
}
