use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::Config;
use crate::storage::incident::{Attempt, Incident, Outcome};
use flatline_detector::activity::{Activity, NetworkActivity, StorageActivity, VcpuActivity};
use flatline_detector::recording::file::to_bytes;
use flatline_detector::recording::{Header, Limits, Recording, Ring};
use flatline_detector::verdict::{Cause, DetectionPolicy, Input, Monitor, Tick, Watch};
use flatline_samples::RunState;
use flatline_samples::{Missing, ProcessState};

use super::File;
use super::recorded::Recorded;

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

/// The page, which a string has room for.
fn page(incident: &Incident, files: &[File]) -> String {
    super::page(incident, files).expect("a page")
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
fn every_attempt_is_told_and_the_last_one_once() {
    let attempt = |second: u64, limit: &str| Attempt {
        begun_at: SystemTime::UNIX_EPOCH + Duration::from_secs(STARTED + second),
        run_state: "guest-panicked".to_owned(),
        steps: vec!["system_reset".to_owned(), "cont<".to_owned()],
        limit: limit.to_owned(),
        reset_at: None,
    };
    let attempts = vec![attempt(2, "1 of 3"), attempt(12, "2 of 3")];
    let page = page(&Incident { attempts, ..incident() }, &[]);
    assert_eq!(page.matches("<th scope=\"row\">restarted</th>").count(), 2, "{page}");
    assert!(page.contains("in vain: system_reset, cont&lt;, out of guest-panicked"), "{page}");
    assert!(page.contains("QEMU was told: system_reset (2 of 3)"), "{page}");
}

#[test]
fn nothing_in_the_page_is_fetched_or_run() {
    let png = b"\x89PNG\r\n\x1a\nrest";
    let (incident, recording) = panicked();
    let files = [file("screen.png", png), file("recording.flr", &recording)];
    let page = page(&incident, &files);
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

/// When the made-up daemon started, in seconds since 1970, and when its guest was last heard, panicked, was
/// restarted and came back, in seconds from then on.
const STARTED: u64 = 1_800_000_000;
const HEARD: u64 = 40;
const PANICKED: u64 = 45;
const RESTARTED: u64 = 46;
const BACK: u64 = 60;

/// A second in which the guest sent so many packets; of one its storage could not be read.
fn tick(second: u64) -> Input {
    let lives = second <= HEARD || second >= BACK;
    let packets = u64::from(lives) * (second % 7 + 1);
    let network =
        NetworkActivity { guest_packets: packets, packets_to_guest: Some(3), probe_answers: 0 };
    let storage = match second {
        20..23 => Err(Missing::new("storage", "torn")),
        _ => Ok(StorageActivity { completed: packets * 2, ..Default::default() }),
    };
    let vcpu =
        VcpuActivity { index: 0, tid: 1, busy: if lives { 0.2 } else { 0.99 }, waiting: 0.0 };
    let elapsed = Duration::from_secs(1);
    let process = ProcessState::Running;
    let activity = Activity {
        elapsed,
        network: Ok(Some(network)),
        storage,
        vcpus: Ok(vec![vcpu]),
        process,
        heartbeat: Ok(None),
    };
    let monitor = Monitor::Answers(RunState::Running);
    Input::Tick(Arc::new(Tick { activity, monitor, calibratable: false, undecided: false }))
}

/// The incident of that guest, and its recording.
fn panicked() -> (Incident, Vec<u8>) {
    let policy = Config::parse("", "").expect("defaults").policy;
    let detection = DetectionPolicy { policy, tick: Duration::from_secs(1) };
    let (mut watch, mut ring) = (
        Watch::begin(Duration::ZERO, Duration::from_secs(1000), Duration::from_secs(1)),
        Ring::new(
            Limits {
                longest_segment: Duration::ZERO,
                keep: Duration::from_secs(300),
                most_bytes: Limits::MOST_BYTES,
            },
            0,
        ),
    );
    let mut tell = |input: &Input, now: Duration| {
        ring.prepare(&watch, now);
        let before = watch.state.name();
        let act = watch.step(input, &detection, now);
        let changed = before != watch.state.name();
        ring.note(now, input, &act, changed.then_some((&watch.state, watch.reason.as_str())));
    };
    for second in 1..=BACK + 10 {
        tell(&tick(second), Duration::from_secs(second));
        let later = Duration::from_millis(second * 1000 + 500);
        match second {
            PANICKED => tell(&Input::RunState(RunState::GuestPanicked), later),
            RESTARTED => tell(&Input::Restarted { cause: Cause::Panicked, was_up: false }, later),
            _ => {}
        }
    }
    let header = Header {
        flatline: "0.1.0".to_owned(),
        started: SystemTime::UNIX_EPOCH + Duration::from_secs(STARTED),
        vm: "web-1".to_owned(),
        uuid: None,
        pid: 1,
        start_ticks: 1,
        detection,
    };
    let recording = Recording { header: Arc::new(header), segments: ring.segments() };
    let at = |second: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(STARTED + second);
    let incident = Incident {
        last_sign_of_life: Some(at(HEARD)),
        detected_at: at(PANICKED),
        action_at: Some(at(RESTARTED)),
        recovered_at: Some(at(BACK)),
        cause: "panicked".to_owned(),
        ..incident()
    };
    (incident, to_bytes(&recording).expect("small"))
}

/// The places of all marks of a class, in the drawing's units.
fn marks(page: &str, class: &str) -> Vec<f64> {
    let begin = format!("<path class=\"mark {class}\" d=\"M");
    let places = page.split(&begin).skip(1).filter_map(|rest| rest.split(' ').next());
    places.map(|place| place.parse().expect("a number")).collect()
}

#[test]
fn the_lines_are_drawn_with_what_was_decided_across_them() {
    let (incident, recording) = panicked();
    let page = page(&incident, &[file("recording.flr", &recording)]);
    for part in [
        "<svg viewBox=",
        ">packets sent</text>",
        ">packets to it</text>",
        ">max 3.0/s</text>",
        ">requests done</text>",
        ">busiest vCPU</text>",
        ">max 99 %</text>",
        "80 % pinned",
        "1 % still",
        ">last sign of life</text>",
        ">verdict</text>",
        ">restarted</text>",
        ">lives</text>",
        "A column is a second.",
        "darker from where it had lasted for 10s",
    ] {
        assert!(page.contains(part), "no {part:?} in {page}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf\""), "{page}");
    let [verdict, restart, life] = ["verdict", "restart", "life"].map(|class| marks(&page, class));
    assert!(verdict.len() == 1 && restart.len() == 1 && life.len() == 2, "{page}");
    assert!(life[0] < verdict[0] && verdict[0] < restart[0] && restart[0] < life[1], "{page}");
    // Twice the silence, which ends with the next sign of life, from its begin and from flat_for on.
    assert_eq!(page.matches("<rect class=\"silent\"").count(), 2);
    // One gap, of three seconds.
    assert_eq!(page.matches("<rect class=\"unknown\"").count(), 1);
    // What the record tells is not told twice.
    assert_eq!(page.matches("<th scope=\"row\">verdict</th>").count(), 1);
    assert_eq!(page.matches("<th scope=\"row\">restarted</th>").count(), 1);
}

#[test]
fn an_incident_that_the_recording_does_not_reach_is_drawn_all_the_same() {
    let (incident, recording) = panicked();
    for shift in [Duration::from_secs(1_000_000), Duration::from_secs(90)] {
        let later = |at: Option<SystemTime>| at.map(|at| at + shift);
        let shifted = Incident {
            last_sign_of_life: later(incident.last_sign_of_life),
            detected_at: incident.detected_at + shift,
            action_at: later(incident.action_at),
            recovered_at: later(incident.recovered_at),
            ..incident.clone()
        };
        let page = page(&shifted, &[file("recording.flr", &recording)]);
        assert!(page.contains("<svg viewBox=") && !page.contains("NaN"), "{page}");
        assert_eq!(marks(&page, "verdict"), [0.0; 0]);
    }
}

#[test]
fn a_torn_recording_is_drawn_up_to_the_tear_which_is_said() {
    let (incident, recording) = panicked();
    let torn = &recording[..recording.len() - 3];
    let recorded = Recorded::read(torn);
    assert!(recorded.complaint.is_some_and(|complaint| complaint.contains("torn at byte ")));
    let page = page(&incident, &[file("recording.flr", torn)]);
    assert!(page.contains("torn at byte "), "{page}");
}
