//! Text of the VMs' series, of which there are tens of thousands: the labels of each VM are made once, and all else is copied.

use std::fmt::Write as _;

use super::{
    Format,
    families::{Family, Kind, Value},
};

const PREFIX: &str = "flatline_";

/// Series in one of the formats; families follow one another.
#[derive(Debug)]
pub(super) struct SeriesText {
    pub(super) text: String,
    format: Format,
}

/// One family in it.
#[derive(Debug)]
pub(super) struct FamilyText<'t> {
    text: &'t mut String,
    format: Format,
    family: Family,
    /// What each of its lines begins with.
    name: String,
    is_begun: bool,
}

impl SeriesText {
    /// Goes on with `text`.
    pub(super) fn after(text: String, format: Format) -> Self {
        Self { text, format }
    }

    /// Begins a family, of which there is nothing where it has no series.
    pub(super) fn family(&mut self, family: Family) -> FamilyText<'_> {
        let mut name = base_name(family);
        name.push_str(family.kind.suffix());
        let (text, format) = (&mut self.text, self.format);
        FamilyText { text, format, family, name, is_begun: false }
    }
}

impl FamilyText<'_> {
    /// Adds the series that has these `labels`, which are text already, and up to one more.
    pub(super) fn add(&mut self, labels: &str, more: Option<(&str, &str)>, value: Value) {
        if !self.is_begun {
            self.is_begun = true;
            self.begin();
        }
        let text = &mut *self.text;
        text.push_str(&self.name);
        text.push('{');
        text.push_str(labels);
        if let Some((name, value)) = more {
            push_label(text, name, value);
        }
        text.push_str("} ");
        // Writing to a string can't fail.
        let _ = match value {
            Value::Count(count) => writeln!(text, "{count}"),
            Value::Real(real) => writeln!(text, "{real:?}"),
        };
    }

    fn begin(&mut self) {
        let Self { text, format, family, name, .. } = self;
        let base = base_name(*family);
        let (name, kind) = match format {
            Format::OpenMetrics => (&base, family.kind.open_metrics()),
            Format::PrometheusText => (&*name, family.kind.prometheus_text()),
        };
        let _ = writeln!(text, "# HELP {name} {}\n# TYPE {name} {kind}", family.help);
        if let (Format::OpenMetrics, Some(unit)) = (format, family.unit) {
            let _ = writeln!(text, "# UNIT {name} {}", unit.as_str());
        }
    }
}

/// The family's name in full, but for what its kind adds.
fn base_name(family: Family) -> String {
    let unit = family.unit.map(|unit| format!("_{}", unit.as_str())).unwrap_or_default();
    format!("{PREFIX}{}{unit}", family.name)
}

impl Kind {
    /// What a series of this kind has at the end of its name.
    fn suffix(self) -> &'static str {
        match self {
            Self::Gauge => "",
            Self::Counter => "_total",
            Self::Info => "_info",
        }
    }

    fn open_metrics(self) -> &'static str {
        match self {
            Self::Gauge => "gauge",
            Self::Counter => "counter",
            Self::Info => "info",
        }
    }

    fn prometheus_text(self) -> &'static str {
        match self {
            Self::Gauge | Self::Info => "gauge",
            Self::Counter => "counter",
        }
    }
}

/// Appends a label, after a comma where there is one before it. What a text must not have as it is, is escaped.
pub(super) fn push_label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() && !labels.ends_with('{') {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    for c in value.chars() {
        match c {
            '\\' => labels.push_str("\\\\"),
            '"' => labels.push_str("\\\""),
            '\n' => labels.push_str("\\n"),
            other => labels.push(other),
        }
    }
    labels.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    type Series<'a> = (&'a str, Option<(&'a str, &'a str)>, Value);

    fn text(format: Format, family: Family, series: &[Series<'_>]) -> String {
        let mut text = SeriesText::after(String::new(), format);
        let mut written = text.family(family);
        series.iter().for_each(|(labels, more, value)| written.add(labels, *more, *value));
        text.text
    }

    #[test]
    fn a_family_has_its_name_unit_and_kind_as_each_format_wants_them() {
        let family = Family::counter("vm_storage", "Bytes.").bytes();
        let series = [("vm=\"a\"", Some(("operation", "read")), Value::Count(7))];
        let open = "# HELP flatline_vm_storage_bytes Bytes.\n# TYPE flatline_vm_storage_bytes counter\n\
                    # UNIT flatline_vm_storage_bytes bytes\n\
                    flatline_vm_storage_bytes_total{vm=\"a\",operation=\"read\"} 7\n";
        assert_eq!(text(Format::OpenMetrics, family, &series), open);
        let old = "# HELP flatline_vm_storage_bytes_total Bytes.\n# TYPE flatline_vm_storage_bytes_total counter\n\
                   flatline_vm_storage_bytes_total{vm=\"a\",operation=\"read\"} 7\n";
        assert_eq!(text(Format::PrometheusText, family, &series), old);
        assert_eq!(text(Format::OpenMetrics, family, &[]), "");
        let gauge =
            text(Format::OpenMetrics, Family::gauge("vm", "A."), &[("", None, Value::Real(4.0))]);
        assert!(gauge.ends_with("\nflatline_vm{} 4.0\n"), "{gauge}");
    }

    #[test]
    fn a_name_from_outside_ends_no_label() {
        let mut labels = String::new();
        push_label(&mut labels, "vm", "a\"} 1\n\\");
        push_label(&mut labels, "pid", "7");
        assert_eq!(labels, r#"vm="a\"} 1\n\\",pid="7""#);
    }
}
