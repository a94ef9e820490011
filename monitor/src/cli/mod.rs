//! The command line: arguments become a command, its answer or failure an exit code, here only.
//!
//! A command returns its whole output as text. Nothing but [`main`] prints it, so that a reader
//! that went away (`flatline status | head -1`) is no error, and nothing below exits.

mod ask;
mod check;
mod daemon;
mod documents;
mod ecg;
mod hold;
mod incidents;
mod journal;
mod page;
mod record;
mod replay;
mod report;
#[cfg(test)]
mod samples;
mod severity;
mod show;
mod status;
mod table;
mod terminal;
#[cfg(test)]
mod tests;
mod top;
mod web;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::config::{Config, Source};
use crate::daemon::StartError;
use anyhow::Context;
use clap::{Parser, Subcommand};

/// Notices from outside that a QEMU guest's operating system has crashed, and brings it back
#[derive(Debug, Parser)]
#[command(name = "flatline", version)]
struct Arguments {
    /// Configuration file; without it /etc/flatline/flatline.toml, if that exists
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    Run {
        /// Decide and record, but touch no guest, whatever the configuration says
        #[arg(long)]
        observe: bool,
    },
    /// A row for each VM, those first that need a look
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// The live view: every VM with its line drawn; ? or F1 shows the keys
    Top {
        /// Without colours, as with NO_COLOR in the environment
        #[arg(long)]
        no_color: bool,
    },
    /// A link to the daemon's web page, good for some minutes and one browser
    Web {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// All that is known of one VM, why its verdict is what it is, and its last minutes as lines
    Show {
        /// Process id, name or UUID; NAME@USER where users' VMs are called alike
        vm: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// What was detected, what was done, and what came of it
    #[command(args_conflicts_with_subcommands = true)]
    Incidents {
        /// Print JSON, one object a line
        #[arg(long)]
        json: bool,
        /// Only those of this VM: process id, name or UUID; NAME@USER where users' VMs are called alike
        #[arg(long)]
        vm: Option<String>,
        #[command(subcommand)]
        command: Option<IncidentsCommand>,
    },
    /// Leave a VM alone for maintenance: it is watched and judged, and not touched
    Hold {
        /// Process id, name or UUID; NAME@USER where users' VMs are called alike
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        vm: Option<String>,
        /// Every VM of the host, those to come included
        #[arg(long)]
        all: bool,
        /// For so long, such as 90m or 2h; without it until it is released
        #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
        span: Option<std::time::Duration>,
    },
    /// End a hold and start anew: earlier restarts no longer count, and a failed VM is judged again
    Release {
        /// Process id, name or UUID; NAME@USER where users' VMs are called alike
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        vm: Option<String>,
        /// Every VM of the host
        #[arg(long)]
        all: bool,
    },
    /// Write what is kept of the last minutes to files in the state directory, and name them
    Record {
        /// Process id, name or UUID; NAME@USER where users' VMs are called alike
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        vm: Option<String>,
        /// Of every VM
        #[arg(long)]
        all: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Judge a recording once more, and hold that against what was decided live
    ///
    /// Without --config by the policy that it was judged by live: every decision must come out the same. With
    /// --config FILE by the one that FILE has for this VM. Ends with 1 if a decision differs.
    Replay {
        /// The recording: of `flatline record`, of an incident, or of the recordings directory
        file: PathBuf,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Is this host fit: kernel features, BTF, capabilities, bpffs, each hook
    Check {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Look for mistakes in a configuration file
    CheckConfig {
        /// The file
        file: PathBuf,
    },
    /// Write the man pages and the shells' completions, for packages
    #[command(hide = true)]
    Documents {
        /// Where to; it is made
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum IncidentsCommand {
    /// One incident in full
    Show {
        /// The incident's id
        id: String,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Write it as one HTML file with all its evidence, to be read elsewhere; - prints it
        #[arg(long, value_name = "FILE", conflicts_with = "json")]
        html: Option<PathBuf>,
    },
}

/// What a command found out.
struct Answer {
    /// For standard output.
    text: String,
    /// Something for standard error that doesn't make the answer a failure; may be empty.
    remark: String,
    /// Whether the answer is one that a script should stop at.
    bad_news: bool,
}

impl Answer {
    fn good(text: String) -> Self {
        Self { text, remark: String::new(), bad_news: false }
    }
}

/// Why a command has no answer; each variant has its exit code.
enum Failure {
    /// What was asked for doesn't exist or went wrong.
    BadNews(anyhow::Error),
    /// Wrong usage or configuration.
    Usage(anyhow::Error),
    /// The daemon can't be reached.
    Unreachable(anyhow::Error),
    /// The daemon did not start, or ended.
    Start(StartError),
}

impl Failure {
    fn exit_code(&self) -> u8 {
        match self {
            Self::BadNews(_) => 1,
            Self::Usage(_) => 2,
            Self::Unreachable(_) => 3,
            Self::Start(_) => 1,
        }
    }

    fn into_error(self) -> anyhow::Error {
        match self {
            Self::BadNews(error) | Self::Usage(error) | Self::Unreachable(error) => error,
            Self::Start(error) => error.into(),
        }
    }
}

/// Runs the command of this process's arguments; the only place that prints and that gives exit
/// codes.
pub fn main() -> ExitCode {
    // Wrong arguments end here with 2, `--help` and `--version` with 0.
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(Answer { text, remark, bad_news }) => {
            if !remark.is_empty() {
                complain(&remark);
            }
            match print(&text) {
                Ok(()) => ExitCode::from(u8::from(bad_news)),
                Err(error) => {
                    complain(&format!("can't write the answer: {error}"));
                    ExitCode::from(1)
                }
            }
        }
        Err(failure) => {
            let code = failure.exit_code();
            // The alternate form joins the chain of causes by ": ".
            complain(&format!("{:#}", failure.into_error()));
            ExitCode::from(code)
        }
    }
}

fn run(arguments: Arguments) -> Result<Answer, Failure> {
    let Arguments { config, command } = arguments;
    let config = config.as_deref();
    match command {
        Command::Run { observe } => {
            let source = Source { file: config.map(Path::to_owned), observe };
            daemon::run(source)
        }
        Command::Status { json } => status::run(&load(config)?, json),
        Command::Top { no_color } => top::run(&load(config)?, no_color),
        Command::Web { json } => web::run(&load(config)?, json),
        Command::Show { vm, json } => show::run(&load(config)?, vm, json),
        Command::Incidents { command: Some(IncidentsCommand::Show { id, json, html }), .. } => {
            let config = load(config)?;
            match html {
                Some(file) => incidents::write_html(&config, &id, &file),
                None => incidents::show(&config, &id, json),
            }
        }
        Command::Incidents { json, vm, command: None } => incidents::list(&load(config)?, vm, json),
        Command::Hold { vm, all: _, span } => hold::hold(&load(config)?, vm, span),
        Command::Release { vm, all: _ } => hold::release(&load(config)?, vm),
        Command::Record { vm, all: _, json } => record::run(&load(config)?, vm, json),
        // The host's own configuration has nothing to do with it.
        Command::Replay { file, json } => {
            let config = config.map(|file| load(Some(file))).transpose()?;
            replay::run(&file, config.as_ref(), json)
        }
        Command::Check { json } => check::run(&load(config)?, json),
        Command::CheckConfig { file } => {
            let config = Config::load(Some(&file)).map_err(|error| Failure::Usage(error.into()))?;
            config.warnings.iter().for_each(|warning| complain(warning));
            Ok(Answer::good(format!("{}: no mistakes\n", table::safe(&file.to_string_lossy()))))
        }
        Command::Documents { directory } => documents::write(&directory),
    }
}

fn load(path: Option<&Path>) -> Result<Config, Failure> {
    Config::load_without_secrets(path).map_err(|error| Failure::Usage(error.into()))
}

/// `value` as indented JSON and a newline.
fn json(value: &impl serde::Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).context("can't put the answer as JSON");
    text.map(|text| text + "\n").map_err(Failure::BadNews)
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn complain(message: &str) {
    for line in message.lines() {
        // Without standard error only the exit code tells.
        let _ = writeln!(io::stderr(), "flatline: {}", table::safe(line));
    }
}
