//! Pictures as a whole, and what must hold for any.

use std::time::{Duration, Instant};

use crate::api::view::{LineView, LinesView, ShowView, VmView};
use crate::storage::incident::{Incident, Outcome};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
use ratatui::style::{Color, Modifier};
use serde_json::json;

use super::draw;
use crate::cli::samples::{now, status, vm};
use crate::cli::top::help::HELP;
use crate::cli::top::model::{Key, Look, Model, PageAnswer};

const PLAIN: Look = Look { unicode: true, colours: false };
const ASCII: Look = Look { unicode: false, colours: false };

fn drawn(model: &mut Model, width: u16, height: u16) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("in memory");
    model.resize((width, height));
    terminal.draw(|frame| draw(model, frame.buffer_mut())).expect("drawn");
    terminal.backend().buffer().clone()
}

/// The lines of a picture; the second column of a wide character has no symbol of its own.
fn lines(buffer: &Buffer) -> Vec<String> {
    let line = |y| {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..buffer.area.width {
            let symbol = buffer[(x, y)].symbol();
            if skip == 0 {
                line.push_str(symbol);
                skip = unicode_width::UnicodeWidthStr::width(symbol);
            }
            skip = skip.saturating_sub(1);
        }
        line.trim_end().to_owned()
    };
    (0..buffer.area.height).map(line).collect()
}

fn picture(model: &mut Model, width: u16, height: u16) -> String {
    "\n".to_owned() + &lines(&drawn(model, width, height)).join("\n")
}

fn press(model: &mut Model, keys: &[KeyCode]) {
    keys.iter().for_each(|code| {
        model.on_key(KeyEvent::from(*code));
    });
}

fn line(name: &str, pid: u32, sent: &[Option<f32>]) -> LineView {
    let rest = vec![Some(0.0); sent.len()];
    LineView {
        name: name.to_owned(),
        pid,
        start_ticks: 1,
        packets_from_guest: sent.to_vec(),
        packets_to_guest: vec![Some(2.0); sent.len()],
        completed: rest.clone(),
        vcpu: vec![Some(0.031); sent.len()],
        in_flight: rest,
    }
}

/// Three VMs: one works, one is silent, and of one nothing is known.
fn model(look: Look) -> Model {
    let begin = Instant::now();
    let mut model = Model::new(look, (80, 24), begin, now());
    let mut suspect = vm("db-1", 20, "suspect");
    suspect.reason = "silent for 12.0 s; asking its witnesses".to_owned();
    suspect.flat_seconds = Some(12.0);
    suspect.restarts_in_window = 1;
    let mut unread = vm("mail", 30, "unobservable");
    unread.flat_seconds = None;
    unread.network = None;
    unread.storage = None;
    unread.vcpus.clear();
    let works = [0.0, 4.0, 8.0, 1.0, 0.0, 2.0].map(Some);
    let silent = [Some(5.0), Some(1.0), None, Some(0.0), Some(0.0), Some(0.0)];
    let lines = LinesView {
        interval_seconds: 1.0,
        vms: vec![line("web-1", 10, &works), line("db-1", 20, &silent)],
    };
    let vms = vec![vm("web-1", 10, "alive"), suspect, unread];
    model.on_status(status(vms), Some(lines), begin);
    model
}

#[test]
fn a_terminal_of_80x24_has_every_vm_with_its_line_and_why_it_stands_so() {
    let expected = "
flatline 0.1.0 on h, Linux 6.18, up 1m5s, mode recover              09:46:40 UTC
3 VMs: 1 suspect, 1 unobservable, 1 alive                               by state
 VM             STATE        CPU% TX/s RX/s IO/s INFL ALIVE RST LINE
>db-1           suspect       3.1    0    2    0    0   12s   1 ········█▂·━━━
 mail           unobservable    -    -    -    -    -     -   0 ··············
 web-1          alive         3.1    2    2    0    0    0s   0 ········─▄█▁─▂
















db-1: silent for 12.0 s; asking its witnesses
F1 Help  F3/ Filter  F6 Sort  R Reverse  Enter Details  Esc All  q Quit";
    assert_eq!(picture(&mut model(PLAIN), 80, 24), expected);
}

#[test]
fn a_wide_terminal_has_the_reasons_in_their_rows() {
    let drawn = lines(&drawn(&mut model(PLAIN), 200, 50));
    assert!(drawn[2].contains(" PID STATE") && drawn[2].ends_with("REASON"), "{}", drawn[2]);
    assert!(drawn[3].contains("  20 suspect ") && drawn[3].ends_with("asking its witnesses"));
    assert_eq!(drawn[4].matches('·').count(), 60, "{}", drawn[4]);
}

