//! The list of VMs.

use std::time::Duration;

use crate::history::Rate;
use ratatui::style::Modifier;
use unicode_width::UnicodeWidthStr as _;

use super::figures::{figure, line, percent};
use super::layout::{Regions, Widths};
use super::paint::{Paint, REVERSED, STRONG};
use super::stale_text;
use crate::cli::severity::{self, Tone};
use crate::cli::table::{brief, duration, or_dash, safe};
use crate::cli::top::model::{Model, Overlay, Row, Stale, life};

const KEYS: &str = "F1 Help  F3/ Filter  F6 Sort  R Reverse  Enter Details  Esc All  q Quit";

/// What is wrong with the picture, or with the host.
pub(super) fn banners(model: &Model) -> Vec<(String, Tone)> {
    let mut banners = Vec::new();
    if let Some(stale) = model.feed.stale() {
        banners.push((stale_text(&stale), Tone::Bad));
    }
    if let Some(degraded) = model.host.as_ref().and_then(|host| host.degraded.as_ref()) {
        banners.push((format!("degraded: {degraded}"), Tone::Notable));
    }
    banners
}

pub(super) fn draw(paint: &mut Paint, model: &Model, stale: Option<&Stale>) {
    let regions = Regions::of(model);
    let width = paint.area().width;
    if let Some(y) = regions.title {
        title(paint, model, y);
    }
    if let Some(y) = regions.summary {
        match stale {
            // Too low a terminal for both.
            Some(stale) if regions.banners.is_empty() => {
                paint.bar(y, &stale_text(stale), REVERSED);
            }
            _ => summary(paint, model, y),
        }
    }
    for (y, (text, tone)) in regions.banners.clone().zip(banners(model)) {
        let style = if tone == Tone::Bad { REVERSED } else { paint.style(tone) };
        paint.bar(y, &text, style);
    }
    let end = model.shown.len().min(model.offset + regions.rows.len());
    let shown = (model.offset..end).filter_map(|index| Some((index, model.row(index)?)));
    let shown: Vec<(usize, &Row)> = shown.collect();
    let names = shown.iter().map(|(_, row)| safe(&row.vm.name).width()).max().unwrap_or(0);
    let widths = Widths::of(width, u16::try_from(names).unwrap_or(u16::MAX));
    if let Some(y) = regions.header {
        paint.bar(y, "", REVERSED);
        header(paint, y, &widths);
    }
    for (y, (index, row)) in regions.rows.clone().zip(&shown) {
        draw_row(paint, y, row, &widths);
        if *index == model.cursor {
            let style = REVERSED;
            paint.buffer.set_style(ratatui::layout::Rect { y, height: 1, ..paint.area() }, style);
            paint.text(0, y, 1, ">", style);
        }
    }
    if shown.is_empty() {
        let text = match (&model.host, model.rows.is_empty()) {
            (None, _) => "asking the daemon",
            (Some(_), true) => "no VMs",
            (Some(_), false) => "no VM matches; Esc shows all",
        };
        if let Some(y) = regions.rows.clone().next() {
            paint.text(1, y, width, text, paint.style(Tone::Plain));
        }
    }
    if let (Some(y), Some(row)) = (regions.reason, model.selected()) {
        let text = format!("{}: {}", row.vm.name, severity::reason(&row.vm));
        paint.text(0, y, width, &text, paint.style(Tone::of(&row.vm.state)));
    }
    if let Some(y) = regions.keys {
        match &model.overlay {
            Overlay::Filtering(_) => {
                let end = paint.text(0, y, width, &format!("/{}", model.filter), STRONG);
                paint.text(end, y, 1, " ", REVERSED);
                paint.text(
                    end + 3,
                    y,
                    width,
                    "Enter keeps the filter, Esc takes it back",
                    STRONG.remove_modifier(Modifier::BOLD),
                );
            }
            _ => paint.bar(y, KEYS, REVERSED),
        }
    }
}

fn title(paint: &mut Paint, model: &Model, y: u16) {
    let clock = humantime::format_rfc3339_seconds(model.wall).to_string();
    let clock = clock.get(11..19).map(|time| format!("{time} UTC")).unwrap_or_default();
    let width = paint.area().width;
    let style = paint.style(Tone::Plain);
    if let Some(host) = &model.host {
        let name = host.hostname.as_deref().unwrap_or("this host");
        let uptime = duration(Duration::from_secs(host.uptime_seconds));
        let text = format!(
            "flatline {} on {name}, Linux {}, up {uptime}, mode {}",
            host.version,
            host.kernel,
            host.mode.as_str()
        );
        paint.text(0, y, width.saturating_sub(13), &text, style);
    }
    paint.right(width, y, &clock, style);
}

