//! Figures in few columns, and lines of them.

use crate::cli::ecg::ink::{ASCII, Ink, UNICODE, level};

/// A figure in at most four columns; what is above zero is never shown as that. A dash is not known.
pub(super) fn figure(figure: Option<f64>) -> String {
    match figure {
        None => "-".to_owned(),
        Some(figure) if figure <= 0.0 => "0".to_owned(),
        Some(figure) if figure < 9999.5 => format!("{:.0}", figure.max(1.0)),
        Some(figure) if figure < 999_500.0 => format!("{:.0}k", figure / 1e3),
        Some(figure) if figure < 999_500_000.0 => format!("{:.0}M", figure / 1e6),
        Some(figure) if figure < 999e9 => format!("{:.0}G", figure / 1e9),
        Some(_) => "999G".to_owned(),
    }
}

/// A share of CPUs in percent, in at most four columns.
pub(super) fn percent(cpus: Option<f64>) -> String {
    match cpus.map(|cpus| cpus * 100.0) {
        None => "-".to_owned(),
        Some(percent) if percent < 9.95 => format!("{percent:.1}"),
        Some(percent) => figure(Some(percent)),
    }
}

/// The characters of a line: each figure's height, the highest one being full; `silent` has its last flat part drawn
/// as that of a guest that is silent for too long.
pub(super) fn line(figures: &[Option<f64>], silent: bool, unicode: bool) -> String {
    let ink: &Ink = if unicode { &UNICODE } else { &ASCII };
    let most = figures.iter().flatten().copied().fold(0.0, f64::max);
    let lives = |figure: &Option<f64>| figure.is_some_and(|figure| figure > 0.0);
    let last_life = figures.iter().rposition(lives).map_or(0, |at| at + 1);
    let draw = |(at, figure): (usize, &Option<f64>)| match figure {
        None => ink.unknown,
        Some(figure) if *figure > 0.0 => level(figure / most, ink),
        Some(_) if silent && at >= last_life => ink.too_flat,
        Some(_) => ink.flat,
    };
    figures.iter().enumerate().map(draw).collect()
}

#[cfg(test)]
mod tests {
    use super::{figure, line, percent};

    #[test]
    fn figures_fit_four_columns_and_none_but_zero_is_zero() {
        let figures = [0.0, 0.01, 42.4, 9999.4, 9999.6, 1e6, 5e9, f64::MAX, f64::INFINITY];
        let shown = figures.map(|value| figure(Some(value)));
        assert_eq!(shown, ["0", "1", "42", "9999", "10k", "1M", "5G", "999G", "999G"]);
        assert_eq!((figure(None), percent(None)), ("-".to_owned(), "-".to_owned()));
        let shown = [0.0, 0.003, 0.0994, 0.5, 128.0].map(|cpus| percent(Some(cpus)));
        assert_eq!(shown, ["0.0", "0.3", "9.9", "50", "13k"]);
    }

    #[test]
    fn flat_is_flat_and_what_is_not_known_is_a_dot() {
        let figures = [None, Some(0.0), Some(1.0), Some(8.0), None, Some(0.0), Some(0.0)];
        assert_eq!(line(&figures, false, true), "·─▁█·──");
        assert_eq!(line(&figures, true, true), "·─▁█·━━");
        assert_eq!(line(&figures, true, false), "?_.#?==");
        assert_eq!(line(&[None, Some(0.0)], true, true), "·━");
    }
}
