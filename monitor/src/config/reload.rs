//! What a daemon that runs takes over of a new configuration.

use std::path::PathBuf;

use super::{Config, ConfigError, Mode, keys::Group as _};

/// Where the configuration came from, and comes from again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    /// The file; `None`: the default one, if it exists.
    pub file: Option<PathBuf>,
    /// Whether `observe` holds for every VM, whatever the file says.
    pub observe: bool,
}

impl Source {
    /// Reads it, complete and checked.
    ///
    /// # Errors
    /// Those of [`Config::load`].
    pub(crate) fn load(&self) -> Result<Config, ConfigError> {
        let mut config = Config::load(self.file.as_deref())?;
        if self.observe {
            config.mode = Mode::Observe;
            config.policy.mode = Mode::Observe;
            config.vms.iter_mut().for_each(|rule| rule.policy.mode = Mode::Observe);
        }
        Ok(config)
    }
}

impl Config {
    /// `new`, but for what holds for all of a daemon's life: that stays as it is here. Returns the keys that would be
    /// another, and wait for the next start.
    pub(crate) fn followed_by(&self, new: Self) -> (Self, Vec<&'static str>) {
        let mut waiting = self.paths.differing(&new.paths);
        waiting.extend(self.probes.differing(&new.probes));
        (Self { paths: self.paths.clone(), probes: self.probes, ..new }, waiting)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn all_is_taken_over_but_what_holds_for_a_daemons_life_and_that_is_named() {
        let old = Config::parse("[paths]\nstate_dir = \"/a\"\n", "").unwrap();
        let text = "mode = \"observe\"\n[paths]\nstate_dir = \"/b\"\n[probes]\nmax_vms = 32\nkeep = true\n\
                    [detection]\nflat_for = \"30s\"\n[[vm]]\nmatch = \"db-*\"\nflat_for = \"40s\"\n";
        let new = Config::parse(text, "").unwrap();
        let (taken, waiting) = old.followed_by(new.clone());
        assert_eq!(waiting, ["paths.state_dir", "probes.keep", "probes.max_vms"]);
        assert_eq!((&taken.paths, taken.probes), (&old.paths, old.probes));
        assert_eq!(taken.policy_for("db-1", 0).flat_for, Duration::from_secs(40));
        assert_eq!(Config { paths: new.paths.clone(), probes: new.probes, ..taken }, new);
    }

    #[test]
    fn a_daemon_that_was_started_to_observe_does_so_whatever_it_reads() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("flatline.toml");
        std::fs::write(&file, "[[vm]]\nmatch = \"a\"\nmode = \"recover\"\n").unwrap();
        let source = Source { file: Some(file), observe: true };
        let config = source.load().unwrap();
        let modes = [config.mode, config.policy.mode, config.policy_for("a", 0).mode];
        assert_eq!(modes, [Mode::Observe; 3]);
        let config = Source { observe: false, ..source }.load().unwrap();
        assert_eq!(config.policy_for("a", 0).mode, Mode::Recover);
    }
}
