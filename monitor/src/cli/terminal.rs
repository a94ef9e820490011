//! What the terminal can show, as its environment says.

use std::env;
use std::io::{IsTerminal as _, stdout};

/// Terminals that have no colours, by the beginning of `TERM`: a dumb one has nothing at all.
const WITHOUT_COLOURS: [&str; 2] = ["dumb", "vt"];

/// A variable that is set to something.
fn set(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The terminal's columns; `None` where standard output is none, or doesn't tell.
pub(super) fn columns() -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// Whether it shows Unicode. Where the answer goes to a file, the locale still says what is read there.
pub(super) fn unicode() -> bool {
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set).unwrap_or_default();
    let locale = locale.to_ascii_lowercase();
    set("NO_UNICODE").is_none() && (locale.contains("utf-8") || locale.contains("utf8"))
}

/// Whether standard output is a terminal with colours, and it was not asked for none (<https://no-color.org>).
pub(super) fn colours() -> bool {
    stdout().is_terminal() && set("NO_COLOR").is_none() && has_colours(set("TERM").as_deref())
}

fn has_colours(term: Option<&str>) -> bool {
    term.is_some_and(|term| {
        !term.ends_with("-mono")
            && !term.ends_with("-m")
            && !WITHOUT_COLOURS.iter().any(|begin| term.starts_with(begin))
    })
}

#[cfg(test)]
mod tests {
    use super::has_colours;

    #[test]
    fn a_dumb_terminal_and_a_vt100_have_no_colours() {
        for term in [None, Some("dumb"), Some("vt100"), Some("vt220"), Some("xterm-mono")] {
            assert!(!has_colours(term), "{term:?}");
        }
        for term in ["xterm-256color", "linux", "screen", "tmux-256color"] {
            assert!(has_colours(Some(term)), "{term}");
        }
    }
}
