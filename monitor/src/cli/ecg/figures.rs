//! What a column or a second comes to. What is not known stays that.

use crate::api::view::HistoryView;

/// A silence, as the verdict counts it.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Silence {
    /// A sign of life.
    Lives,
    /// So many seconds without one.
    For(usize),
    /// A figure is missing.
    Unknown,
}

/// The highest of what is known; `None` where that is nothing, or zero and not all is known.
pub(super) fn peak(column: &[Option<f64>]) -> Option<f64> {
    let most = column.iter().flatten().copied().reduce(f64::max)?;
    (most > 0.0 || column.iter().all(Option::is_some)).then_some(most)
}

pub(super) fn mean(column: &[Option<f64>]) -> Option<f64> {
    let known: Vec<f64> = column.iter().flatten().copied().collect();
    let number = u32::try_from(known.len()).ok().filter(|number| *number > 0)?;
    Some(known.iter().sum::<f64>() / f64::from(number))
}

/// The silence at the end of each second. A row of which nothing is ever known (a VM without a tap) says
/// nothing about it.
pub(super) fn silence(history: &HistoryView) -> Vec<Silence> {
    let rows = [&history.packets_from_guest, &history.completed];
    let rows: Vec<_> = rows.into_iter().filter(|row| row.iter().any(Option::is_some)).collect();
    let mut length = 0;
    let state = |second: usize| {
        let figures = || rows.iter().map(|row| row.get(second).copied().flatten());
        if figures().flatten().any(|figure| figure > 0.0) {
            length = 0;
            Silence::Lives
        } else if rows.is_empty() || figures().any(|figure| figure.is_none()) {
            length = 0;
            Silence::Unknown
        } else {
            length += 1;
            Silence::For(length)
        }
    };
    (0..history.seconds).map(state).collect()
}
