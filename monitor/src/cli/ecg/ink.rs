//! The characters that are drawn with.

/// The characters that are drawn with.
#[derive(Debug)]
pub(in crate::cli) struct Ink {
    pub(in crate::cli) unknown: char,
    pub(in crate::cli) flat: char,
    pub(in crate::cli) too_flat: char,
    pub(in crate::cli) levels: &'static [char],
    pub(in crate::cli) at_least: char,
}

pub(in crate::cli) const UNICODE: Ink = Ink {
    unknown: '·',
    flat: '─',
    too_flat: '━',
    levels: &['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'],
    at_least: '≥',
};
pub(in crate::cli) const ASCII: Ink = Ink {
    unknown: '?',
    flat: '_',
    too_flat: '=',
    levels: &['.', ':', '-', '+', 'o', 'O', '%', '#'],
    at_least: '>',
};

/// The character for a share of the highest.
pub(in crate::cli) fn level(share: f64, ink: &Ink) -> char {
    let steps = u32::try_from(ink.levels.len()).unwrap_or(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is bounded")]
    let index = (share * f64::from(steps)).ceil().clamp(1.0, f64::from(steps)) as usize - 1;
    ink.levels.get(index).copied().unwrap_or(ink.unknown)
}
