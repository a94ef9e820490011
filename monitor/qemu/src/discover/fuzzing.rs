//! What fuzzers may call of this stage: see [`crate::fuzzing`].

use std::path::Path;

use super::{
    command_line as parser, fdinfo::FdInfo, files, macvtaps, options, origin, owner,
    proc as process, rights, taps,
};

/// A QEMU's command line.
pub fn command_line(bytes: &[u8]) {
    let arguments = options::split_arguments(bytes);
    let Some(told) = parser::describe(&arguments) else { return };
    let cgroups = String::from_utf8_lossy(bytes).into_owned();
    let traces = owner::Traces { cgroups, told: told.traces.clone(), ancestors: Vec::new() };
    let ownership = owner::classify(&traces);
    // They are shown, and become arguments of programs that root runs.
    assert!(ownership.evidence.iter().all(|text| !text.chars().any(char::is_control)));
    assert!(
        ownership.owner.name().is_none_or(|name| !name.starts_with('-') && !name.contains('\0'))
    );
    // It goes into log lines and files.
    assert!(told.name.is_none_or(|name| !name.chars().any(char::is_control)));
}

/// Files of `/proc/PID`.
pub fn proc(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Some(stat) = process::parse_stat(&text) {
        assert!(text.contains(&stat.comm));
    }
    origin::parse_ids(&text);
    origin::folders(&text, |folder| folder.components().count() % 2 == 0);
    let named: Vec<_> = text.lines().map(ToOwned::to_owned).zip(1..).collect();
    if let process::VcpuThreads::Each(threads) = process::vcpu_threads_from_names(&named) {
        assert!(threads.windows(2).all(|pair| pair[0].index < pair[1].index));
    }
    rights::parse(&text);
    FdInfo::parse(&text);
    files::parse_mountinfo(&text);
    macvtaps::index(Path::new(text.as_ref()));
    assert!(taps::interface_name(&text).is_none_or(|name| !name.is_empty()));
}
