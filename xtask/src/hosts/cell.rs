//! What came of a trial on a host: a line of JSON on that machine's serial line, and a cell of the document.

use serde::{Deserialize, Serialize};

/// A cell. Its host prints it, and the task keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cell {
    /// The column's name.
    pub(super) column: String,
    /// What came of it, or why it was not played.
    pub(super) text: String,
    /// Whether it is as is due; `None` where it was not played.
    pub(super) as_due: Option<bool>,
    /// More, for a section below the tables, or for the terminal: what was printed, or a log.
    pub(super) detail: Option<String>,
}

impl Cell {
    /// One that was played.
    pub(super) fn played(column: &str, text: impl Into<String>, as_due: bool) -> Self {
        Self { column: column.to_owned(), text: text.into(), as_due: Some(as_due), detail: None }
    }

    /// One that was not, and why.
    pub(super) fn empty(column: &str, why: impl Into<String>) -> Self {
        Self { column: column.to_owned(), text: why.into(), as_due: None, detail: None }
    }

    pub(super) fn with_detail(self, detail: impl Into<String>) -> Self {
        Self { detail: Some(detail.into()), ..self }
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
    fn a_cell_is_found_in_a_line_whatever_stands_before_it() {
        let cell = Cell::played("halt", "halted, 10.2 s", true).with_detail("a \"log\"\n");
        let line = format!("[   12.3] random: {}\r", serde_json::to_string(&cell).unwrap());
        assert_eq!(Cell::parse(&line), Some(cell));
        assert_eq!(Cell::parse("{\"col"), None);
        assert_eq!(Cell::parse("{\"column\":\"halt\",\"te"), None);
    }
}