#[test]
fn without_unicode_all_is_ascii_and_without_colours_none_is_sent() {
    let mut model = model(ASCII);
    let buffer = drawn(&mut model, 80, 24);
    let text = lines(&buffer).join("\n");
    assert!(text.is_ascii() && text.contains("????????#:?==="), "{text}");
    let colourless =
        |cell: &ratatui::buffer::Cell| cell.fg == Color::Reset && cell.bg == Color::Reset;
    assert!(buffer.content.iter().all(colourless));
    model.look.colours = true;
    let buffer = drawn(&mut model, 80, 24);
    assert_eq!(buffer[(16, 5)].fg, Color::Green);
}

#[test]
fn a_stale_picture_says_so_on_any_terminal() {
    let mut model = model(PLAIN);
    model.on_silence("no such daemon".to_owned(), Instant::now() + Duration::from_secs(125));
    let whole = picture(&mut model, 80, 24);
    assert!(whole.contains("\nSTALE, 2m old: no such daemon\n"), "{whole}");
    assert!(whole.contains(">db-1           suspect"), "the picture is kept: {whole}");
    let buffer = drawn(&mut model, 80, 24);
    assert!(buffer[(16, 4)].modifier.contains(Modifier::DIM));
    let low = picture(&mut model, 30, 4);
    assert!(low.contains("STALE, 2m old"), "{low}");
    model.host.as_mut().expect("a host").degraded = Some("not attached: tap".to_owned());
    let both = picture(&mut model, 80, 24);
    assert!(both.contains("no such daemon\ndegraded: not attached: tap\n"), "{both}");
}

