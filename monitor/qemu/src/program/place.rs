//! The user and the control groups of a program that is not to run as flatline itself does.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::PathBuf,
};

use rustix::{
    fs::{Gid, Mode},
    io::Errno,
    process::{self, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};
use tokio::process::Command;

/// A user with its groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    /// The supplementary groups.
    pub groups: Vec<u32>,
}

/// The user and the control groups of a program; by default flatline's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The user.
    pub user: Option<User>,
    /// Folders of control groups, each of another hierarchy. One that is gone is passed over.
    pub cgroups: Vec<PathBuf>,
    /// The mask of the modes of files that it makes, such as `0o022`; `None`: flatline's own.
    pub umask: Option<u32>,
}

impl Place {
    /// Has `command` begin there.
    ///
    /// # Errors
    /// If a control group that is there can't be opened.
    pub(super) fn apply(&self, command: &mut Command) -> io::Result<()> {
        let mut groups = Vec::new();
        for folder in &self.cgroups {
            match OpenOptions::new().write(true).open(folder.join("cgroup.procs")) {
                Ok(group) => groups.push(group),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        let ids = self.user.as_ref().map(|user| {
            let supplementary = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            (Uid::from_raw(user.uid), Gid::from_raw(user.gid), supplementary)
        });
        if ids.is_some() {
            command.env("HOME", "/");
        }
        let umask = self.umask.map(Mode::from_raw_mode);
        if groups.is_empty() && ids.is_none() && umask.is_none() {
            return Ok(());
        }
        // SAFETY: between fork and exec, the child makes system calls only, on memory that was allocated before the
        // fork; it has one thread, whose ids are those of the process.
        unsafe {
            command.pre_exec(move || {
                umask.map(process::umask);
                enter(&mut groups, ids.as_ref())
            })
        };
        Ok(())
    }
}

/// Moves this process into the groups, and makes it the user's.
fn enter(groups: &mut [File], ids: Option<&(Uid, Gid, Vec<Gid>)>) -> io::Result<()> {
    for group in groups {
        // 0 is the process that writes it.
        match group.write_all(b"0") {
            // Removed a moment ago.
            Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => {}
            other => other?,
        }
    }
    if let Some((uid, gid, supplementary)) = ids {
        set_thread_groups(supplementary)?;
        set_thread_res_gid(*gid, *gid, *gid)?;
        set_thread_res_uid(*uid, *uid, *uid)?;
    }
    Ok(())
}
