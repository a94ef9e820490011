//! Ctrl-C as an ordinary error, so that guards clean up.
//!
//! A process that dies of SIGINT runs no destructor, and would leave guests, namespaces and mounts
//! behind. The handler only sets a flag; every loop here that waits asks [`check`].

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// How often a waiting loop looks at the flag, and at what it waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Names how many times as long as on any machine something may take, on a host that is itself emulated.
pub const PATIENCE_VARIABLE: &str = "FLATLINE_PATIENCE";

/// `limit`, as many times as [`PATIENCE_VARIABLE`] says. For what is waited for, not for what is judged by its time.
pub fn patient(limit: Duration) -> Duration {
    static TIMES: LazyLock<u32> = LazyLock::new(|| {
        let text = std::env::var(PATIENCE_VARIABLE).ok();
        text.and_then(|text| text.parse().ok()).unwrap_or(1)
    });
    limit.saturating_mul(*TIMES)
}

extern "C" fn remember(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM make waiting functions return an error. More of them change
/// nothing, rather than end the process during its clean-up: `timeout` sends each signal twice.
///
/// # Errors
///
/// If the kernel refuses a handler.
pub fn install() -> Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = remember;
        // SAFETY: zeroes are a valid sigaction: no handler, no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: `action` is a whole sigaction, and its handler does no more than store an atomic,
        // which is async-signal-safe.
        let outcome = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
        if outcome != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("cannot handle signal {signal}"));
        }
    }
    Ok(())
}

/// Whether a signal came since [`install`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// An error if a signal came: for `?` in loops that wait.
///
/// # Errors
///
/// "interrupted", if [`interrupted`].
pub fn check() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sleeps, but not beyond a signal.
///
/// # Errors
///
/// "interrupted".
pub fn sleep(duration: Duration) -> Result<()> {
    let end = Instant::now() + duration;
    loop {
        check()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        std::thread::sleep(left.min(POLL_INTERVAL));
    }
}

/// Asks until there is an answer; `what` names the thing waited for in the error. Returns the
/// answer.
///
/// # Errors
///
/// After `timeout`, made [`patient`], on a signal, or when `ask` itself fails.
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let (start, timeout) = (Instant::now(), patient(timeout));
    loop {
        check()?;
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() > timeout {
            bail!("{what}: not within {timeout:?}");
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}
