//! A program that is run beside, in a group of its own, and ended with all that it started.

use core::{
    ffi::{CStr, c_char},
    marker::PhantomData,
    ptr,
};

use linux_raw_sys::{
    general::{
        __NR_clone, __NR_dup3, __NR_execve, __NR_kill, __NR_prctl, __NR_setpgid, __NR_wait4,
        O_RDWR, SIGCHLD, SIGKILL, WNOHANG,
    },
    prctl::{PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL},
};

use super::{
    Descriptor, TEXT_BYTES,
    call::{NOWHERE, address, call, int},
    exit, joined,
    signals::Signals,
};
use crate::arguments::MOST_WORDS;

/// Where programs are looked for without a `PATH`.
const USUAL_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a shell says of a program that it can't run.
const NOT_RUN: i32 = 127;

/// The variables that this process was given, and hands on.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    first: *const *const c_char,
    life: PhantomData<&'a CStr>,
}

impl Environment<'_> {
    /// # Safety
    /// From `first` on there must be C strings, with a null pointer behind the last, that live as long as `'a`.
    pub unsafe fn new(first: *const *const c_char) -> Self {
        Self { first, life: PhantomData }
    }

    /// The value of `PATH`.
    fn path(&self) -> &[u8] {
        let mut at = self.first;
        // SAFETY: by the promise of its constructor, `at` goes no further than the null pointer.
        while let Some(variable) = unsafe { (*at).as_ref() } {
            // SAFETY: as above.
            let variable = unsafe { CStr::from_ptr(variable) };
            if let Some(value) = variable.to_bytes().strip_prefix(b"PATH=") {
                return value;
            }
            // SAFETY: as above.
            at = unsafe { at.add(1) };
        }
        USUAL_PATH
    }
}

/// A program that runs.
pub struct Child(i32);

impl Child {
    /// Starts it, with nothing to read and its output discarded; `None` if it can't be started.
    pub fn start(words: &[&str], environment: &Environment<'_>) -> Option<Self> {
        let mut room = [0; TEXT_BYTES];
        let mut pointers = [ptr::null(); MOST_WORDS + 1];
        let mut rest = &mut room[..];
        for (pointer, word) in pointers.iter_mut().take(MOST_WORDS).zip(words) {
            let (part, left) = rest.split_at_mut_checked(word.len() + 1)?;
            *pointer = joined(&[word.as_bytes()], part)?.as_ptr();
            rest = left;
        }
        let program = words.first()?.as_bytes();
        let null = Descriptor::open(c"/dev/null", O_RDWR)?;
        // All are left out but the signal that tells of its end: this is a fork.
        let fork = [SIGCHLD as usize, NOWHERE, NOWHERE, NOWHERE, 0];
        // SAFETY: the child has a copy of all memory, and does nothing but call the kernel.
        match unsafe { call(__NR_clone, fork) } {
            Err(_) => None,
            Ok(0) => {
                become_program(program, &pointers, environment, &null);
                exit(NOT_RUN)
            }
            Ok(pid) => i32::try_from(pid).ok().map(Self),
        }
    }

    /// Whether it ended well; `None` while it runs.
    pub fn ended(&self) -> Option<bool> {
        let mut status = 0_i32;
        let arguments = [int(self.0), address(&raw mut status), WNOHANG as usize, NOWHERE];
        // SAFETY: `status` lives as long as the call, which fills it in.
        let ended = unsafe { call(__NR_wait4, arguments) };
        // All bits are clear of one that left with 0: by no signal, and with no other code.
        (ended != Ok(0)).then_some(ended == Ok(int(self.0)) && status == 0)
    }

    /// Its process id.
    #[cfg(test)]
    pub(crate) fn number(&self) -> i32 {
        self.0
    }

    /// Ends it, and its whole group.
    pub fn kill(&self) {
        // Its group may not be there yet.
        for whom in [-self.0, self.0] {
            // SAFETY: it takes no pointer. The child was not waited for, so that its number is its own still.
            let _ = unsafe { call(__NR_kill, [int(whom), SIGKILL as usize]) };
        }
    }
}