#[test]
fn hostile_names_stay_in_their_column_and_move_nothing() {
    let names = [
        "\x1b[2J\x1b[Hgone",
        "東京東京東京東京東京東京東京東京東京東京",
        "a\u{202e}b\u{200d}c",
        "e\u{301}\u{301}\u{301}\u{301}\u{fe0f}x",
        "👩\u{200d}👩\u{200d}👧 family",
        "tab\there\nand there",
        "",
    ];
    let vms: Vec<VmView> =
        names.iter().zip(1..).map(|(name, pid)| vm(name, pid, "alive")).collect();
    let begin = Instant::now();
    let mut model = Model::new(PLAIN, (80, 24), begin, now());
    model.on_status(status(vms), None, begin);
    for (width, height) in [(80, 24), (200, 50), (33, 12)] {
        let buffer = drawn(&mut model, width, height);
        let text = lines(&buffer).join("\n");
        assert!(!text.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'), "{text:?}");
        let state = lines(&buffer)[2].find("STATE").expect("a column");
        for y in 3..10 {
            let cells: String = (0..5)
                .map(|x| buffer[(u16::try_from(state).expect("small") + x, y)].symbol())
                .collect();
            assert_eq!(cells, "alive", "{width}, {y}: {text}");
        }
    }
    press(&mut model, &[KeyCode::Enter]);
    drawn(&mut model, 80, 24);
    press(
        &mut model,
        &[KeyCode::Esc, KeyCode::Char('/'), KeyCode::Char('東'), KeyCode::Char('京')],
    );
    let text = picture(&mut model, 40, 24);
    assert!(text.contains("/東京") && text.contains("1 of 7"), "{text}");
}

#[test]
fn any_size_shows_what_has_room_and_never_panics() {
    let sizes =
        (0..30).flat_map(|height| [0, 1, 2, 5, 11, 24, 40, 79, 300].map(|width| (width, height)));
    for (width, height) in sizes {
        let mut model = model(PLAIN);
        model.page = None;
        for keys in [
            &[][..],
            &[KeyCode::F(6)],
            &[KeyCode::Esc, KeyCode::Char('/'), KeyCode::Char('d')],
            &[KeyCode::Enter, KeyCode::Char('?'), KeyCode::PageDown],
            &[KeyCode::Char('q'), KeyCode::Enter, KeyCode::End],
        ] {
            press(&mut model, keys);
            if let Some(page) = &mut model.page {
                page.on_answer(answer());
            }
            let text = picture(&mut model, width, height);
            let list = model.page.is_none() && keys.is_empty();
            assert!(
                !list || width < 5 || height < 1 || text.contains("db-1"),
                "{width}x{height}: {text}"
            );
        }
    }
}

fn answer() -> PageAnswer {
    let policy = json!({"mode": "recover", "flat_for": "10s", "unconfirmed_flat_for": "2m",
        "unresponsive_for": "0s", "boot_grace": "1m", "boot_loop_resets": 5,
        "boot_loop_window": "5m", "max_restarts": 3, "window": "1h", "pause": "10s"});
    let mut show = serde_json::to_value(vm("db-1", 20, "suspect")).expect("serialisable");
    let more = json!({"executable": "/usr/bin/kvm", "uid": 0, "start_ticks": 1, "qmp": "answers",
        "taps": [], "disks": ["/d.img"], "unseen_networks": null, "unseen_storage": null,
        "signals": [{"name": "sign of life", "value": "12.0 s ago: guest sent 3 packets\u{1b}[2J",
            "threshold": "suspect after 10s", "since": "2026-11-25T09:46:28Z",
            "verdict": "silent"}],
        "policy": policy, "notes": [],
        "history": {"seconds": 3, "packets_from_guest": [1.0, 0.0, 0.0],
            "packets_to_guest": [0.0, 0.0, 0.0], "completed": [0.0, 0.0, null],
            "vcpu": [0.0, 0.0, 0.0], "vcpu_wanted": [0.0, 0.0, 0.0],
            "in_flight": [0.0, 0.0, 0.0], "probe_answers": [null, null, null], "marks": []}});
    for (name, value) in more.as_object().expect("an object") {
        show[name] = value.clone();
    }
    let show: ShowView = serde_json::from_value(show).expect("a view");
    let mut incident = Incident::new(
        "20261125T090000Z-db-1".to_owned(),
        "db-1".to_owned(),
        "halted".to_owned(),
        "every vCPU was halted with interrupts off".to_owned(),
        now() - Duration::from_secs(2800),
    );
    incident.action = Some("system_reset".to_owned());
    incident.outcome = Some(Outcome::Recovered);
    let key = Key { pid: 20, name: "db-1".to_owned() };
    PageAnswer { key, show: Ok(Box::new(show)), incidents: Some(vec![incident]) }
}

#[test]
fn a_page_has_signals_against_thresholds_lines_and_incidents_with_their_reasons() {
    let mut model = model(PLAIN);
    press(&mut model, &[KeyCode::Enter]);
    assert!(picture(&mut model, 80, 24).contains("asking the daemon"));
    model.page.as_mut().expect("open").on_answer(answer());
    let drawn = picture(&mut model, 80, 60);
    for part in [
        "\ndb-1  (process 20)\n",
        "\nsuspect for 2m\n",
        "\npackets sent ",
        "\nSIGNAL        VALUE                          THRESHOLD            VERDICT\n",
        "\nsign of life  12.0 s ago: guest sent 3       suspect after 10s    silent for 12s\n",
        "packets\\u{1b}[2J\n",
        "\n2026-11-25T09:00:00Z halted, system_reset: recovered\n",
        "\n  every vCPU was halted with interrupts off\n",
        "\ndisks ",
    ] {
        assert!(drawn.contains(part), "no {part:?}: {drawn}");
    }
    // Narrow, it is wrapped, and without the lines.
    let narrow = picture(&mut model, 40, 60);
    assert!(narrow.contains("every vCPU was halted with interrupts\n  off\n"), "{narrow}");
    model.resize((80, 10));
    press(&mut model, &[KeyCode::End]);
    let end = picture(&mut model, 80, 10);
    assert!(end.contains("boot grace 1m") && !end.contains("suspect for"), "{end}");
    model.on_status(status(Vec::new()), None, Instant::now());
    let gone = picture(&mut model, 80, 24);
    assert!(gone.contains("\nthis VM is gone;") && gone.contains("boot grace 1m"), "{gone}");
}

#[test]
fn the_help_fits_80_columns_and_names_every_sorting_key() {
    assert!(
        HELP.iter().all(|line| line.len() <= 80),
        "{:?}",
        HELP.iter().map(|line| line.len()).max()
    );
    let mut model = model(PLAIN);
    press(&mut model, &[KeyCode::F(1)]);
    let text = picture(&mut model, 80, 60);
    for column in crate::cli::top::model::Column::ALL {
        let (_, key) = column.describe();
        assert!(text.contains(&format!("  {key} ")), "{key}: {text}");
    }
    model.resize((80, 24));
    press(&mut model, &[KeyCode::PageDown, KeyCode::End]);
    assert!(picture(&mut model, 80, 24).contains("`flatline --help`."));
    press(&mut model, &[KeyCode::Char('x'), KeyCode::F(6)]);
    let menu = picture(&mut model, 80, 24);
    assert!(menu.contains("Sort by") && menu.contains(">S  state"), "{menu}");
}
