//! What a dashboard of Grafana's asks Prometheus for.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A question of one panel, or of what is marked in all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The panel's title.
    pub panel: String,
    /// The expression, with Grafana's variables in it.
    pub expression: String,
}

impl Question {
    /// As Grafana asks it where all hosts and VMs are chosen: a step of the graph is `step`, and all of it `range`.
    ///
    /// # Errors
    ///
    /// If there is a variable that isn't known.
    pub fn of_all(&self, step: &str, range: &str) -> Result<String> {
        let values = [
            ("$__rate_interval", step),
            ("$__interval", step),
            ("$__range", range),
            ("$host", ".*"),
            ("$vm", ".*"),
        ];
        let replace = |text: String, (name, value): &(&str, &str)| text.replace(name, value);
        let asked = values.iter().fold(self.expression.clone(), replace);
        ensure!(!asked.contains('$'), "{}: an unknown variable: {asked}", self.panel);
        Ok(asked)
    }
}

/// All that the dashboard asks for.
///
/// # Errors
///
/// If it is no JSON, or has no panels.
pub fn questions(dashboard: &str) -> Result<Vec<Question>> {
    let dashboard: Value = serde_json::from_str(dashboard).context("the dashboard is no JSON")?;
    ensure!(dashboard["panels"].is_array(), "the dashboard has no panels");
    let mut all = Vec::new();
    collect(&dashboard, "", &mut all);
    Ok(all)
}

fn collect(value: &Value, panel: &str, all: &mut Vec<Question>) {
    match value {
        Value::Object(fields) => {
            let title = fields.get("title").or(fields.get("name")).and_then(Value::as_str);
            let panel = title.unwrap_or(panel);
            if let Some(expression) = fields.get("expr").and_then(Value::as_str) {
                all.push(Question { panel: panel.to_owned(), expression: expression.to_owned() });
            }
            fields.values().for_each(|field| collect(field, panel, all));
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, panel, all)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHIPPED: &str = include_str!("../../monitor/packaging/grafana/flatline.json");

    #[test]
    fn every_panel_of_the_shipped_dashboard_asks_for_something_of_the_chosen_source() {
        let dashboard: Value = serde_json::from_str(SHIPPED).unwrap();
        let panels = dashboard["panels"].as_array().unwrap();
        let mut ids: Vec<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), panels.len(), "two panels have one number");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{}", panel["title"]);
            let mut asked = Vec::new();
            collect(panel, "", &mut asked);
            assert!(!asked.is_empty(), "{}", panel["title"]);
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')));
        }
        let variables = dashboard["templating"]["list"].as_array().unwrap();
        let names: Vec<_> = variables.iter().filter_map(|one| one["name"].as_str()).collect();
        assert_eq!(names, ["datasource", "host", "vm"]);
    }

    #[test]
    fn panels_lie_side_by_side_and_not_on_one_another() {
        let dashboard: Value = serde_json::from_str(SHIPPED).unwrap();
        let mut taken = std::collections::BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let [x, y, w, h] =
                ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24, "{}", panel["title"]);
            for place in (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))) {
                assert!(taken.insert(place), "{} lies on another panel", panel["title"]);
            }
        }
    }

    #[test]
    fn a_question_is_asked_of_all_and_with_no_variable_left() {
        let questions = questions(SHIPPED).unwrap();
        assert!(questions.len() > 30, "{}", questions.len());
        for question in questions {
            question.of_all("5m", "1h").unwrap();
        }
        let question =
            |expression: &str| Question { panel: "p".into(), expression: expression.into() };
        let asked = question("rate(a{vm=~\"$vm\"}[$__rate_interval])").of_all("5m", "1h").unwrap();
        assert_eq!(asked, "rate(a{vm=~\".*\"}[5m])");
        assert!(question("a{b=\"$c\"}").of_all("5m", "1h").is_err());
    }
}
