//! Runs one program of an owner, within bounds of time and of what is kept of its output.
//!
//! It gets a group of its own, an empty environment but for what is handed over, and nothing to read. At its limit
//! the whole group is killed: none of its children must go on afterwards with what it was told. What a program that
//! ended in time leaves behind is left alone, since that may be the VM which it started.

use std::{
    io,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    time::{Instant, timeout, timeout_at},
};

use super::{PATH, Place, Program};
use crate::text::printable;

/// Most that is kept of each of the two outputs; what is beyond is read and dropped.
const KEPT_BYTES: usize = 64 << 10;
/// After the program has ended, its children may hold its outputs open: so long is waited for their end.
const LINGERS: Duration = Duration::from_millis(500);
/// Characters of its complaint that an error quotes.
const QUOTED_CHARS: usize = 300;

/// A program that ended well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What it wrote, as far as that is kept.
    pub stdout: Vec<u8>,
    /// What it complained of.
    pub stderr: Vec<u8>,
}

/// Why a program did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such program.
    #[error("there is no program {program:?} in {}", PATH.join(":"))]
    NotFound {
        /// Its name.
        program: String,
    },
    /// It can't be started.
    #[error("cannot run {program:?}")]
    Spawn {
        /// Its path.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It took too long, and was killed with all its children.
    #[error("{program} took longer than {limit:?}, and was killed")]
    TimeLimit {
        /// Its name.
        program: String,
        /// The time it had.
        limit: Duration,
        /// What it had written until then.
        ran: Box<Ran>,
    },
    /// It ended with a failure.
    #[error("{program} {how}{}", quoted(.ran))]
    Failed {
        /// Its name.
        program: String,
        /// Its exit code or signal, in words.
        how: String,
        /// What it wrote.
        ran: Box<Ran>,
    },
}

impl RunError {
    /// What it wrote, where it ran.
    pub fn ran(&self) -> Option<&Ran> {
        match self {
            Self::NotFound { .. } | Self::Spawn { .. } => None,
            Self::TimeLimit { ran, .. } | Self::Failed { ran, .. } => Some(ran),
        }
    }
}

fn quoted(ran: &Ran) -> String {
    let said = if ran.stderr.is_empty() { &ran.stdout } else { &ran.stderr };
    let text = String::from_utf8_lossy(said);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { text } else { format!(": {}", printable(&text, QUOTED_CHARS)) }
}

