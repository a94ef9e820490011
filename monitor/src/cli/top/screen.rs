//! The terminal: taken over as a whole, and given back as it was, however this ends.

use std::io::{self, BufWriter, Stdout, stdout};
use std::panic;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, MoveTo, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::draw;
use super::model::Model;

/// A picture is sent in as few pieces as can be, so that none is seen half done.
const WRITE_BYTES: usize = 32 << 10;

/// Whether the terminal is ours now.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// The terminal, while it is ours; dropping it gives it back.
pub(super) struct Screen {
    terminal: Terminal<CrosstermBackend<BufWriter<Stdout>>>,
}

impl Screen {
    /// Takes the terminal over. What panics from now on gives it back first, so that what it says is seen.
    pub(super) fn take() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |panicked| {
                give_back();
                before(panicked);
            }));
        });
        let backend = CrosstermBackend::new(BufWriter::with_capacity(WRITE_BYTES, stdout()));
        let mut screen = Self { terminal: Terminal::new(backend)? };
        screen.take_again()?;
        Ok(screen)
    }

    /// Takes it once more: after a stop, the shell may have left it in any mode.
    pub(super) fn take_again(&mut self) -> io::Result<()> {
        give_back();
        TAKEN.store(true, Ordering::SeqCst);
        enable_raw_mode()?;
        execute!(stdout(), EnterAlternateScreen, Hide)?;
        self.clear()
    }

    /// Forgets what is on it, so that the next picture is sent whole. `Terminal::clear` would ask the terminal for its
    /// cursor, and wait for an answer that the thread for the keys reads.
    fn clear(&mut self) -> io::Result<()> {
        let area = self.terminal.size()?.into();
        self.terminal.resize(area)
    }

    /// Gives it back, as for a stop.
    pub(super) fn give_back(&mut self) {
        give_back();
    }

    /// Shows the model: of the picture, what changed.
    pub(super) fn show(&mut self, model: &mut Model) -> io::Result<()> {
        self.terminal.autoresize()?;
        let area = self.terminal.get_frame().area();
        if model.size != (area.width, area.height) {
            model.resize((area.width, area.height));
        }
        self.terminal.draw(|frame| draw::draw(model, frame.buffer_mut()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// The terminal may be gone: then there is nothing to give back.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // The picture goes as well where there is no other screen to go back to (a vt100), and where one that was resized
        // meanwhile would keep some of it (tmux).
        let _ = execute!(stdout(), Clear(ClearType::All), MoveTo(0, 0), LeaveAlternateScreen, Show);
        let _ = disable_raw_mode();
    }
}
