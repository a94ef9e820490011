//! Documents, alerts and the dashboard name what is served.

use super::*;

#[test]
fn every_family_is_described_and_documented() {
    let documented = include_str!("../../../../docs/metrics.md");
    let is_family = |word: &str| ["flatline_", "process_"].iter().any(|own| word.starts_with(own));
    let families = served(vec![vm("web-1", 7)]);
    assert!(families.len() > 40, "{}", families.len());
    for (name, family) in &families {
        assert!(is_family(name), "{name}");
        assert!(family.help.ends_with('.') && family.help.len() > 5, "{name}: {}", family.help);
        assert!(!family.help.contains(".."), "{name}: {}", family.help);
        let is_metered = ["_seconds", "_bytes"].into_iter().find(|unit| name.ends_with(unit));
        assert_eq!(family.unit.as_deref(), is_metered.map(|unit| &unit[1..]), "{name}");
        let exposed = match family.kind.as_str() {
            "counter" => format!("`{name}_total`"),
            "info" => format!("`{name}_info`"),
            _ => format!("`{name}`"),
        };
        assert!(documented.contains(&exposed), "docs/metrics.md lacks {exposed}");
    }
    for name in documented.split('`').filter(|word| is_family(word)) {
        let is_there = families.keys().any(|family| {
            ["", "_total", "_info"].iter().any(|suffix| *name == format!("{family}{suffix}"))
        });
        assert!(is_there, "docs/metrics.md has {name}, which isn't served");
    }
}

/// Every name of a figure in these expressions is served; returns how many there are.
fn assert_served<'a>(expressions: impl Iterator<Item = &'a str>) -> usize {
    let served = text(snapshot(vec![vm("web-1", 7)]), Format::OpenMetrics);
    let is_in_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut names = 0;
    for word in expressions.flat_map(|expression| expression.split(move |c| !is_in_a_name(c))) {
        if word.starts_with("flatline_") || word.starts_with("process_") {
            names += 1;
            let is_it = |line: &str| {
                line.strip_prefix(word).is_some_and(|rest| rest.starts_with(['{', ' ']))
            };
            // A histogram of incidents has no series before the first one.
            let family =
                word.strip_suffix("_bucket").map(|family| format!("# TYPE {family} histogram"));
            let is_there =
                served.lines().any(|line| is_it(line) || family.as_deref() == Some(line));
            assert!(is_there, "{word} is not served");
        }
    }
    names
}

#[test]
fn every_figure_that_an_alert_rests_on_is_served() {
    let rules = include_str!("../../../packaging/prometheus/flatline.rules.yml");
    let names = assert_served(rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")));
    assert!(names > 10, "{names}");
}

#[test]
fn every_figure_that_the_dashboard_shows_is_served() {
    let dashboard = include_str!("../../../packaging/grafana/flatline.json");
    let expressions = dashboard.lines().filter(|line| {
        ["\"expr\": ", "\"query\": "].iter().any(|key| line.trim().starts_with(key))
    });
    let names = assert_served(expressions);
    assert!(names > 40, "{names}");
}

#[test]
fn every_alert_is_documented_where_its_runbook_says() {
    let rules = include_str!("../../../packaging/prometheus/flatline.rules.yml");
    let documented = include_str!("../../../../docs/metrics.md");
    let of = |key: &'static str| {
        rules.lines().filter_map(move |line| line.trim().strip_prefix(key)).collect::<Vec<_>>()
    };
    let alerts = of("- alert: ");
    let runbooks: Vec<String> = alerts
        .iter()
        .map(|alert| format!("\"docs/metrics.md#{}\"", alert.to_lowercase()))
        .collect();
    assert_eq!(of("runbook: "), runbooks);
    for alert in &alerts {
        assert!(documented.contains(&format!("\n### {alert}\n")), "docs/metrics.md lacks {alert}");
    }
    assert_eq!(documented.matches("\n### ").count(), alerts.len(), "one that there is no more");
}
