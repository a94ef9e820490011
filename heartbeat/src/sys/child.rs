//! A program that is run beside, in a group of its own, and ended with all that it started.

use core::ptr;

use super::{Descriptor, TEXT_BYTES, signals::Signals, terminated};
use crate::arguments::MOST_WORDS;

/// A program that runs.
pub struct Child(libc::pid_t);

impl Child {
    /// Starts it, with nothing to read and nobody to hear it; `None` if it can't be started.
    pub fn start(words: &[&str]) -> Option<Self> {
        let mut room = [0; TEXT_BYTES];
        let mut pointers = [ptr::null(); MOST_WORDS + 1];
        let mut rest = &mut room[..];
        for (pointer, word) in pointers.iter_mut().take(MOST_WORDS).zip(words) {
            let (part, left) = rest.split_at_mut_checked(word.len() + 1)?;
            *pointer = terminated(word, part)?.as_ptr();
            rest = left;
        }
        let null = Descriptor::open(c"/dev/null", libc::O_RDWR)?;
        // SAFETY: this process has one thread, so that the child may do anything.
        match unsafe { libc::fork() } {
            -1 => None,
            0 => {
                // SAFETY: the words are C strings, and a null pointer ends them; what fails ends the child.
                unsafe {
                    libc::setpgid(0, 0);
                    for standard in 0..=2 {
                        libc::dup2(null.raw(), standard);
                    }
                    Signals::unblock_all();
                    libc::execvp(pointers[0], pointers.as_ptr());
                    libc::_exit(127)
                }
            }
            pid => Some(Self(pid)),
        }
    }

    /// Whether it ended well; `None` while it runs.
    pub fn ended(&self) -> Option<bool> {
        let mut status = 0;
        // SAFETY: it is our own child, and `status` lives as long as the call.
        let ended = unsafe { libc::waitpid(self.0, &raw mut status, libc::WNOHANG) };
        (ended != 0)
            .then(|| ended == self.0 && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0)
    }

    /// Ends it, and its whole group.
    pub fn kill(&self) {
        // SAFETY: it was not waited for, so that its number is its own still. (Its group may not be there yet.)
        unsafe {
            libc::kill(-self.0, libc::SIGKILL);
            libc::kill(self.0, libc::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Child;

    fn outcome(words: &[&str]) -> bool {
        let child = Child::start(words).expect("it can be forked");
        loop {
            if let Some(well) = child.ended() {
                return well;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_ends_well_with_0_alone() {
        assert!(outcome(&["true"]));
        assert!(!outcome(&["false"]));
        assert!(!outcome(&["/no/such/program"]));
        assert!(outcome(&["sh", "-c", "test \"$1\" = \"a b\"", "sh", "a b"]));
        assert!(
            Child::start(&[&std::string::String::from_utf8(std::vec![b'x'; 5000]).unwrap()])
                .is_none()
        );
    }

    #[test]
    fn one_that_is_killed_takes_its_children_along() {
        let child = Child::start(&["sh", "-c", "sleep 60 & wait"]).expect("it can be forked");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(child.ended(), None);
        child.kill();
        let begin = std::time::Instant::now();
        while child.ended().is_none() {
            assert!(begin.elapsed().as_secs() < 10, "it goes on");
        }
    }
}
