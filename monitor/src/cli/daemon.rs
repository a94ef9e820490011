//! `flatline run`: logging and the runtime around the daemon.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use crate::config::Source;
use anyhow::Context;
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::{
    Answer, Failure,
    journal::{self, Journal},
};

/// Enough that a slow write of evidence doesn't hold up sampling.
const WORKERS: usize = 2;
/// Arenas of the C library's allocator: allocating is not what the daemon does most.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;
/// Blocks of so many bytes are mapped one by one, and go back to the host when they are freed; so does as much that is free at the
/// end of an arena. Left to itself, the allocator raises both to tens of MB after the first large block, the kernel's types.
#[cfg(target_env = "gnu")]
const GIVEN_BACK_BYTES: libc::c_int = 512 << 10;
/// Looks into `/proc` that may wait at a time. Each takes a thread with its memory, and a host with more
/// QEMUs that hang has other troubles.
const BLOCKING_THREADS: usize = 64;
/// Answers to clients that are made at a time. They have threads of their own, and are served by one of their own, so that
/// none waits until five hundred suspects were looked at.
const CLIENT_THREADS: usize = 4;
/// They take turns, so that a few looks a second would keep as many threads as there ever were, each with its stack. The one
/// or two that each tick has something for stay.
const BLOCKING_KEEP_ALIVE: Duration = Duration::from_millis(1_500);

pub(super) fn run(source: Source) -> Result<Answer, Failure> {
    let config = source.load().map_err(|error| Failure::Usage(error.into()))?;
    init_log().map_err(Failure::BadNews)?;
    // SAFETY: a plain call. Of the allocator's arenas, each thread would else have one of its own, and keep
    // what it needed once.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, GIVEN_BACK_BYTES);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .enable_all()
        .build()
        .context("can't start the runtime")
        .map_err(Failure::BadNews)?;
    let clients = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(CLIENT_THREADS)
        .thread_keep_alive(BLOCKING_KEEP_ALIVE)
        .thread_name("clients")
        .enable_all()
        .build()
        .context("can't start the runtime of the clients")
        .map_err(Failure::BadNews)?;
    let ticks = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .context("can't start the runtime of the ticks")
        .map_err(Failure::BadNews)?;
    let watched = ticks.block_on(async {
        // What the loop begins runs beside it: of this runtime, it has nothing but its ticks.
        let _within = runtime.enter();
        crate::daemon::run(config, source, clients.handle(), ticks.handle()).await
    });
    watched.map_err(Failure::Start)?;
    Ok(Answer::good(String::new()))
}

/// Logs to the journal with all fields if systemd connected standard error to it, else to standard
/// error. `RUST_LOG` filters; without it, `info` and above are logged.
fn init_log() -> anyhow::Result<()> {
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let registry = tracing_subscriber::registry().with(filter);
    let journal =
        if is_journal() { Journal::connect(Path::new(journal::SOCKET)).ok() } else { None };
    match journal {
        Some(journal) => registry.with(journal).try_init(),
        None => {
            let colour = io::stderr().is_terminal();
            let layer = tracing_subscriber::fmt::layer().compact().with_ansi(colour);
            registry.with(layer.with_writer(io::stderr)).try_init()
        }
    }
    .context("can't start logging")
}

/// Whether standard error is the stream that `JOURNAL_STREAM` names (systemd.exec(5)): the
/// variable is inherited also by a process with its output elsewhere.
fn is_journal() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else {
        return false;
    };
    rustix::fs::fstat(io::stderr())
        .is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}
