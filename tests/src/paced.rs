//! Pace of a stand-in's signs of life: how many milliseconds lie between two of them, by a file that can be written anew while
//! it runs.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// How often a guest that has little to do stores something: well within the time after which silence makes it a suspect.
pub const IDLE: Duration = Duration::from_secs(4);
/// Between two looks at the file of a stand-in that is to show none.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a stand-in shows a sign of life.
#[derive(Clone, Debug)]
pub enum Pace {
    /// So often.
    Every(Duration),
    /// As often as this file says, in milliseconds; 0: never.
    By(PathBuf),
}

impl Pace {
    /// How long to wait, and whether a sign is due then.
    ///
    /// # Errors
    ///
    /// If there is a file that holds no number.
    pub fn next(&self) -> Result<(Duration, bool)> {
        match self {
            Self::Every(pause) => Ok((*pause, true)),
            Self::By(file) => {
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("cannot read {}", file.display()))?;
                let pause = Duration::from_millis(text.trim().parse().context("no pace")?);
                Ok(if pause.is_zero() { (LOOK_EVERY, false) } else { (pause, true) })
            }
        }
    }

    /// When the first sign is due: those of many stand-ins do not come all at once.
    ///
    /// # Errors
    ///
    /// As [`Self::next`].
    pub fn phase(&self) -> Result<Duration> {
        Ok(self.next()?.0 * (std::process::id() % 256) / 256)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_sets_the_pace_anew_and_zero_is_silence() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pace = Pace::By(file.path().to_owned());
        std::fs::write(file.path(), "500\n").unwrap();
        assert_eq!(pace.next().unwrap(), (Duration::from_millis(500), true));
        std::fs::write(file.path(), "0").unwrap();
        assert_eq!(pace.next().unwrap(), (LOOK_EVERY, false));
        std::fs::write(file.path(), "often").unwrap();
        assert!(pace.next().is_err());
    }
}
