//! What `flatline status` prints.

use crate::api::view::StatusView;

use super::super::samples::{now, status, vm};
use super::{Look, text};

const WHOLE: Look = Look { columns: None, unicode: true, colours: false };

fn some() -> StatusView {
    let mut failed = vm("db-1", 30, "failed");
    failed.cause = Some("panicked".to_owned());
    failed.reason =
        "3 restarts within 1h brought it no life for long; a person is needed".to_owned();
    failed.restarts_in_window = 3;
    let mut on_hold = vm("web-2", 20, "alive");
    on_hold.hold = Some("until it is released".to_owned());
    let mut lost = vm("東京", 50, "unobservable");
    lost.flat_seconds = None;
    status(vec![vm("web-1", 10, "alive"), on_hold, failed, lost, vm("new", 40, "starting")])
}

#[test]
fn a_vm_that_needs_a_person_stands_first_and_nothing_is_cut_where_no_terminal_is() {
    let expected = "\
flatline 0.1.0 on h, Linux 6.18, up 1m5s, mode recover
5 VMs: 2 alive, 1 failed, 1 unobservable, 1 starting, 1 on hold
VM     PID  STATE              SINCE  FLAT  RESTARTS  RUN STATE  REASON
db-1   30   failed (panicked)  2m     0.4s  3         running    3 restarts within 1h brought it no life for long; a person is needed
東京   50   unobservable       2m     -     0         running    it is unobservable
web-2  20   alive              2m     0.4s  0         running    (on hold) it is alive
new    40   starting           2m     0.4s  0         running    it is starting
web-1  10   alive              2m     0.4s  0         running    it is alive
";
    assert_eq!(text(&some(), now(), WHOLE), expected);
}

#[test]
fn a_terminal_of_80_columns_has_no_longer_lines_and_keeps_the_reasons() {
    let look = Look { columns: Some(80), ..WHOLE };
    let expected = "\
flatline 0.1.0 on h, Linux 6.18, up 1m5s, mode recover
5 VMs: 2 alive, 1 failed, 1 unobservable, 1 starting, 1 on hold
VM     PID  STATE              SINCE  FLAT  REASON
db-1   30   failed (panicked)  2m     0.4s  3 restarts within 1h brought it no…
東京   50   unobservable       2m     -     it is unobservable
web-2  20   alive              2m     0.4s  (on hold) it is alive
new    40   starting           2m     0.4s  it is starting
web-1  10   alive              2m     0.4s  it is alive
";
    assert_eq!(text(&some(), now(), look), expected);
}

#[test]
fn no_width_is_too_small() {
    use unicode_width::UnicodeWidthStr as _;
    for columns in 1..100 {
        for unicode in [true, false] {
            let printed = text(&some(), now(), Look { columns: Some(columns), unicode, ..WHOLE });
            let widest = printed.lines().map(|line| line.width()).max();
            assert!(widest.is_some_and(|widest| widest <= columns), "{columns}: {printed}");
        }
    }
}

#[test]
fn only_states_and_faults_are_coloured_and_the_columns_stay_where_they_are() {
    let mut view = some();
    view.host.degraded = Some("not attached: tap\x1b[2J".to_owned());
    let plain = text(&view, now(), WHOLE);
    assert!(plain.contains("\ndegraded: not attached: tap\\u{1b}[2J\n"), "{plain}");
    let colours = text(&view, now(), Look { colours: true, ..WHOLE });
    assert!(colours.contains("30   \x1b[31mfailed (panicked)\x1b[0m  2m"), "{colours}");
    assert!(colours.contains("\x1b[31mdegraded: "), "{colours}");
    let mut without = colours;
    for code in ["\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[0m"] {
        without = without.replace(code, "");
    }
    assert_eq!(without, plain);
}

#[test]
fn a_host_without_vms_says_so() {
    let printed = text(&status(Vec::new()), now(), WHOLE);
    assert!(printed.ends_with("mode recover\nno VMs\n"), "{printed}");
}
