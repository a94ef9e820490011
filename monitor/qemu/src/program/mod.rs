//! Programs of VMs' owners, run by their argument vectors. No shell ever reads one; names were checked against
//! their product's alphabet when the owner was found, and stand after `--` or an option's own name all the same.

mod place;
mod run;
pub mod virsh;

pub use place::{Place, User};
pub(crate) use run::run_bounded;
pub use run::{Ran, RunError, find, run, run_at, spawn};

/// A program to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The program, by its absolute path, or by a name that is looked up in [`PATH`], and its arguments.
    pub words: Vec<String>,
}

/// Where programs are looked for, in this order; the environment's own `PATH` is not asked.
pub const PATH: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

impl Program {
    /// One of these words.
    pub fn new<const N: usize>(words: [&str; N]) -> Self {
        Self { words: words.map(str::to_owned).to_vec() }
    }

    /// The whole line, for logs and incidents: words with a space in them are quoted.
    pub fn line(&self) -> String {
        let word = |word: &String| {
            let is_plain = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_graphic());
            if is_plain { word.clone() } else { format!("{word:?}") }
        };
        self.words.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}
