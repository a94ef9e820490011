//! `flatline top`: all VMs as they are now, each with its line.
//!
//! [`model`] is what is shown and what the keys make of it, [`draw`] makes cells of that; neither knows a terminal, a
//! socket or a clock. [`watch`] brings them together with the [`screen`] and with the daemon, which it asks once for each
//! sampling interval over the control socket: no privilege is needed but to open that, and nothing is changed.

mod ask;
mod draw;
mod help;
mod model;
mod screen;
mod watch;
mod wrap;

use std::io::{IsTerminal as _, stdout};
use std::time::{Instant, SystemTime};

use crate::config::Config;
use anyhow::{Context as _, anyhow};

use super::ask::failure;
use super::{Answer, Failure, terminal};
use model::{Look, Model};

/// A terminal that doesn't tell its size has at least this.
const SIZE: (u16, u16) = (80, 24);

pub(super) fn run(config: &Config, no_color: bool) -> Result<Answer, Failure> {
    if !stdout().is_terminal() {
        let message = "top needs a terminal; `flatline status` prints the same once";
        return Err(Failure::Usage(anyhow!(message)));
    }
    let runtime_dir = &config.paths.runtime_dir;
    let (status, lines) = ask::begin(runtime_dir).map_err(failure)?;
    let look = Look { unicode: terminal::unicode(), colours: !no_color && terminal::colours() };
    let now = Instant::now();
    let mut model = Model::new(look, SIZE, now, SystemTime::now());
    let told = lines.as_ref().and_then(|lines| watch::interval_of(lines.interval_seconds));
    model.feed.set_interval(told.unwrap_or(config.sample_interval));
    model.on_status(status, lines, now);

    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")
        .map_err(Failure::BadNews)?;
    let watched = runtime.block_on(watch::watch(&mut model, runtime_dir));
    // A question to the daemon may be under way, and its answer is not needed.
    runtime.shutdown_background();
    watched.map_err(Failure::BadNews)?;
    Ok(Answer::good(String::new()))
}
