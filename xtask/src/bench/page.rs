//! A page that is open on the list: which questions it asks, as its own script has them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// What asks in a browser. Its question is taken from there, so that both ask the same.
const SCRIPT: &str = include_str!("../../../monitor/src/web/page/vms.js");
const QUESTION: &str = "const QUESTION = \"";
/// Rows that a screen of 1,440 lines has, and those close to it, which are drawn as well.
const IN_SIGHT: usize = 40;
/// Time from one question to the next.
const EVERY: Duration = Duration::from_secs(1);
/// Time from when rows come in sight until they are asked for.
const SOON: Duration = Duration::from_millis(200);

/// What it knows by now.
#[derive(Debug, Default)]
pub(crate) struct Page {
    /// Up to where it knows all rows.
    since: String,
    /// By pid: those that need a look first, by name.
    order: BTreeMap<u64, (bool, String)>,
    /// By pid, the last tick that it has.
    lines: BTreeMap<u64, u64>,
    in_sight: BTreeSet<u64>,
}

impl Page {
    /// What it asks for next.
    ///
    /// # Errors
    /// If the script has no question any more.
    pub(crate) fn question(&self) -> Result<String> {
        let question = SCRIPT.split_once(QUESTION).and_then(|(_, rest)| rest.split_once('"'));
        let (question, _) = question.context("the page's script asks in another way")?;
        let lines = self.in_sight.iter().map(|pid| match self.lines.get(pid) {
            Some(tick) => format!("{pid}.{tick}"),
            None => pid.to_string(),
        });
        let lines = lines.collect::<Vec<_>>().join(",");
        let question = question.replace("{since}", &self.since).replace("{lines}", &lines);
        Ok(question.replace("{figures}", ""))
    }

    /// Takes note of an answer. Returns the time until the next question.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn take(&mut self, answer: &str) -> Result<Duration> {
        let answer: Value = serde_json::from_str(answer).context("the page's answer is no JSON")?;
        let each = |of: &str| answer[of].as_array().cloned().unwrap_or_default();
        if answer["is_whole"] == true {
            self.order.clear();
            self.lines.clear();
        }
        for pid in each("gone").iter().filter_map(Value::as_u64) {
            self.order.remove(&pid);
            self.lines.remove(&pid);
        }
        for row in each("vms") {
            let name = row["name"].as_str().context("a row without a name")?;
            let pid = row["pid"].as_u64().context("a row without a pid")?;
            self.order.insert(pid, (row["state"] == "alive", name.to_owned()));
        }
        for line in each("lines") {
            let (pid, tick) = (line["pid"].as_u64(), line["tick"].as_u64());
            let (pid, tick) = pid.zip(tick).context("a line without a pid or tick")?;
            self.lines.insert(pid, tick);
        }
        self.since = answer["since"].as_str().context("the answer says not since when")?.to_owned();
        let mut order: Vec<_> = self.order.iter().map(|(pid, order)| (order, *pid)).collect();
        order.sort_unstable();
        let in_sight: BTreeSet<u64> = order.iter().take(IN_SIGHT).map(|(_, pid)| *pid).collect();
        let is_news = in_sight.difference(&self.in_sight).next().is_some();
        self.in_sight = in_sight;
        Ok(if is_news { SOON } else { EVERY })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_as_often_as_the_script_does_and_for_the_same() {
        let list = include_str!("../../../monitor/src/web/page/list.js");
        assert!(list.contains(&format!("this.every = {};", EVERY.as_millis())));
        let main = include_str!("../../../monitor/src/web/page/main.js");
        assert!(main.contains(&format!("const SOON_MS = {};", SOON.as_millis())));
        let mut page = Page::default();
        assert_eq!(page.question().expect("one"), "/api/list?since=&lines=&figures=");
        let answer = r#"{"since": "a-1", "is_whole": true, "gone": [], "lines": [{"pid": 7, "tick": 5}],
            "vms": [{"pid": 7, "name": "b", "state": "alive"}, {"pid": 8, "name": "a", "state": "alive"}]}"#;
        assert_eq!(page.take(answer).expect("an answer"), SOON);
        assert_eq!(page.question().expect("one"), "/api/list?since=a-1&lines=7.5,8&figures=");
        let answer = r#"{"since": "a-2", "is_whole": false, "gone": [8], "lines": [], "vms": []}"#;
        assert_eq!(page.take(answer).expect("an answer"), EVERY);
        assert_eq!(page.question().expect("one"), "/api/list?since=a-2&lines=7.5&figures=");
    }
}
