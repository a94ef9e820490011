//! What it costs to ask a QEMU for its guest's run state: the client's CPU time, and what QEMU takes for
//! the answer.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::Value;

use crate::{clock, print};

#[derive(Args)]
pub(crate) struct Options {
    #[arg(long)]
    socket: PathBuf,
    /// The QEMU behind it
    #[arg(long)]
    pid: u32,
    #[arg(long)]
    rounds: u32,
    /// Questions in a round
    #[arg(long)]
    questions: u32,
}

pub(crate) fn measure(options: &Options) -> Result<()> {
    let stream = UnixStream::connect(&options.socket)?;
    let mut client = Client { replies: BufReader::new(stream), line: String::new() };
    ensure!(client.reply()?.get("QMP").is_some(), "no QMP greeting");
    client.ask("qmp_capabilities")?;
    let (mut own, mut theirs, mut elapsed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let (begin, before) = (Instant::now(), main_thread_nanos(options.pid)?);
        own.push(clock::per_call(options.questions, || client.ask("query-status"))?);
        elapsed.push(begin.elapsed().as_secs_f64() * 1e9 / f64::from(options.questions));
        let took = main_thread_nanos(options.pid)? - before;
        theirs.push(f64::from(u32::try_from(took)?) / f64::from(options.questions));
    }
    print("qmp/client", &own);
    print("qmp/qemu", &theirs);
    print("qmp/elapsed", &elapsed);
    Ok(())
}

struct Client {
    replies: BufReader<UnixStream>,
    line: String,
}

impl Client {
    fn ask(&mut self, command: &str) -> Result<()> {
        let request = format!("{{\"execute\":\"{command}\"}}\n");
        self.replies.get_mut().write_all(request.as_bytes())?;
        loop {
            let reply = self.reply()?;
            if reply.get("event").is_none() {
                ensure!(reply.get("return").is_some(), "{command}: {reply}");
                return Ok(());
            }
        }
    }

    fn reply(&mut self) -> Result<Value> {
        self.line.clear();
        self.replies.read_line(&mut self.line)?;
        Ok(serde_json::from_str(&self.line)?)
    }
}

/// CPU time of the thread that serves a QEMU's monitor.
fn main_thread_nanos(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/schedstat"))?;
    Ok(text.split_ascii_whitespace().next().context("schedstat is empty")?.parse()?)
}
