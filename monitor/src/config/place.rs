//! Where something stands in the file: its line, and the key with its tables.
//!
//! The key of a place is looked up in the parsed document rather than carried beside each value: this also names the key
//! for errors that serde finds.

use toml::de::{DeTable, DeValue};

/// The line of the byte `offset`, counted from 1.
pub(super) fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// The key, with the tables around it, whose name or value covers the byte `offset`; empty if
/// there is none.
pub(super) fn key_at(text: &str, offset: usize) -> String {
    // Of a torn file, what could be read names the key before the tear, on the same line.
    let (table, _) = DeTable::parse_recoverable(text);
    let line = text.get(..offset).and_then(|before| before.rfind('\n')).map_or(0, |end| end + 1);
    (line..=offset).rev().find_map(|at| in_table(table.get_ref(), at)).unwrap_or_default()
}

fn in_table(table: &DeTable<'_>, offset: usize) -> Option<String> {
    // A deeper key first: the span of a table covers its header only, or all of its values.
    let deeper = table.iter().find_map(|(key, value)| {
        let below = match value.get_ref() {
            DeValue::Table(table) => format!(".{}", in_table(table, offset)?),
            DeValue::Array(items) => items.iter().enumerate().find_map(|(index, item)| {
                let inner = match item.get_ref() {
                    DeValue::Table(table) => in_table(table, offset).map(|key| format!(".{key}")),
                    _ => None,
                };
                let here = item.span().contains(&offset).then(String::new);
                inner.or(here).map(|rest| format!("[{index}]{rest}"))
            })?,
            _ => return None,
        };
        Some(format!("{}{below}", key.get_ref()))
    });
    deeper.or_else(|| {
        table.iter().find_map(|(key, value)| {
            let covers = key.span().contains(&offset) || value.span().contains(&offset);
            covers.then(|| key.get_ref().to_string())
        })
    })
}
