//! Drawings as a whole, and what must hold for any.

use std::time::Duration;

use crate::api::view::{HistoryView, MarkKind, MarkView};

use super::{Style, draw};

const FLAT_FOR: Duration = Duration::from_secs(10);

fn mark(second: usize, kind: MarkKind, text: &str) -> MarkView {
    MarkView { second, kind, text: text.to_owned() }
}

/// 28 seconds of a guest that works, panics and is restarted.
fn history() -> HistoryView {
    let mut history = HistoryView { seconds: 28, ..HistoryView::default() };
    for second in 0..28_u32 {
        let at = |values: &[(u32, f64)]| {
            values.iter().find(|(at, _)| *at == second).map_or(0.0, |(_, value)| *value)
        };
        history.packets_from_guest.push(Some(at(&[(0, 1.0), (2, 4.0), (26, 8.0)])));
        let completed = at(&[(1, 100.0), (4, 700.0), (25, 800.0), (27, 20.0)]);
        history.completed.push((second != 3).then_some(completed));
        // The vCPU that spins gets a third of the time from a busy host.
        let (vcpu, wanted) = match second {
            0..5 => (0.1, 0.1),
            5..24 => (0.33, 0.99),
            24 => (0.002, 0.002),
            _ => (0.6, 0.7),
        };
        history.vcpu.push((second != 3).then_some(vcpu));
        history.vcpu_wanted.push((second != 3).then_some(wanted));
        history.in_flight.push(Some(0.0));
        history.probe_answers.push(None);
    }
    history.marks = vec![
        mark(14, MarkKind::Suspicion, "silent for 10.0 s"),
        mark(16, MarkKind::Verdict, "a vCPU was pinned\x1b[2J"),
        mark(17, MarkKind::Restart, ""),
        mark(25, MarkKind::Life, "guest completed 800 requests"),
    ];
    history
}

#[test]
fn a_panic_and_a_restart_are_drawn_with_all_levels() {
    let drawn = draw(&history(), FLAT_FOR, Style { columns: 60, unicode: true });
    let expected = "
                  28s ago                      now
packets sent      ▁─▄───────────────────────█─ max 8.0/s
requests done     ─▁─·▇────────────────────█─▁ max 800/s
vCPU time              ███████████████████     ≥ 80 % pinned
                  ▁▁▁·▁                    ▆▆▆ between
                                          ─    < 1 % still
in flight         ──────────────────────────── none
probe answers     ···························· not known
silent               · ─────────━━━━━━━━━━━    ━ 10s+
                                s VR       L
  s   14 s ago  suspected: silent for 10.0 s
  V   12 s ago  verdict: a vCPU was pinned\\u{1b}[2J
  R   11 s ago  restarted
  L    3 s ago  lives: guest completed 800 requests
  a column is a second; · is not known
";
    assert_eq!(format!("\n{drawn}"), expected);
}

#[test]
fn the_same_without_unicode_is_plain_ascii() {
    let drawn = draw(&history(), FLAT_FOR, Style { columns: 60, unicode: false });
    assert!(drawn.is_ascii(), "{drawn}");
    let expected = "
                  28s ago                      now
packets sent      ._+_______________________#_ max 8.0/s
requests done     _._?%____________________#_. max 800/s
vCPU time              ###################     > 80 % pinned
                  ...?.                    OOO between
                                          _    < 1 % still
in flight         ____________________________ none
probe answers     ???????????????????????????? not known
silent               ? _________===========    = 10s+
                                s VR       L
  s   14 s ago  suspected: silent for 10.0 s
  V   12 s ago  verdict: a vCPU was pinned\\u{1b}[2J
  R   11 s ago  restarted
  L    3 s ago  lives: guest completed 800 requests
  a column is a second; ? is not known
";
    assert_eq!(format!("\n{drawn}"), expected);
}

#[test]
fn a_long_time_is_put_into_columns_without_losing_a_single_packet() {
    let mut history = HistoryView { seconds: 300, ..HistoryView::default() };
    history.packets_from_guest = vec![Some(0.0); 300];
    history.packets_from_guest[250] = Some(1.0);
    history.completed = vec![Some(0.0); 300];
    history.completed[100] = None;
    let drawn = draw(&history, FLAT_FOR, Style { columns: 80, unicode: true });
    let rows: Vec<&str> = drawn.lines().collect();
    assert!(rows.iter().all(|row| row.chars().count() <= 80), "{drawn}");
    assert_eq!(rows[1].matches('█').count(), 1, "{drawn}");
    assert_eq!(rows[2].matches('·').count(), 1, "{drawn}");
    assert!(rows[8].contains("━") && rows[8].contains(" 10s+"), "{drawn}");
    assert!(drawn.ends_with("  a column is 6 s; · is not known\n"), "{drawn}");
}

#[test]
fn what_is_never_known_is_drawn_as_that_and_not_as_a_flat_line() {
    let none = vec![None; 5];
    let history = HistoryView {
        seconds: 5,
        packets_from_guest: none.clone(),
        packets_to_guest: none.clone(),
        completed: none.clone(),
        vcpu: none.clone(),
        vcpu_wanted: none.clone(),
        in_flight: none.clone(),
        probe_answers: none,
        memory: Vec::new(),
        marks: Vec::new(),
    };
    let drawn = draw(&history, FLAT_FOR, Style { columns: 80, unicode: true });
    assert!(!drawn.contains('─') && drawn.matches("·····").count() == 6, "{drawn}");
}

#[test]
fn any_width_and_any_rows_are_drawn() {
    for columns in [0, 60, 61, 119, 120, 5000] {
        for seconds in [0, 1, 59, 3600, 100_000] {
            let mut history = self::history();
            history.seconds = seconds;
            let drawn = draw(&history, FLAT_FOR, Style { columns, unicode: true });
            let widest = drawn.lines().take(9).map(|row| row.chars().count()).max();
            assert!(widest.is_some_and(|widest| widest <= 120), "{columns}, {seconds}: {drawn}");
        }
    }
}
