//! The formats that a client may ask for.

use super::*;

#[test]
fn a_client_of_only_the_old_text_format_gets_it_with_the_same_names_and_values() {
    let samples = |text: &str| {
        let lines = text.lines().filter(|line| !line.starts_with('#')).map(sample);
        let mut samples: Vec<Sample> = lines.collect();
        // The two write bounds differently: 1.0 and 1.
        for bound in samples.iter_mut().filter_map(|sample| sample.labels.get_mut("le")) {
            *bound = bound.parse::<f64>().expect("a number").to_string();
        }
        samples.sort_by_key(|sample| (sample.name.clone(), sample.labels.clone()));
        samples
    };
    let open = text(snapshot(vec![vm("web-1", 7)]), Format::OpenMetrics);
    let old = text(snapshot(vec![vm("web-1", 7)]), Format::PrometheusText);
    assert!(!old.contains("# EOF") && !old.contains("# UNIT"), "{old}");
    assert!(old.contains("# TYPE flatline_vm_network_receive_bytes_total counter\n"), "{old}");
    assert!(old.contains("# TYPE flatline_vm_info gauge\n"), "{old}");
    // The process goes on between the two.
    let of_flatline = |mut all: Vec<Sample>| {
        all.retain(|sample| sample.name.starts_with("flatline_"));
        all
    };
    let (open, old) = (of_flatline(samples(&open)), of_flatline(samples(&old)));
    assert_eq!(open.len(), old.len());
    for (open, old) in open.iter().zip(&old) {
        assert_eq!(open, old);
    }
}

#[test]
fn a_client_gets_open_metrics_unless_it_asks_for_something_else() {
    use Format::{OpenMetrics, PrometheusText};
    for (accept, format) in [
        (None, OpenMetrics),
        (Some("*/*"), OpenMetrics),
        (Some("text/html,*/*;q=0.8"), OpenMetrics),
        // Prometheus 2.53 by default.
        (
            Some(
                "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;\
                 version=0.0.1;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ),
            OpenMetrics,
        ),
        (Some("text/plain;version=0.0.4;q=1,*/*;q=0.1"), PrometheusText),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept:?}");
    }
}