/// Runs `program` with `environment`, for `limit` at most.
///
/// # Errors
/// Whatever keeps it from ending with code 0.
pub async fn run(
    program: &Program,
    environment: &[(&'static str, String)],
    limit: Duration,
) -> Result<Ran, RunError> {
    run_at(program, environment, limit, &Place::default()).await
}

/// The same, as another user or in other control groups.
///
/// # Errors
/// As above.
pub async fn run_at(
    program: &Program,
    environment: &[(&'static str, String)],
    limit: Duration,
    place: &Place,
) -> Result<Ran, RunError> {
    run_bounded(program, environment, limit, place, KEPT_BYTES).await
}

/// The same, with `kept_bytes` kept of each of the two outputs at most.
///
/// # Errors
/// As above.
pub(crate) async fn run_bounded(
    program: &Program,
    environment: &[(&'static str, String)],
    limit: Duration,
    place: &Place,
    kept_bytes: usize,
) -> Result<Ran, RunError> {
    let name = program.words.first().cloned().unwrap_or_default();
    let path = find(&name).ok_or_else(|| RunError::NotFound { program: name.clone() })?;
    let deadline = Instant::now() + limit;
    let mut child = spawn(&path, program, environment, place)
        .map_err(|source| RunError::Spawn { program: path.clone(), source })?;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let group = Group::of(&child);
    let status = {
        let reads = async {
            tokio::join!(keep(out, &mut stdout, kept_bytes), keep(err, &mut stderr, kept_bytes))
        };
        tokio::pin!(reads);
        let mut is_read = false;
        let status = timeout_at(deadline, async {
            loop {
                tokio::select! {
                    status = child.wait() => return status,
                    _ = &mut reads, if !is_read => is_read = true,
                }
            }
        })
        .await;
        if status.is_err() {
            group.kill();
            // A process that was killed may still hang in the kernel: no wait for that.
            let _ = timeout(LINGERS, child.wait()).await;
        }
        if !is_read {
            let _ = timeout(LINGERS, &mut reads).await;
        }
        status
    };
    let ran = Ran { stdout, stderr };
    match status {
        Ok(Ok(status)) if status.success() => Ok(ran),
        Ok(Ok(status)) => {
            Err(RunError::Failed { program: name, how: in_words(status), ran: Box::new(ran) })
        }
        Ok(Err(source)) => Err(RunError::Spawn { program: path, source }),
        Err(_) => Err(RunError::TimeLimit { program: name, limit, ran: Box::new(ran) }),
    }
}

/// The group of a program that was run, which is named by its pid as long as one of it is there.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.and_then(Pid::from_raw))
    }

    fn kill(&self) {
        if let Some(group) = self.0 {
            // It is gone where none of its processes is left, as it should be.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// The program's path: as it stands, or where [`PATH`] first has it.
pub fn find(name: &str) -> Option<PathBuf> {
    if name.starts_with('/') {
        return Some(PathBuf::from(name));
    }
    if name.is_empty() || name.contains('/') {
        return None;
    }
    PATH.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// Starts it, with both outputs as pipes. It is killed when it is dropped.
pub fn spawn(
    path: &Path,
    program: &Program,
    environment: &[(&'static str, String)],
    place: &Place,
) -> io::Result<Child> {
    let mut command = Command::new(path);
    command
        .args(program.words.iter().skip(1))
        .env_clear()
        .env("PATH", PATH.join(":"))
        .env("LC_ALL", "C")
        // virsh and others look there for their settings.
        .env("HOME", "/root")
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    place.apply(&mut command)?;
    command.spawn()
}

/// Reads all of it, and keeps what there is room for.
async fn keep(from: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>, kept_bytes: usize) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 4096];
    loop {
        match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(bytes) => {
                let room = kept_bytes.saturating_sub(kept.len()).min(bytes);
                kept.extend_from_slice(&buffer[..room]);
            }
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exited with code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{KEPT_BYTES, Program, RunError, find, run, run_at};
    use crate::program::{Place, User};

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Program {
        Program { words: ["/bin/sh", "-c", script].map(str::to_owned).to_vec() }
    }

    #[tokio::test]
    async fn a_program_sees_only_what_is_handed_over_to_it() {
        let hostile = "web-1; touch /tmp/x $(id) `id` \" ' \u{fffd}".to_owned();
        let environment = [("FLATLINE_VM", hostile.clone())];
        let ran = run(&shell("printf '%s' \"$FLATLINE_VM\""), &environment, LIMIT).await.unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), hostile);
        let env = Program { words: vec!["env".to_owned()] };
        let ran = run(&env, &environment, LIMIT).await.unwrap();
        let mut names: Vec<_> = String::from_utf8(ran.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| line.split_once('=').map(|(name, _)| name.to_owned()))
            .collect();
        names.sort();
        assert_eq!(names, ["FLATLINE_VM", "HOME", "LC_ALL", "PATH"]);
    }

    #[tokio::test]
    async fn a_failure_is_told_with_its_code_and_its_complaint() {
        let failed =
            run(&shell("echo out; echo -e 'no \\033[31m VM' >&2; exit 3"), &[], LIMIT).await;
        let error = failed.unwrap_err();
        assert!(matches!(error, RunError::Failed { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("exited with code 3: ") && text.ends_with("VM"), "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
        assert_eq!(error.ran().unwrap().stdout, b"out\n");
        let killed = run(&shell("kill -9 $$"), &[], LIMIT).await.unwrap_err();
        assert!(killed.to_string().contains("was ended by signal 9"), "{killed}");
    }

    #[tokio::test]
    async fn at_its_limit_a_program_ends_with_all_that_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let script = format!("(sleep 1; touch {}) & echo begun; sleep 60", mark.display());
        let begin = Instant::now();
        let late = run(&shell(&script), &[], Duration::from_millis(300)).await.unwrap_err();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert!(matches!(late, RunError::TimeLimit { .. }), "{late:?}");
        assert_eq!(late.ran().unwrap().stdout, b"begun\n");
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(!mark.exists(), "its child went on");
    }

    #[tokio::test]
    async fn what_is_left_behind_by_one_that_ended_goes_on_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("mark");
        let begin = Instant::now();
        let script = format!("(sleep 1; touch {}; sleep 20) & echo done", mark.display());
        let ran = run(&shell(&script), &[], LIMIT).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10));
        assert_eq!(ran.stdout, b"done\n");
        for _ in 0..100 {
            if mark.exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("it was ended");
    }

    #[tokio::test]
    async fn of_a_flood_only_the_beginning_is_kept() {
        let ran = run(&shell("head -c 1000000 /dev/zero"), &[], LIMIT).await.unwrap();
        assert_eq!(ran.stdout.len(), KEPT_BYTES);
    }

    #[tokio::test]
    async fn a_program_runs_as_the_user_that_it_is_for_and_one_without_its_groups_nowhere_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root can run programs as others");
            return;
        }
        let user = User { uid: 65534, gid: 65533, groups: vec![36, 5] };
        let gone = vec!["/sys/fs/cgroup/no/such/group".into()];
        let place = Place { user: Some(user), cgroups: gone, umask: Some(0o027) };
        let ids = shell("id -u; id -g; id -G; echo $HOME; umask");
        let ran = run_at(&ids, &[], LIMIT, &place).await.unwrap();
        assert_eq!(String::from_utf8(ran.stdout).unwrap(), "65534\n65533\n65533 5 36\n/\n0027\n");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_said_to_be_so() {
        let none = Program { words: vec!["no-such-program".to_owned()] };
        let error = run(&none, &[], LIMIT).await.unwrap_err();
        assert!(matches!(error, RunError::NotFound { .. }), "{error:?}");
        let none = Program { words: vec!["/no/such/program".to_owned()] };
        assert!(matches!(run(&none, &[], LIMIT).await.unwrap_err(), RunError::Spawn { .. }));
        assert_eq!(find("../bin/sh"), None);
        assert_eq!(find("bin/sh"), None);
        assert_eq!(find(""), None);
        assert!(find("sh").is_some());
    }
}
