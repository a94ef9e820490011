//! `flatline documents`: man pages and the shells' completions, from the definitions of the command line and of the
//! configuration themselves.
//!
//! A hidden command of the very program that is packaged, so that they can't tell of another one. The task that packages
//! can't ask the library instead: it also builds the eBPF programs, without which this package doesn't compile.

use std::fs::create_dir_all;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::{Answer, Arguments, Failure};
use crate::config::manual_page;

/// The shells that Debian has a place for, and what the file is called there.
const SHELLS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash/flatline"),
    (Shell::Zsh, "zsh/_flatline"),
    (Shell::Fish, "fish/flatline.fish"),
];

/// Writes `man/*.1`, `man/flatline.toml.5` and `completions/SHELL/FILE` below `directory`.
pub(super) fn write(directory: &Path) -> Result<Answer, Failure> {
    write_all(directory).map_err(Failure::BadNews)?;
    Ok(Answer::good(String::new()))
}

fn write_all(directory: &Path) -> anyhow::Result<()> {
    let man = directory.join("man");
    create_dir_all(&man).with_context(|| format!("can't make {}", man.display()))?;
    clap_mangen::generate_to(visible(), &man).context("can't write the man pages")?;
    let page = man.join("flatline.toml.5");
    std::fs::write(&page, manual_page())
        .with_context(|| format!("can't write {}", page.display()))?;
    for (shell, name) in SHELLS {
        let path = directory.join("completions").join(name);
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut visible(), "flatline", &mut script);
        let parent = path.parent().context("it has a directory")?;
        create_dir_all(parent)
            .and_then(|()| std::fs::write(&path, script))
            .with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

/// The command line without what is hidden: completions would offer that as well.
fn visible() -> clap::Command {
    let whole = Arguments::command();
    let shown: Vec<_> =
        whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    let mut command = clap::Command::new("flatline").version(env!("CARGO_PKG_VERSION"));
    if let Some(about) = whole.get_about() {
        command = command.about(about.clone());
    }
    let arguments: Vec<_> = whole.get_arguments().cloned().collect();
    command.args(arguments).subcommands(shown).subcommand_required(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_that_is_shown_has_a_page_and_is_completed() {
        let directory = tempfile::tempdir().unwrap();
        write_all(directory.path()).unwrap();
        let text = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        let scripts = SHELLS.map(|(_, name)| text(&format!("completions/{name}")));
        let whole = Arguments::command();
        for command in whole.get_subcommands() {
            let name = command.get_name();
            let page = directory.path().join(format!("man/flatline-{name}.1"));
            assert_eq!(page.exists(), !command.is_hide_set(), "{name}");
            for script in &scripts {
                assert_eq!(script.contains(name), !command.is_hide_set(), "{name}");
            }
        }
        assert!(text("man/flatline.1").contains("\\-\\-config"));
        assert!(text("man/flatline-incidents-show.1").contains("\\-\\-html"));
        assert!(text("man/flatline.toml.5").starts_with(".TH flatline.toml 5\n"));
    }
}