fn summary(paint: &mut Paint, model: &Model, y: u16) {
    if model.host.is_none() {
        return;
    }
    let width = paint.area().width;
    let (by, _) = model.column.describe();
    let mut note = format!("by {by}");
    if model.reversed {
        note.push_str(", reversed");
    }
    if !model.filter.is_empty() {
        let (shown, all) = (model.shown.len(), model.rows.len());
        note = format!("{shown} of {all}: /{}  {note}", model.filter);
    }
    // The filter may be of any letters; what is drawn of it is as wide as this says, or narrower.
    let note_width = u16::try_from(safe(&note).width()).unwrap_or(width).min(width / 2);
    let text = severity::summary(model.rows.iter().map(|row| &row.vm));
    let style = paint.style(Tone::Plain);
    paint.text(0, y, width.saturating_sub(note_width + 1), &text, STRONG);
    paint.text(width - note_width, y, note_width, &note, style);
}

/// Where columns stand: each call gives the next one's place, if it has one.
struct Places(u16);

impl Places {
    fn next(&mut self, width: u16) -> Option<(u16, u16)> {
        let at = self.0;
        self.0 = self.0.saturating_add(if width > 0 { width + 1 } else { 0 });
        (width > 0).then_some((at, width))
    }
}

fn header(paint: &mut Paint, y: u16, widths: &Widths) {
    let [vcpu, sent, received, done] = widths.figures;
    let mut places = Places(1);
    let columns = [
        ("VM", widths.name, false),
        ("PID", widths.pid, true),
        ("STATE", widths.state, false),
        ("CPU%", vcpu, true),
        ("TX/s", sent, true),
        ("RX/s", received, true),
        ("IO/s", done, true),
        ("INFL", widths.in_flight, true),
        ("ALIVE", widths.life, true),
        ("RST", widths.restarts, true),
        ("LINE", widths.line, false),
        ("REASON", widths.reason, false),
    ];
    for (name, width, is_figure) in columns {
        let Some((x, width)) = places.next(width) else { continue };
        if is_figure {
            paint.right(x + width, y, name, REVERSED);
        } else {
            paint.text(x, y, width, name, REVERSED);
        }
    }
}

fn draw_row(paint: &mut Paint, y: u16, row: &Row, widths: &Widths) {
    let vm = &row.vm;
    let plain = paint.style(Tone::Plain);
    let tone = paint.style(Tone::of(&vm.state));
    let mut places = Places(1);
    if let Some((x, width)) = places.next(widths.name) {
        paint.text(x, y, width, &vm.name, plain);
    }
    if let Some((x, width)) = places.next(widths.pid) {
        paint.right(x + width, y, &vm.pid.to_string(), plain);
    }
    if let Some((x, width)) = places.next(widths.state) {
        let hold = if vm.hold.is_some() { " H" } else { "" };
        paint.text(x, y, width, &format!("{}{hold}", vm.state), tone);
    }
    let flat = vm.flat_seconds.and_then(|flat| Duration::try_from_secs_f64(flat).ok());
    let figures = [
        percent(row.rate(Rate::Vcpu)),
        figure(row.rate(Rate::PacketsFromGuest)),
        figure(row.rate(Rate::PacketsToGuest)),
        figure(row.rate(Rate::Completed)),
    ];
    let figures = widths.figures.into_iter().zip(figures);
    let more = [
        (widths.in_flight, figure(row.rate(Rate::InFlight))),
        (widths.life, or_dash(flat.map(brief))),
        (widths.restarts, figure(Some(vm.restarts_in_window.into()))),
    ];
    for (width, text) in figures.chain(more) {
        if let Some((x, width)) = places.next(width) {
            paint.right(x + width, y, &text, plain);
        }
    }
    if let Some((x, width)) = places.next(widths.line) {
        let silent = !matches!(&*vm.state, "alive" | "starting" | "held");
        let drawn = line(&life(&row.ticks, width.into()), silent, paint.look.unicode);
        paint.text(x, y, width, &drawn, tone);
    }
    if let Some((x, width)) = places.next(widths.reason) {
        paint.text(x, y, width, &severity::reason(vm), plain);
    }
}
