//! What the keys do, as people know them from top and htop. None changes anything but the view.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::layout::page_lines;
use super::{Column, Key, Model, Overlay, Page};
use crate::cli::top::help::HELP;

/// The longest filter, in characters: as long as QEMU's names get.
const FILTER_MAX: usize = 64;

/// What is left for the loop to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli::top) enum Effect {
    /// Show what is new.
    Draw,
    /// Show all anew: something else wrote to the terminal.
    DrawAll,
    /// Ask the daemon now: a page was opened.
    Ask,
    /// Stop, until the shell lets this go on.
    Suspend,
    /// End.
    Quit,
}

impl Model {
    /// A key was pressed.
    pub(in crate::cli::top) fn on_key(&mut self, key: KeyEvent) -> Effect {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'C') if control => return Effect::Quit,
            KeyCode::Char('z' | 'Z') if control => return Effect::Suspend,
            KeyCode::Char('l' | 'L') if control => return Effect::DrawAll,
            KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => {
                return Effect::Draw;
            }
            KeyCode::F(10) => return Effect::Quit,
            _ => {}
        }
        let effect = match &self.overlay {
            Overlay::Help(line) => self.on_help_key(key.code, *line),
            Overlay::Sorting(column) => self.on_sorting_key(key.code, *column),
            Overlay::Filtering(before) => self.on_filter_key(key.code, before.clone()),
            Overlay::None if self.page.is_some() => self.on_page_key(key.code),
            Overlay::None => self.on_list_key(key.code),
        };
        self.arrange();
        effect
    }

    fn on_list_key(&mut self, key: KeyCode) -> Effect {
        let lines = usize::from(self.regions().rows.height).max(1);
        match key {
            KeyCode::Char('q' | 'Q') => return Effect::Quit,
            KeyCode::Up | KeyCode::Char('k') => self.move_to(self.cursor.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.move_to(self.cursor + 1),
            KeyCode::PageUp => self.move_to(self.cursor.saturating_sub(lines)),
            KeyCode::PageDown => self.move_to(self.cursor + lines),
            KeyCode::Home | KeyCode::Char('g') => {
                // At the top it stays, whichever VM comes to stand there.
                self.selected = None;
                self.cursor = 0;
            }
            KeyCode::End | KeyCode::Char('G') => self.move_to(usize::MAX),
            KeyCode::Enter | KeyCode::Right => {
                if let Some(row) = self.selected() {
                    self.page = Some(Page::new(Key::of(&row.vm)));
                    return Effect::Ask;
                }
            }
            KeyCode::Esc => {
                self.filter.clear();
                self.sort();
            }
            KeyCode::Char('/' | '\\') | KeyCode::F(3 | 4) => {
                self.overlay = Overlay::Filtering(self.filter.clone());
            }
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.overlay = Overlay::Help(0),
            KeyCode::F(6) => self.overlay = Overlay::Sorting(self.column),
            KeyCode::Char('<' | ',') => self.sort_by(self.column.beside(-1), false),
            KeyCode::Char('>' | '.') => self.sort_by(self.column.beside(1), false),
            KeyCode::Char('R' | 'I') => self.sort_by(self.column, !self.reversed),
            KeyCode::Char(letter) => {
                let column = Column::ALL.into_iter().find(|column| column.describe().1 == letter);
                if let Some(column) = column {
                    // The same key once more turns it round.
                    self.sort_by(column, column == self.column && !self.reversed);
                }
            }
            _ => {}
        }
        Effect::Draw
    }

    fn sort_by(&mut self, column: Column, reversed: bool) {
        (self.column, self.reversed) = (column, reversed);
        self.sort();
    }

    fn on_page_key(&mut self, key: KeyCode) -> Effect {
        let lines = page_lines(self.size);
        let beside = match key {
            KeyCode::Char('n') => Some(self.cursor + 1),
            KeyCode::Char('p') => self.cursor.checked_sub(1),
            _ => None,
        };
        if let Some(index) = beside {
            self.move_to(index);
            return self.on_list_key(KeyCode::Enter);
        }
        let Some(page) = &mut self.page else { return Effect::Draw };
        let at = page.scroll;
        match key {
            KeyCode::Char('q' | 'Q') | KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => {
                self.page = None;
            }
            KeyCode::Up | KeyCode::Char('k') => page.scroll_to(at.saturating_sub(1), lines),
            KeyCode::Down | KeyCode::Char('j') | KeyCode::Enter => page.scroll_to(at + 1, lines),
            KeyCode::PageUp => page.scroll_to(at.saturating_sub(lines), lines),
            KeyCode::PageDown | KeyCode::Char(' ') => page.scroll_to(at + lines, lines),
            KeyCode::Home | KeyCode::Char('g') => page.scroll_to(0, lines),
            KeyCode::End | KeyCode::Char('G') => page.scroll_to(usize::MAX, lines),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.overlay = Overlay::Help(0),
            _ => {}
        }
        Effect::Draw
    }

    fn on_help_key(&mut self, key: KeyCode, line: usize) -> Effect {
        let last = HELP.len().saturating_sub(page_lines(self.size));
        let to = |line: usize| Overlay::Help(line.min(last));
        self.overlay = match key {
            KeyCode::Up | KeyCode::Char('k') => to(line.saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => to(line + 1),
            KeyCode::PageUp => to(line.saturating_sub(page_lines(self.size))),
            KeyCode::PageDown | KeyCode::Char(' ') => to(line + page_lines(self.size)),
            KeyCode::Home => to(0),
            KeyCode::End => to(last),
            // Any other key closes it, as in top.
            _ => Overlay::None,
        };
        Effect::Draw
    }

    fn on_sorting_key(&mut self, key: KeyCode, column: Column) -> Effect {
        match key {
            KeyCode::Up | KeyCode::Char('k') => self.overlay = Overlay::Sorting(column.beside(-1)),
            KeyCode::Down | KeyCode::Char('j') => self.overlay = Overlay::Sorting(column.beside(1)),
            KeyCode::Enter => {
                self.overlay = Overlay::None;
                self.sort_by(column, false);
            }
            KeyCode::Esc | KeyCode::Char('q') | KeyCode::F(6) => self.overlay = Overlay::None,
            _ => {}
        }
        Effect::Draw
    }

    fn on_filter_key(&mut self, key: KeyCode, before: String) -> Effect {
        match key {
            KeyCode::Enter | KeyCode::Up | KeyCode::Down => self.overlay = Overlay::None,
            KeyCode::Esc => {
                self.overlay = Overlay::None;
                self.filter = before;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push(letter);
            }
            _ => {}
        }
        self.sort();
        Effect::Draw
    }
}
