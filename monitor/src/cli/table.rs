//! Text for terminals: aligned columns, times, and no control characters from guests.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use flatline::report::rfc3339;

/// `text` with everything escaped that could move the cursor, end a line, or turn the direction
/// of writing: names and reasons come from people and from guests.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // Marks, embeddings and isolates that reorder what stands beside them.
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                out.extend(c.escape_unicode());
            }
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Rows in columns that are as wide as their widest cell, two spaces between them. Cells are made
/// [`safe`]; the last column isn't padded.
pub(super) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) -> String {
    let rows = std::iter::once(header.map(str::to_owned)).chain(rows.iter().cloned());
    let rows = rows.map(|row| row.map(|cell| safe(&cell))).collect::<Vec<_>>();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    let mut out = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Lines of a name and a value, the values below each other.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for (name, value) in fields {
        let line = format!("{name:width$}  {}", safe(value));
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// `value`, or a dash for what isn't known or didn't happen.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// A time that may not be known.
pub(super) fn time(time: Option<SystemTime>) -> String {
    or_dash(time.map(rfc3339::format))
}

/// Seconds with one decimal, or a dash.
pub(super) fn seconds(seconds: Option<f64>) -> String {
    or_dash(seconds.map(|seconds| format!("{seconds:.1}s")))
}

/// A duration as it would stand in the configuration.
pub(super) fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string().replace(' ', "")
}

#[cfg(test)]
mod tests {
    use super::{fields, safe, table};

    #[test]
    fn control_characters_and_direction_marks_are_escaped_and_letters_are_not() {
        assert_eq!(safe("a\x1b[2J\nb\u{9b}\u{202e}"), "a\\u{1b}[2J\\nb\\u{9b}\\u{202e}");
        assert_eq!(safe("wéb \"1\" \\"), "wéb \"1\" \\");
    }

    #[test]
    fn columns_are_aligned_by_characters_after_escaping() {
        let rows = [["é".to_owned(), "x".to_owned()], ["a\n".to_owned(), String::new()]];
        assert_eq!(table(["N", "LAST"], &rows), "N    LAST\né    x\na\\n\n");
        assert_eq!(
            fields(&[("a", "1".to_owned()), ("long", "2".to_owned())]),
            "a     1\nlong  2\n"
        );
    }
}