/// Makes this process the program; comes back if that fails.
fn become_program(
    program: &[u8],
    words: &[*const c_char; MOST_WORDS + 1],
    environment: &Environment<'_>,
    null: &Descriptor,
) {
    // The right to send frames is this program's, not the check's. (The last two have to be zeros.)
    let no_rights = [PR_CAP_AMBIENT as usize, PR_CAP_AMBIENT_CLEAR_ALL as usize, 0, 0, 0];
    // SAFETY: none of these take a pointer, and 0 stands for the caller.
    unsafe {
        let _ = call(__NR_setpgid, [0, 0]);
        let _ = call(__NR_prctl, no_rights);
        for standard in 0..=2 {
            let _ = call(__NR_dup3, [null.raw(), standard, 0]);
        }
    }
    Signals::unblock_all();
    let mut room = [0; TEXT_BYTES];
    let mut run = |parts: &[&[u8]]| {
        let Some(path) = joined(parts, &mut room) else { return };
        let arguments =
            [address(path.as_ptr()), address(words.as_ptr()), address(environment.first)];
        // SAFETY: the path and the words are C strings, and a null pointer ends the words and the variables.
        let _ = unsafe { call(__NR_execve, arguments) };
    };
    if program.contains(&b'/') {
        run(&[program]);
        return;
    }
    for directory in environment.path().split(|byte| *byte == b':') {
        // An empty one is the current one, in a shell's tradition.
        match directory {
            [] => run(&[b"./", program]),
            directory => run(&[directory, b"/", program]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Child, Environment, Signals, USUAL_PATH};

    fn started(words: &[&str], variables: &[&std::ffi::CStr]) -> Option<Child> {
        let mut first: std::vec::Vec<_> = variables.iter().map(|one| one.as_ptr()).collect();
        first.push(core::ptr::null());
        // SAFETY: they are C strings, and a null pointer is behind them.
        Child::start(words, &unsafe { Environment::new(first.as_ptr()) })
    }

    fn outcome(words: &[&str], variables: &[&std::ffi::CStr]) -> bool {
        let child = started(words, variables).expect("it can be forked");
        loop {
            if let Some(well) = child.ended() {
                return well;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_ends_well_with_0_alone() {
        assert!(outcome(&["true"], &[]));
        assert!(!outcome(&["false"], &[]));
        assert!(!outcome(&["/no/such/program"], &[]));
        assert!(!outcome(&["sh", "-c", "kill $$"], &[]));
        assert!(outcome(&["sh", "-c", "test \"$1\" = \"a b\"", "sh", "a b"], &[]));
        assert!(started(&["x".repeat(5000).as_str()], &[]).is_none());
        assert!(started(&[], &[]).is_none());
    }

    #[test]
    fn it_is_looked_for_where_the_environment_says_which_it_gets() {
        assert!(!outcome(&["true"], &[c"A=b", c"PATH=/no/such:"]));
        assert!(outcome(&["true"], &[c"A=b", c"PATH=/no/such::/bin:/usr/bin"]));
        assert!(outcome(&["sh", "-c", "test $A = b"], &[c"A=b"]));
        // SAFETY: a null pointer is all that is there.
        let none = unsafe { Environment::new(&core::ptr::null()) };
        assert_eq!(none.path(), USUAL_PATH);
    }

    #[test]
    fn signals_that_this_process_waits_for_interrupt_it() {
        // Of this thread alone, and inherited by its child.
        assert!(Signals::block().is_some());
        let blocked = "s/SigBlk:[^0-9a-f]*//p";
        let none = [
            "sh",
            "-c",
            "test $(sed -n \"$1\" /proc/self/status) = 0000000000000000",
            "sh",
            blocked,
        ];
        assert!(outcome(&none, &[]));
    }

    #[test]
    fn one_that_is_killed_takes_its_children_along() {
        let child = started(&["sh", "-c", "sleep 60 & wait"], &[]).expect("it can be forked");
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert_eq!(child.ended(), None);
        child.kill();
        let begin = std::time::Instant::now();
        while child.ended().is_none() {
            assert!(begin.elapsed().as_secs() < 10, "it goes on");
        }
    }
}
