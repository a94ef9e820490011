//! What came of a trial on a host: a line of JSON on that machine's serial line, and a cell of the document.

use serde::{Deserialize, Serialize};

/// A cell. Its host prints it, and the task keeps it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Cell {
    /// The column's name.
    pub(super) column: String,
    /// What came of it, or why it was not played.
    pub(super) text: String,
    /// Whether it is as is due; `None` where it was not played.
    pub(super) as_due: Option<bool>,
    /// More, for a section below the tables, or for the terminal: what was printed, or a log.
    pub(super) detail: Option<String>,
    /// Of a crash that was found too late for a host that has its CPUs to itself.
    #[serde(default)]
    pub(super) overdue: Option<Overdue>,
}

/// When a crash was and when it was found, both in seconds before its cell was told; by how many seconds that is too late, and
/// how many of them the host kept the daemon and the guest from its CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Overdue {
    pub(super) fault_ago: f64,
    pub(super) verdict_ago: f64,
    pub(super) by: f64,
    pub(super) withheld: f64,
}

impl Cell {
    /// One that was played.
    pub(super) fn played(column: &str, text: impl Into<String>, as_due: bool) -> Self {
        let as_due = Some(as_due);
        Self { column: column.to_owned(), text: text.into(), as_due, detail: None, overdue: None }
    }

    /// One that was not, and why.
    pub(super) fn empty(column: &str, why: impl Into<String>) -> Self {
        let column = column.to_owned();
        Self { column, text: why.into(), as_due: None, detail: None, overdue: None }
    }

    /// One that could not be played, and why.
    pub(super) fn unplayed(column: &str, error: &anyhow::Error) -> Self {
        Self::empty(column, format!("not played: {error:#}"))
    }

    pub(super) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
    }

    /// Judges what is overdue by how long this machine kept the host from its CPUs between two moments, both in seconds ago:
    /// the host takes that for time like any other. The greater of both counts: a program that waits inside does so on a CPU
    /// that may wait itself.
    pub(super) fn settled(mut self, withheld: impl FnOnce(f64, f64) -> f64) -> Self {
        let Some(overdue) = self.overdue.take() else { return self };
        let Overdue { fault_ago, verdict_ago, by, withheld: inside } = overdue;
        let withheld = inside.max(withheld(fault_ago, verdict_ago));
        self.text.push_str(&format!("; {withheld:.1} s of it without a CPU"));
        self.as_due = self.as_due.map(|as_due| as_due && withheld >= by);
        self
    }

    /// The cell that a line of a serial console holds; none if it is another kind of line.
    pub(super) fn parse(line: &str) -> Option<Self> {
        // What the kernel prints may stand before it.
        let at = line.find("{\"column\":")?;
        serde_json::from_str(line[at..].trim_end()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_overdue_is_excused_by_what_was_withheld_and_by_no_less() {
        let overdue = Overdue { fault_ago: 20.0, verdict_ago: 5.0, by: 2.5, withheld: 0.5 };
        let cell = Cell { overdue: Some(overdue), ..Cell::played("halt", "15.0 s", true) };
        let settled = |withheld: f64| cell.clone().settled(|_, _| withheld);
        assert_eq!(settled(2.4).as_due, Some(false), "what was withheld inside is not added");
        assert_eq!(settled(2.5).as_due, Some(true));
        assert_eq!(settled(2.5).text, "15.0 s; 2.5 s of it without a CPU");
        assert_eq!(settled(0.1).text, "15.0 s; 0.5 s of it without a CPU");
        let in_time = Cell::played("halt", "10.2 s", true);
        assert_eq!(in_time.clone().settled(|_, _| 9.0), in_time);
    }

    #[test]
    fn a_cell_is_found_in_a_line_whatever_stands_before_it() {
        let cell = Cell::played("halt", "halted, 10.2 s", true).with_detail("a \"log\"\n");
        let line = format!("[   12.3] random: {}\r", serde_json::to_string(&cell).unwrap());
        assert_eq!(Cell::parse(&line), Some(cell));
        assert_eq!(Cell::parse("{\"col"), None);
        assert_eq!(Cell::parse("{\"column\":\"halt\",\"te"), None);
    }
}
