//! The QMP client: one connection a VM, by which a QEMU is asked and told things.
//!
//! The QEMU at the other end may have been taken over by its guest. So whatever it says is bounded in
//! size ([`codec`]), in rate and in time ([`session`]); every string that is passed on is cut to
//! [`MAX_TEXT_CHARS`] printable ASCII characters, so that it can stand in a log line, a metric label
//! or a file; and nothing is said to a socket before the process behind it has been shown to be the
//! QEMU that was found (`peer`).
//!
//! Replies are parsed tolerantly: QEMU's versions differ in what they send, so a field is looked up
//! only where it is needed, and an unknown event is passed on as [`QmpEvent::Other`]. A generated,
//! strictly typed client would end at the first field that its version does not know.
//!
//! A QMP socket serves one client at a time. While another one (an operator, libvirt) holds it, a
//! connection succeeds and gets no greeting: that is [`QmpState::Busy`], not a hung QEMU.

mod commands;
pub(crate) mod peer;

#[cfg(any(fuzzing, test))]
pub(crate) mod fuzzing {
    //! What fuzzers may call of this client: see [`crate::fuzzing`].

    use super::{MAX_TEXT_CHARS, RunState, codec::Message, commands};

    /// All that is read out of replies.
    pub(crate) fn replies(message: &Message) {
        if let Message::Return { value, .. } = message {
            commands::fuzz(value);
            if let Some(RunState::Other(name)) = commands::run_state(value) {
                assert!(name.len() <= MAX_TEXT_CHARS);
            }
        }
    }
}

pub mod codec;
pub mod event;
pub mod registers;
pub mod run_state;
pub mod session;

pub use commands::QmpCpu;
pub use event::QmpEvent;
pub use registers::{
    Lapic, Pic, RegistersError, TimerMode, VcpuRegisters, Vectors,
    aarch64::{ArmRegisters, parse_arm_registers},
    has_no_lapic, is_up, parse_lapic, parse_pic, parse_registers,
    system::operating_system,
};
pub use run_state::RunState;
pub use session::{
    LibvirtTarget, Limits, QmpError, QmpHandle, QmpNotice, QmpState, QmpTarget, Transport, spawn,
    spawn_by, spawn_with_limits,
};

/// The most characters that any text from a QEMU keeps. QEMU's own names (run states, events,
/// actions) are below 30; error descriptions are cut to four times this.
pub const MAX_TEXT_CHARS: usize = 64;

/// `text` as printable ASCII, every other character replaced by `?`, cut to `max_chars`.
pub(crate) fn printable(text: &str, max_chars: usize) -> String {
    text.chars()
        .take(max_chars)
        .map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn control_characters_and_non_ascii_do_not_get_through() {
        assert_eq!(printable("a\u{1b}[31m\nb\u{e9}\u{202e} c", 64), "a?[31m?b?? c");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(printable(&"x".repeat(1_000_000), 64).len(), 64);
    }
}
