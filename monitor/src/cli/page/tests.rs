use std::time::{Duration, SystemTime};

use flatline::report::incident::{Incident, Outcome};
use flatline::report::recording::file::Reader;

use super::recorded::Recorded;
use super::{File, page};

/// A guest that works, panics and spins: the recording of its last minutes.
const RECORDING: &[u8] = include_bytes!("../../../../fuzz/corpus-seeds/recording/file");

fn incident() -> Incident {
    let text = |text: &str| text.to_owned();
    let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000 + second);
    let reason = text("a vCPU was pinned");
    Incident {
        action: Some(text("system_reset")),
        action_at: Some(at(12)),
        outcome: Some(Outcome::Recovered),
        last_sign_of_life: Some(at(0)),
        recovered_at: Some(at(20)),
        detect_seconds: Some(11.5),
        recover_seconds: Some(8.0),
        ..Incident::new(
            text("20270115T080011Z-web-1"),
            text("web-1"),
            text("spinning"),
            reason,
            at(11),
        )
    }
}

fn file(name: &str, content: &[u8]) -> File {
    (name.to_owned(), Some(content.to_owned()))
}

/// The names of all elements of a page, in order.
fn elements(page: &str) -> Vec<&str> {
    let names = page.split('<').skip(1).map(|rest| {
        rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '!' && c != '/').next()
    });
    names.flatten().collect()
}

#[test]
fn the_page_tells_what_happened_when_in_order() {
    let page = page(&incident(), &[]);
    let places: Vec<usize> = [
        "<h1>web-1: crashed, was restarted, and came back</h1>",
        "flatline was sure of it 11.5 s after its last sign of life.",
        "2027-01-15T08:00:00Z",
        "+0 s",
        "last sign of life",
        "+11 s",
        "spinning: a vCPU was pinned",
        "QEMU was told: system_reset",
        "+20 s",
        "lives again",
        "The guest showed life again.",
        "<h2>Why</h2>",
        "<h2>The guest's lines</h2>",
        "Nothing was recorded",
        "There is no picture of it",
        "None was kept.",
        "20270115T080011Z-web-1",
    ]
    .iter()
    .scan(0, |from, part| {
        let at = page[*from..].find(part).unwrap_or_else(|| panic!("no {part:?} in {page}"));
        *from += at;
        Some(*from)
    })
    .collect();
    assert!(places.is_sorted());
}

#[test]
fn nothing_in_the_page_is_fetched_or_run() {
    let png = b"\x89PNG\r\n\x1a\nrest";
    let files = [file("screen.png", png), file("recording.flr", RECORDING)];
    let page = page(&incident(), &files);
    assert!(page.contains("src=\"data:image/png;base64,iVBORw0KGgpyZXN0\""), "{page}");
    assert!(page.contains("default-src 'none'; img-src data:; style-src 'unsafe-inline'"));
    for part in ["http://", "https://", "url(", "@import", "<script", "<link", "javascript:"] {
        assert!(!page.contains(part), "{part} in {page}");
    }
    let tags = page.split('<').filter_map(|rest| rest.split('>').next());
    for tag in tags {
        assert!(!tag.split_whitespace().any(|word| word.starts_with("on")), "<{tag}>");
    }
}

#[test]
fn no_text_of_a_guest_or_a_qemu_becomes_markup() {
    let evil = "</pre></title><script>alert(1)</script><img src=x onerror=\"x\">'\u{202e}\u{1b}[2J";
    let hostile = Incident {
        id: evil.to_owned(),
        vm: evil.to_owned(),
        uuid: Some(evil.to_owned()),
        cause: evil.to_owned(),
        reason: evil.to_owned(),
        action: Some(evil.to_owned()),
        ..incident()
    };
    let files =
        [file(evil, evil.as_bytes()), file("console.txt", b"<b>\xff\0"), (evil.to_owned(), None)];
    let page = page(&hostile, &files);
    let own = [
        "!doctype", "html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p",
        "table", "tr", "td", "th", "time", "q", "details", "summary", "pre", "footer", "code",
    ];
    for element in elements(&page) {
        assert!(own.contains(&element.trim_start_matches('/')), "<{element}");
    }
    assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    assert!(!page.contains('\u{202e}') && !page.contains('\u{1b}') && !page.contains('\0'));
}

#[test]
fn what_is_missing_is_said_and_what_is_no_png_is_not_shown() {
    let files = [
        ("screen.png".to_owned(), None),
        ("registers.txt".to_owned(), None),
        file("recording.flr", b"not one"),
    ];
    let missing = page(&incident(), &files);
    assert!(
        missing.contains("There is no picture of it") && missing.contains("It is no longer kept.")
    );
    assert!(missing.contains("not a recording of flatline&#39;s"), "{missing}");
    let files = [file("screen.png", b"<svg onload=alert(1)>")];
    assert!(!page(&incident(), &files).contains("<img"));
}

/// An incident that fits the recording.
fn of_the_recording() -> Incident {
    let recorded = Recorded::read(RECORDING);
    let at = |second: u64| recorded.begins + Duration::from_secs(second);
    let seconds = recorded.history.seconds as u64;
    Incident {
        last_sign_of_life: Some(at(seconds / 2)),
        detected_at: at(seconds - 2),
        action_at: Some(at(seconds - 1)),
        recovered_at: None,
        ..incident()
    }
}

#[test]
fn the_lines_are_drawn_with_what_was_decided_across_them() {
    let mut reader = Reader::new(RECORDING, std::path::Path::new("x")).expect("a recording");
    while let Some(_segment) = reader.next_segment().expect("whole") {}
    let page = page(&of_the_recording(), &[file("recording.flr", RECORDING)]);
    for part in [
        "<svg viewBox=",
        ">packets sent</text>",
        ">packets to it</text>",
        ">requests done</text>",
        ">busiest vCPU</text>",
        "80 % pinned",
        "1 % still",
        "class=\"line\"",
        "class=\"silent\"",
        "class=\"mark life\"",
        ">last sign of life</text>",
        "A column is a second.",
    ] {
        assert!(page.contains(part), "no {part:?} in {page}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
}

#[test]
fn a_torn_recording_is_drawn_up_to_the_tear_which_is_said() {
    let torn = &RECORDING[..RECORDING.len() - 3];
    let page = page(&of_the_recording(), &[file("recording.flr", torn)]);
    assert!(page.contains("torn at byte "), "{page}");
}
