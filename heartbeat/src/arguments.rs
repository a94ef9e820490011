//! What the command line says.

/// Most words that are read, the command to check among them.
pub const MOST_WORDS: usize = 64;
const LEAST_SECONDS: u32 = 1;
const MOST_SECONDS: u32 = 3600;

/// How beats are to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arguments<'a> {
    /// From one beat to the next.
    pub interval_ms: u32,
    /// A character device to write beats to, instead of the network cards.
    pub port: Option<&'a str>,
    /// What the check is called, if it has a name.
    pub name: &'a str,
    /// The program that is run before each beat, and its arguments; none: every beat is sent.
    pub check: Words<'a>,
}

/// Some words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Words<'a> {
    words: [&'a str; MOST_WORDS],
    count: usize,
}

impl<'a> Words<'a> {
    /// These words, as far as there is room.
    pub fn new(from: &[&'a str]) -> Self {
        let mut words = [""; MOST_WORDS];
        let count = from.len().min(MOST_WORDS);
        for (word, from) in words.iter_mut().zip(from) {
            *word = from;
        }
        Self { words, count }
    }

    /// All of them.
    pub fn get(&self) -> &[&'a str] {
        self.words.get(..self.count).unwrap_or_default()
    }
}

/// What can't be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong<'a> {
    /// What is wrong.
    pub what: &'static str,
    /// With which word.
    pub word: &'a str,
}

/// Reads the words after the program's own name; `None` if the usage is wanted.
///
/// # Errors
/// If one of them is not known, or its value is missing or makes no sense.
pub fn parse<'a>(words: &[&'a str]) -> Result<Option<Arguments<'a>>, Wrong<'a>> {
    let mut told = Arguments { interval_ms: 1000, port: None, name: "", check: Words::new(&[]) };
    let mut rest = words.iter().copied().enumerate();
    while let Some((at, word)) = rest.next() {
        let wrong = |what| Wrong { what, word };
        let mut value = || rest.next().map(|(_, value)| value).ok_or(wrong("has no value"));
        match word {
            "--help" | "-h" => return Ok(None),
            "--interval" => {
                let text = value()?;
                let seconds =
                    text.parse().ok().filter(|n| (LEAST_SECONDS..=MOST_SECONDS).contains(n));
                told.interval_ms = seconds
                    .map(|seconds: u32| seconds * 1000)
                    .ok_or(Wrong { what: "no number of seconds from 1 to 3600", word: text })?;
            }
            "--port" => told.port = Some(value()?),
            "--name" => told.name = value()?,
            "--check" => {
                let command = words.get(at + 1..).unwrap_or_default();
                let program = *command.first().ok_or(wrong("has no command"))?;
                told.check = Words::new(command);
                if told.name.is_empty() {
                    told.name = program.rsplit('/').next().unwrap_or(program);
                }
                return Ok(Some(told));
            }
            _ => return Err(wrong("is not known")),
        }
    }
    Ok(Some(told))
}

#[cfg(test)]
mod tests {
    use super::{Arguments, Words, parse};

    fn told<'a>(words: &[&'a str]) -> Arguments<'a> {
        match parse(words) {
            Ok(Some(arguments)) => arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_a_word_it_beats_once_a_second_and_checks_nothing() {
        let expected =
            Arguments { interval_ms: 1000, port: None, name: "", check: Words::new(&[]) };
        assert_eq!(told(&[]), expected);
        assert_eq!(parse(&["--help"]), Ok(None));
    }

    #[test]
    fn a_check_takes_all_words_that_follow_and_is_called_like_its_program() {
        let all = told(&["--interval", "5", "--check", "/usr/bin/curl", "-f", "--name", "x"]);
        assert_eq!((all.interval_ms, all.name), (5000, "curl"));
        assert_eq!(all.check.get(), ["/usr/bin/curl", "-f", "--name", "x"]);
        assert_eq!(told(&["--name", "web", "--check", "true"]).name, "web");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        for (words, word) in [
            (&["--interval"][..], "--interval"),
            (&["--interval", "0"], "0"),
            (&["--interval", "3601"], "3601"),
            (&["--interval", "1s"], "1s"),
            (&["--check"], "--check"),
            (&["--port"], "--port"),
            (&["beat"], "beat"),
        ] {
            assert_eq!(parse(words).unwrap_err().word, word);
        }
    }
}
