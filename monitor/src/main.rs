//! The `flatline` program: the daemon and the commands that ask it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
