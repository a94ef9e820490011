//! `docs/verdicts.md`: several tasks write a section of it each, and keep the others'.

use std::path::Path;

use anyhow::{Context, Result};

const TITLE: &str = "# Verdicts\n";

/// A section, in the order in which they stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Section {
    /// Each scenario.
    Matrix,
    /// What registers may convict, which no task measures: it is kept beside the tasks.
    Registers,
    /// Sensors taken away.
    Sensors,
    /// Many guests for long.
    Soak,
}

const SECTIONS: [Section; 4] =
    [Section::Matrix, Section::Registers, Section::Sensors, Section::Soak];
const REGISTERS: &str = include_str!("verdicts/registers.md");

impl Section {
    fn name(self) -> &'static str {
        match self {
            Self::Matrix => "matrix",
            Self::Registers => "registers",
            Self::Sensors => "sensors",
            Self::Soak => "soak",
        }
    }

    fn markers(self) -> [String; 2] {
        ["begin", "end"].map(|end| format!("<!-- {end}: {} -->\n", self.name()))
    }
}

/// Writes a section into the file, which is made if it is not there.
///
/// # Errors
///
/// If the file cannot be read or written.
pub(crate) fn put(path: &Path, section: Section, text: &str) -> Result<()> {
    let before = match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        read => read.with_context(|| format!("could not read {}", path.display()))?,
    };
    path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
    std::fs::write(path, with(&before, section, text))
        .with_context(|| format!("could not write {}", path.display()))
}

/// The file's new content. What stands outside of all markers is no section's, and goes.
fn with(before: &str, section: Section, text: &str) -> String {
    let mut all = TITLE.to_owned();
    for each in SECTIONS {
        let [begin, end] = each.markers();
        let content = match each {
            Section::Registers => Some(REGISTERS),
            _ if each == section => Some(text),
            _ => between(before, &begin, &end),
        };
        if let Some(content) = content {
            all.push_str(&format!("\n{begin}{}\n{end}", content.trim_end()));
        }
    }
    all
}

fn between<'a>(text: &'a str, begin: &str, end: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(begin)?;
    rest.split_once(end).map(|(content, _)| content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_has_the_table_of_what_registers_may_convict() {
        let path = crate::process::workspace_root().join("docs/verdicts.md");
        let document = std::fs::read_to_string(path).unwrap();
        let [begin, end] = Section::Registers.markers();
        assert_eq!(between(&document, &begin, &end), Some(REGISTERS));
    }

    #[test]
    fn a_section_is_replaced_and_the_others_are_kept_in_their_order() {
        let first = with("", Section::Soak, "## Soak\n\nthe first one\n");
        let second = with(&first, Section::Matrix, "## Each\n");
        let third = with(&second, Section::Soak, "## Soak\n\nthe second one\n");
        assert!(third.starts_with("# Verdicts\n\n<!-- begin: matrix -->\n## Each\n"));
        assert!(third.contains("the second one") && !third.contains("the first one"), "{third}");
        assert!(third.find("## Each") < third.find("## Soak"));
        assert_eq!(with(&third, Section::Soak, "## Soak\n\nthe second one\n"), third);
    }
}
