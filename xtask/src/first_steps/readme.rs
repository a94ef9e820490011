//! The commands of the README that a newcomer types.

use anyhow::{Context, Result, ensure};

/// The sections that are played, in this order.
const SECTIONS: [&str; 2] = ["## Install", "## The first crash"];

/// Their commands, without those that make the packages.
pub(super) fn commands(readme: &str) -> Result<Vec<String>> {
    let mut commands = Vec::new();
    for section in SECTIONS {
        let begin = readme.find(&format!("\n{section}\n"));
        let text = &readme[begin.with_context(|| format!("the README has no `{section}`"))? + 1..];
        let text = text.find("\n## ").map_or(text, |end| &text[..end]);
        let before = commands.len();
        commands.extend(of(text).filter(|command| !command.starts_with("cargo ")));
        ensure!(commands.len() > before, "`{section}` has no commands");
    }
    Ok(commands)
}

/// The commands in the blocks of a section.
fn of(text: &str) -> impl Iterator<Item = String> {
    // Every other part stands between fences.
    let blocks = text.split("```").skip(1).step_by(2);
    let consoles = blocks.filter_map(|block| block.strip_prefix("console\n"));
    let lines = consoles.flat_map(str::lines);
    lines.filter_map(|line| line.strip_prefix("# ")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_are_those_of_both_sections_in_order() {
        let readme = "# x\n\n## Install\n\n```console\n# cargo xtask dist\n# a 'b'\n```\nwords `# no`\n\
                      ```toml\n# no\n```\n## The first crash\n```console\n# c\noutput\n# d\n```\n## Else\n\
                      ```console\n# e\n```\n";
        assert_eq!(commands(readme).unwrap(), ["a 'b'", "c", "d"]);
        assert!(commands("## Install\n").is_err());
    }

    #[test]
    fn the_readme_has_what_is_played() {
        let readme = std::fs::read_to_string(crate::process::workspace_root().join("README.md"));
        let commands = commands(&readme.unwrap()).unwrap();
        assert!(
            commands.iter().any(|command| command == "systemctl reload flatline"),
            "{commands:?}"
        );
    }
}
