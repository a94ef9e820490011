//! Figures in rounds, and what is made of them: nothing here measures anything.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The values of a figure in all rounds.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rounds(Vec<f64>);

impl Rounds {
    /// # Errors
    /// If there is no value, or one that is no number.
    pub(crate) fn new(values: Vec<f64>) -> Result<Self> {
        ensure!(!values.is_empty(), "it was not measured even once");
        ensure!(values.iter().all(|value| value.is_finite()), "{values:?} has no number in it");
        Ok(Self(values))
    }

    /// In the order in which they were measured.
    pub(crate) fn values(&self) -> &[f64] {
        &self.0
    }

    /// Half of the values are below it.
    pub(crate) fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// The values that leave a quarter below and a quarter above.
    fn middle_half(&self) -> (f64, f64) {
        (self.quantile(0.25), self.quantile(0.75))
    }

    /// The largest value.
    pub(crate) fn most(&self) -> f64 {
        self.quantile(1.0)
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "there are some hundred rounds, and the quantile is between 0 and 1"
    )]
    fn quantile(&self, which: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() - 1) as f64 * which;
        let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        below + (above - below) * at.fract()
    }

    /// Round by round: what both had to bear in a round goes out.
    ///
    /// # Errors
    /// If there are not as many of the other.
    pub(crate) fn minus(&self, floor: &Self) -> Result<Self> {
        self.with(floor, |own, floor| own - floor)
    }

    /// Round by round.
    ///
    /// # Errors
    /// As [`Self::minus`].
    pub(crate) fn plus(&self, other: &Self) -> Result<Self> {
        self.with(other, |own, other| own + other)
    }

    fn with(&self, other: &Self, make: impl Fn(f64, f64) -> f64) -> Result<Self> {
        ensure!(self.0.len() == other.0.len(), "rounds are missing");
        Self::new(self.0.iter().zip(&other.0).map(|(a, b)| make(*a, *b)).collect())
    }

    /// In another unit, or for another number of things.
    pub(crate) fn times(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }
}

/// The median, and between which values the middle half of the rounds lies.
impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = self.middle_half();
        let digits = digits(self.median());
        write!(f, "{:.digits$} ({low:.digits$} to {high:.digits$})", self.median())
    }
}

/// As many digits after the point as make three in all.
pub(crate) fn digits(value: f64) -> usize {
    match value.abs() {
        below if below < 10.0 => 2,
        below if below < 100.0 => 1,
        _ => 0,
    }
}

/// What a measuring program printed: a JSON line a figure.
#[derive(Debug, Default)]
pub(crate) struct Figures(BTreeMap<String, Value>);

impl Figures {
    /// # Errors
    /// If a line is no JSON, or bears no name.
    pub(crate) fn parse(lines: &str) -> Result<Self> {
        let figure = |line: &str| -> Result<(String, Value)> {
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("no JSON: {line}"))?;
            let name = value["name"].as_str().context("a figure without a name")?;
            Ok((name.to_owned(), value))
        };
        Ok(Self(lines.lines().map(figure).collect::<Result<_>>()?))
    }

    /// All rounds of one.
    ///
    /// # Errors
    /// If there is none of that name.
    pub(crate) fn rounds(&self, name: &str) -> Result<Rounds> {
        let rounds = self.0.get(name).and_then(|figure| figure["rounds"].as_array());
        let rounds = rounds.with_context(|| format!("{name} was not measured"))?;
        let values = rounds.iter().filter_map(Value::as_f64).collect();
        Rounds::new(values).with_context(|| name.to_owned())
    }

    /// All that begin with this, by what their names go on with.
    pub(crate) fn below(&self, prefix: &str) -> Vec<(&str, Rounds)> {
        let names = self.0.keys().filter_map(|name| Some((name, name.strip_prefix(prefix)?)));
        names.filter_map(|(name, rest)| Some((rest, self.rounds(name).ok()?))).collect()
    }

    /// A list of names, under its own.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn names(&self, name: &str) -> Result<Vec<String>> {
        let names = self.0.get(name).and_then(|figure| figure[name].as_array());
        let names = names.with_context(|| format!("{name} was not looked for"))?;
        Ok(names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(values: &[f64]) -> Rounds {
        Rounds::new(values.to_vec()).expect("values")
    }

    #[test]
    fn one_bad_round_moves_neither_the_median_nor_the_middle_half() {
        let calm = rounds(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        let disturbed = rounds(&[1.0, 2.0, 3.0, 4.0, 5000.0]);
        assert_eq!(calm.to_string(), "3.00 (2.00 to 4.00)");
        assert_eq!(disturbed.to_string(), calm.to_string());
        assert!((disturbed.most() - 5000.0).abs() < 1e-9);
    }

    #[test]
    fn a_disturbance_of_a_figure_and_its_floor_goes_out() {
        let difference = rounds(&[10.0, 110.0]).minus(&rounds(&[7.0, 107.0])).expect("two each");
        assert!((difference.median() - 3.0).abs() < 1e-9);
        assert!(rounds(&[1.0]).minus(&rounds(&[1.0, 2.0])).is_err());
    }

    #[test]
    fn what_was_not_measured_is_an_error_and_no_zero() {
        let figures = Figures::parse("{\"name\":\"a\",\"rounds\":[]}\n").expect("JSON");
        assert!(figures.rounds("a").is_err());
        assert!(figures.rounds("b").is_err());
        assert!(Rounds::new(vec![f64::NAN]).is_err());
    }
}
