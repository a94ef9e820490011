//! Families: their names, help and units; and those of a few series, one written at a time.

use std::fmt;

use prometheus_client::{
    encoding::{
        DescriptorEncoder, EncodeLabel as _, EncodeLabelSet, LabelSetEncoder, MetricEncoder,
        NoLabelSet,
    },
    metrics::MetricType,
    registry::Unit,
};

/// Most characters of a label's value.
const LABEL_CHARS: usize = 128;

/// A value.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    Count(u64),
    Real(f64),
}

impl From<u64> for Value {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Self {
        Self::Count(u64::try_from(count).unwrap_or(u64::MAX))
    }
}

impl From<bool> for Value {
    fn from(is_so: bool) -> Self {
        Self::Count(u64::from(is_so))
    }
}

impl From<f64> for Value {
    fn from(real: f64) -> Self {
        Self::Real(real)
    }
}

/// A family's name, without `flatline_`, its unit and `_total`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Family {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Option<&'static Unit>,
    pub(super) kind: Kind,
}

/// What its values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Gauge,
    Counter,
    /// Always 1: its labels are what there is to be known.
    Info,
}

impl Family {
    pub(super) const fn gauge(name: &'static str, help: &'static str) -> Self {
        Self { name, help, unit: None, kind: Kind::Gauge }
    }

    pub(super) const fn counter(name: &'static str, help: &'static str) -> Self {
        Self { kind: Kind::Counter, ..Self::gauge(name, help) }
    }

    pub(super) const fn info(name: &'static str, help: &'static str) -> Self {
        Self { kind: Kind::Info, ..Self::gauge(name, help) }
    }

    pub(super) const fn seconds(self) -> Self {
        Self { unit: Some(&Unit::Seconds), ..self }
    }

    pub(super) const fn bytes(self) -> Self {
        Self { unit: Some(&Unit::Bytes), ..self }
    }

    /// Writes all series of a gauge or counter; nothing at all where there is none.
    pub(super) fn encode<L: EncodeLabelSet>(
        self,
        encoder: &mut DescriptorEncoder<'_>,
        series: impl IntoIterator<Item = (L, Value)>,
    ) -> fmt::Result {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return Ok(());
        }
        let Self { name, help, unit, kind } = self;
        let is_counter = kind == Kind::Counter;
        let kind = if is_counter { MetricType::Counter } else { MetricType::Gauge };
        let mut family = encoder.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in series {
            write(family.encode_family(&labels)?, value, is_counter)?;
        }
        Ok(())
    }
}

fn write(mut series: MetricEncoder<'_>, value: Value, is_counter: bool) -> fmt::Result {
    match (is_counter, value) {
        (true, Value::Count(count)) => series.encode_counter::<NoLabelSet, _, f64>(&count, None),
        (true, Value::Real(real)) => series.encode_counter::<NoLabelSet, _, f64>(&real, None),
        (false, Value::Count(count)) => series.encode_gauge(&count),
        (false, Value::Real(real)) => series.encode_gauge(&real),
    }
}

/// No label, or one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plain(pub(super) Option<(&'static str, &'static str)>);

impl EncodeLabelSet for Plain {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |label| label.encode(encoder.encode_label()))
    }
}

/// Text from outside as a label's value: bounded, and without control characters, which no dashboard shows.
pub(super) fn label_text(text: &str) -> String {
    let fit = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    text.chars().take(LABEL_CHARS).map(fit).collect()
}
