//! Reads OpenMetrics back, and accepts nothing that the specification (1.0) doesn't.

use std::collections::{BTreeMap, BTreeSet};

/// A family with all that belongs to it.
#[derive(Debug, Default)]
pub(super) struct Family {
    pub(super) kind: String,
    pub(super) help: String,
    pub(super) unit: Option<String>,
    pub(super) samples: Vec<Sample>,
}

/// One line that isn't a comment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) name: String,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) value: f64,
}

/// All families by name.
///
/// # Panics
/// At whatever is not as it should be.
pub(super) fn open_metrics(text: &str) -> BTreeMap<String, Family> {
    let body = text.strip_suffix("# EOF\n").expect("ends with its mark");
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    let mut seen = BTreeSet::new();
    for line in body.lines() {
        assert!(!line.chars().any(char::is_control), "{line:?}");
        if let Some(comment) = line.strip_prefix("# ") {
            let (keyword, rest) = comment.split_once(' ').expect("a keyword");
            let (name, text) = rest.split_once(' ').expect("a name and more");
            if name != current {
                assert!(!families.contains_key(name), "{name} comes in two pieces");
                current = name.to_owned();
            }
            let family = families.entry(name.to_owned()).or_default();
            assert!(family.samples.is_empty(), "{line} stands behind samples");
            match keyword {
                "HELP" => family.help = once(&family.help, text),
                "TYPE" => family.kind = once(&family.kind, text),
                "UNIT" => {
                    assert_eq!(family.unit.replace(text.to_owned()), None);
                    assert!(name.ends_with(&format!("_{text}")), "{name} is not in {text}");
                }
                other => panic!("unknown keyword {other}"),
            }
            continue;
        }
        let sample = sample(line);
        let family = families.get_mut(&current).expect("described before");
        let suffix = sample.name.strip_prefix(&current).expect("of the family described before it");
        let allowed: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_bucket", "_sum", "_count"],
            other => panic!("unexpected type {other}"),
        };
        assert!(allowed.contains(&suffix), "{line}: of a {}", family.kind);
        assert!(family.kind == "gauge" || sample.value >= 0.0, "{line}");
        assert!(seen.insert((sample.name.clone(), sample.labels.clone())), "twice: {line}");
        family.samples.push(sample);
    }
    families
}

fn once(before: &str, text: &str) -> String {
    assert_eq!(before, "", "said twice");
    text.to_owned()
}

/// One line.
pub(super) fn sample(line: &str) -> Sample {
    let end = line.find(['{', ' ']).expect("a value");
    let (name, mut rest) = line.split_at(end);
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    assert!(!name.is_empty() && name.chars().all(is_name), "{line}");
    let mut labels = BTreeMap::new();
    if let Some(mut inner) = rest.strip_prefix('{') {
        loop {
            let (label, quoted) = inner.split_once("=\"").expect("a label");
            assert!(label.chars().all(is_name), "{line}");
            let (value, after) = unquote(quoted);
            assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
            match after.strip_prefix(',') {
                Some(more) => inner = more,
                None => break rest = after.strip_prefix('}').expect("an end of labels"),
            }
        }
    }
    let value = rest.strip_prefix(' ').expect("a blank");
    Sample { name: name.to_owned(), labels, value: value.parse().expect("a number") }
}

/// The value up to the closing quotation mark, and what comes behind that.
fn unquote(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => match chars.next().expect("an escaped character").1 {
                'n' => value.push('\n'),
                c @ ('\\' | '"') => value.push(c),
                c => panic!("\\{c} is no escape"),
            },
            c => value.push(c),
        }
    }
    panic!("no closing quotation mark in {quoted}");
}
