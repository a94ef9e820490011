//! The `flatline` program: the daemon and the commands that ask it.

use std::process::ExitCode;

fn main() -> ExitCode {
    flatline::main()
}
