//! The list, as its script asks for it.

use serde_json::{Value, json};

use super::pages::{Page, body, page_site, while_ticking};
use crate::config::EvidenceReaders;

/// The answer to the list's question.
fn ask(page: &Page, since: &str, lines: &str, figures: &str) -> Value {
    let path = format!("/api/list?since={since}&lines={lines}&figures={figures}");
    let answer = page.get(&path);
    assert!(answer.starts_with("HTTP/1.1 200 "), "{path}: {answer}");
    serde_json::from_str(body(&answer)).expect("JSON")
}

/// The pids of the rows in an answer.
fn pids(answer: &Value) -> Vec<u64> {
    let rows = answer["vms"].as_array().expect("rows");
    rows.iter().map(|row| row["pid"].as_u64().expect("a pid")).collect()
}

#[test]
fn a_list_is_told_what_changed_and_the_figures_of_what_is_in_sight() {
    let page = page_site(EvidenceReaders::All);
    while_ticking(&page, || {
        let first = ask(&page, "", "", "");
        assert_eq!((pids(&first), &first["is_whole"]), (vec![7, 8], &json!(true)));
        assert_eq!(first["vms"][0]["name"], "<b>web");
        assert_eq!((&first["figures"], &first["lines"]), (&json!([]), &json!([])));
        let host = json!({"hostname": "h", "mode": "observe", "degraded": null});
        assert_eq!(first["host"], host);
        // Of these two, one changes in each tick.
        let (mut since, mut changed) = (first["since"].clone(), Vec::new());
        let answer = loop {
            let answer = ask(&page, since.as_str().expect("a text"), "8.3", "");
            assert_eq!((&answer["is_whole"], &answer["gone"]), (&json!(false), &json!([])));
            changed.extend(pids(&answer));
            since = answer["since"].clone();
            if changed.len() > 1 && answer["figures"] != json!([]) {
                break answer;
            }
        };
        assert!(changed.iter().all(|pid| *pid == 8), "{changed:?}");
        assert_eq!(answer["figures"], json!([[8, 0.5, 3, 1.25, null, null, null]]));
        let all = loop {
            let answer = ask(&page, since.as_str().expect("a text"), "", "all");
            if answer["figures"].as_array().is_some_and(|all| all.len() > 1) {
                break answer["figures"].clone();
            }
        };
        assert_eq!((&all[0][0], &all[1][0]), (&json!(7), &json!(8)));
        let another = ask(&page, "1-2", "", "");
        assert_eq!((pids(&another), &another["is_whole"]), (vec![7, 8], &json!(true)));
        for wrong in ["since=x", "lines=x", "figures=some", "lines=7.x"] {
            let answer = page.get(&format!("/api/list?{wrong}"));
            assert!(answer.starts_with("HTTP/1.1 400 "), "{wrong}: {answer}");
        }
    });
}
